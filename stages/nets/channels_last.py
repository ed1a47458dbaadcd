"""Activations of the networks: channels-last, (B, H, W, C) and contiguous.

A convolution sees the (B, C, H, W) view of it, which PyTorch calls ``channels_last``, so that no step has to copy a
permutation.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor, nn
from torch.nn import functional as F

EPS = 1e-6


def nchw(x: Tensor) -> Tensor:
    """(B, H, W, C) seen as (B, C, H, W)."""
    return x.permute(0, 3, 1, 2)


def nhwc(x: Tensor) -> Tensor:
    """(B, C, H, W) seen as contiguous (B, H, W, C); copies only what is not in channels-last memory."""
    return x.permute(0, 2, 3, 1).contiguous()


def channel_norm(x: Tensor, scale: float = 1.0, held: float = 1.0, plus: Tensor | None = None) -> Tensor:
    """LayerNorm without affine over the last axis of what ``x`` holds ``scale`` times.

    The result is ``held`` times its value, with ``plus`` (C) added.
    """
    weight = None if held == 1 else x.new_full(x.shape[-1:], held)
    return F.layer_norm(x, x.shape[-1:], weight, plus, eps=EPS * scale**2)


def resize(x: Tensor, size: Sequence[int]) -> Tensor:
    """``x`` (B, H, W, C) bilinearly resized (corners aligned, in float32) to ``size``; itself where it fits."""
    if x.shape[1:3] == tuple(size):
        return x
    return nhwc(F.interpolate(nchw(x).float(), size=size, mode="bilinear", align_corners=True)).to(x.dtype)


def convolve(conv: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """A convolution on (B, H, W, C)."""
    return nhwc(conv(nchw(x)))


def run_linear(linear: nn.Module, x: Tensor) -> Tensor:
    """A linear layer on (B, H, W, C), seen as (B, N, C): fast products of quantised weights take no more axes."""
    return linear(x.flatten(1, 2)).unflatten(1, x.shape[1:3])
