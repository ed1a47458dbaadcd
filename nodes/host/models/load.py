"""From files to the host's MODEL objects: reading, recognising, choosing a dtype, wrapping in a patcher."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import comfy.model_management
import comfy.model_patcher
import comfy.utils
import torch
from torch import Tensor

from ....stages.errors import UnreadableFile, WrongFile
from ....stages.files import convert, eight_bits, load
from ....stages.files.identify import FileKind
from ....stages.files.kinds import kinds_for
from ....stages.files.open import OpenedModel, OpenedModels
from ....stages.files.quantised import check_numbers
from ...checkpoints.catalogue import FROM_CHECKPOINT, NONE
from ...checkpoints.presets import FormatChoice
from .. import machine
from .finite import watch_runs
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
    machine.FAST_FP8: torch.float8_e4m3fn,
}
DEVICES = (AUTO, "gpu", "cpu")


@dataclass(frozen=True)
class ModelPart:
    """The one network in an opened file that an input is for; nothing of it is in memory yet."""

    opened: OpenedModel
    kind: FileKind


@dataclass(frozen=True)
class Loaded:
    """The tensors of one network out of a file, under our names."""

    path: str
    kind: FileKind
    tensors: dict[str, Tensor]

    @property
    def name(self) -> str:
        """The file's name."""
        return Path(self.path).name


def find_part(path: str, *kinds: str, models: OpenedModels | None = None) -> ModelPart:
    """The part of the file at ``path`` that is one of ``kinds``; a sentence that names the input where there is none.

    ``models`` are the files that this run has opened already.
    """
    try:
        opened = (models or OpenedModels()).open(path)
    except UnreadableFile as error:
        raise UnreadableFile(f"{error} {load.name_need(kinds[0])}.") from None
    return ModelPart(opened, load.require(opened.kind, kinds, opened.name))


def read(source: str | ModelPart, *kinds: str) -> Loaded:
    """Read the network of one of ``kinds`` from a file through the host's own (streaming) reader."""
    part = source if isinstance(source, ModelPart) else find_part(source, *kinds)
    opened, kind = part.opened, load.require(part.kind, kinds, part.opened.name)
    load.check_config(kind, opened.name)
    tensors = opened.read_tensors(lambda path: comfy.utils.load_torch_file(str(path), safe_load=True))
    tensors, _ = comfy.utils.convert_old_quants(tensors, kind.prefix, metadata=dict(opened.header.metadata))
    tensors = convert.normalise(tensors, kind)
    check_numbers(tensors, opened.name, load.list_quantised_keys(tensors))
    if kind.restored:
        log.info("%s: its weights (%s) are turned into bf16", opened.name, kind.quantisation)
    return Loaded(str(opened.path), kind, tensors)


def weight_dtype(tensors: dict[str, Tensor]) -> torch.dtype | None:
    """The dtype that most of the weights are stored in."""
    return comfy.utils.weight_dtype(tensors)


def load_diffusion(
    source: str | ModelPart, kind: str, dtype: str | FormatChoice = AUTO, disable_dynamic: bool = False
) -> Any:
    """A ModelPatcher of Stage C (``kind`` "stage_c") or Stage B ("stage_b") from a file.

    ``dtype`` is a name in :data:`DTYPES`, or "auto" for the host's flags and the advice for this machine. A model that
    the host makes a second time gets what was chosen the first time.
    """
    loaded = read(source, kind)
    patcher = diffusion_from_tensors(loaded, dtype, disable_dynamic)
    patcher.cached_patcher_init = (load_diffusion, (loaded.path, kind, patcher.get_attachment(machine.ATTACHMENT)))
    return patcher


def diffusion_from_tensors(loaded: Loaded, dtype: str | FormatChoice, disable_dynamic: bool = False) -> Any:
    """Build the host's model around our network, and load the tensors into it."""
    is_prior = loaded.kind.kind == "stage_c"
    arguments = network_arguments(loaded.kind.config, "c" if is_prior else "b")
    config = (PriorConfig if is_prior else DecoderConfig)(arguments)
    config.quant_config = comfy.utils.detect_layer_quantization(loaded.tensors, "")
    stored = weight_dtype(loaded.tensors)
    if is_prior and (stored == torch.float16 or dtype == "fp16"):
        config.supported_inference_dtypes = [torch.float16, torch.bfloat16, torch.float32]
    choice = dtype if isinstance(dtype, FormatChoice) else choose_formats(config, loaded, stored, dtype)
    if loaded.kind.restored and not isinstance(dtype, FormatChoice):
        choice = replace(choice, reason=f"{choice.reason}; its file holds {loaded.kind.quantisation}")
    config.set_inference_dtype(machine.DTYPES[choice.storage], cast_to(choice, config.quant_config))
    config.optimizations["fp8"] = choice.storage == machine.FAST_FP8  # the host's own products of 8 bits
    device = comfy.model_management.get_torch_device()
    offload = comfy.model_management.unet_offload_device()
    model = config.get_model(loaded.tensors)
    keep_full_layers(model.diffusion_model, loaded.tensors, choice)
    kind = comfy.model_patcher.ModelPatcher if disable_dynamic else comfy.model_patcher.CoreModelPatcher
    patcher = kind(model, load_device=device, offload_device=offload)
    if not comfy.model_management.is_device_cpu(offload):
        model.to(offload)
    load.fill(
        model.diffusion_model, loaded.tensors, loaded.kind, loaded.name, assign=patcher.is_dynamic(), strict=False
    )
    machine.note_choice(patcher, choice)
    watch_runs(patcher)
    log.info("%s: %s; weights %s", loaded.name, loaded.kind.describe(), choice.describe())
    return patcher


