"""Stage C latents at another size: the part that belongs to a part of Stage B, and the grid of a larger canvas."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from ..nets import portable
from ..nets.portable import sample_lines
from .canvas import Canvas, plan_canvas
from .grids import ASKED, PREFERRED

MODES = ("bicubic", "bilinear", "nearest-exact")


def crop_prior(prior: Tensor, grid: tuple[int, int], area: Sequence[int], least: int = 1) -> Tensor:
    """Sample ``prior`` (B, C, h, w) where the network's cells of ``area`` [h, w, y, x] lie in the Stage B ``grid``.

    The network pads an area to ``least`` cells a side.
    """
    height, width, top, left = area
    positions = []
    for size, start, full, own in ((height, top, grid[0], prior.shape[-2]), (width, left, grid[1], prior.shape[-1])):
        cells, full_cells = max(least, -(-size // 2)), -(-full // 2)
        index = start / 2 + torch.arange(cells, dtype=torch.float32, device=prior.device)
        positions.append((index / max(full_cells - 1, 1) * (own - 1))[None])
    return sample_lines(prior.float(), *positions).to(prior.dtype)


def enlarge_canvas(canvas: Canvas, factor: float, compression: float | None = None) -> Canvas:
    """The canvas of the same picture, ``factor`` times as large; raises WrongInput beyond the largest size.

    Without ``compression`` it is automatic where that of ``canvas`` may be so, and stays as it is otherwise.
    """
    usual = PREFERRED[0] <= canvas.compression <= PREFERRED[1]
    if compression is None and not usual and canvas != plan_canvas(canvas.width, canvas.height):
        compression = min(max(canvas.compression, ASKED[0]), ASKED[1])
    return plan_canvas(round(canvas.width * factor), round(canvas.height * factor), compression)


def resample_prior(samples: Tensor, source: Canvas, target: Canvas, mode: str = "bicubic") -> Tensor:
    """``samples`` (B, 16, h, w) on the grid of ``source``, where the grid of ``target`` shows the same picture.

    Both canvases pad their picture on their own, so cells are matched by their place in the picture, not in the grid.
    """
    if source == target:
        return samples.clone()
    axes = []
    for padded, cells, sides, other, other_cells, other_sides in (
        (
            source.padded_height,
            source.prior_height,
            (source.crop[1], source.crop[3]),
            target.padded_height,
            target.prior_height,
            (target.crop[1], target.crop[3]),
        ),
        (
            source.padded_width,
            source.prior_width,
            (source.crop[0], source.crop[2]),
            target.padded_width,
            target.prior_width,
            (target.crop[0], target.crop[2]),
        ),
    ):
        centres = (torch.arange(other_cells, dtype=torch.float64) + 0.5) * other / other_cells
        share = (centres - other_sides[0]) / (other_sides[1] - other_sides[0])
        axes.append(((share * (sides[1] - sides[0]) + sides[0]) / padded * cells, cells))
    if mode == "nearest-exact":
        rows, columns = (axis.floor().long().clamp(0, cells - 1).to(samples.device) for axis, cells in axes)
        return samples[..., rows[:, None], columns]
    y, x = torch.meshgrid(*(2 * axis / cells - 1 for axis, cells in axes), indexing="ij")
    places = torch.stack((x, y), dim=-1)[None].float().expand(samples.shape[0], -1, -1, -1)
    device = torch.device("cpu") if samples.device.type in portable.LACKING else samples.device
    given = samples.to(device=device, dtype=torch.float32)
    moved = F.grid_sample(given, places.to(device), mode=mode, padding_mode="border", align_corners=False)
    return moved.to(samples)
