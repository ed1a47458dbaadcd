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
import comfy.ops
import comfy.utils
import torch
from comfy.ldm.cascade.common import ResBlock
from torch import Tensor

from ....stages.errors import WrongInput
from ....stages.files import convert
from ....stages.inputs import control_rules as rules
from ....stages.inputs.control_rules import BlockWeights
from ....stages.nets.controlnet import ControlNet, ControlNetConfig
from ....stages.nets.unet import UNetConfig
from ..models.backend import backend_for
from ..models.load import AUTO, ModelPart, patch_small_net, read
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
        """The sizes of its net."""
        return self.patcher.model.config

    def set_cond_hint(self, cond_hint: Tensor, *args: Any, **kwargs: Any) -> CascadeControl:
        """As the host's; raises ``WrongInput`` for the hint of another ControlNet."""
        rules.check_hint(self.config, cond_hint.shape[1])
        return super().set_cond_hint(cond_hint, *args, **kwargs)

    def copy(self) -> CascadeControl:
        """As the host asks before each run; the net is shared."""
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
        """The patchers that the host loads for it."""
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
            widths = measure_widths(model.diffusion_model)
            rules.check_fit(self.config, widths)
            self.run = ControlRun(len(widths))
        elif not isinstance(model, comfy.model_base.StableCascade_B):  # which ControlNets do not touch
            raise WrongInput(
                f"The {rules.name_controlnet(self.config)} of Stable Cascade was given to a {type(model).__name__} "
                "model. It works on Stage C of Stable Cascade: use a ControlNet of this model's own kind."
            )

    def cleanup(self) -> None:
        """After a run: let go of the maps of its hint."""
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
        return self.control_merge({"input": blocks[::-1]}, align(previous, count), x_noisy.dtype)

    def active(self, t: Tensor) -> bool:
        """Whether the noise level ``t`` (B,) lies between start and end; a whole run needs no look at the device."""
        if tuple(self.timestep_percent_range) == (0.0, 1.0):
            return True
        return self.timestep_range is None or bool(self.timestep_range[1] <= t[0] <= self.timestep_range[0])

    @torch.no_grad()
    def maps(self, run: ControlRun, x_noisy: Tensor) -> dict[int, Tensor]:
        """The maps by ResBlock for a latent (B, 16, h, w), made once a run and size."""
        height, width = x_noisy.shape[-2:]
        if (height, width) not in run.maps:
            net = self.patcher.model
            hint = fit_hint(self.cond_hint_original, self.config, height, width).to(x_noisy.device, net.dtype)
            found = net(hint)
            for values in found.values():
                check_finite(values, f"The {rules.name_controlnet(self.config)}", net.dtype, hint)
            run.maps[height, width] = found
        return run.maps[height, width]


def measure_widths(net: Any) -> tuple[int, ...]:
    """The channels of every ResBlock of our Stage C or core's, in the order in which they run, repeats counted."""
    config = getattr(net, "config", None)
    if isinstance(config, UNetConfig):
        return config.res_block_widths
    found: list[int] = []
    for blocks, mappers in ((net.down_blocks, net.down_repeat_mappers), (net.up_blocks, net.up_repeat_mappers)):
        for level, repeats in zip(blocks, mappers):
            widths = [block.depthwise.out_channels for block in level if isinstance(block, ResBlock)]
            found += widths * (len(repeats) + 1)
    return tuple(found)


def align(control: dict[str, list[Tensor | None]] | None, count: int) -> dict[str, list[Tensor | None]] | None:
    """``control`` with one entry for each of ``count`` ResBlocks; its list ends with the first ResBlock."""
    if control is None:
        return None
    maps = control.get("input") or []
    maps = [None] * (count - len(maps)) + maps[max(0, len(maps) - count) :]
    return {key: maps if key == "input" else control.get(key) or [] for key in KEYS}


def fit_hint(hint: Tensor, config: ControlNetConfig, height: int, width: int) -> Tensor:
    """A hint (B, C, H, W) at the size that the net reads for a latent of ``height`` × ``width``, from its middle."""
    height, width = height * config.cell, width * config.cell
    if tuple(hint.shape[-2:]) != (height, width):
        method = "bilinear" if config.cell > 1 else "nearest-exact"
        hint = comfy.utils.common_upscale(hint, width, height, method, "center")
    if config.c_in == 1:
        return hint.mean(1, keepdim=True)
    return hint.expand(-1, config.c_in, -1, -1)


# Loading


def load_control(source: str | ModelPart, dtype: str = AUTO, disable_dynamic: bool = False) -> CascadeControl:
    """The ControlNet in a file; ``dtype`` "auto" follows the host's advice for such small nets."""
    loaded = read(source, "controlnet")
    tensors = convert.dequantise(loaded.tensors, torch.float32) if loaded.kind.quantised else loaded.tensors
    device = comfy.model_management.get_torch_device()
    backend = backend_for(comfy.ops.disable_weight_init)
    net = ControlNet(loaded.kind.config, dtype=vae_dtype(dtype, device), backend=backend)
    patcher = patch_small_net(net, loaded, disable_dynamic, tensors)
    patcher.cached_patcher_init = (load_control_patcher, (loaded.path, dtype))
    log.info("%s: %s, computing in %s", loaded.name, loaded.kind.describe(), net.dtype)
    return CascadeControl(patcher)


def load_control_patcher(path: str, dtype: str = AUTO, disable_dynamic: bool = False) -> Any:
    """The patcher alone, for hosts that load a model a second time."""
    return load_control(path, dtype, disable_dynamic).patcher
