"""What training gives: a LoRA file under ComfyUI's names or in the official layout, and learned words."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path, PurePath

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from .checkpoint import write_tensors
from .lora_layers import QKV, Lora, attention_names, flatten_name
from .settings import Settings

PREFIX = {"stage_c": "lora_prior_unet_", "stage_b": "lora_unet_", "text_encoder": "lora_prior_te_"}
"""What the keys of a LoRA file have before the layer's name."""
RUN, SETTINGS, TOKENS = "cascade_studio.run", "cascade_studio.training", "cascade_studio.tokens"
"""Metadata: the identity of the run that made a file, its settings as JSON, and for the official layout its new words,
each with the pattern of the vocabulary's words that it starts from."""


def comfyui_names(lora: Lora, weights: Mapping[str, Tensor], prefix: str = PREFIX["stage_c"]) -> dict[str, Tensor]:
    """The tensors as core's LoRA loader reads them, ``alpha`` beside each layer's; float32."""
    return {f"{prefix}{key}.{name}": value for key, parts in lora.name_parts(weights) for name, value in parts.items()}


def official_names(lora: Lora, weights: dict[str, Tensor], net: nn.Module) -> dict[str, Tensor]:
    """The positional layout of the official trainer: for each attention its out_proj, then its fused in_proj.

    There the scale is 1/rank, so alpha is multiplied into ``lora_up``. Needs a LoRA with ``shared`` downs.
    """
    pairs = {key: (up, down) for key, up, down in lora.pairs(weights)}
    tensors: dict[str, Tensor] = {}
    for number, name in enumerate(attention_names(net)):
        out, parts = pairs[flatten_name(f"{name}.out_proj")], [pairs[flatten_name(f"{name}.{part}")] for part in QKV]
        fused = torch.cat([up for up, _ in parts]), parts[0][1]
        for index, (up, down) in ((2 * number, out), (2 * number + 1, fused)):
            tensors[f"weights.{index}.lora_up"], tensors[f"weights.{index}.lora_down"] = up * lora.alpha, down
    return tensors


def metadata(settings: Settings, identity: str, steps: int, **more: str) -> dict[str, str]:
    """What a file says about its training, no folder of its maker among it; the ``ss_`` names are those that other
    tools read of LoRAs."""
    told = replace(settings, start_from=PurePath(settings.start_from).name)
    named = {
        "ss_network_module": "networks.lora",
        "ss_network_dim": str(settings.rank),
        "ss_network_alpha": str(settings.alpha),
        "ss_steps": str(steps),
        "ss_output_name": settings.name,
        "ss_base_model_version": "stable_cascade",
    }
    return {
        "format": "pt",
        **(named if settings.is_lora else {}),
        RUN: identity,
        SETTINGS: json.dumps(told.as_dict(), sort_keys=True),
        **more,
    }


def save_tensors(
    tensors: Mapping[str, Tensor], path: Path, told: dict[str, str], dtype: torch.dtype | None = torch.float16
) -> None:
    """Write the file in one step; ``dtype`` is that of all tensors of floats with dimensions, None leaves them."""
    compact = {}
    for key, value in tensors.items():
        narrow = dtype is not None and value.ndim and value.is_floating_point()
        compact[key] = value.detach().to("cpu", dtype if narrow else value.dtype).contiguous()
    write_tensors(path, compact, told)


def read_run(path: Path) -> str:
    """The identity of the run that wrote ``path``; "" for files that were made otherwise."""
    try:
        with safe_open(path, "pt") as file:
            return (file.metadata() or {}).get(RUN, "")
    except (SafetensorError, OSError):
        return ""


def find_free_path(folder: Path, name: str, identity: str) -> Path:
    """Where the run ``identity`` may write ``name``.safetensors: files of other origin are never replaced."""
    number, path = 1, folder / f"{name}.safetensors"
    while path.exists() and read_run(path) != identity:
        number += 1
        path = folder / f"{name}_{number}.safetensors"
    return path
