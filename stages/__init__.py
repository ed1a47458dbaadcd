"""Stable Cascade in plain PyTorch: its networks, its diffusion and its files. Knows nothing of any host."""

from __future__ import annotations

from .errors import BadValues, CascadeError, OutOfMemory, WrongFile, WrongInput
from .files.convert import dequantise, normalise, to_comfyui, to_diffusers, to_official
from .files.header import Header, load_file, read_header
from .files.identify import FileKind, PriorCoderConfig, identify
from .files.load import PriorCoder, build, from_file, from_state_dict, require
from .files.marker import MARKER, marker_tensor, marker_text, read_marker
from .nets.backend import TORCH, Backend
from .nets.controlnet import ControlNet, ControlNetConfig
from .nets.encoder import EncoderConfig, ImageEncoder
from .nets.previewer import Previewer, PreviewerConfig
from .nets.sizes import PUBLISHED, is_published
from .nets.stage_a import StageA, StageAConfig
from .nets.stage_b import StageB, StageBConfig
from .nets.stage_c import StageC, StageCConfig

__all__ = [
    "MARKER",
    "PUBLISHED",
    "TORCH",
    "Backend",
    "BadValues",
    "CascadeError",
    "ControlNet",
    "ControlNetConfig",
    "EncoderConfig",
    "FileKind",
    "Header",
    "ImageEncoder",
    "OutOfMemory",
    "Previewer",
    "PreviewerConfig",
    "PriorCoder",
    "PriorCoderConfig",
    "StageA",
    "StageAConfig",
    "StageB",
    "StageBConfig",
    "StageC",
    "StageCConfig",
    "WrongFile",
    "WrongInput",
    "build",
    "dequantise",
    "from_file",
    "from_state_dict",
    "identify",
    "is_published",
    "load_file",
    "marker_tensor",
    "marker_text",
    "normalise",
    "read_header",
    "read_marker",
    "require",
    "to_comfyui",
    "to_diffusers",
    "to_official",
]