def patch_small_net(
    net: torch.nn.Module, loaded: Loaded, disable_dynamic: bool = False, tensors: dict[str, Tensor] | None = None
) -> Any:
    """The patcher of a network that goes along with a diffusion model, filled with what was loaded.

    ``tensors`` take the place of those of the file.
    """
    net.eval().requires_grad_(False)
    comfy.model_management.archive_model_dtypes(net)
    kind = comfy.model_patcher.ModelPatcher if disable_dynamic else comfy.model_patcher.CoreModelPatcher
    devices = comfy.model_management.get_torch_device(), comfy.model_management.unet_offload_device()
    patcher = kind(net, load_device=devices[0], offload_device=devices[1])
    given = loaded.tensors if tensors is None else tensors
    load.fill(net, given, loaded.kind, loaded.name, assign=patcher.is_dynamic(), strict=False)
    return patcher


def choose_formats(config: Any, loaded: Loaded, stored: torch.dtype | None, dtype: str) -> FormatChoice:
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
    kept = dtype if dtype == machine.FAST_FP8 else machine.NAMES[storage]
    return FormatChoice(kept, machine.NAMES[compute or storage], reason)


def computes_in_bf16(device: torch.device) -> bool:
    """Whether ``device`` is a processor with instructions for bf16, which the host does not ask for."""
    return (
        comfy.model_management.is_device_cpu(device) and not machine.has_dtype_flag() and machine.processor_has_bf16()
    )


def keep_full_layers(net: torch.nn.Module, tensors: Mapping[str, Tensor], choice: FormatChoice) -> None:
    """Let the layers of ``net`` that do not bear storage in 8 bits hold ``tensors`` in 16, before they are filled."""
    kept = eight_bits.choose_full_layers(tensors, machine.DTYPES[choice.storage])
    dtype = torch.float16 if choice.compute == "fp16" else torch.bfloat16
    for name, parameter in net.named_parameters() if kept else ():
        if name in kept:
            parameter.data = parameter.data.to(dtype)


def cast_to(choice: FormatChoice, quantised: Any) -> torch.dtype | None:
    """The format that the host casts weights to at use; None where they are computed in as they are."""
    return None if choice.compute == choice.storage and not quantised else machine.DTYPES[choice.compute]


def device_for(choice: str) -> torch.device | None:
    """The device that a node's choice means; None leaves it to the host."""
    if choice == "cpu":
        return torch.device("cpu")
    return comfy.model_management.get_torch_device() if choice == "gpu" else None


@dataclass(frozen=True)
class Parts:
    """Where the parts of a model lie when some of them are inside the checkpoints of the two diffusion models.

    ``paths`` holds by input a path, or one of the two words that are no file; ``models`` are the files that are open
    already, ``namesakes`` further ones of the same names, in which a checkpoint's parts may lie. Files are recognised
    as they are asked for, so that a wrong one is told before any is loaded.
    """

    paths: Mapping[str, str]
    models: OpenedModels
    namesakes: Mapping[str, Sequence[str]] = field(default_factory=dict)

    def find(self, role: str) -> ModelPart | None:
        """The network for ``role``: in its own file, or inside one of the checkpoints; None for none."""
        path, kinds = self.paths[role], kinds_for(role)
        if path == NONE:
            return None
        if path != FROM_CHECKPOINT:
            return find_part(path, *kinds, models=self.models)
        checkpoints = [self.paths[role] for role in ("prior", "decoder")]
        others = [path for role in ("prior", "decoder") for path in self.namesakes.get(role, ())]
        for path in dict.fromkeys([*checkpoints, *others]):
            opened = self.models.open(path)
            if part := next(filter(None, map(opened.kind.part, kinds)), None):
                return ModelPart(opened, part)
        label, (first, second) = role.replace("_", " "), (Path(path).name for path in checkpoints)
        raise WrongFile(
            f"'{role}' is set to '{FROM_CHECKPOINT}', but neither {first} nor {second} holds a "
            f"{label}. Choose the {label}'s own file."
        )
