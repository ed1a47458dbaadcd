"""Stable Cascade in plain PyTorch: its networks, its diffusion and its files. Knows nothing of any host.

The names below are the ones to start from. They are imported when first asked for, so that what needs no network
(``stages.errors``, the file lists) does not wait for torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

_PLACES = {
    "errors": ("BadValues", "CascadeError", "OutOfMemory", "UnreadableFile", "WrongFile", "WrongInput"),
    "files.convert": ("dequantise", "normalise", "to_comfyui", "to_diffusers", "to_official"),
    "files.header": ("MARKER", "Header", "load_file", "marker_tensor", "marker_text", "read_header", "read_marker"),
    "files.identify": ("FileKind", "identify"),
    "files.kinds": ("KINDS", "Kind", "is_published"),
    "files.load": ("build", "from_file", "from_state_dict", "require"),
    "files.open": ("OpenedModel", "open_model"),
    "nets.backend": ("TORCH", "Backend"),
    "nets.controlnet": ("ControlNet", "ControlNetConfig"),
    "nets.encoder": ("EncoderConfig", "ImageEncoder"),
    "nets.previewer": ("Previewer", "PreviewerConfig"),
    "nets.prior_coder": ("PriorCoder", "PriorCoderConfig"),
    "nets.stage_a": ("StageA", "StageAConfig"),
    "nets.stage_b": ("StageB", "StageBConfig"),
    "nets.stage_c": ("StageC", "StageCConfig"),
}
_PLACE_OF = {name: place for place, names in _PLACES.items() for name in names}

__all__ = sorted(_PLACE_OF)  # noqa: PLE0605 - the names are those of the table above


def __getattr__(name: str) -> Any:
    """A public name, imported when it is asked for: ``stages.errors`` alone brings no torch."""
    if name not in _PLACE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_PLACE_OF[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted((*globals(), *_PLACE_OF))
