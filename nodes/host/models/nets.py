"""Stage C and Stage B under the host's calling conventions: keyword conditions, patches and reversed control lists."""

from __future__ import annotations

from dataclasses import asdict, fields
from typing import Any

import comfy.patcher_extension
import torch
from torch import Tensor
from torch.nn import functional as F

from ....stages.attention.layers import AttentionLayer, TokenLayer
from ....stages.attention.regions import Layout, RegionLayer
from ....stages.nets import memory
from ....stages.nets.stage_b import StageB, StageBConfig
from ....stages.nets.stage_c import StageC, StageCConfig
from ....stages.nets.unet import UNetConfig
from .backend import backend_for
from .foreign import SaysWhatIsMissing
from .hooks import choose_hooks


def network_arguments(config: UNetConfig, stage: str) -> dict[str, Any]:
    """The host's ``unet_config`` for a network: our fields, and the name that core gives to the stage."""
    # FreeU knows the two deepest levels of a net by four and two times these channels.
    return {**asdict(config), "stable_cascade_stage": stage, "model_channels": config.c_hidden[-1] // 4}


def read_arguments(kind: type[UNetConfig], arguments: dict[str, Any]) -> UNetConfig:
    """Our configuration out of the keyword arguments that the host passes to a network."""
    return kind(**{field.name: arguments[field.name] for field in fields(kind) if field.name in arguments})


def control_by_block(control: dict[str, Any] | None) -> list[Tensor | None] | None:
    """The host's control maps, reversed lists that it pops from the end, by ResBlock; the lists stay as they are."""
    maps = (control or {}).get("input")
    return None if not maps else list(reversed(maps))


class HostNet:
    """What the host asks of both networks beside their mathematics; it stands before them, since it calls them.

    The host calls ``forward(x, r, context=, control=, transformer_options=, **conditions)``.
    """

    kind: type[UNetConfig]

    def __init__(
        self,
        dtype: torch.dtype | None = None,
        device: torch.device | None = None,
        operations: Any = None,
        **arguments: Any,
    ):
        config = read_arguments(self.kind, arguments)
        super().__init__(config, dtype=dtype, device=device, backend=backend_for(operations))

    @property
    def in_channels(self) -> int:
        """Channels of the latent, under the name that core's nets have for them."""
        return self.config.c_in

    def activation_memory(self, batch: int, height: int, width: int, dtype_size: int) -> int:
        """Peak bytes of one pass beside the weights."""
        cast = self.dtype is not None and self.dtype.itemsize != dtype_size
        return memory.activation_memory(self.config, batch, height, width, dtype_size, self.level_strides, cast)

    def deepest_grid(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of the middle block for a latent of ``height`` x ``width``."""
        patch, stride = self.config.patch_size, self.level_strides[-1]
        return max(1, -(-height // patch) // stride), max(1, -(-width // patch) // stride)

    def forward(
        self,
        x: Tensor,
        r: Tensor,
        context: Tensor | None = None,
        control: dict[str, Any] | None = None,
        transformer_options: dict[str, Any] | None = None,
        **conditions: Any,
    ) -> Tensor:
        """:meth:`denoise_for_host` inside the host's DIFFUSION_MODEL wrappers."""
        around = comfy.patcher_extension.get_all_wrappers(
            comfy.patcher_extension.WrappersMP.DIFFUSION_MODEL, transformer_options or {}
        )
        run = comfy.patcher_extension.WrapperExecutor.new_class_executor(self.denoise_for_host, self, around)
        return run.execute(x, r, context, control, transformer_options, **conditions)

    def denoise_for_host(
        self,
        x: Tensor,
        r: Tensor,
        context: Tensor | None,
        control: dict[str, Any] | None,
        transformer_options: dict[str, Any] | None,
        **conditions: Any,
    ) -> Tensor:
        """The noise in ``x`` (B, C, H, W) at the noise condition ``r`` (B,); ``context`` is the text, ``control`` the
        host's maps. ``conditions`` are those of the stage, and may hold what it does not know."""
        raise NotImplementedError


class HostStageC(SaysWhatIsMissing, HostNet, StageC):
    """Stage C as the host calls it."""

    kind = StageCConfig

    def denoise_for_host(
        self,
        x: Tensor,
        r: Tensor,
        context: Tensor | None,
        control: dict[str, Any] | None,
        transformer_options: dict[str, Any] | None,
        clip_text: Tensor | None = None,
        clip_text_pooled: Tensor | None = None,
        clip_img: Tensor | None = None,
        sca: Tensor | None = None,
        crp: Tensor | None = None,
        text_weights: Tensor | None = None,
        region_weights: Tensor | None = None,
        region_layout: Layout | None = None,
        **unused: Any,
    ) -> Tensor:
        text = context if clip_text is None else clip_text
        layers: tuple[AttentionLayer, ...] = ()
        if text_weights is not None:
            layers += (TokenLayer(text_weights),)
        if region_weights is not None:
            layers += (RegionLayer(region_weights, region_layout),)
        return StageC.forward(
            self,
            x,
            r,
            text,
            clip_text_pooled,
            clip_img,
            sca,
            crp,
            control_by_block(control),
            choose_hooks(transformer_options, layers, self, x),
        )

    @property
    def level_strides(self) -> tuple[int, ...]:
        """Cells of the embedded grid a side in one cell of each level."""
        strides = [1]
        for switch in self.config.switch_level:
            strides.append(strides[-1] * (2 if switch else 1))
        return tuple(strides)


class HostStageB(SaysWhatIsMissing, HostNet, StageB):
    """Stage B as the host calls it. Areas with odd or very short sides are padded for the pass and cut again."""

    kind = StageBConfig

    @property
    def least_cells(self) -> int:
        """Cells a side that every level needs to have one left."""
        return 2 ** (len(self.config.c_hidden) - 1)

    def denoise_for_host(
        self,
        x: Tensor,
        r: Tensor,
        context: Tensor | None,
        control: dict[str, Any] | None,
        transformer_options: dict[str, Any] | None,
        effnet: Tensor | None = None,
        clip: Tensor | None = None,
        pixels: Tensor | None = None,
        sca: Tensor | None = None,
        **unused: Any,
    ) -> Tensor:
        height, width = x.shape[-2:]
        patch, least = self.config.patch_size, self.config.patch_size * self.least_cells
        extra = (0, max(-width % patch, least - width), 0, max(-height % patch, least - height))
        if any(extra) and x.shape[1] == self.config.c_in:
            x = F.pad(x, extra, mode="replicate")
        out = StageB.forward(self, x, r, effnet, clip, pixels, sca, choose_hooks(transformer_options, (), self, x))
        return out[..., :height, :width]

    @property
    def level_strides(self) -> tuple[int, ...]:
        """Cells of the embedded grid a side in one cell of each level."""
        return tuple(2**level for level in range(len(self.config.c_hidden)))
