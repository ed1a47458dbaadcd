"""From files to the host's MODEL objects: reading, recognising, choosing a dtype, wrapping in a patcher."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import comfy.model_management
import comfy.model_patcher
import comfy.utils
import torch
from torch import Tensor

from ....stages.errors import WrongFile
from ....stages.files import convert, identify, load
from ....stages.files.header import read_header
from ....stages.files.identify import FileKind
from ...checkpoints.presets import Choice
from .. import machine
from ..files import names
from .model import DecoderConfig, PriorConfig
from .nets import network_arguments

log = logging.getLogger(__name__)

AUTO = "auto"
DTYPES = {
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
    "fp32": torch.float32,
    "fp8_e4m3fn": torch.float8_e4m3fn,
    "fp8_e5m2": torch.float8_e5m2,
}
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
    return identify.identify(header.tensors, header.metadata)


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
    part = load.require(identify.identify(tensors, metadata), kinds, name)
    if part.config is None:
        raise WrongFile(
            f"{name} looks like {part.describe()}, but {part.problem or 'it is incomplete'}. Download it again."
        )
    return Loaded(path, part, convert.normalise(tensors, part))


def weight_dtype(tensors: dict[str, Tensor]) -> torch.dtype | None:
    """The dtype that most of the weights are stored in."""
    return comfy.utils.weight_dtype(tensors)


def load_diffusion(path: str, kind: str, dtype: str | Choice = AUTO, disable_dynamic: bool = False) -> Any:
    """A ModelPatcher of Stage C (``kind`` "stage_c") or Stage B ("stage_b") from ``path``.

    ``dtype`` is a name in :data:`DTYPES`, or "auto" for the host's flags and the advice for this machine. A model that
    the host makes a second time gets what was chosen the first time.
    """
    loaded = read(path, kind)
    patcher = diffusion_from_tensors(loaded, dtype, disable_dynamic)
    patcher.cached_patcher_init = (load_diffusion, (path, kind, patcher.get_attachment(machine.ATTACHMENT)))
    return patcher


def diffusion_from_tensors(loaded: Loaded, dtype: str | Choice, disable_dynamic: bool = False) -> Any:
    """Build the host's model around our network, and load the tensors into it."""
    is_prior = loaded.kind.kind == "stage_c"
    arguments = network_arguments(loaded.kind.config, "c" if is_prior else "b")
    config = (PriorConfig if is_prior else DecoderConfig)(arguments)
    config.quant_config = comfy.utils.detect_layer_quantization(loaded.tensors, "")
    stored = weight_dtype(loaded.tensors)
    if is_prior and (stored == torch.float16 or dtype == "fp16"):
        config.supported_inference_dtypes = [torch.float16, torch.bfloat16, torch.float32]
    choice = dtype if isinstance(dtype, Choice) else choose(config, loaded, stored, dtype)
    config.set_inference_dtype(machine.DTYPES[choice.storage], cast_to(choice, config.quant_config))
    device = comfy.model_management.get_torch_device()
    offload = comfy.model_management.unet_offload_device()
    model = config.get_model(loaded.tensors)
    kind = comfy.model_patcher.ModelPatcher if disable_dynamic else comfy.model_patcher.CoreModelPatcher
    patcher = kind(model, load_device=device, offload_device=offload)
    if not comfy.model_management.is_device_cpu(offload):
        model.to(offload)
    load.fill(
        model.diffusion_model, loaded.tensors, loaded.kind, loaded.name, assign=patcher.is_dynamic(), strict=False
    )
    machine.note_choice(patcher, choice)
    log.info("%s: %s; weights %s", loaded.name, loaded.kind.describe(), choice.describe())
    return patcher


def choose(config: Any, loaded: Loaded, stored: torch.dtype | None, dtype: str) -> Choice:
    """Formats of storage and computing: the node's choice, else the host's flags, else the advice for this machine."""
    parameters = comfy.utils.calculate_parameters(loaded.tensors)
    if dtype == AUTO and not config.quant_config:
        found = machine.choose_format(loaded.kind.kind, stored, parameters)
        if found:
            return found
    device, supported = comfy.model_management.get_torch_device(), list(config.supported_inference_dtypes)
    if dtype == AUTO:
        storage = comfy.model_management.unet_dtype(
            model_params=parameters, supported_dtypes=supported, weight_dtype=None if config.quant_config else stored
        )
        reason = (
            "as the host's flags say" if machine.has_dtype_flag() else "as the file is stored, and the host advises"
        )
    else:
        storage, reason = DTYPES[dtype], "chosen in the node"
    compute = comfy.model_management.unet_manual_cast(None if config.quant_config else storage, device, supported)
    if compute == torch.float32 and storage not in (torch.float32, torch.float16) and computes_in_bf16(device):
        compute = torch.bfloat16
    return Choice(machine.NAMES[storage], machine.NAMES[compute or storage], reason)


def computes_in_bf16(device: torch.device) -> bool:
    """Whether ``device`` is a processor with instructions for bf16, which the host does not ask for."""
    return (
        comfy.model_management.is_device_cpu(device) and not machine.has_dtype_flag() and machine.processor_has_bf16()
    )


def cast_to(choice: Choice, quantised: Any) -> torch.dtype | None:
    """The format that the host casts weights to at use; None where they are computed in as they are."""
    return None if choice.compute == choice.storage and not quantised else machine.DTYPES[choice.compute]


def lacking(loaded: Loaded, missing: Sequence[str]) -> WrongFile:
    """The sentence for a file without the tensors ``missing``."""
    return WrongFile(load.fault(loaded.name, loaded.kind, "lacks tensors", missing))


def misfit(loaded: Loaded, error: RuntimeError) -> Exception:
    """The sentence for torch's ``error`` about tensors of other shapes; any other error itself."""
    found = [
        f"{key} is {given.replace(', ', '×')} instead of {needed.replace(', ', '×')}"
        for key, given, needed in MISFIT.findall(str(error))
    ]
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

    ``paths`` holds by input a path, or one of the two words that are no file. Files are recognised as they are asked
    for, so that a wrong one is told before any is loaded.
    """

    paths: Mapping[str, str]

    def find(self, role: str, *kinds: str) -> str | None:
        """Path of the file for ``role``: its own, or the checkpoint that holds one of ``kinds``; None for none."""
        path = self.paths[role]
        if path == names.NONE:
            return None
        if path != names.FROM_CHECKPOINT:
            recognise(path, *kinds)
            return path
        checkpoints = [self.paths[role] for role in ("prior", "decoder")]
        for path in checkpoints:
            found = look(path)
            if any(found.part(kind) for kind in kinds):
                return path
        label, (first, second) = role.replace("_", " "), map(os.path.basename, checkpoints)
        raise WrongFile(
            f"'{role}' is set to '{names.FROM_CHECKPOINT}', but neither {first} nor {second} holds a "
            f"{label}. Choose the {label}'s own file."
        )
