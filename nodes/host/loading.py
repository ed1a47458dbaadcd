"""From files to the host's MODEL objects: reading, recognising, choosing a dtype, wrapping in a patcher."""
from __future__ import annotations

import logging
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import comfy.model_management
import comfy.model_patcher
import comfy.utils
import torch
from torch import Tensor

from ...stages import convert, layouts, load
from ...stages.errors import WrongFile
from ...stages.files import read_header
from ...stages.layouts import FileKind
from . import files
from .models import DecoderConfig, PriorConfig
from .nets import network_arguments

log = logging.getLogger(__name__)

AUTO = "auto"
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32,
          "fp8_e4m3fn": torch.float8_e4m3fn, "fp8_e5m2": torch.float8_e5m2}
DEVICES = (AUTO, "gpu", "cpu")
MISFIT = re.compile(r"size mismatch for (\S+): .*?torch\.Size\(\[([\d, ]*)\]\).*?torch\.Size\(\[([\d, ]*)\]\)")
"""Key, shape in the file and shape in the network, in the error of ``load_state_dict``."""

@dataclass(frozen=True)
class Loaded:
    """The tensors of one network out of a file, under our names."""

    path: str
    kind: FileKind
    tensors: dict[str, Tensor]

    @property
    def name(self) -> str:
        return os.path.basename(self.path)


def look(path: str) -> FileKind:
    """What the file at ``path`` is, from its header alone; raises :class:`WrongFile` for what is no checkpoint."""
    header = read_header(path)
    return layouts.identify(header.tensors, header.metadata)


def recognise(path: str, *kinds: str) -> FileKind:
    """The part of the file at ``path`` that is one of ``kinds``, from its header; the sentence names the input."""
    try:
        return load.require(look(path), kinds, os.path.basename(path))
    except WrongFile as error:
        title, needs, _ = load.INPUTS[kinds[0]]
        told = f"The '{title}' input needs" in str(error)
        raise error if told else WrongFile(f"{error} The '{title}' input needs {needs}.") from None


def read(path: str, *kinds: str) -> Loaded:
    """Read the network of one of ``kinds`` from the file at ``path`` through the host's own (streaming) reader."""
    name, part = os.path.basename(path), recognise(path, *kinds)
    tensors, metadata = comfy.utils.load_torch_file(path, safe_load=True, return_metadata=True)
    tensors, metadata = comfy.utils.convert_old_quants(tensors, part.prefix, metadata=metadata or {})
    part = load.require(layouts.identify(tensors, metadata), kinds, name)
    if part.config is None:
        raise WrongFile(f"{name} looks like {part.describe()}, but {part.problem or 'it is incomplete'}. Download it again.")
    return Loaded(path, part, convert.normalise(tensors, part))


def weight_dtype(tensors: dict[str, Tensor]) -> torch.dtype | None:
    """The dtype that most of the weights are stored in."""
    return comfy.utils.weight_dtype(tensors)


def load_diffusion(path: str, kind: str, dtype: str = AUTO, disable_dynamic: bool = False) -> Any:
    """A ModelPatcher of Stage C (``kind`` "stage_c") or Stage B ("stage_b") from ``path``.

    ``dtype`` is a name in :data:`DTYPES`, or "auto" for the host's flags and its advice for this machine.
    """
    loaded = read(path, kind)
    patcher = diffusion_from_tensors(loaded, dtype, disable_dynamic)
    patcher.cached_patcher_init = (load_diffusion, (path, kind, dtype))
    return patcher


def diffusion_from_tensors(loaded: Loaded, dtype: str, disable_dynamic: bool = False) -> Any:
    """Build the host's model around our network, and load the tensors into it."""
    is_prior = loaded.kind.kind == "stage_c"
    arguments = network_arguments(loaded.kind.config, "c" if is_prior else "b")
    config = (PriorConfig if is_prior else DecoderConfig)(arguments)
    config.quant_config = comfy.utils.detect_layer_quantization(loaded.tensors, "")
    stored = weight_dtype(loaded.tensors)
    if is_prior and (stored == torch.float16 or dtype == "fp16"):
        config.supported_inference_dtypes = [torch.float16, torch.bfloat16, torch.float32]
    set_dtypes(config, loaded.tensors, stored, dtype)
    device = comfy.model_management.get_torch_device()
    offload = comfy.model_management.unet_offload_device()
    model = config.get_model(loaded.tensors)
    kind = comfy.model_patcher.ModelPatcher if disable_dynamic else comfy.model_patcher.CoreModelPatcher
    patcher = kind(model, load_device=device, offload_device=offload)
    if not comfy.model_management.is_device_cpu(offload):
        model.to(offload)
    load.fill(model.diffusion_model, loaded.tensors, loaded.kind, loaded.name, assign=patcher.is_dynamic(),
              strict=False)
    log.info("%s: %s, weights %s, computing in %s", loaded.name, loaded.kind.describe(), model.get_dtype(),
             model.get_dtype_inference())
    return patcher


def set_dtypes(config: Any, tensors: dict[str, Tensor], stored: torch.dtype | None, choice: str) -> None:
    """Storage and computing dtype: the node's choice, else the host's flags, else its advice."""
    device = comfy.model_management.get_torch_device()
    supported = list(config.supported_inference_dtypes)
    if choice == AUTO:
        storage = comfy.model_management.unet_dtype(
            model_params=comfy.utils.calculate_parameters(tensors), supported_dtypes=supported,
            weight_dtype=None if config.quant_config else stored)
    else:
        storage = DTYPES[choice]
    cast_from = None if config.quant_config else storage
    config.set_inference_dtype(storage, comfy.model_management.unet_manual_cast(cast_from, device, supported))


def lacking(loaded: Loaded, missing: Sequence[str]) -> WrongFile:
    """The sentence for a file without the tensors ``missing``."""
    return WrongFile(load.fault(loaded.name, loaded.kind, "lacks tensors", missing))


def misfit(loaded: Loaded, error: RuntimeError) -> Exception:
    """The sentence for torch's ``error`` about tensors of other shapes; any other error itself."""
    found = [f"{key} is {given.replace(', ', '×')} instead of {needed.replace(', ', '×')}"
             for key, given, needed in MISFIT.findall(str(error))]
    if not found:
        return error
    return WrongFile(load.fault(loaded.name, loaded.kind, "has tensors of the wrong shape", found))


def device_for(choice: str) -> torch.device | None:
    """The device that a node's choice means; None leaves it to the host."""
    if choice == "cpu":
        return torch.device("cpu")
    return comfy.model_management.get_torch_device() if choice == "gpu" else None


@dataclass(frozen=True)
class Parts:
    """Where the parts of a model lie when some of them are inside the checkpoints of the two diffusion models.

    Files are recognised as they are found, so that a wrong one is told before any is loaded.
    """

    prior: str
    decoder: str

    def find(self, role: str, name: str, *kinds: str) -> str | None:
        """Path of the file for ``role``: ``name`` itself, or the checkpoint that holds one of ``kinds``; None for none."""
        if name == files.NONE:
            return None
        if name != files.FROM_CHECKPOINT:
            path = files.find(role, name)
            recognise(path, *kinds)
            return path
        for path in (self.prior, self.decoder):
            found = look(path)
            if any(found.part(kind) for kind in kinds):
                return path
        label = role.replace("_", " ")
        raise WrongFile(f"'{role}' is set to '{files.FROM_CHECKPOINT}', but neither {os.path.basename(self.prior)} nor "
                        f"{os.path.basename(self.decoder)} holds a {label}. Choose the {label}'s own file.")
