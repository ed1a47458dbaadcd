"""ControlNets of Stage C as the host's CONTROL_NET: loading, memory, and maps in the order in which it passes them.

The host hands control maps over as a list that begins with the last ResBlock, and adds the lists of chained nets by
index. A list that does not hold an entry for every ResBlock would land on the wrong ones, so ours always do.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from typing import Any

import comfy.controlnet
import comfy.model_base
import comfy.model_management
import comfy.model_patcher
import comfy.ops
import comfy.utils
import torch
from comfy.ldm.cascade.common import ResBlock
from torch import Tensor
from torch.nn import functional as F

from ....stages.errors import WrongInput
from ....stages.files import convert, load
from ....stages.inputs import control_rules as rules
from ....stages.inputs.control_rules import BlockWeights
from ....stages.nets.controlnet import ControlNet, ControlNetConfig
from ....stages.nets.unet import UNetConfig
from ..models.backend import backend_for
from ..models.load import AUTO, read
from ..models.load_vae import vae_dtype
from ..models.model import check_finite

log = logging.getLogger(__name__)

KEYS = ("input", "middle", "output")
COUNTED_CELLS = (24**2, 64**2)
"""The grids of 1024 and 2731 px pictures, between which the memory estimate takes a picture hint to be used."""


@dataclass
class ControlRun:
    """What one sampling run knows: the depth of its Stage C, and the maps by size of the latent."""

    res_blocks: int
    maps: dict[tuple[int, int], dict[int, Tensor]] = field(default_factory=dict)


class CascadeControl(comfy.controlnet.ControlBase):
    """One ControlNet with its hint; copies share the network."""

    def __init__(self, patcher: Any):
        super().__init__()
        self.patcher = patcher
        self.weights = BlockWeights()
        self.run: ControlRun | None = None

    @property
    def config(self) -> ControlNetConfig:
        return self.patcher.model.config

    def set_cond_hint(self, cond_hint: Tensor, *args: Any, **kwargs: Any) -> CascadeControl:
        """As the host's; raises ``WrongInput`` for the hint of another ControlNet."""
        rules.check_hint(self.config, cond_hint.shape[1])
        return super().set_cond_hint(cond_hint, *args, **kwargs)

    def copy(self) -> CascadeControl:
        copied = CascadeControl(self.patcher)
        self.copy_to(copied)
        copied.weights = self.weights
        return copied

    def deepclone_multigpu(self, load_device: torch.device, autoregister: bool = False) -> CascadeControl:
        """A copy with a network of its own on another device."""
        copied = self.copy()
        copied.patcher = self.patcher.deepclone_multigpu(new_load_device=load_device)
        if autoregister:
            self.multigpu_clones[load_device] = copied
        return copied

    def get_models(self) -> list[Any]:
        return [*super().get_models(), self.patcher]

    def inference_memory_requirements(self, dtype: torch.dtype) -> float:
        """Bytes that making the maps takes beside the weights, and those of the nets before this one."""
        net, shape = self.patcher.model, self.cond_hint_original.shape
        least, most = (cells * self.config.cell**2 for cells in COUNTED_CELLS)
        pixels = max(shape[-1] * shape[-2], least)  # a picture is scaled to the grid, which is not known yet
        pixels = min(pixels, most) if self.config.cell > 1 else pixels
        own = net.memory(shape[0], pixels, comfy.model_management.dtype_size(net.dtype))
        return own + super().inference_memory_requirements(dtype)

    def pre_run(self, model: Any, percent_to_timestep_function: Any) -> None:
        """Called before every sampling run: what an earlier run left behind is gone."""
        super().pre_run(model, percent_to_timestep_function)
        self.run = None
        if isinstance(model, comfy.model_base.StableCascade_C):
            width, count = depth(model.diffusion_model)
            rules.check_model(self.config, width, count)
            self.run = ControlRun(count)
        elif not isinstance(model, comfy.model_base.StableCascade_B):  # which ControlNets do not touch
            raise WrongInput(
                f"The {rules.name_controlnet(self.config)} of Stable Cascade was given to a {type(model).__name__} "
                "model. It works on Stage C of Stable Cascade: use a ControlNet of this model's own kind."
            )

    def cleanup(self) -> None:
        super().cleanup()
        self.run = None

    def get_control(
        self, x_noisy: Tensor, t: Tensor, cond: Any, batched_number: int, transformer_options: Any
    ) -> dict[str, list[Tensor | None]] | None:
        """The host's control maps for one call of the model, those of the nets before this one included."""
        previous = None
        if self.previous_controlnet is not None:
            previous = self.previous_controlnet.get_control(x_noisy, t, cond, batched_number, transformer_options)
        if self.run is None or not self.active(t):
            return previous
        count = self.run.res_blocks
        blocks: list[Tensor | None] = [None] * count
        for block, values in self.maps(self.run, x_noisy).items():
            weight = self.weights.at(block, count)
            if weight:
                values = comfy.controlnet.broadcast_image_to(values, x_noisy.shape[0], batched_number)
                # A copy: the host multiplies by the strength in place.
                blocks[block] = values.to(x_noisy.dtype) * weight
        return self.control_merge({"input": blocks[::-1]}, aligned(previous, count), x_noisy.dtype)

    def active(self, t: Tensor) -> bool:
        """Whether the noise level ``t`` (B,) lies between start and end."""
        return self.timestep_range is None or bool(self.timestep_range[1] <= t[0] <= self.timestep_range[0])

    @torch.no_grad()
    def maps(self, run: ControlRun, x_noisy: Tensor) -> dict[int, Tensor]:
        """The maps by ResBlock for a latent (B, 16, h, w), made once a run and size."""
        height, width = x_noisy.shape[-2:]
        if (height, width) not in run.maps:
            net = self.patcher.model
            hint = fitted(self.cond_hint_original, self.config, height, width).to(x_noisy.device, net.dtype)
            found = net(hint)
            for values in found.values():
                check_finite(values, f"The {rules.name_controlnet(self.config)}", net.dtype, hint)
            run.maps[height, width] = found
        return run.maps[height, width]


