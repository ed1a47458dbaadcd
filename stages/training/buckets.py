"""The sizes that pictures are brought to before they are encoded."""

from __future__ import annotations

import math

from torch import Tensor
from torch.nn import functional as F

from ..nets.encoder import CELL

RATIOS = (1 / 1, 1 / 2, 1 / 3, 2 / 3, 3 / 4, 1 / 5, 2 / 5, 3 / 5, 4 / 5, 1 / 6, 5 / 6, 9 / 16)
"""Width to height of the buckets; their reciprocals are buckets too."""
MOST_CUT = 0.08
"""The share of a picture that an official bucket may cut away before a size of its own is looked for."""


def choose_bucket(width: int, height: int, resolution: int) -> tuple[int, int]:
    """Width and height, whole cells, of the bucket for a picture of ``width`` x ``height``.

    The official one of the nearest shape, for the ratio r: floor(resolution · r^±(1/2) / 32) · 32; where whole cells
    make that cut more than :data:`MOST_CUT`, the size of at most the same area that cuts least.
    """
    wanted = math.log(width / height)
    ratio = min({*RATIOS, *(1 / r for r in RATIOS)}, key=lambda r: (abs(math.log(r) - wanted), r))
    sides = (resolution * ratio**0.5, resolution / ratio**0.5)
    across, down = (max(CELL, int(side + 1e-6) // CELL * CELL) for side in sides)
    official = across, down
    if cut_share(width, height, official) <= MOST_CUT:
        return official
    most = max(1, resolution // CELL) ** 2
    widths = range(1, max(2, math.isqrt(6 * most) + 1))
    sizes = [official, *((CELL * w, CELL * (most // w)) for w in widths if most // w and w / (most // w) >= 1 / 6)]
    return min(sizes, key=lambda size: (round(cut_share(width, height, size), 3), -size[0] * size[1], size))


def cut_share(width: int, height: int, size: tuple[int, int]) -> float:
    """Which share of a picture lies outside of a bucket that it fills."""
    shapes = width / height, size[0] / size[1]
    return 1 - min(shapes) / max(shapes)


def fit_to_size(pixels: Tensor, size: tuple[int, int], place: tuple[float, float] = (0.5, 0.5)) -> Tensor:
    """RGB (3, H, W) uint8 → (1, 3, h, w) in [0, 1] that fills ``size`` (width, height).

    What is too much is cut; ``place`` is where the window lies in the room that is left, (0, 0) at the upper left.
    """
    width, height = size
    image = pixels[None].float() / 255
    factor = max(height / image.shape[2], width / image.shape[3])
    scaled = [max(side, round(old * factor)) for side, old in zip((height, width), image.shape[2:])]
    if tuple(scaled) != tuple(image.shape[2:]):
        image = F.interpolate(image, size=scaled, mode="bilinear", antialias=True).clamp(0, 1)
    top, left = int((scaled[0] - height) * place[1]), int((scaled[1] - width) * place[0])
    return image[..., top : top + height, left : left + width].contiguous()
