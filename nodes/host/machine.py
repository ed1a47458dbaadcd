"""What this machine can do, asked of the host, torch and the processor; nothing is measured."""

from __future__ import annotations

import logging
from typing import Any

import comfy.model_management
import torch
from comfy.cli_args import args

from ...stages.nets.backend import processor_has_bf16
from ..checkpoints import presets
from ..checkpoints.presets import FormatChoice, Machine

log = logging.getLogger(__name__)

FLAGS = (
    "fp32_unet",
    "fp64_unet",
    "bf16_unet",
    "fp16_unet",
    "fp8_e4m3fn_unet",
    "fp8_e5m2_unet",
    "fp8_e8m0fnu_unet",
    "force_fp32",
    "force_fp16",
)
"""Switches of the host that settle the format of diffusion models."""

DTYPES = {
    "fp64": torch.float64,
    "fp32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
    "fp8_e4m3fn": torch.float8_e4m3fn,
    "fp8_e5m2": torch.float8_e5m2,
}
if hasattr(torch, "float8_e8m0fnu"):
    DTYPES["fp8_e8m0fnu"] = torch.float8_e8m0fnu
NAMES = {dtype: name for name, dtype in DTYPES.items()}
FAST_FP8 = "fp8_e4m3fn_fast"
"""As fp8_e4m3fn, and computed in 8 bits as well where the card can; the host's own name for it."""
DTYPES[FAST_FP8] = torch.float8_e4m3fn
ATTACHMENT = "cascade_studio_choice"


def has_dtype_flag() -> bool:
    """Whether the host was started with a switch for the format of diffusion models."""
    return any(getattr(args, name, False) for name in FLAGS)


def describe_machine() -> Machine:
    """The device that the host computes on."""
    device = comfy.model_management.get_torch_device()
    if comfy.model_management.is_device_cpu(device):
        bf16 = processor_has_bf16()
        return Machine("cpu", "this processor", bf16, False, True, measure_room(device))
    kind = "mps" if comfy.model_management.is_device_mps(device) else device.type
    name = torch.cuda.get_device_name(device) if kind == "cuda" else f"the graphics device ({kind})"
    return Machine(
        kind,
        name,
        comfy.model_management.should_use_bf16(device),
        comfy.model_management.should_use_fp16(device),
        kind in ("cuda", "xpu"),
        measure_room(device),
    )


def measure_room(device: torch.device) -> int | None:
    """All memory of ``device`` in bytes; None on DirectML, where the host says 1 GiB whatever there is."""
    if device.type == "privateuseone":
        return None
    return int(comfy.model_management.get_total_memory(device))


def choose_format(stage: str, stored: torch.dtype | None, parameters: int) -> FormatChoice | None:
    """The advice for weights of ``stage``; None where the host's flags or the file's own format decide."""
    if has_dtype_flag() or NAMES.get(stored) not in ("fp32", "bf16", "fp16"):
        return None
    return presets.advise_format(describe_machine(), stage, NAMES[stored], parameters)


def note_choice(patcher: Any, choice: FormatChoice) -> None:
    """Note the choice on the model, so that the node can tell it."""
    patcher.set_attachments(ATTACHMENT, choice)


def describe_choice(model: Any) -> str:
    """A line on the formats of a loaded MODEL or VAE of ours, and why they were taken; "" for others."""
    patcher = getattr(model, "patcher", model)
    choice = patcher.get_attachment(ATTACHMENT) if hasattr(patcher, "get_attachment") else None
    return f"{getattr(patcher.model, 'stage', 'Stage A')} in {choice.describe()}." if choice else ""
