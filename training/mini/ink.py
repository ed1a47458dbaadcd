"""A style that is made from the main pictures: flat colours inside strong black outlines, as drawn with a pen."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from .data import MAIN, is_there, pictures

INK = "ink"
"""The style's name."""
STEPS, PEN, EDGE, CALM = 4, 4, 0.16, 5
"""Levels of brightness; half the width of the outline in pixels; how large a step of brightness becomes a line; pixels
over which colours are made even."""
DARK = 0.08


def spread(mask: Tensor, radius: float) -> Tensor:
    """``mask`` (B, 1, h, w) grown by a disc."""
    at = torch.arange(-int(radius), int(radius) + 1).float()
    disc = (at[:, None] ** 2 + at[None] ** 2 <= radius**2).float()
    return (F.conv2d(mask, disc[None, None], padding=int(radius)) > 0.5).float()


def draw_with_ink(rgba: np.ndarray) -> np.ndarray:
    """Pictures (B, h, w, 4) uint8 with premultiplied alpha → the same subjects drawn, in the same format."""
    batch = torch.from_numpy(np.ascontiguousarray(rgba)).movedim(-1, 1).float() / 255
    alpha = batch[:, 3:]
    solid = (alpha > 0.5).float()
    colour = batch[:, :3] / alpha.clamp_min(0.05)
    near = [F.avg_pool2d(value * solid, 2 * CALM + 1, 1, CALM) for value in (colour, torch.ones_like(solid))]
    even = near[0] / near[1].clamp_min(1e-3)
    bright = even.mean(1, keepdim=True)
    flat = (even * (bright * STEPS).round().clamp_min(1) / (bright * STEPS).clamp_min(0.5)).clamp(0, 1)
    across = F.pad(bright[..., 1:] - bright[..., :-1], (0, 1))
    down = F.pad(bright[..., 1:, :] - bright[..., :-1, :], (0, 0, 0, 1))
    inside = 1 - spread(1 - solid, 2 * CALM)
    lines = spread(((across.abs() + down.abs()) * CALM > EDGE).float() * inside, PEN / 3)
    outside = spread(solid, PEN)
    rim = outside - (1 - spread(1 - solid, PEN))
    black = torch.maximum(lines, rim)
    drawn = torch.cat([(flat * (1 - black) + DARK * black) * outside, outside], 1)
    soft = F.avg_pool2d(drawn, 3, 1, 1)  # edges without stairs
    return (soft * 255).round().clamp(0, 255).byte().movedim(1, -1).numpy()


def pick_pictures(style: str, chosen: list[int]) -> np.ndarray:
    """The pictures of these subjects in any style, (N, 256, 256, 4) uint8 with premultiplied alpha."""
    array = pictures(MAIN if style == INK else style)
    picked = np.stack([array[index] for index in chosen])
    return draw_with_ink(picked) if style == INK else picked


def find_subjects(style: str) -> list[int]:
    """The subjects that a style shows."""
    return np.flatnonzero(is_there(pictures(MAIN if style == INK else style))).tolist()
