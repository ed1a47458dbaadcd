"""Computing in float16 on a residual stream that exceeds 65,504.

The stream of a trained network outgrows float16, whose precision would be more than enough. So in float16 the stream
holds ``STREAM_SCALE`` times its value: it starts from a norm, at about 1, and only grows. What reads the raw stream
(the first convolution of a block, a skip in a mixer) gets scaled numbers and gives scaled numbers; behind every norm
they are plain again. In all other formats the scale is 1 and nothing here does anything.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .backend import Backend
from .channels_last import convolve, run_linear

STREAM_SCALE = 2.0**-13  # values up to 536 million, to 0.0003 or to 11 bits, whichever is coarser
ROOM = 2048.0  # a value within this goes into a float16 layer as it is ...
PEAK = 32.0  # ... and a larger one is brought down to this, so that the layer's weights may multiply it by 2,000
PARTS = 4  # an activation needs a copy of what it works on: of so many parts one at a time


Run = Callable[[nn.Module, Tensor], Tensor]


def choose_stream_scale(dtype: torch.dtype) -> float:
    """What the residual stream holds of its value, for a network that computes in ``dtype``."""
    return STREAM_SCALE if dtype == torch.float16 else 1.0


def run_scaled(
    layer: nn.Module, x: Tensor, scale: float, backend: Backend, run: Run = run_linear, held: Tensor | None = None
) -> Tensor:
    """``scale`` times what an affine ``layer`` makes of a value of which x (B, H, W, C) holds ``scale`` times.

    The products scale by themselves, so only the bias has to be scaled. A layer that does not lend its tensors is
    called in its plain range instead, by :func:`run_in_range`. ``run`` calls a layer on (B, H, W, C); not every host's
    class for matrices is a ``nn.Linear``, so it cannot be asked of the layer. ``held`` is ``scale`` times the bias of a
    convolution, where somebody has computed it already.
    """
    pointwise = run is convolve and is_pointwise(layer)
    if scale == 1 and (not pointwise or torch.compiler.is_compiling()):
        return run(layer, x)
    lent = None if torch.is_grad_enabled() else backend.lend_weights(layer, x)
    if lent is None:
        return run(layer, x) if scale == 1 else run_in_range(layer, x, scale, run)
    if run is run_linear or pointwise:  # as a product it adds its bias in the same kernel
        out = multiply(x, lent.weight.flatten(1), lent.bias, scale)
    else:
        bias = held if held is not None or lent.bias is None else lent.bias * scale
        shape: Any = layer.stride, layer.padding, layer.dilation, layer.groups
        out = convolve(lambda h: F.conv2d(h, lent.weight, bias, *shape), x)
    lent.release()
    return out


def is_pointwise(layer: Any) -> bool:
    """Whether ``layer`` is a convolution that looks at one cell at a time."""
    shape = tuple(getattr(layer, name, None) for name in ("kernel_size", "stride", "padding", "groups"))
    return shape == ((1, 1), (1, 1), (0, 0), 1)


def multiply(x: Tensor, weight: Tensor, bias: Tensor | None, scale: float) -> Tensor:
    """A linear layer on a value of which x (B, H, W, C) holds ``scale`` times, and so does the result."""
    bias = bias if bias is None or scale == 1 else bias * scale
    return F.linear(x.flatten(1, 2), weight, bias).unflatten(1, x.shape[1:3])


def run_in_range(layer: nn.Module, x: Tensor, scale: float, run: Run) -> Tensor:
    """:func:`run_scaled` for any affine layer, on values that it may have overflowed on: exact, and slower.

    Each sample is scaled by a power of two s <= 1 that brings its peak into range, and since the layer is affine its
    answer to zero, the bias, gives layer(x) = (layer(s x) - layer(0)) / s + layer(0). Infinities and NaN stay visible.
    """
    true = x.float() / scale
    peak = torch.linalg.vector_norm(true, math.inf, dim=(1, 2, 3), keepdim=True)
    exponent = torch.where(peak <= ROOM, 0.0, torch.log2(peak / PEAK).ceil())
    bias = run(layer, x.new_zeros((1, 1, 1, x.shape[-1]))).float()
    scaled = run(layer, (true * torch.exp2(-exponent)).to(x.dtype)).float()
    return (torch.addcmul(bias, scaled - bias, torch.exp2(exponent)) * scale).to(x.dtype)


def activate(h: Tensor, scale: float = 1.0) -> Tensor:
    """GELU of what ``h`` holds ``scale`` times, scaled alike; without gradients written over ``h``."""
    if torch.is_grad_enabled() or torch.compiler.is_compiling():
        return F.gelu(h) if scale == 1 else (F.gelu(h.float() / scale) * scale).to(h.dtype)
    if scale == 1:
        return torch.ops.aten.gelu_(h)
    nothing = h.new_zeros(())
    for part in h.flatten(0, -2).chunk(PARTS):
        # GELU(x) is x erfc(-x / sqrt 2) / 2: an infinite argument is as good as a large one.
        torch.addcmul(nothing, part, (part * (-(0.5**0.5) / scale)).erfc_(), value=0.5, out=part)
    return h
