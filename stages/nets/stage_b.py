"""Stage B: the diffusion decoder that turns a Stage C latent into a Stage A latent (arXiv 2306.00637, section 3).

Weights carry the names of the official modules/stage_b.py, with the attention's qkv split in three.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from ..errors import WrongInput
from .backend import TORCH, Backend
from .channels_last import channel_norm, convolve, nhwc, resize
from .hooks import NO_HOOKS, BlockHooks
from .run import Pass
from .scaled import activate, run_scaled
from .unet import CascadeUNet, UNetConfig, change_level, join_conditions
from .vectors import map_vectors


@dataclass(frozen=True, kw_only=True)
class StageBConfig(UNetConfig):
    """Shape of a Stage B network; the defaults are the published 1.5B model. See :class:`~.unet.UNetConfig`."""

    c_in: int = 4
    c_out: int = 4
    patch_size: int = 2
    c_cond: int = 1280
    c_hidden: tuple[int, ...] = (320, 640, 1280, 1280)
    nhead: tuple[int, ...] = (-1, -1, 20, 20)
    blocks: tuple[tuple[int, ...], tuple[int, ...]] = ((2, 6, 28, 6), (6, 28, 6, 2))
    block_repeat: tuple[tuple[int, ...], tuple[int, ...]] = ((1, 1, 1, 1), (3, 3, 2, 2))
    level_config: tuple[str, ...] = ("CT", "CT", "CTA", "CTA")
    t_conds: tuple[str, ...] = ("sca",)
    c_clip: int = 1280
    c_effnet: int = 16
    c_pixels: int = 3


class StageB(CascadeUNet):
    """Predicts the noise in a Stage A latent, guided by a Stage C latent."""

    name = "Stage B"
    config: StageBConfig

    def __init__(self, config: StageBConfig = StageBConfig(), *, dtype=None, device=None, backend: Backend = TORCH):
        super().__init__(config, dtype=dtype, device=device, backend=backend)
        self.effnet_mapper = self.mapper(config.c_effnet)
        self.pixels_mapper = self.mapper(config.c_pixels)
        self.clip_mapper = self.linear(config.c_clip, config.c_cond * config.c_clip_seq)

    def mapper(self, c_in: int) -> nn.Sequential:
        """Two pointwise convolutions; the norm that follows them has no weights."""
        width = self.config.c_hidden[0]
        return nn.Sequential(self.conv(c_in, width * 4), nn.GELU(), self.conv(width * 4, width))

    def downscaler(self, c_in: int, c_out: int, level: int) -> nn.Module:
        return self.conv(c_in, c_out, kernel_size=2, stride=2)

    def upscaler(self, c_in: int, c_out: int, level: int) -> nn.Module:
        return self.backend.ConvTranspose2d(c_in, c_out, kernel_size=2, stride=2, **self.layer_args)

    def forward(
        self,
        x: Tensor,
        r: Tensor,
        effnet: Tensor,
        clip: Tensor,
        pixels: Tensor | None = None,
        sca: Tensor | None = None,
        hooks: BlockHooks = NO_HOOKS,
    ) -> Tensor:
        """The noise in ``x``: (B, 4, H, W) with even H and W -> (B, 4, H, W), in the dtype of ``x``.

        ``r`` (B,) is the noise condition in [0, 1], and so is ``sca``, 0 unless given. ``effnet`` (B, 16, h, w) is the
        Stage C latent, ``clip`` (B, 1280) or (B, n, 1280) the pooled text, ``pixels`` (B, 3, h, w) an optional small
        picture, zeros unless given; all three may have a batch of 1. ``hooks`` are what a host does between the blocks.

        Raises :class:`~.errors.WrongInput` for a latent or a conditioning that another stage or model needs.
        """
        self.check_latent(x)
        tokens = map_vectors(self.clip_mapper, self.check_condition("clip", clip, self.config.c_clip, x))
        cond = join_conditions([tokens], self.config.c_cond)
        run = self.start_run(x, r, {"sca": sca}, cond, None, hooks)
        grid = self.measure_grid(x)
        levels = self.down(self.start(x, effnet, pixels, run), run)
        return self.read_out(hooks.resize(self.up(levels, run), grid), run.scale)

    def start(self, x: Tensor, effnet: Tensor, pixels: Tensor | None, run: Pass) -> Tensor:
        """The embedded latent with the Stage C latent and the picture added: (B, H/2, W/2, C)."""
        nothing = self.map_pixels(None, x).flatten() if pixels is None else None  # the same everywhere
        h = self.embed(x, run.scale, nothing)
        h = torch.add(h, self.map_effnet(effnet, h, run.hooks), alpha=run.scale)
        return h if pixels is None else torch.add(h, self.map_pixels(pixels, h), alpha=run.scale)

    def rescale(self, scaler: nn.Sequential, x: Tensor, run: Pass) -> Tensor:
        return run.hooks.run_rowwise(partial(change_level, scaler, run.scale), x, 8 * x.shape[-1])

    def map_effnet(self, effnet: Tensor, h: Tensor, hooks: BlockHooks = NO_HOOKS) -> Tensor:
        """Stage C latent (1 or B, 16, h, w), resized first and mapped then, as (1 or B, H, W, C) to add to ``h``."""
        effnet = self.check_map("effnet", effnet, self.config.c_effnet, h)
        stretched = resize(nhwc(effnet.float()), h.shape[1:3]).to(h.dtype)
        width = 8 * self.config.c_hidden[0]  # before and after the activation
        return hooks.run_rowwise(partial(self.map, self.effnet_mapper), stretched, width).to(h.dtype)

    def map_pixels(self, pixels: Tensor | None, h: Tensor) -> Tensor:
        """Picture (1 or B, 3, h, w), mapped first and resized then; the zeros of no picture are mapped as one pixel."""
        if pixels is None:
            return self.map(self.pixels_mapper, h.new_zeros((1, 1, 1, self.config.c_pixels))).to(h.dtype)
        pixels = self.check_map("pixels", pixels, self.config.c_pixels, h)
        return resize(self.map(self.pixels_mapper, nhwc(pixels.to(h.dtype))), h.shape[1:3]).to(h.dtype)

    def map(self, mapper: nn.Sequential, x: Tensor) -> Tensor:
        """``x`` (B, H, W, C) through a mapper and the norm behind it."""
        h = activate(run_scaled(mapper[0], x, 1.0, self.backend, convolve))
        return channel_norm(run_scaled(mapper[2], h, 1.0, self.backend, convolve))

    def check_map(self, name: str, value: Tensor, channels: int, like: Tensor) -> Tensor:
        """``value`` on the device of ``like``, if it is (1 or B, ``channels``, h, w)."""
        if value.dim() != 4 or value.shape[1] != channels or value.shape[0] not in (1, like.shape[0]):
            raise WrongInput(
                f"{name} of Stage B has the shape {tuple(value.shape)}, but it needs {channels} channels "
                f"and a batch of 1 or {like.shape[0]}. Connect "
                + ("a Stage C latent." if name == "effnet" else "a small RGB picture.")
            )
        return value.to(like.device)
