"""What a picture said before it was painted anew, put back: its shapes and colours at its own resolution.

Pictures are (B, H, W, 3) in [0, 1]. What is painted has two parts: what remains when it is made as small as its source
was, and the detail beyond that. Only the detail is the model's to invent, so the rest may be the source's own but for
its grain (iterative back-projection: Irani and Peleg, Improving Resolution by Image Registration, CVGIP 1991).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..errors import WrongInput
from .inpaint import resample_image
from .masks import blur_mask

REACH = 3
"""Pixels of the source around each over which its difference is compared with the grain."""
MEDIAN_OF_NORMAL = 0.6745
"""Median of the distance from 0 of a normal variable of standard deviation 1."""


def keep_source(painted: Tensor, source: Tensor, share: float = 1.0) -> Tensor:
    """``painted`` with ``share`` of what it lost of the smaller ``source``, and with the detail that it added.

    What the two differ by counts as far as it is more than the source's grain (Wiener's filter), so that grain stays
    away where painting took it off. A share of 0 changes nothing.
    """
    if not math.isfinite(share):
        raise WrongInput(f"keep_source is {share}, which is no share of a picture: give a number from 0 to 1.")
    if not share:
        return painted
    (height, width), (rows, columns) = painted.shape[1:3], source.shape[1:3]
    lost = source - resample_image(painted, columns, rows)
    power = blur_mask(lost.square().mean(-1), REACH)
    grain = estimate_grain(source).square()[:, None, None]
    certain = (power - grain).clamp(min=0) / power.clamp(min=torch.finfo(power.dtype).tiny)
    return (painted + share * resample_image(lost * certain[..., None], width, height)).clamp(0, 1)


def estimate_grain(image: Tensor) -> Tensor:
    """Standard deviation (B,) of the grain of ``image``: that of the smallest details along both diagonals, of which
    most places of a picture without grain have none (Donoho and Johnstone 1994)."""
    height, width = (side // 2 * 2 for side in image.shape[1:3])
    if not height or not width:
        return image.new_zeros(len(image))
    cells = image[:, :height, :width].unflatten(2, (-1, 2)).unflatten(1, (-1, 2))  # (B, H/2, 2, W/2, 2, 3)
    details = (cells[:, :, 0, :, 0] - cells[:, :, 0, :, 1] - cells[:, :, 1, :, 0] + cells[:, :, 1, :, 1]) / 2
    return details.abs().flatten(1, 2).median(1).values.mean(1) / MEDIAN_OF_NORMAL
