"""Masks (..., H, W) in [0, 1]: resized without loss, grown, blurred and filled. All are only read."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

SQUARE_SHARE = 2**0.5 - 1
"""How much of a regular octagon's reach comes from a square; the rest comes from a diamond."""


def resize_mask(mask: Tensor, height: int, width: int, mode: str = "bilinear") -> Tensor:
    """``mask`` (B, H, W) at another size: an axis that shrinks keeps the largest value, so that thin strokes stay.

    mode: how an axis that grows is filled, "bilinear" or "nearest-exact".
    """
    mask = mask[:, None]
    smaller = min(height, mask.shape[-2]), min(width, mask.shape[-1])
    if smaller != tuple(mask.shape[-2:]):
        mask = F.adaptive_max_pool2d(mask, smaller)
    if smaller != (height, width):
        align = {"align_corners": False} if mode == "bilinear" else {}
        mask = F.interpolate(mask, (height, width), mode=mode, **align)
    return mask[:, 0]


def grow_square(mask: Tensor, radius: int) -> Tensor:
    """The largest value of ``mask`` (B, H, W) within a square of ``radius`` around each pixel, in log(radius) steps."""
    for axis in (-1, -2):
        mask = _grow(mask, radius, partial(_shift_pair, axis))
    return mask


def grow_diamond(mask: Tensor, radius: int) -> Tensor:
    """The largest value of ``mask`` (B, H, W) within ``radius`` steps along rows and columns, in log(radius) steps.

    Four diamonds whose centres lie a radius up, down, left and right of a point make one of twice the radius.
    """
    return _grow(
        mask, radius, lambda values, by: torch.maximum(_shift_pair(-1, values, by), _shift_pair(-2, values, by))
    )


def grow_octagon(mask: Tensor, radius: int) -> Tensor:
    """``mask`` (B, H, W) spread by ``radius`` pixels in every direction, about round; a negative one shrinks it."""
    if radius < 0:
        return 1 - grow_octagon(1 - mask, -radius)
    square = int(radius * SQUARE_SHARE)
    return grow_diamond(grow_square(mask, square), radius - square)


def _grow(mask: Tensor, radius: int, spread: Callable[[Tensor, int], Tensor]) -> Tensor:
    """``mask`` grown to ``radius`` by a ``spread(values, by)`` that adds ``by`` <= the reach so far to it."""
    if radius <= 0:
        return mask
    mask, reach = torch.maximum(mask, spread(mask, 1)), 1
    while reach < radius:
        by = min(reach, radius - reach)
        mask, reach = spread(mask, by), reach + by
    return mask


def _shift_pair(axis: int, mask: Tensor, by: int) -> Tensor:
    """The larger of the values ``by`` before and ``by`` after along ``axis``; beyond the edge, the edge's."""
    size = mask.shape[axis]
    places = torch.arange(size, device=mask.device)
    before = mask.index_select(axis, (places - by).clamp(min=0))
    return torch.maximum(before, mask.index_select(axis, (places + by).clamp(max=size - 1)))


def blur_mask(mask: Tensor, radius: int) -> Tensor:
    """``mask`` (B, H, W) with a Gaussian blur that reaches ``radius`` pixels; its edges are repeated outwards."""
    if radius <= 0:
        return mask
    places = torch.arange(-radius, radius + 1, dtype=torch.float32, device=mask.device)
    weights = torch.exp(-0.5 * (places / (0.5 * radius)) ** 2)
    weights = weights / weights.sum()
    out = F.pad(mask[:, None], (radius, radius, radius, radius), mode="replicate")
    return F.conv2d(F.conv2d(out, weights.view(1, 1, 1, -1)), weights.view(1, 1, -1, 1))[:, 0]


def fill_holes(mask: Tensor) -> Tensor:
    """``mask`` (B, H, W) with 1 in every hole: where 0 is not joined to the picture's edge by rows and columns of 0."""
    free = mask <= 0
    outside = torch.zeros_like(free)
    outside[:, 0], outside[:, -1], outside[:, :, 0], outside[:, :, -1] = True, True, True, True
    return mask.masked_fill(free & ~flood(outside & free, free), 1.0)


def flood(found: Tensor, free: Tensor) -> Tensor:
    """All of ``free`` that is joined to ``found`` by rows and columns of it, each bool (B, H, W)."""
    while True:
        reached = _reach_along(_reach_along(found, free, 2), free, 1)
        if torch.equal(reached, found):
            return found
        found = reached


def _reach_along(found: Tensor, free: Tensor, axis: int) -> Tensor:
    """Every run of ``free`` along ``axis`` that holds one of ``found``, both bool (B, H, W)."""
    runs = (~free).cumsum(axis)
    size = list(runs.shape)
    size[axis] = runs.shape[axis] + 1
    touched = torch.zeros(size, dtype=torch.uint8, device=found.device)
    touched.scatter_reduce_(axis, runs, found.to(torch.uint8), "amax")
    return touched.gather(axis, runs).bool() & free
