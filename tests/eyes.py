"""Eyes for tests: what a picture of Cascade Mini shows, told in two ways, and the colour of its background.

:class:`Outlines` needs no net: it compares outline and colours with real pictures (``mini_outlines.npz``). The other
way is Mini's own vision tower (:meth:`mini.Mini.likeness`), which learned from real pictures only.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from training.mini.eyes import background, colour_names, silhouettes
from training.mini.subjects import COLOURS

FILE = Path(__file__).with_name("mini_outlines.npz")
SIGHT = 128
NEAR = 0.25
"""Shades of one colour; the nearest two names, gray and purple, are 0.33 apart."""


def as_rgb(pixels: np.ndarray) -> Tensor:
    """(height, width, 3) of 0 to 255 → RGB (1, 3, H, W) in [0, 1]."""
    return torch.from_numpy(np.asarray(pixels, np.float32) / 255).movedim(-1, 0)[None]


def colour(rgb: Tensor) -> list[str]:
    """The named colour next to that of each picture's rim."""
    return colour_names(rgb)


def colour_distance(rgb: Tensor, name: str) -> Tensor:
    """How far each picture's rim is from a named colour, (B,); black and white are 1.73 apart."""
    return (background(rgb) - torch.tensor(COLOURS[name]) / 255).norm(dim=1)


def has_ground(rgb: Tensor, name: str) -> bool:
    """Whether one picture's rim has the named colour: no other is nearer, or it is a shade of it."""
    return colour(rgb) == [name] or float(colour_distance(rgb, name)) < NEAR


def layout(rgb: Tensor) -> Tensor:
    """Each picture (B, C, H, W) at 32 pixels without its mean, (B, N), unit length: details do not count."""
    small = F.interpolate(rgb, size=(32, 32), mode="area").flatten(1)
    return F.normalize(small - small.mean(1, keepdim=True), dim=1)


def standing(rgb: Tensor) -> Tensor:
    """Where each picture differs from its rim, whatever the colour, at 32 pixels; as :func:`layout`."""
    apart = (rgb - background(rgb)[:, :, None, None]).abs().amax(1, keepdim=True)
    return layout(apart)


def correlation(one: Tensor, other: Tensor) -> Tensor:
    """How far the same parts stand out in two pictures, (B,): 1 where outlines agree."""
    return (standing(one) * standing(other)).sum(1)


class Outlines:
    """Tells subjects by what stands out of the background, cut to its bounding box, at 24 x 24."""

    def __init__(self) -> None:
        kept = np.load(FILE)
        self.names = [str(name) for name in kept["names"]]
        small = torch.from_numpy(kept["rgba"]).permute(0, 3, 1, 2).float() / 255
        self.rgba = F.interpolate(small, size=(SIGHT, SIGHT), mode="bilinear", antialias=True)

    def _gallery(self, ground: str) -> Tensor:
        """Features (N, 4, 24, 24) of every subject on a named colour."""
        colour = (torch.tensor(COLOURS[ground]) / 255).view(1, 3, 1, 1)
        return silhouettes(self.rgba[:, :3] + (1 - self.rgba[:, 3:]) * colour)

    def order(self, rgb: Tensor, ground: str) -> list[list[str]]:
        """All subjects for each picture, the likeliest first."""
        seen = silhouettes(F.interpolate(rgb, size=(SIGHT, SIGHT), mode="area"))
        both = torch.stack([seen, seen.flip(-1)])
        distances = (both[:, :, None] - self._gallery(ground)).square().flatten(3).mean(3).amin(0)
        return [[self.names[i] for i in row.argsort().tolist()] for row in distances]


@lru_cache(maxsize=1)
def outlines() -> Outlines:
    """The one set."""
    return Outlines()
