"""Stage C: the text-conditional prior that denoises the 16-channel latent of a picture (arXiv 2306.00637, section 3).

Its U is isotropic unless ``switch_level`` says otherwise: both levels run at the size of the latent, 1/42.67 of the
picture's. Weights carry the names of the official modules/stage_c.py, with the attention's qkv split in three.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn import functional as F

from .backend import TORCH, Backend
from .hooks import NO_HOOKS, BlockHooks
from .unet import CascadeUNet, UNetConfig, join_conditions
from .vectors import map_vectors


@dataclass(frozen=True, kw_only=True)
class StageCConfig(UNetConfig):
    """Shape of a Stage C network; the defaults are the published 3.6B model. See :class:`~.unet.UNetConfig`.

    ``switch_level`` tells for every step between levels whether it halves the size. ``native_side`` is the side in
    pixels of the pictures that the weights were trained on; the network computes the same with any.
    """

    c_in: int = 16
    c_out: int = 16
    patch_size: int = 1
    c_cond: int = 2048
    c_hidden: tuple[int, ...] = (2048, 2048)
    nhead: tuple[int, ...] = (32, 32)
    blocks: tuple[tuple[int, ...], tuple[int, ...]] = ((8, 24), (24, 8))
    block_repeat: tuple[tuple[int, ...], tuple[int, ...]] = ((1, 1), (1, 1))
    level_config: tuple[str, ...] = ("CTA", "CTA")
    t_conds: tuple[str, ...] = ("sca", "crp")
    c_clip_text: int = 1280
    c_clip_text_pooled: int = 1280
    c_clip_img: int = 768
    switch_level: tuple[bool, ...] = (False,)
    native_side: int = 1024


class UpDownBlock2d(nn.Module):
    """A pointwise convolution, and a bilinear change of size (corners aligned) on its deeper side if ``switch``."""

    def __init__(self, conv: nn.Module, up: bool, switch: bool):
        super().__init__()
        self.up = up
        self.switch = switch
        self.blocks = nn.ModuleList([nn.Identity(), conv] if up else [conv, nn.Identity()])

    def forward(self, x: Tensor) -> Tensor:
        if self.up:
            return self.blocks[1](self.switch_size(x, 2.0))
        return self.switch_size(self.blocks[0](x), 0.5)

    def switch_size(self, x: Tensor, factor: float) -> Tensor:
        """``x`` (B, C, H, W) with its sides times ``factor``, at least 1, where the block switches; else as it is."""
        if not self.switch:
            return x
        size = [max(1, int(side * factor)) for side in x.shape[-2:]]
        return F.interpolate(x.float(), size=size, mode="bilinear", align_corners=True).to(x.dtype)


class StageC(CascadeUNet):
    """Predicts the noise in a Stage C latent."""

    name = "Stage C"
    config: StageCConfig

    def __init__(self, config: StageCConfig = StageCConfig(), *, dtype=None, device=None, backend: Backend = TORCH):
        super().__init__(config, dtype=dtype, device=device, backend=backend)
        tokens = config.c_cond * config.c_clip_seq
        self.clip_txt_mapper = self.linear(config.c_clip_text, config.c_cond)
        self.clip_txt_pooled_mapper = self.linear(config.c_clip_text_pooled, tokens)
        self.clip_img_mapper = self.linear(config.c_clip_img, tokens)

    def downscaler(self, c_in: int, c_out: int, level: int) -> nn.Module:
        return UpDownBlock2d(self.conv(c_in, c_out), up=False, switch=self.config.switch_level[level])

    def upscaler(self, c_in: int, c_out: int, level: int) -> nn.Module:
        return UpDownBlock2d(self.conv(c_in, c_out), up=True, switch=self.config.switch_level[level])

    def forward(
        self,
        x: Tensor,
        r: Tensor,
        clip_text: Tensor,
        clip_text_pooled: Tensor,
        clip_img: Tensor | None = None,
        sca: Tensor | None = None,
        crp: Tensor | None = None,
        control: Sequence[Tensor | None] | None = None,
        hooks: BlockHooks = NO_HOOKS,
    ) -> Tensor:
        """The noise in ``x``: (B, 16, H, W) -> (B, 16, H, W), computed and returned in the dtype of ``x``.

        ``r`` (B,) is the noise condition in [0, 1], and so are ``sca`` and ``crp``, 0 unless given. ``clip_text``
        (B, T, 1280), ``clip_text_pooled`` (B, 1280) or (B, n, 1280) and ``clip_img`` (B, 768) or (B, n, 768), zeros
        unless given, may also have a batch of 1. ``control`` holds by ResBlock, in execution order, a map
        (B, C, h, w) of any size to be added before it, or None; it may be shorter and is only read. ``hooks`` are what
        a host does between the blocks.

        Raises :class:`~.errors.WrongInput` for a latent or a conditioning that another stage or model needs.
        """
        self.check_latent(x)
        if clip_img is None:
            clip_img = x.new_zeros((1, 1, self.config.c_clip_img))
        cond = self.embed_conditions(x, clip_text, clip_text_pooled, clip_img)
        run = self.start_run(x, r, {"sca": sca, "crp": crp}, cond, control, hooks)
        grid = self.measure_grid(x)
        levels = self.down(self.embed(x, run.scale), run)
        return self.read_out(hooks.resize(self.up(levels, run), grid), run.scale)

    def embed_conditions(self, x: Tensor, clip_text: Tensor, clip_text_pooled: Tensor, clip_img: Tensor) -> Tensor:
        """Text, pooled and image tokens in this order, normed, after the SiLU of the blocks: (1 or B, M, c_cond)."""
        config = self.config
        text = self.check_condition("clip_text", clip_text, config.c_clip_text, x)
        pooled = self.check_condition("clip_text_pooled", clip_text_pooled, config.c_clip_text_pooled, x)
        image = self.check_condition("clip_img", clip_img, config.c_clip_img, x)
        return join_conditions(
            [
                self.clip_txt_mapper(text),
                map_vectors(self.clip_txt_pooled_mapper, pooled),
                map_vectors(self.clip_img_mapper, image),
            ],
            config.c_cond,
        )
