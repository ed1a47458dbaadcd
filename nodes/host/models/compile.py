"""A MODEL whose blocks go through PyTorch's compiler."""

from __future__ import annotations

from typing import Any

from ....stages.nets.compiled import BlockCompiler
from .hooks import COMPILER_KEY


def compile_blocks(model: Any) -> Any:
    """A clone of ``model`` (ours) whose residual blocks run compiled where that is possible.

    It lies in the model's options and touches neither the network nor its weights, so the model streams, is patched and
    hooked as before, and stays what the host's memory management knows.
    """
    clone = model.clone()
    clone.model_options.setdefault("transformer_options", {})[COMPILER_KEY] = BlockCompiler()
    return clone
