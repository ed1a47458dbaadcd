"""What Stage C's latent says: the best linear code of a picture's cells, found without training.

The directions in which cells of pictures differ most (principal components) say more of a picture than an encoder and
a decoder that learned together in the hours there are (``linear_codes``), and Stage B and Stage C need not wait for
them: the image encoder learns to give this code.
"""

from __future__ import annotations

import random
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from .loop import Place, write_atomically
from .scenes import SIDE, Scenes

CHANNELS, LEARNED, RIDGE = 16, 600, 1e-3
"""Numbers of a cell; pictures to learn from; what keeps the least squares of the decoder from following noise."""


class LinearCode:
    """Principal components of the cells of ``rgb`` (B, 3, 256, 256), ``cells`` a side, and the decoder to them.

    All are divided by one number, so that each weighs with Stage C what it weighs in the picture, and their mean square
    is 1. What a cell looks like at a glance is in the strongest three (``linear_codes``): Stage C learns these first.
    """

    def __init__(self, rgb: Tensor, cells: int) -> None:
        self.cells, self.pixels = cells, SIDE // cells
        patches = self.cut(rgb).flatten(0, 1)
        self.mean = patches.mean(0)
        around = patches - self.mean
        variances, directions = torch.linalg.eigh(around.T @ around / len(around))
        self.directions = directions[:, -CHANNELS:]
        self.scales = variances[-CHANNELS:].mean().sqrt().expand(CHANNELS).clone()
        seen = self.look_around(self.encode(rgb))
        normal = seen.T @ seen + RIDGE * len(seen) * torch.eye(seen.shape[1])
        self.weights = torch.linalg.solve(normal, seen.T @ patches)

    def cut(self, rgb: Tensor) -> Tensor:
        """(B, 3, 256, 256) → the pixels of its cells (B, cells², 3 p²), in whole pixels."""
        side = self.cells * self.pixels
        if side != SIDE:
            rgb = F.interpolate(rgb, size=(side, side), mode="bilinear", antialias=True)
        return F.unfold(rgb, self.pixels, stride=self.pixels).transpose(1, 2)

    def encode(self, rgb: Tensor) -> Tensor:
        """(B, 3, 256, 256) → (B, 16, cells, cells)."""
        code = (self.cut(rgb) - self.mean) @ self.directions / self.scales
        return code.transpose(1, 2).unflatten(2, (self.cells, self.cells))

    def look_around(self, code: Tensor) -> Tensor:
        """What the decoder sees of a code (B, 16, cells, cells), and a constant: (B cells², 145)."""
        seen = F.unfold(F.pad(code, (1, 1, 1, 1), mode="replicate"), 3).transpose(1, 2).flatten(0, 1)
        return torch.cat([seen, torch.ones(len(seen), 1)], 1)

    def paste(self, patches: Tensor, count: int) -> Tensor:
        """Pixels of cells (B cells², 3 p²) → ``count`` pictures (B, 3, 256, 256)."""
        side = self.cells * self.pixels
        rows = patches.unflatten(0, (count, -1)).transpose(1, 2)
        rgb = F.fold(rows, (side, side), self.pixels, stride=self.pixels)
        return (rgb if side == SIDE else F.interpolate(rgb, size=(SIDE, SIDE), mode="bilinear")).clamp(0, 1)

    def decode_alone(self, code: Tensor) -> Tensor:
        """Every cell by its own sixteen numbers."""
        said = code.flatten(2).transpose(1, 2).flatten(0, 1) * self.scales
        return self.paste(said @ self.directions.T + self.mean, len(code))

    def decode(self, code: Tensor) -> Tensor:
        """Every cell by its numbers and those of its neighbours."""
        return self.paste(self.look_around(code) @ self.weights, len(code))

    def state_dict(self) -> dict[str, Any]:
        """All that :meth:`from_state` needs."""
        return dict(vars(self))

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> LinearCode:
        """Inverse of :meth:`state_dict`."""
        code = cls.__new__(cls)
        vars(code).update(state)
        return code


def load_code(place: Place) -> LinearCode:
    """The code of the place's grid, learned on first use from pictures of all styles."""
    path = place.weights("code")
    if path.is_file():
        return LinearCode.from_state(torch.load(path, weights_only=False))
    scenes = Scenes(random.Random(place.seed + 11), others=0.25, sizes=(0.8, 0.92), room=0.5, shades=0.1)
    rgb = torch.cat([scenes.batch(LEARNED // 4).rgb for _ in range(4)])
    code = LinearCode(rgb, place.sizes.cells)
    write_atomically(code.state_dict(), path)
    return code
