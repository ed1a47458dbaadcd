"""The blocks that Stage B and Stage C are made of: residual, timestep, attention and feed-forward.

Sums are kept in the dtype of the residual stream: the computing dtype, or float32 when computing in float16, because
the residuals of trained networks exceed 65,504. A layer that reads the raw stream then goes through :func:`widely`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .backend import TORCH, Backend
from .channels_last import channel_norm, convolve
from .hooks import NO_HOOKS, BlockHooks, Place
from .response import GlobalResponseNorm, channel_lengths

POSITIONS = 10000
HALF_ROOM = 2048.0  # a stream within this goes into a float16 layer as it is ...
HALF_PEAK = 32.0  # ... and a wider one is brought down to this, so that the layer's weights may multiply it by 2,000


def widely(layer: Callable[[Tensor], Tensor], x: Tensor, dtype: torch.dtype) -> Tensor:
    """``layer(x)`` for an affine layer that computes in ``dtype`` on a stream that may be wider, in the dtype of ``x``.

    ``x`` is (B, H, W, C). A float32 stream beyond what float16 holds is scaled by a power of two s <= 1 per sample,
    and since the layer is affine its answer to zero, the bias, gives layer(x) = (layer(s x) - layer(0)) / s + layer(0).
    Infinities and NaN stay visible. Only float16 needs this; under autocast ``x`` may differ from ``dtype`` as well.
    """
    if x.dtype == dtype or dtype != torch.float16:
        return layer(x)
    peak = torch.linalg.vector_norm(x, math.inf, dim=(1, 2, 3), keepdim=True)
    exponent = torch.where(peak <= HALF_ROOM, 0.0, torch.log2(peak / HALF_PEAK).ceil())
    bias = layer(x.new_zeros((1, 1, 1, x.shape[-1]), dtype=dtype)).float()
    scaled = layer((x * torch.exp2(-exponent)).to(dtype)).float()
    return torch.addcmul(bias, scaled - bias, torch.exp2(exponent))


def timestep_embedding(r: Tensor, width: int) -> Tensor:
    """Sinusoidal embedding of a noise level: r (B,) in [0, 1] -> (B, width), always in float32.

    Frequencies 10000^(-i / (half - 1)) for i < half = width // 2 on 10000 r; sines first, then cosines, and one zero
    if the width is odd (``gen_r_embedding`` of the official modules/stage_c.py).
    """
    half = width // 2
    step = -math.log(POSITIONS) / (half - 1)
    # The last bit of a frequency turns an angle by 6e-4, and compilers and devices differ in the exp of float32.
    exact = torch.float64 if r.device.type in ("cpu", "cuda") else torch.float32
    frequencies = torch.arange(half, device=r.device, dtype=torch.float32).mul(step).to(exact).exp().float()
    angles = (r.float() * POSITIONS)[:, None] * frequencies
    return F.pad(torch.cat([angles.sin(), angles.cos()], dim=1), (0, width % 2))


class Mixer(nn.Sequential):
    """The pointwise half of a block: Linear to 4c, GELU, GRN, Linear to c; (B, H, W, c_in) -> (B, H, W, c).

    Its four-fold wide activation is the largest of the network, so without gradients only one such tensor exists.
    Index 3 is the place of the official dropout.
    """

    def __init__(self, c_in: int, c: int, dtype, device, backend: Backend):
        super().__init__(
            backend.Linear(c_in, c * 4, dtype=dtype, device=device),
            nn.GELU(),
            GlobalResponseNorm(c * 4, dtype=dtype, device=device, backend=backend),
            nn.Identity(),
            backend.Linear(c * 4, c, dtype=dtype, device=device),
        )
        self.width = c * 4

    def forward(self, x: Tensor, dtype: torch.dtype, lengths: Callable[[Tensor], Tensor] = channel_lengths) -> Tensor:
        return self.narrow(self.widen(x, dtype), dtype, lengths)

    def widen(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        """Before the response norm: (B, H, W, c_in) -> (B, H, W, 4c)."""
        h = widely(self[0], x, dtype)
        return self[1](h) if torch.is_grad_enabled() else torch.ops.aten.gelu_(h)

    def narrow(self, h: Tensor, dtype: torch.dtype, lengths: Callable[[Tensor], Tensor] = channel_lengths) -> Tensor:
        """The response norm and what follows: (B, H, W, 4c) -> (B, H, W, c)."""
        return widely(self[4], self[3](self[2](h, lengths)), dtype)


class ResBlock(nn.Module):
    """ConvNeXt V2 block, optionally reading a skip: x (B, H, W, C), skip (B, H, W, c_skip) -> (B, H, W, C)."""

    def __init__(
        self, c: int, c_skip: int = 0, kernel_size: int = 3, *, dtype=None, device=None, backend: Backend = TORCH
    ):
        super().__init__()
        self.depthwise = backend.Conv2d(
            c, c, kernel_size=kernel_size, padding=kernel_size // 2, groups=c, dtype=dtype, device=device
        )
        self.channelwise = Mixer(c + c_skip, c, dtype, device, backend)
        self.radius = kernel_size // 2

    def forward(
        self, x: Tensor, skip: Tensor | None, dtype: torch.dtype, lengths: Callable[[Tensor], Tensor] = channel_lengths
    ) -> Tensor:
        return x + self.channelwise(self.mix(x, skip, dtype), dtype, lengths)

    def mix(self, x: Tensor, skip: Tensor | None, dtype: torch.dtype) -> Tensor:
        """What the mixer reads: the normed convolution of ``x``, and the skip behind it."""
        h = channel_norm(widely(partial(convolve, self.depthwise), x, dtype), dtype)
        # The skip is raw residual stream, so from here on the mixer has to be as wide as that.
        return h if skip is None else torch.cat([h.to(skip.dtype), skip], dim=-1)

    def mix_rows(self, x: Tensor, skip: Tensor | None, dtype: torch.dtype, first: int, last: int) -> Tensor:
        """Rows ``first`` to ``last`` (exclusive) of :meth:`mix`, computed from no more rows than they depend on."""
        top, bottom = max(0, first - self.radius), min(x.shape[1], last + self.radius)
        h = widely(partial(convolve, self.depthwise), x[:, top:bottom], dtype)[:, first - top : last - top]
        h = channel_norm(h, dtype)
        return h if skip is None else torch.cat([h.to(skip.dtype), skip[:, first:last]], dim=-1)


class FeedForwardBlock(nn.Module):
    """A mixer behind a norm: x (B, H, W, C) -> (B, H, W, C)."""

    def __init__(self, c: int, *, dtype=None, device=None, backend: Backend = TORCH):
        super().__init__()
        self.channelwise = Mixer(c, c, dtype, device, backend)

    def forward(
        self, x: Tensor, skip: None, dtype: torch.dtype, lengths: Callable[[Tensor], Tensor] = channel_lengths
    ) -> Tensor:
        return x + self.channelwise(channel_norm(x, dtype), dtype, lengths)

    def mix_rows(self, x: Tensor, skip: None, dtype: torch.dtype, first: int, last: int) -> Tensor:
        """Rows ``first`` to ``last`` (exclusive) of what the mixer reads."""
        return channel_norm(x[:, first:last], dtype)


class TimestepBlock(nn.Module):
    """Scale and shift by the noise level and the other scalar conditions: x (B, H, W, C) -> (B, H, W, C)."""

    def __init__(self, c: int, c_r: int, conds: Sequence[str], *, dtype=None, device=None, backend: Backend = TORCH):
        super().__init__()
        self.names = ["mapper", *(f"mapper_{name}" for name in conds)]
        for name in self.names:
            self.add_module(name, backend.Linear(c_r, c * 2, dtype=dtype, device=device))

    def forward(self, x: Tensor, times: Sequence[Tensor]) -> Tensor:
        first, *others = (getattr(self, name)(time) for name, time in zip(self.names, times))
        for other in others:
            first = first + other
        scale, shift = first.to(x.dtype)[:, None, None].chunk(2, dim=-1)
        return torch.addcmul(shift, x, 1 + scale)


class Projections(nn.Module):
    """The four projections of an attention, under the names that the host's nets use."""

    def __init__(self, c: int, dtype, device, backend: Backend):
        super().__init__()
        for name in ("to_q", "to_k", "to_v", "out_proj"):
            self.add_module(name, backend.Linear(c, c, dtype=dtype, device=device))


