"""From files to VAE objects: Stage A, and the image encoder with the Previewer."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import comfy.model_management
import comfy.ops
import torch

from ....stages.errors import WrongFile
from ...checkpoints.presets import FormatChoice
from .. import machine
from .load import AUTO, DTYPES, Loaded, ModelPart, device_for, read
from .vae import StageAVAE, StageCVAE


def load_stage_a(source: str | ModelPart, dtype: str = AUTO, device: str = AUTO, **patcher: Any) -> StageAVAE:
    """The Stage A VAE from its own file or an all-in-one checkpoint."""
    loaded = read(source, "stage_a")
    target = device_for(device)
    vae = StageAVAE(loaded.kind.config, vae_dtype(dtype, target), target, comfy.ops.disable_weight_init, **patcher)
    vae.load_weights(loaded)
    name = machine.NAMES[vae.vae_dtype]
    reason = "as the host's flags and its advice say" if dtype == AUTO else "chosen in the node"
    machine.note_choice(vae.patcher, FormatChoice(name, name, reason))
    vae.patcher.cached_patcher_init = (load_stage_a_patcher, (loaded.path, dtype, device))
    return vae


def load_stage_a_patcher(path: str, dtype: str = AUTO, device: str = AUTO, disable_dynamic: bool = False) -> Any:
    """The patcher alone, for hosts that load a model a second time."""
    return load_stage_a(path, dtype, device, disable_dynamic=disable_dynamic).patcher


def load_stage_c_vae(
    encoder: str | ModelPart | None,
    previewer: str | ModelPart | None,
    dtype: str = AUTO,
    device: str = AUTO,
    **patcher: Any,
) -> StageCVAE:
    """Image encoder and Previewer as one VAE; either may be absent (None), or both be in one file."""
    halves = {
        name: None if source is None else read_half(source, name)
        for name, source in (("encoder", encoder), ("previewer", previewer))
    }
    target = device_for(device)
    vae = StageCVAE(
        *(half.kind.config if half else None for half in halves.values()),
        vae_dtype(dtype, target),
        target,
        comfy.ops.disable_weight_init,
        **patcher,
    )
    tensors = {f"{name}.{key}": value for name, half in halves.items() if half for key, value in half.tensors.items()}
    first = next(half for half in halves.values() if half)
    vae.load_weights(Loaded(first.path, first.kind, tensors))
    paths = tuple(half.path if half else None for half in halves.values())
    vae.patcher.cached_patcher_init = (load_stage_c_patcher, (*paths, dtype, device))
    return vae


def load_stage_c_patcher(
    encoder: str | None, previewer: str | None, dtype: str = AUTO, device: str = AUTO, disable_dynamic: bool = False
) -> Any:
    """The patcher alone, for hosts that load a model a second time."""
    return load_stage_c_vae(encoder, previewer, dtype, device, disable_dynamic=disable_dynamic).patcher


def read_half(source: str | ModelPart, name: str) -> Loaded:
    """The encoder or the Previewer (``name``), from a file of its own or of both."""
    loaded = read(source, name, "stage_c_vae")
    if loaded.kind.kind == name:
        return loaded
    config = getattr(loaded.kind.config, name)
    if config is None:
        raise WrongFile(f"{loaded.name} holds no {name}. Choose the file that does.")
    start = f"{name}."
    tensors = {key[len(start) :]: value for key, value in loaded.tensors.items() if key.startswith(start)}
    return Loaded(loaded.path, replace(loaded.kind, config=config), tensors)


def vae_dtype(choice: str, device: torch.device | None) -> torch.dtype:
    """The node's choice, else the host's flags, else its advice for this machine."""
    if choice != AUTO:
        return DTYPES[choice]
    return comfy.model_management.vae_dtype(
        device or comfy.model_management.vae_device(), [torch.bfloat16, torch.float32]
    )
