"""From files to VAE objects: Stage A, and the image encoder with the Previewer."""

from __future__ import annotations

from typing import Any

import comfy.model_management
import comfy.ops
import torch
from torch import Tensor

from ....stages.errors import WrongFile
from ...checkpoints.presets import Choice
from .. import machine
from .load import AUTO, DTYPES, Loaded, device_for, read
from .vae import StageAVAE, StageCVAE


def load_stage_a(path: str, dtype: str = AUTO, device: str = AUTO, **patcher: Any) -> StageAVAE:
    """The Stage A VAE from its own file or an all-in-one checkpoint."""
    loaded = read(path, "stage_a")
    target = device_for(device)
    vae = StageAVAE(loaded.kind.config, vae_dtype(dtype, target), target, comfy.ops.disable_weight_init, **patcher)
    vae.load_weights(loaded)
    name = machine.NAMES[vae.vae_dtype]
    reason = "as the host's flags and its advice say" if dtype == AUTO else "chosen in the node"
    machine.note_choice(vae.patcher, Choice(name, name, reason))
    vae.patcher.cached_patcher_init = (load_stage_a_patcher, (path, dtype, device))
    return vae


def load_stage_a_patcher(path: str, dtype: str = AUTO, device: str = AUTO, disable_dynamic: bool = False) -> Any:
    """The patcher alone, for hosts that load a model a second time."""
    return load_stage_a(path, dtype, device, disable_dynamic=disable_dynamic).patcher


def load_stage_c_vae(
    encoder_path: str | None, previewer_path: str | None, dtype: str = AUTO, device: str = AUTO, **patcher: Any
) -> StageCVAE:
    """Image encoder and Previewer as one VAE; either may be absent (None), or both be in one file."""
    halves = {
        name: None if path is None else half(path, name)
        for name, path in (("encoder", encoder_path), ("previewer", previewer_path))
    }
    target = device_for(device)
    configs = {name: found[0] if found else None for name, found in halves.items()}
    vae = StageCVAE(
        configs["encoder"],
        configs["previewer"],
        vae_dtype(dtype, target),
        target,
        comfy.ops.disable_weight_init,
        **patcher,
    )
    tensors = {f"{name}.{key}": value for name, found in halves.items() if found for key, value in found[1].items()}
    any_loaded = next(found[2] for found in halves.values() if found)
    vae.load_weights(Loaded(any_loaded.path, any_loaded.kind, tensors))
    vae.patcher.cached_patcher_init = (load_stage_c_patcher, (encoder_path, previewer_path, dtype, device))
    return vae


def load_stage_c_patcher(
    encoder_path: str | None,
    previewer_path: str | None,
    dtype: str = AUTO,
    device: str = AUTO,
    disable_dynamic: bool = False,
) -> Any:
    """The patcher alone, for hosts that load a model a second time."""
    return load_stage_c_vae(encoder_path, previewer_path, dtype, device, disable_dynamic=disable_dynamic).patcher


def half(path: str, name: str) -> tuple[Any, dict[str, Tensor], Loaded] | None:
    """Configuration and tensors of the encoder or the Previewer, from a file of its own or of both."""
    loaded = read(path, name, "stage_c_vae")
    if loaded.kind.kind == name:
        return loaded.kind.config, loaded.tensors, loaded
    config = getattr(loaded.kind.config, name)
    if config is None:
        raise WrongFile(f"{loaded.name} holds no {name}. Choose the file that does.")
    start = f"{name}."
    return config, {key[len(start) :]: value for key, value in loaded.tensors.items() if key.startswith(start)}, loaded


def vae_dtype(choice: str, device: torch.device | None) -> torch.dtype:
    """The node's choice, else the host's flags, else its advice for this machine."""
    if choice != AUTO:
        return DTYPES[choice]
    return comfy.model_management.vae_dtype(
        device or comfy.model_management.vae_device(), [torch.bfloat16, torch.float32]
    )
