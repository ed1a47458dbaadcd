"""The blocks that Stage B and Stage C are made of: residual, timestep, attention and feed-forward.

Activations are (B, H, W, C); the residual stream holds ``scale`` times its value: 1 but in float16 (scaled.py).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import reduce
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .backend import TORCH, Backend, Weights
from .channels_last import channel_norm, convolve
from .hooks import NO_HOOKS, BlockHooks, Place
from .portable import choose_exact
from .response import GlobalResponseNorm, channel_lengths
from .scaled import activate, run_scaled
from .vectors import pad_rows

Lengths = Callable[[Tensor], Tensor]
"""The L2 norm of every channel over the picture: (B, H, W, C) -> (B, 1, 1, C)."""

POSITIONS = 10000
FOLD_FROM = 1.5  # tokens to a channel from which scaling a layer's weights is cheaper than scaling what it reads


def timestep_embedding(r: Tensor, width: int) -> Tensor:
    """Sinusoidal embedding of a noise level: r (B,) in [0, 1] -> (B, width), always in float32.

    Frequencies 10000^(-i / (half - 1)) for i < half = width // 2 on 10000 r; sines first, then cosines, and one zero
    if the width is odd (``gen_r_embedding`` of the official modules/stage_c.py).
    """
    half = width // 2
    step = -math.log(POSITIONS) / (half - 1)
    # The last bit of a frequency turns an angle by 6e-4, and compilers and devices differ in the exp of float32.
    frequencies = (
        torch.arange(half, device=r.device, dtype=torch.float32).mul(step).to(choose_exact(r.device)).exp().float()
    )
    angles = (r.float() * POSITIONS)[:, None] * frequencies
    return F.pad(torch.cat([angles.sin(), angles.cos()], dim=1), (0, width % 2))


class Mixer(nn.Sequential):
    """The pointwise half of a block: Linear to 4c, GELU, GRN, Linear to c; (B, H, W, c_in) -> (B, H, W, c).

    What it reads and gives holds ``scale`` times its value. Its four-fold wide activation is the largest of the
    network, so without gradients only one such tensor exists. Index 3 is the place of the official dropout.
    """

    def __init__(self, c_in: int, c: int, dtype, device, backend: Backend):
        super().__init__(
            backend.Linear(c_in, c * 4, dtype=dtype, device=device),
            nn.GELU(),
            GlobalResponseNorm(c * 4, dtype=dtype, device=device, backend=backend),
            nn.Identity(),
            backend.Linear(c * 4, c, dtype=dtype, device=device),
        )
        self.width, self.backend = c * 4, backend

    def forward(self, x: Tensor, scale: float = 1.0, lengths: Lengths = channel_lengths) -> Tensor:
        return self.narrow(self.widen(x, scale), scale, lengths)

    def widen(self, x: Tensor, scale: float = 1.0) -> Tensor:
        """Before the response norm: (B, H, W, c_in) -> (B, H, W, 4c)."""
        return activate(run_scaled(self[0], x, scale, self.backend), scale)

    def narrow(self, h: Tensor, scale: float = 1.0, lengths: Lengths = channel_lengths) -> Tensor:
        """The response norm and what follows: (B, H, W, 4c) -> (B, H, W, c)."""
        eager = not (torch.is_grad_enabled() or torch.compiler.is_compiling())  # a compiler fuses the norm by itself
        lent = self.backend.lend_weights(self[4], h) if self.folds(h) and eager else None
        if lent is None:
            return run_scaled(self[4], self[3](self[2](h, scale, lengths)), scale, self.backend)
        out = self.narrow_folded(h, scale, lengths, lent)
        lent.release()
        return out

    @staticmethod
    def folds(h: Tensor) -> bool:
        """Whether ``h`` (B, H, W, 4c) has so many tokens that the weights behind the norm are cheaper to scale."""
        return h.shape[1] * h.shape[2] >= FOLD_FROM * h.shape[-1] / 4

    def fold(self, h: Tensor, scale: float, lengths: Lengths, weight: Tensor) -> Tensor:
        """``weight`` (c, 4c) times the factors of the norm of ``h``, by sample: (B, 4c, c), a transposed view."""
        norm = cast(GlobalResponseNorm, self[2])
        return (weight * norm.factors(h, scale, lengths).flatten(1, 2)).transpose(1, 2)

    def shift_folded(self, h: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """What a folded norm adds behind ``weight``, and the ``bias``: (c)."""
        return F.linear(cast(GlobalResponseNorm, self[2]).shift(h).flatten(), weight, bias)

    def narrow_folded(self, h: Tensor, scale: float, lengths: Lengths, lent: Weights) -> Tensor:
        """:meth:`narrow` with the norm in the weights: W (s h + beta) + b = (s W) h + (W beta + b), s by sample."""
        weight, bias = lent.weight, lent.bias
        bias = self.shift_folded(h, weight, bias)
        bias = bias if scale == 1 else bias * scale
        folded = self.fold(h, scale, lengths, weight)
        out = h.new_empty(h.shape[0], h.shape[1] * h.shape[2], weight.shape[0])
        for sample, matrix, given in zip(h.flatten(1, 2), folded, out, strict=True):
            torch.addmm(bias, sample, matrix, out=given)  # (N, 4c) -> (N, c)
        return out.unflatten(1, h.shape[1:3])


class ResBlock(nn.Module):
    """ConvNeXt V2 block, optionally reading a skip: x (B, H, W, C), skip (B, H, W, c_skip) -> (B, H, W, C).

    Both hold ``scale`` times their value (scaled.py), and so does the result.
    """

    def __init__(
        self, c: int, c_skip: int = 0, kernel_size: int = 3, *, dtype=None, device=None, backend: Backend = TORCH
    ):
        super().__init__()
        self.depthwise = backend.Conv2d(
            c, c, kernel_size=kernel_size, padding=kernel_size // 2, groups=c, dtype=dtype, device=device
        )
        self.channelwise = Mixer(c + c_skip, c, dtype, device, backend)
        self.radius, self.backend = kernel_size // 2, backend

    def forward(
        self, x: Tensor, skip: Tensor | None = None, scale: float = 1.0, lengths: Lengths = channel_lengths
    ) -> Tensor:
        own = self.mixer_scale(skip, scale)
        return torch.add(x, self.channelwise(self.mix(x, skip, scale), own, lengths), alpha=scale / own)

    @staticmethod
    def mixer_scale(skip: Tensor | None, scale: float) -> float:
        """What the mixer's input holds of its value: a norm's output is plain, a skip is raw residual stream."""
        return 1.0 if skip is None else scale

    def mix(self, x: Tensor, skip: Tensor | None, scale: float, held: Tensor | None = None) -> Tensor:
        """What the mixer reads: the normed convolution of ``x``, and the skip behind it; ``held`` as in run_scaled."""
        return self.join_skip(run_scaled(self.depthwise, x, scale, self.backend, convolve, held), skip, scale)

    def mix_rows(self, x: Tensor, skip: Tensor | None, scale: float, first: int, last: int) -> Tensor:
        """Rows ``first`` to ``last`` (exclusive) of :meth:`mix`, computed from no more rows than they depend on."""
        top, bottom = max(0, first - self.radius), min(x.shape[1], last + self.radius)
        h = run_scaled(self.depthwise, x[:, top:bottom], scale, self.backend, convolve)[:, first - top : last - top]
        return self.join_skip(h, None if skip is None else skip[:, first:last], scale)

    @staticmethod
    def join_skip(h: Tensor, skip: Tensor | None, scale: float) -> Tensor:
        """``h`` (B, H, W, C) normed, and the raw ``skip`` behind its channels."""
        if skip is None:
            return channel_norm(h, scale)
        return torch.cat([channel_norm(h, scale, scale), skip], dim=-1)  # (B, H, W, C + c_skip)


class FeedForwardBlock(nn.Module):
    """A mixer behind a norm: x (B, H, W, C), which holds ``scale`` times its value -> the same."""

    def __init__(self, c: int, *, dtype=None, device=None, backend: Backend = TORCH):
        super().__init__()
        self.channelwise = Mixer(c, c, dtype, device, backend)

    def forward(
        self, x: Tensor, skip: Tensor | None = None, scale: float = 1.0, lengths: Lengths = channel_lengths
    ) -> Tensor:
        return torch.add(x, self.channelwise(channel_norm(x, scale), 1.0, lengths), alpha=scale)

    @staticmethod
    def mixer_scale(skip: Tensor | None, scale: float) -> float:
        """What the mixer's input holds of its value."""
        return 1.0

    def mix_rows(self, x: Tensor, skip: Tensor | None, scale: float, first: int, last: int) -> Tensor:
        """Rows ``first`` to ``last`` (exclusive) of what the mixer reads."""
        return channel_norm(x[:, first:last], scale)


