"""Stable Cascade in plain PyTorch: its networks, its diffusion and its files. Knows nothing of any host."""
from __future__ import annotations

from . import diffusion, geometry
from .backend import TORCH, Backend
from .controlnet import ControlNet, ControlNetConfig
from .convert import dequantise, normalise, to_comfyui, to_diffusers, to_official
from .encoder import EncoderConfig, ImageEncoder
from .errors import BadValues, CascadeError, OutOfMemory, WrongFile, WrongInput
from .files import Header, load_file, read_header
from .layouts import FileKind, PriorCoderConfig, identify
from .load import PriorCoder, build, from_file, from_state_dict, require
from .marker import MARKER, marker_tensor, marker_text, read_marker
from .previewer import Previewer, PreviewerConfig
from .published import PUBLISHED, is_published
from .stage_a import StageA, StageAConfig
from .stage_b import StageB, StageBConfig
from .stage_c import StageC, StageCConfig

__all__ = [
    "MARKER", "PUBLISHED", "TORCH", "Backend", "BadValues", "CascadeError", "ControlNet", "ControlNetConfig",
    "EncoderConfig", "FileKind", "Header", "ImageEncoder", "OutOfMemory", "Previewer", "PreviewerConfig", "PriorCoder",
    "PriorCoderConfig", "StageA", "StageAConfig", "StageB", "StageBConfig", "StageC", "StageCConfig", "WrongFile",
    "WrongInput", "build", "dequantise", "diffusion", "from_file", "from_state_dict", "geometry", "identify",
    "is_published", "load_file", "marker_tensor", "marker_text", "normalise", "read_header", "read_marker", "require",
    "to_comfyui", "to_diffusers", "to_official",
]