class MaskedControl(comfy.controlnet.ControlBase):
    """A chain of ControlNets of any kind whose maps act in a part of the picture only: they are multiplied by a mask.

    ``inner`` is that chain, ``mask`` (B or 1, h, w) between 0 and 1, averaged over the cells of each map. What comes
    before it (``previous_controlnet``) is left as it is. An area's prompt sees hint and mask fitted into its area.
    """

    def __init__(self, inner: Any, mask: Tensor):
        super().__init__()
        self.inner, self.mask = inner, mask
        self.count = 0

    def copy(self) -> MaskedControl:
        copied = MaskedControl(self.inner, self.mask)
        self.copy_to(copied)
        return copied

    def deepclone_multigpu(self, load_device: torch.device, autoregister: bool = False) -> MaskedControl:
        """A copy with networks of its own on another device."""
        copied = MaskedControl(cloned_chain(self.inner, load_device), self.mask)
        self.copy_to(copied)
        if autoregister:
            self.multigpu_clones[load_device] = copied
        return copied

    def get_models(self) -> list[Any]:
        return [*super().get_models(), *self.inner.get_models()]

    def get_extra_hooks(self) -> list[Any]:
        return [*super().get_extra_hooks(), *self.inner.get_extra_hooks()]

    def inference_memory_requirements(self, dtype: torch.dtype) -> float:
        return self.inner.inference_memory_requirements(dtype) + super().inference_memory_requirements(dtype)

    def pre_run(self, model: Any, percent_to_timestep_function: Any) -> None:
        super().pre_run(model, percent_to_timestep_function)
        self.inner.pre_run(model, percent_to_timestep_function)
        prior = isinstance(model, comfy.model_base.StableCascade_C)
        self.count = depth(model.diffusion_model)[1] if prior else 0

    def cleanup(self) -> None:
        super().cleanup()
        self.inner.cleanup()

    def get_control(
        self, x_noisy: Tensor, t: Tensor, cond: Any, batched_number: int, transformer_options: Any
    ) -> dict[str, list[Tensor | None]] | None:
        """The masked maps of ``inner`` and those of the nets before, for one call of the model."""
        given = (x_noisy, t, cond, batched_number, transformer_options)
        previous = None if self.previous_controlnet is None else self.previous_controlnet.get_control(*given)
        found = aligned(self.inner.get_control(*given), self.count)
        if found is None:
            return previous
        mask = comfy.controlnet.broadcast_image_to(self.mask[:, None], x_noisy.shape[0], batched_number)
        masked = [None if values is None else values * at_size(mask, values) for values in found["input"]]
        return self.control_merge({"input": masked}, aligned(previous, self.count), x_noisy.dtype)