class TimestepBlock(nn.Module):
    """Scale and shift by the noise level and the other scalar conditions: x (B, H, W, C) -> (B, H, W, C)."""

    mapper: nn.Linear

    def __init__(self, c: int, c_r: int, conds: Sequence[str], *, dtype=None, device=None, backend: Backend = TORCH):
        super().__init__()
        self.names = ["mapper", *(f"mapper_{name}" for name in conds)]
        for name in self.names:
            self.add_module(name, backend.Linear(c_r, c * 2, dtype=dtype, device=device))

    def forward(self, x: Tensor, modulation: Modulation) -> Tensor:
        return torch.addcmul(modulation.shift, x, modulation.factor)


class Modulation(NamedTuple):
    """What a TimestepBlock multiplies the stream by, and ``scale`` times what it adds: (B, 1, 1, C) each.

    ``late`` (1 or 2, B, 1, 1, C) is the shift with the bias of the block before it, for a stream that it was not added
    to yet, and that with the bias of the attention behind it; None where these biases are not at hand.
    """

    factor: Tensor
    shift: Tensor
    late: Tensor | None = None


class Neighbours(NamedTuple):
    """The biases (C) of the layers that write the stream right before and right behind a TimestepBlock, if at hand."""

    before: Tensor | None = None
    behind: Tensor | None = None


