"""A Stage C latent on the grid of a larger canvas: the start of a second pass at high resolution."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from .canvas import Canvas, plan

MODES = ("bicubic", "bilinear", "nearest-exact")


def enlarged_canvas(canvas: Canvas, factor: float, compression: float | None = None) -> Canvas:
    """The canvas of the same picture, ``factor`` times as large; raises WrongInput beyond the largest size."""
    return plan(round(canvas.width * factor), round(canvas.height * factor), compression)


def resampled_prior(samples: Tensor, source: Canvas, target: Canvas, mode: str = "bicubic") -> Tensor:
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
        centres = (torch.arange(other_cells, device=samples.device, dtype=torch.float64) + 0.5) * other / other_cells
        share = (centres - other_sides[0]) / (other_sides[1] - other_sides[0])
        axes.append(((share * (sides[1] - sides[0]) + sides[0]) / padded * cells, cells))
    if mode == "nearest-exact":
        rows, columns = (axis.floor().long().clamp(0, cells - 1) for axis, cells in axes)
        return samples[..., rows[:, None], columns]
    y, x = torch.meshgrid(*(2 * axis / cells - 1 for axis, cells in axes), indexing="ij")
    places = torch.stack((x, y), dim=-1)[None].float().expand(samples.shape[0], -1, -1, -1)
    moved = F.grid_sample(samples.float(), places, mode=mode, padding_mode="border", align_corners=False)
    return moved.to(samples.dtype)
