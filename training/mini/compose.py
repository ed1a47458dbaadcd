"""Pictures over named backgrounds, their place, size and direction varied."""

from __future__ import annotations

import random

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from .data import SIDE
from .subjects import COLOURS, PLAIN, Subject
from .words import SHADES

SIZES, LARGE = (0.66, 0.92), (0.86, 0.92)
"""Side of the subject's picture as a share of the canvas; and where it should nearly fill it."""
PAINTED = {"sizes": (0.89, 0.89), "mirrored": 0.0, "room": 0.0}
"""What Stage C paints: :func:`compose`'s arguments. Every motion is a latent of its own, so there is none."""
MIRRORED = 0.5
ROOM = 0.6
"""How much of the room around the subject its place may use."""
JITTER = 5
PLAIN_SHARE = 0.22
GROUNDS = {**COLOURS, **SHADES}


def random_colour(subject: Subject, rng: random.Random, held: bool = False, shades: float = 0.0) -> str:
    """A background for ``subject``: one of its training pairs, or one of its held-out ones.

    The share ``shades`` are two-word colours, none of them of a colour that is held out.
    """
    if held:
        return rng.choice(subject.held)
    if shades and rng.random() < shades:
        return rng.choice([name for name in SHADES if name.split()[-1] not in subject.held])
    if rng.random() < PLAIN_SHARE:
        return PLAIN
    return rng.choice([colour for colour in COLOURS if colour != PLAIN and colour not in subject.held])


def compose(
    pictures: np.ndarray,
    colours: list[str],
    rng: random.Random,
    side: int = SIDE,
    centred: bool = False,
    sizes: tuple[float, float] = SIZES,
    mirrored: float = MIRRORED,
    room: float = ROOM,
) -> tuple[Tensor, Tensor]:
    """``pictures`` (B, 256, 256, 4) uint8 premultiplied → RGB (B, 3, side, side) in [0, 1], alpha (B, 1, side, side).

    Scaled, moved (within the share ``room`` of what is free) and (the share ``mirrored``) mirrored at random, or
    upright in the middle if ``centred``.
    """
    batch = torch.from_numpy(np.ascontiguousarray(pictures)).permute(0, 3, 1, 2).float().div_(255)
    theta, grounds = torch.zeros(len(colours), 2, 3), []
    for row, colour in zip(theta, colours):
        size = sum(SIZES) / 2 if centred else rng.uniform(*sizes)
        flipped = not centred and rng.random() < mirrored
        reach = 0.0 if centred else room * (1 - size)
        x, y = (rng.uniform(-reach, reach) for _ in range(2))
        row[0, 0], row[1, 1] = (-1 if flipped else 1) / size, 1 / size
        row[0, 2], row[1, 2] = -x * row[0, 0], -y * row[1, 1]
        shift = [0 if centred else rng.uniform(-JITTER, JITTER) for _ in range(3)]
        grounds.append([(value + change) / 255 for value, change in zip(GROUNDS[colour], shift)])
    grid = F.affine_grid(theta, [len(colours), 4, side, side], align_corners=False)
    placed = F.grid_sample(batch, grid, align_corners=False)
    alpha = placed[:, 3:].clamp(0, 1)
    ground = torch.tensor(grounds)[:, :, None, None]
    return (placed[:, :3] + (1 - alpha) * ground).clamp(0, 1), alpha
