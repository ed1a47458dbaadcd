"""Attention changed by several parties at once: each layer may change the tokens or the mask and calls the next one.

The attention of Stage B and Stage C is one softmax over the picture's own tokens followed by the condition tokens, so
a feature (regions, windows, tiles) can only say what it wants of that one softmax. Layers say it in a fixed order.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ..nets.backend import AttentionFunction
from ..nets.hooks import NO_HOOKS, BlockHooks, Place, Residual, RunBlock

Attend = Callable[[Tensor, Tensor, Tensor, int, "Tensor | None"], Tensor]
"""``attend(q, k, v, n_self, mask)``: q (B, N, C), k and v (B, M, C), of which the first ``n_self`` are the picture's
own, and a mask (B, N, M) that is added to the products, or None; returns (B, N, C)."""

QUERIES = 512  # products of so many queries at once


class AttentionLayer:
    """One party. ``order`` says when it is asked: the lowest first, so that it is the outermost."""

    order = 0
    yields = False
    """Whether it steps back where a patch replaces the attention and has to see the whole picture."""

    def attend(
        self, place: Place, q: Tensor, k: Tensor, v: Tensor, n_self: int, mask: Tensor | None, following: Attend
    ) -> Tensor:
        """Returns what the attention gives, (B, N, C)."""
        return following(q, k, v, n_self, mask)


@dataclass(frozen=True)
class Changes:
    """What a feature changes in a pass: layers of the attention, and hooks for the other blocks."""

    layers: tuple[AttentionLayer, ...] = ()
    blocks: BlockHooks = NO_HOOKS


NO_CHANGES = Changes()


class LayeredHooks(BlockHooks):
    """Block hooks that make ``changes``: they ask every layer, and the network's own ``attention`` at the end."""

    def __init__(
        self, changes: Changes, attention: AttentionFunction, options: Any = None, compiler: RunBlock | None = None
    ):
        super().__init__(options, compiler)
        self.layers = sorted(changes.layers, key=lambda layer: layer.order)
        self.blocks = changes.blocks
        self.silent = type(self).silent | {"attention_block", "run_block"} & changes.blocks.silent
        self.borrowed = changes.blocks.borrowed
        self.attend_plainly = attention

    def run_block(self, block: Residual, x: Tensor, skip: Tensor | None, scale: float) -> Tensor:
        if self.blocks is NO_HOOKS:
            return super().run_block(block, x, skip, scale)
        return self.blocks.run_block(block, x, skip, scale)

    def attention_block(self, place: Place, x: Tensor, time: Tensor) -> Tensor:
        return self.blocks.attention_block(place, x, time)

    def resize(self, x: Tensor, size: Sequence[int]) -> Tensor:
        return self.blocks.resize(x, size)

    def run_rowwise(self, layer: Callable[[Tensor], Tensor], x: Tensor, width: int) -> Tensor:
        return self.blocks.run_rowwise(layer, x, width)

    def attention(self, place: Place, q: Tensor, k: Tensor, v: Tensor, n_self: int) -> Tensor | None:
        if not self.layers:
            return None
        return self.through_layers(place, q, k, v, n_self, self.layers, self.plainly(place))

    def plainly(self, place: Place) -> Attend:
        """The innermost attention at ``place``."""

        def attend(q: Tensor, k: Tensor, v: Tensor, n_self: int, mask: Tensor | None) -> Tensor:
            return self.attend_plainly(q, k, v, place.heads, self.options, mask=mask)

        return attend

    @staticmethod
    def through_layers(
        place: Place, q: Tensor, k: Tensor, v: Tensor, n_self: int, layers: list[AttentionLayer], last: Attend
    ) -> Tensor:
        """Ask ``layers`` from the first to the last, then ``last``."""

        def call(index: int) -> Attend:
            if index == len(layers):
                return last

            def attend(q: Tensor, k: Tensor, v: Tensor, n_self: int, mask: Tensor | None) -> Tensor:
                return layers[index].attend(place, q, k, v, n_self, mask, call(index + 1))

            return attend

        return call(0)(q, k, v, n_self, None)


class TokenLayer(AttentionLayer):
    """Counts the condition tokens by ``weights`` (B, T): a token of weight 2 is heard as if it were there twice."""

    def __init__(self, weights: Tensor):
        self.weights = weights

    def attend(
        self, place: Place, q: Tensor, k: Tensor, v: Tensor, n_self: int, mask: Tensor | None, following: Attend
    ) -> Tensor:
        bias = F.pad(log_weights(self.weights), (n_self, k.shape[1] - n_self - self.weights.shape[1])).to(q.dtype)
        return following(q, k, v, n_self, add_masks(mask, bias[:, None].expand(-1, q.shape[1], -1)))


def own_share(q: Tensor, k: Tensor, heads: int, n_self: int, mask: Tensor | None = None) -> Tensor:
    """How much of the softmax lies on the picture's own tokens, the first ``n_self`` of ``k``: (B, N, heads, 1).

    With it the joint attention is the sum of an attention to the own tokens and one to the others.
    """
    batch, length, width = q.shape
    q, k = (
        x.view(batch, -1, heads, width // heads).transpose(1, 2).float() for x in (q, k)
    )  # (B, heads, N, C / heads)
    shares = []
    for first in range(0, length, QUERIES):
        products = q[:, :, first : first + QUERIES] @ k.transpose(2, 3) * (width // heads) ** -0.5
        if mask is not None:
            products = products + mask[:, None, first : first + QUERIES]
        shares.append((products[..., :n_self].logsumexp(-1) - products.logsumexp(-1)).exp())
    return torch.cat(shares, dim=-1).transpose(1, 2)[..., None]


def add_masks(mask: Tensor | None, bias: Tensor) -> Tensor:
    """Two masks in one; ``mask`` may be None."""
    return bias if mask is None else mask + bias


def log_weights(weights: Tensor) -> Tensor:
    """What is added to a product so that the softmax counts its token ``weights`` times; 0 takes it out.

    A finite number stands for minus infinity, because a row of nothing but infinities would be NaN.
    """
    least = torch.finfo(torch.float16).min / 2
    return weights.float().clamp(min=0).log().clamp(min=least)