def stack_known(biases: Sequence[Tensor | None]) -> Tensor | None:
    """``biases`` (C) as one (n, 1, C), or None if one of them is not known."""
    known = [bias for bias in biases if bias is not None]
    return torch.stack(known)[:, None] if len(known) == len(biases) else None


def map_times(
    blocks: Sequence[TimestepBlock],
    times: Sequence[Tensor],
    scale: float,
    dtype: torch.dtype,
    biases: Sequence[Neighbours] = (),
) -> dict[nn.Module, Modulation]:
    """The modulation of every block for ``times`` (1 or B, c_r); ``biases`` are those of the layers around them.

    All blocks of one width at once: their sums are so small that on a graphics card each would cost a launch and
    nothing else.
    """
    batch = max(time.shape[0] for time in times)
    times = [pad_rows(time.expand(batch, -1)) for time in times]
    around = dict(zip(blocks, biases or [Neighbours()] * len(blocks), strict=True))
    by_width: dict[int, dict[TimestepBlock, list[Tensor]]] = {}
    for block in blocks:
        mapped = [getattr(block, name)(time) for name, time in zip(block.names, times, strict=True)]  # (B, 2C) each
        by_width.setdefault(mapped[0].shape[1] // 2, {})[block] = mapped
    found: dict[nn.Module, Modulation] = {}
    for of_width in by_width.values():
        sums = reduce(torch.add, (torch.stack(each) for each in zip(*of_width.values(), strict=True)))[:, :batch]
        factor, shift = sums.to(dtype).chunk(2, dim=-1)  # autocast may have chosen another; (n, B, C) each
        factor, late = factor + 1, None
        before, behind = (
            stack_known([getattr(around[block], side) for block in of_width]) for side in Neighbours._fields
        )
        if before is not None:
            late = torch.addcmul(shift, factor, before)[None]
            late = late if behind is None else torch.cat([late, late + behind])
        if scale != 1:
            shift, late = shift * scale, None if late is None else late * scale
        rows = [each[:, :, None, None].unbind() for each in (factor, shift)]
        if late is not None:
            rows.append(late[:, :, :, None, None].unbind(1))
        found.update(zip(of_width, (Modulation(*each) for each in zip(*rows, strict=True)), strict=True))
    return found


class Projections(nn.Module):
    """The four projections of an attention, under the names that the host's nets use."""

    to_q: nn.Linear
    to_k: nn.Linear
    to_v: nn.Linear
    out_proj: nn.Linear

    def __init__(self, c: int, dtype, device, backend: Backend):
        super().__init__()
        for name in ("to_q", "to_k", "to_v", "out_proj"):
            self.add_module(name, backend.Linear(c, c, dtype=dtype, device=device))


class AttnBlock(nn.Module):
    """Attention of the picture's tokens to themselves and to the condition tokens in one softmax.

    x (B, H, W, C) holds ``scale`` times its value, and so does the result; ``cond`` (1 or B, M, C) are the condition
    tokens as :meth:`map_condition` gives them.
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
        self.attend, self.backend = backend.attention, backend
        self.attention = nn.ModuleDict({"attn": Projections(c, dtype, device, backend)})
        self.kv_mapper = nn.Sequential(nn.SiLU(), backend.Linear(c_cond, c, dtype=dtype, device=device))

    def forward(self, x: Tensor, cond: Tensor, scale: float, place: Place, hooks: BlockHooks = NO_HOOKS) -> Tensor:
        attn = cast(Projections, self.attention["attn"])
        place = place._replace(heads=self.heads, grid=(x.shape[1], x.shape[2]))
        own = channel_norm(x, scale).flatten(1, 2)  # (B, H, W, C) -> (B, N, C)
        cond = cond.expand(x.shape[0], -1, -1)
        query, keys, values, n_self = self.join_tokens(*hooks.attention_tokens(place, own, cond))
        q, k, v = attn.to_q(query), attn.to_k(keys), attn.to_v(values)
        del own, query, keys, values  # each as large as the stream
        out = hooks.attention(place, q, k, v, n_self)
        if out is None:
            out = self.attend(q, k, v, self.heads, hooks.options)
        out = hooks.attention_output(place, attn.out_proj(out))
        return torch.add(x, out.reshape(x.shape), alpha=scale)  # (B, N, C) -> (B, H, W, C)

    def map_condition(self, cond: Tensor) -> Tensor:
        """Condition tokens (1 or B, M, c_cond), after the SiLU of ``kv_mapper`` -> (1 or B, M, C).

        That SiLU is the same for every block of a network, so it is computed once per forward.
        """
        return self.kv_mapper[1](cond)

    def join_tokens(
        self, query: Tensor, own: tuple[Tensor, Tensor], cond: tuple[Tensor, Tensor]
    ) -> tuple[Tensor, Tensor, Tensor, int]:
        """Query, keys, values and how many of the keys are the picture's own, which come first."""
        if not self.self_attn:
            return query, *cond, 0
        keys = torch.cat([own[0], cond[0]], dim=1)
        same = own[0] is own[1] and cond[0] is cond[1]
        return query, keys, keys if same else torch.cat([own[1], cond[1]], dim=1), own[0].shape[1]