def at_size(mask: Tensor, maps: Tensor) -> Tensor:
    """A mask (B, 1, h, w) at the size of ``maps`` (B, C, h, w)."""
    return F.interpolate(mask.float().clamp(0, 1), maps.shape[-2:], mode="area").to(maps)


def checked_mask(mask: Tensor, where: str) -> Tensor:
    """A MASK as (B, h, w)."""
    mask = mask[None] if mask.ndim == 2 else mask
    if mask.ndim != 3 or 0 in mask.shape:
        raise WrongInput(
            f"{where} got a mask of shape {tuple(mask.shape)}. It needs a MASK, (batch, height, width): "
            "draw one in the mask editor, or use a node that makes masks."
        )
    return mask


def cloned_chain(control: Any, device: torch.device) -> Any:
    """``control`` and the nets before it with networks of their own on ``device``."""
    if control is None:
        return None
    return control.deepclone_multigpu(device).set_previous_controlnet(cloned_chain(control.previous_controlnet, device))


def depth(net: Any) -> tuple[int, int]:
    """Channels and number of ResBlocks, repeats counted, of our Stage C or core's."""
    config = getattr(net, "config", None)
    if isinstance(config, UNetConfig):
        return config.c_hidden[0], config.res_blocks
    count = 0
    for blocks, mappers in ((net.down_blocks, net.down_repeat_mappers), (net.up_blocks, net.up_repeat_mappers)):
        for level, repeats in zip(blocks, mappers):
            count += sum(isinstance(block, ResBlock) for block in level) * (len(repeats) + 1)
    return net.embedding[1].out_channels, count


def aligned(control: dict[str, list[Tensor | None]] | None, count: int) -> dict[str, list[Tensor | None]] | None:
    """``control`` with one entry for each of ``count`` ResBlocks; its list ends with the first ResBlock."""
    if control is None:
        return None
    maps = control.get("input") or []
    maps = [None] * (count - len(maps)) + maps[max(0, len(maps) - count) :]
    return {key: maps if key == "input" else control.get(key) or [] for key in KEYS}


def fitted(hint: Tensor, config: ControlNetConfig, height: int, width: int) -> Tensor:
    """A hint (B, C, H, W) at the size that the net reads for a latent of ``height`` × ``width``, from its middle."""
    height, width = height * config.cell, width * config.cell
    if tuple(hint.shape[-2:]) != (height, width):
        method = "bilinear" if config.cell > 1 else "nearest-exact"
        hint = comfy.utils.common_upscale(hint, width, height, method, "center")
    if config.c_in == 1:
        return hint.mean(1, keepdim=True)
    return hint.expand(-1, config.c_in, -1, -1)


# Loading and wiring