class AttnBlock(nn.Module):
    """Attention of the picture's tokens to themselves and to the condition tokens in one softmax.

    ``x`` (B, H, W, C); ``cond`` (1 or B, M, c_cond) are the condition tokens after the SiLU of ``kv_mapper``, which is
    the same for every block of a network and so is computed once per forward. Returns (B, H, W, C).
    """

    def __init__(
        self,
        c: int,
        c_cond: int,
        nhead: int,
        self_attn: bool = True,
        *,
        dtype=None,
        device=None,
        backend: Backend = TORCH,
    ):
        super().__init__()
        self.heads = nhead
        self.self_attn = self_attn
        self.attend = backend.attention
        self.attention = nn.ModuleDict({"attn": Projections(c, dtype, device, backend)})
        self.kv_mapper = nn.Sequential(nn.SiLU(), backend.Linear(c_cond, c, dtype=dtype, device=device))

    def forward(
        self, x: Tensor, cond: Tensor, dtype: torch.dtype, place: Place, hooks: BlockHooks = NO_HOOKS
    ) -> Tensor:
        attn = self.attention["attn"]
        place = place._replace(heads=self.heads, grid=(x.shape[1], x.shape[2]))
        own = channel_norm(x, dtype).flatten(1, 2)  # (B, H, W, C) -> (B, N, C)
        cond = self.kv_mapper[1](cond).expand(x.shape[0], -1, -1)  # (1 or B, M, c_cond) -> (B, M, C)
        query, keys, values, n_self = self.join_tokens(*hooks.attention_tokens(place, own, cond))
        q, k, v = attn.to_q(query), attn.to_k(keys), attn.to_v(values)
        out = hooks.attention(place, q, k, v, n_self)
        if out is None:
            out = self.attend(q, k, v, self.heads, hooks.options)
        out = hooks.attention_output(place, attn.out_proj(out))
        return x + out.reshape(x.shape)  # (B, N, C) -> (B, H, W, C)

    def join_tokens(
        self, query: Tensor, own: tuple[Tensor, Tensor], cond: tuple[Tensor, Tensor]
    ) -> tuple[Tensor, Tensor, Tensor, int]:
        """Query, keys, values and how many of the keys are the picture's own, which come first."""
        if not self.self_attn:
            return query, *cond, 0
        keys = torch.cat([own[0], cond[0]], dim=1)
        same = own[0] is own[1] and cond[0] is cond[1]
        return query, keys, keys if same else torch.cat([own[1], cond[1]], dim=1), own[0].shape[1]
