"""The part of a Stage C latent that belongs to a part of the Stage B latent."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F


def crop_prior(prior: Tensor, grid: tuple[int, int], area: Sequence[int], least: int = 1) -> Tensor:
    """Sample ``prior`` (B, C, h, w) where the network's cells of ``area`` [h, w, y, x] lie in the Stage B ``grid``.

    The network pads an area to ``least`` cells a side.
    """
    height, width, top, left = area
    positions = []
    for size, start, full in ((height, top, grid[0]), (width, left, grid[1])):
        cells, full_cells = max(least, -(-size // 2)), -(-full // 2)
        index = start / 2 + torch.arange(cells, dtype=torch.float32, device=prior.device)
        positions.append(2 * index / max(full_cells - 1, 1) - 1)
    y, x = torch.meshgrid(*positions, indexing="ij")
    places = torch.stack((x, y), dim=-1)[None].expand(prior.shape[0], -1, -1, -1)
    sampled = F.grid_sample(prior.float(), places, mode="bilinear", padding_mode="border", align_corners=True)
    return sampled.to(prior.dtype)
