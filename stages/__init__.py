"""Stable Cascade in plain PyTorch: its networks, its diffusion and its files. Knows nothing of any host.

The names below are the ones to start from. They are imported when first asked for, so that what needs no network
(``stages.errors``, the file lists) does not wait for torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

if __name__ == "stages":
    raise ImportError("The pack is imported by its name: cascade_studio.stages.")

_HOME = {
    "errors": ("BadValues", "CascadeError", "OutOfMemory", "WrongFile", "WrongInput"),
    "files.convert": ("dequantise", "normalise", "to_comfyui", "to_diffusers", "to_official"),
    "files.header": ("Header", "load_file", "read_header"),
    "files.identify": ("FileKind", "PriorCoderConfig", "identify"),
    "files.load": ("PriorCoder", "build", "from_file", "from_state_dict", "require"),
    "files.marker": ("MARKER", "marker_tensor", "marker_text", "read_marker"),
    "nets.backend": ("TORCH", "Backend"),
    "nets.controlnet": ("ControlNet", "ControlNetConfig"),
    "nets.encoder": ("EncoderConfig", "ImageEncoder"),
    "nets.previewer": ("Previewer", "PreviewerConfig"),
    "nets.sizes": ("PUBLISHED", "is_published"),
    "nets.stage_a": ("StageA", "StageAConfig"),
    "nets.stage_b": ("StageB", "StageBConfig"),
    "nets.stage_c": ("StageC", "StageCConfig"),
}
__all__ = sorted(name for names in _HOME.values() for name in names)  # noqa: PLE0605 - names, made from the table


def __getattr__(name: str) -> Any:
    for home, names in _HOME.items():
        if name in names:
            return getattr(import_module(f".{home}", __name__), name)
    raise AttributeError(f"{__name__} has no {name}")