def load_control(path: str, dtype: str = AUTO, disable_dynamic: bool = False) -> CascadeControl:
    """The ControlNet in the file at ``path``; ``dtype`` "auto" follows the host's advice for such small nets."""
    loaded = read(path, "controlnet")
    tensors = convert.dequantise(loaded.tensors, torch.float32) if loaded.kind.quantised else loaded.tensors
    device = comfy.model_management.get_torch_device()
    backend = backend_for(comfy.ops.disable_weight_init)
    net = ControlNet(loaded.kind.config, dtype=vae_dtype(dtype, device), backend=backend)
    net.requires_grad_(False)
    comfy.model_management.archive_model_dtypes(net)
    kind = comfy.model_patcher.ModelPatcher if disable_dynamic else comfy.model_patcher.CoreModelPatcher
    patcher = kind(net, load_device=device, offload_device=comfy.model_management.unet_offload_device())
    load.fill(net, tensors, loaded.kind, loaded.name, assign=patcher.is_dynamic(), strict=False)
    patcher.cached_patcher_init = (load_control_patcher, (path, dtype))
    log.info("%s: %s, computing in %s", loaded.name, loaded.kind.describe(), net.dtype)
    return CascadeControl(patcher)


def load_control_patcher(path: str, dtype: str = AUTO, disable_dynamic: bool = False) -> Any:
    """The patcher alone, for hosts that load a model a second time."""
    return load_control(path, dtype, disable_dynamic).patcher


def applied(
    positive: Any,
    negative: Any,
    net: Any,
    hint: Tensor,
    strength: float,
    percents: tuple[float, float],
    weights: BlockWeights,
    mask: Tensor | None = None,
) -> tuple[Any, Any]:
    """Both conditionings with ``net`` and its ``hint`` (B, H, W, C), behind whatever nets they have already.

    mask: (B, h, w), where it acts; everywhere without one.
    """
    if strength == 0:
        return positive, negative
    if percents[1] < percents[0]:
        raise WrongInput(
            f"Apply Cascade ControlNet starts at {percents[0]:g} and ends at {percents[1]:g}, so it would "
            "never act. The end has to come after the start: 0 is the beginning of sampling, 1 its end."
        )
    if not isinstance(net, CascadeControl) and not weights.neutral:
        raise WrongInput(
            "Block weights were set for a ControlNet of another loader, which has none. Load it with Load "
            "Cascade ControlNet, or set early and late to 1 and leave the block weights empty."
        )
    copies: dict[Any, Any] = {}

    def behind(previous: Any) -> Any:
        if previous not in copies:
            copied = net.copy().set_cond_hint(hint.movedim(-1, 1), strength, percents)
            if isinstance(copied, CascadeControl):
                copied.weights = weights
            if mask is not None:
                copied = MaskedControl(copied, checked_mask(mask, "Apply Cascade ControlNet"))
            copies[previous] = copied.set_previous_controlnet(previous)
        return copies[previous]

    # Prompt and negative prompt share a copy, so that the host runs them in one batch and the maps are made once.
    return tuple(
        [
            [text, {**extra, "control": behind(extra.get("control")), "control_apply_to_uncond": False}]
            for text, extra in conditioning
        ]
        for conditioning in (positive, negative)
    )


def release(*conditionings: Any) -> None:
    """Drop what the nets of ``conditionings`` hold for a run; the host does so only after a run that went well."""
    for conditioning in conditionings:
        for _, extra in conditioning or ():
            if extra.get("control") is not None:
                extra["control"].cleanup()


def for_picture(control: Any, index: int) -> Any:
    """``control`` and the nets before it for picture ``index`` of a batch alone: copies where a hint is one of many."""
    name = "mask" if isinstance(control, MaskedControl) else "cond_hint_original"
    given, before, inner = getattr(control, name), control.previous_controlnet, getattr(control, "inner", None)
    previous = None if before is None else for_picture(before, index)
    within = None if inner is None else for_picture(inner, index)
    many = torch.is_tensor(given) and given.shape[0] > 1
    if not many and previous is before and within is inner:
        return control
    copied = control.copy().set_previous_controlnet(previous)
    if inner is not None:
        copied.inner = within
    if many:
        place = index % given.shape[0]
        setattr(copied, name, given[place : place + 1])
    return copied
