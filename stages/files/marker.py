"""The marker: the config of a network whose tensors alone do not tell it (head widths, patch sizes, switches).

It is the JSON text ``{"kind": ..., "config": {...}}``, kept in a file's metadata and, where metadata gets lost
(ComfyUI's CheckpointSave), as the bytes of one small tensor; both are named ``cascade_studio.config``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, is_dataclass
from typing import Any

import torch
from torch import Tensor

from ..errors import WrongFile

MARKER = "cascade_studio.config"


def marker_text(kind: str, config: Any) -> str:
    """The marker's JSON text for a network of ``kind`` (``"stage_c"``, …) with ``config`` (a dataclass or dict)."""
    fields = asdict(config) if is_dataclass(config) else dict(config)
    return json.dumps({"kind": kind, "config": fields}, sort_keys=True)


def marker_tensor(kind: str, config: Any) -> Tensor:
    """The marker as a uint8 tensor of UTF-8 bytes, shape (length,)."""
    return torch.frombuffer(bytearray(marker_text(kind, config).encode("utf-8")), dtype=torch.uint8)


def decode_marker(tensor: Tensor) -> str:
    """The text of a marker tensor, also after a cast to a float dtype."""
    codes = tensor.detach().to("cpu", torch.float32).round().clamp(0, 255).to(torch.uint8)
    return bytes(codes.tolist()).decode("utf-8", errors="replace")


def read_marker(
    tensors: Mapping[str, Any], metadata: Mapping[str, str] | None = None
) -> tuple[str, dict[str, Any]] | None:
    """``(kind, config fields)`` from a state dict's marker tensor or from ``metadata``; None without a marker.

    Lists become tuples. Raises :class:`WrongFile` when the marker cannot be read.
    """
    text = (metadata or {}).get(MARKER)
    for key, value in tensors.items():
        if str(key).endswith(MARKER) and isinstance(value, Tensor) and not value.is_meta:
            text = decode_marker(value)
            break
    if text is None:
        return None
    try:
        marker = json.loads(text)
        return str(marker["kind"]), {str(k): as_tuples(v) for k, v in marker["config"].items()}
    except (ValueError, KeyError, TypeError, AttributeError):
        raise WrongFile(
            f"The entry '{MARKER}' of this file cannot be read. It was changed after saving; "
            "take the file as it was saved."
        ) from None


def as_tuples(value: Any) -> Any:
    """``value`` with every list inside it turned into a tuple."""
    return tuple(as_tuples(item) for item in value) if isinstance(value, (list, tuple)) else value
