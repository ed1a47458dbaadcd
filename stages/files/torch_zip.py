"""PyTorch's zip archives (``torch.save``), in which some models are published, by the weights-only reader.

That reader knows tensors, numbers and containers, and makes no object of any other class, so it runs no code.
"""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import UnreadableFile

MAGIC = b"PK\x03\x04"
SAFE_FROM = (2, 6)
"""The PyTorch from which on the weights-only reader is sound (CVE-2025-32434)."""


def is_torch_zip(path: str | Path) -> bool:
    """Whether the file at ``path`` begins as an archive of ``torch.save`` does, whatever it is called."""
    try:
        with Path(path).open("rb") as file:
            return file.read(len(MAGIC)) == MAGIC
    except OSError:
        return False


def load_torch_zip(path: str | Path) -> dict[str, Tensor]:
    """The tensors in an archive, mapped into memory; names of nested dicts are joined by dots.

    Raises :class:`UnreadableFile` for one that holds anything but tensors, numbers and containers.
    """
    path = Path(path)
    if tuple(map(int, torch.__version__.split(".")[:2])) < SAFE_FROM:
        raise UnreadableFile(
            f"{path.name} is a PyTorch pickle. Pickles can run code, and this PyTorch ({torch.__version__}) cannot "
            "read one safely, so it is not opened here. Update PyTorch, or convert the file to safetensors."
        )
    try:
        found = torch.load(str(path), map_location="cpu", weights_only=True, mmap=True)
    except (RuntimeError, ValueError, KeyError, EOFError, OSError, pickle.UnpicklingError, zipfile.BadZipFile):
        found = None
    tensors = dict(flatten("", found)) if isinstance(found, Mapping) else {}
    if not tensors:
        raise UnreadableFile(
            f"{path.name} is a PyTorch pickle that is damaged or holds more than tensors. Pickles can run code, so it "
            "is not opened here. Convert it to safetensors, or download the safetensors version."
        )
    return tensors


def flatten(start: str, values: Mapping[Any, Any]) -> list[tuple[str, Tensor]]:
    """Every tensor in nested dicts, with the names on the way to it behind ``start``."""
    found: list[tuple[str, Tensor]] = []
    for name, value in values.items():
        if isinstance(value, Tensor):
            found.append((f"{start}{name}", value))
        elif isinstance(value, Mapping):
            found += flatten(f"{start}{name}.", value)
    return found
