"""Edges as the canny ControlNet was trained on: OpenCV's ``Canny`` (aperture 3, L1 gradient) in plain torch.

Canny, "A Computational Approach to Edge Detection", 1986; the integer arithmetic, the choice of one colour channel a
pixel and the border are those of OpenCV, so that both give the same picture, bit for bit.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from ..errors import WrongInput

SIZE = 224
"""Pixels a side at which the ControlNet's edges were found, whatever the picture's aspect."""
LOW, HIGH = 100, 200
"""The thresholds of the training."""

_SHIFT = 15
_TAN_22 = int((2**0.5 - 1) * 2**_SHIFT + 0.5)


def make_hint(image: Tensor, low: int = LOW, high: int = HIGH) -> Tensor:
    """Pictures (B, 3, H, W) in [0, 1] → the hint (B, 1, H, W) of the canny ControlNet, in [0, 1].

    The edges of the picture squeezed to 224×224 pixels, stretched back; both bilinear without antialiasing. Back to
    fewer pixels than that, which no official picture has, goes with antialiasing, so that no edge falls between them.
    """
    size = image.shape[-2:]
    small = F.interpolate(image.float(), size=(SIZE, SIZE), mode="bilinear")
    found = find_edges(small.clamp(0.0, 1.0).mul(255).to(torch.uint8), low, high)
    return F.interpolate(found.to(image), size=size, mode="bilinear", antialias=min(size) < SIZE)


def find_edges(image: Tensor, low: int = LOW, high: int = HIGH) -> Tensor:
    """Pictures (B, C, H, W), uint8 → edges (B, 1, H, W), bool.

    A pixel is an edge where its gradient |dx| + |dy| is the largest across the edge, and above ``high``, or above
    ``low`` and connected to such a one. The thresholds may come in either order.
    """
    if image.dtype != torch.uint8 or image.ndim != 4:
        raise WrongInput(
            f"The edge detector got {image.dtype} of shape {tuple(image.shape)}; it needs pictures "
            "(batch, channels, height, width) of bytes. Give it an uint8 picture."
        )
    low, high = sorted((low, high))
    dx, dy, size = _take_gradient(image.cpu())
    thin = _thin(dx, dy, size) & (size > low)
    return _connect(thin & (size > high), thin).to(image.device)


def _take_gradient(image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Sobel derivatives and |dx| + |dy|, each (B, 1, H, W) int32, of the channel in which that is largest."""
    padded = F.pad(image.float(), (1, 1, 1, 1), mode="replicate").to(torch.int32)
    rows = padded[..., :-2, :] + 2 * padded[..., 1:-1, :] + padded[..., 2:, :]
    columns = padded[..., :-2] + 2 * padded[..., 1:-1] + padded[..., 2:]
    dx = rows[..., 2:] - rows[..., :-2]
    dy = columns[..., 2:, :] - columns[..., :-2, :]
    size = dx.abs() + dy.abs()
    best = _find_first_largest(size)
    return dx.gather(1, best), dy.gather(1, best), size.gather(1, best)


def _find_first_largest(values: Tensor) -> Tensor:
    """Index (B, 1, H, W) of the first channel that holds the largest value."""
    largest = values == values.amax(1, keepdim=True)
    return largest.to(torch.uint8).cumsum(1).eq(0).sum(1, keepdim=True)


def _thin(dx: Tensor, dy: Tensor, size: Tensor) -> Tensor:
    """Where the gradient is larger than that of both neighbours in its own direction; outside the picture it is 0.

    Of two equal neighbours along a row or a column the first one is kept; diagonally neither is.
    """
    padded = F.pad(size, (1, 1, 1, 1))
    height, width = size.shape[-2:]

    def neighbour(down: int, right: int) -> Tensor:
        return padded[..., 1 + down : 1 + down + height, 1 + right : 1 + right + width]

    # Angles are compared in integers, a tangent being a number of 2^15ths.
    across, along = dx.abs() * _TAN_22, dy.abs() << _SHIFT
    flat = along < across
    steep = along > across + (dx.abs() << (_SHIFT + 1))
    rising = (dx ^ dy) < 0
    horizontal = (size > neighbour(0, -1)) & (size >= neighbour(0, 1))
    vertical = (size > neighbour(-1, 0)) & (size >= neighbour(1, 0))
    falling_diagonal = (size > neighbour(-1, -1)) & (size > neighbour(1, 1))
    rising_diagonal = (size > neighbour(-1, 1)) & (size > neighbour(1, -1))
    diagonal = torch.where(rising, rising_diagonal, falling_diagonal)
    return torch.where(flat, horizontal, torch.where(steep, vertical, diagonal))


def _connect(strong: Tensor, thin: Tensor) -> Tensor:
    """The pixels of ``thin`` that a path of neighbours (8 a pixel) joins to one of ``strong``."""
    found = strong
    while True:
        grown = (F.max_pool2d(found.float(), 3, stride=1, padding=1) > 0) & thin
        if torch.equal(grown, found):
            return found
        found = grown
