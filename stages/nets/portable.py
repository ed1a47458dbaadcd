"""Operations that some devices lack, in others' terms; where a device has them, PyTorch's own are used.

Apple's MPS has no sampling with repeated borders before PyTorch 2.13, no average over areas that do not divide a side,
and no float64; Intel's Arc has no float64 either. tests/unit/test_devices.py has the table.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

LACKING = ("mps", "privateuseone")
"""Devices for which the other terms are used: Apple's, and DirectML, of which nobody knows."""

WIDE = ("cpu", "cuda")
"""Devices with float64."""


def choose_exact(device: torch.device) -> torch.dtype:
    """The most exact format of ``device``."""
    return torch.float64 if device.type in WIDE else torch.float32


def average_areas(x: Tensor, size: tuple[int, int]) -> Tensor:
    """``x`` (B, C, H, W) averaged over the area of each cell of ``size``, as ``interpolate(mode="area")`` does."""
    if x.device.type not in LACKING:
        return F.interpolate(x, size=size, mode="area")
    return average_by_products(x, size)


def average_by_products(x: Tensor, size: tuple[int, int]) -> Tensor:
    """:func:`average_areas` as two matrix products, one a side."""
    down, across = (share_cells(old, new, x) for old, new in zip(x.shape[-2:], size, strict=True))
    return down @ x @ across.mT  # (h, H) by (B, C, H, W) by (W, w) -> (B, C, h, w)


def share_cells(old: int, new: int, like: Tensor) -> Tensor:
    """How much each of ``old`` cells counts in each of ``new`` areas: (new, old), rows of sum 1."""
    index = torch.arange(new)
    first, last = index * old // new, -(-(index + 1) * old // new)
    cells = torch.arange(old)
    inside = ((cells >= first[:, None]) & (cells < last[:, None])).float()
    return (inside / inside.sum(1, keepdim=True)).to(like)


def sample_lines(x: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """``x`` (B, C, H, W) at fractional ``rows`` (B or 1, h) and ``columns`` (B or 1, w), borders repeated, bilinear.

    Positions count cells from the first one's centre. Returns (B, C, h, w).
    """
    if x.device.type not in LACKING:
        places = [2 * at / max(side - 1, 1) - 1 for at, side in ((rows, x.shape[-2]), (columns, x.shape[-1]))]
        batch, sizes = max(len(rows), len(columns)), (rows.shape[1], columns.shape[1])
        y, x_ = places[0][:, :, None].expand(batch, *sizes), places[1][:, None].expand(batch, *sizes)
        grid = torch.stack((x_, y), dim=-1).to(x).expand(x.shape[0], -1, -1, -1)
        return F.grid_sample(x, grid, padding_mode="border", align_corners=True)
    return sample_by_gathering(x, rows, columns)


def sample_by_gathering(x: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """:func:`sample_lines` from neighbours, one side after the other."""
    for axis, at in ((2, rows), (3, columns)):
        at = at.to(x).expand(x.shape[0], -1).clamp(0, x.shape[axis] - 1)
        low = at.floor().clamp(max=max(x.shape[axis] - 2, 0))
        shape = [x.shape[0], 1, -1, 1] if axis == 2 else [x.shape[0], 1, 1, -1]
        wide = list(x.shape)
        wide[axis] = at.shape[1]
        index = low.long().view(shape).expand(wide)
        further = (index + 1).clamp(max=x.shape[axis] - 1)
        x = torch.lerp(x.gather(axis, index), x.gather(axis, further), (at - low).view(shape))
    return x
