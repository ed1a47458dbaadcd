"""The search for grids: how many steps of :data:`PIXEL_STEP` px and Stage C cells each side of a picture gets.

A fit pays for three things: area that padding adds, distance of the compression from the wished one, and stretch, which
is the difference of the two axes' ratios. Sides are counted in steps, the short one first.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

PIXEL_STEP = 8
"""A padded side is a multiple of this: Stage A makes 4 px of a latent, Stage B takes latents in pairs."""
COMPRESSION = 1024 / 24
OFFICIAL_COMPRESSION = 42.67
"""The published pictures use 1024 / 24 px a cell, which the official code writes as 42.67."""
PREFERRED = (38.0, 48.0)
TRAINED = (32.0, 64.0)
ASKED = (16.0, 64.0)
"""Compressions: chosen by us, seen by Stage B in its training, and those that may be asked for."""
ASPECT_TOLERANCE = 0.005

_LOG_TOLERANCE = math.log1p(ASPECT_TOLERANCE) - 1e-9
"""Half a percent of stretch is not seen; the 1e-9 keeps a ratio that is exactly half a percent outside."""
_ASKED_BAND = 1.06
"""An asked compression is met within 6 %, one cell in sixteen, so that some grid without much padding is there."""
_WEIGHT = 0.25
"""Nobody asked for 42.67: 4 % off it costs as much as 1 % of padded area."""
_ASKED_WEIGHT = 1.0
"""Who asks for a compression pays with area for it: 1 % off it costs as much as 1 % of padded area."""
_TIGHT_WEIGHT = 0.02
"""The second try: padding alone counts, and the compression only decides between equal paddings."""


@dataclass(frozen=True)
class Wish:
    """What a fit is judged by: target compression, its bounds, and how much padding avoiding a deviation is worth."""

    target: float
    low: float
    high: float
    weight: float


class Fit(NamedTuple):
    """Steps and cells of both sides, and the area added to the steps asked for, as a share of it."""

    short_steps: int
    short_cells: int
    long_steps: int
    long_cells: int
    padding: float


def list_wishes(compression: float | None) -> tuple[Wish, ...]:
    """In the order of trying: near the target, there with the least padding, then both in all that is allowed."""
    if compression is None:
        target, near, weight, widest = COMPRESSION, PREFERRED, _WEIGHT, TRAINED
    else:
        least = TRAINED[0] if compression >= TRAINED[0] else max(ASKED[0], compression / _ASKED_BAND)
        target, weight, widest = compression, _ASKED_WEIGHT, (least, TRAINED[1])
        near = max(least, target / _ASKED_BAND), min(TRAINED[1], target * _ASKED_BAND)
    return (
        Wish(target, *near, weight),
        Wish(target, *near, _TIGHT_WEIGHT),
        Wish(target, *widest, _WEIGHT),
        Wish(target, *widest, _TIGHT_WEIGHT),
    )


def _fit_long_sides(short_ratio: float, steps: int) -> Iterator[tuple[int, int, float]]:
    """(steps, cells, stretch) of the long side for each number of steps from ``steps`` up, the best cells for each."""
    while True:
        exact = steps / short_ratio
        options = (
            (abs(math.log(steps / cells / short_ratio)), cells)
            for cells in {max(1, math.floor(exact)), math.ceil(exact)}
        )
        stretch, cells = min(options)
        yield steps, cells, stretch
        steps += 1


def fit_grids(short: int, long: int, wish: Wish) -> Fit:
    """The cheapest fit: padding from none upwards, until the padding alone costs more than the best fit so far."""
    best, found = math.inf, Fit(0, 0, 0, 0, 0.0)  # the first round finds one
    short_steps = short
    while short_steps / short - 1 < best:
        pixels = PIXEL_STEP * short_steps
        for cells in range(math.ceil(pixels / wish.high), math.floor(pixels / wish.low) + 1):
            deviation = wish.weight * abs(math.log(pixels / cells / wish.target))
            for long_steps, long_cells, stretch in _fit_long_sides(short_steps / cells, long):
                area = short_steps * long_steps / (short * long) - 1
                if area + deviation >= best:
                    break
                cost = area + deviation + wish.weight * stretch
                if stretch <= _LOG_TOLERANCE and cost < best:
                    best, found = cost, Fit(short_steps, cells, long_steps, long_cells, area)
        short_steps += 1
    return found


def match_steps(rows: int, columns: int, ratio: float) -> tuple[int, int]:
    """Steps across and down nearest to ``ratio`` steps a cell with equal ratios on both axes."""
    short, long = sorted((rows, columns))
    low, high = min(TRAINED[0] / PIXEL_STEP, ratio / _ASKED_BAND), TRAINED[1] / PIXEL_STEP
    best, found = math.inf, (0, 0)  # a ratio of the range is always near enough
    for steps in range(math.ceil(short * low), math.floor(short * high) + 1):
        mine = steps / short
        other = max(1, round(mine * long))
        stretch = abs(math.log(other / long / mine))
        cost = abs(math.log(mine / ratio)) + stretch
        if stretch <= _LOG_TOLERANCE and cost < best:
            best, found = cost, (steps, other)
    return found if columns <= rows else (found[1], found[0])


def cover_steps(short: int, long: int, short_cells: int, long_cells: int) -> tuple[int, int]:
    """The cheapest steps of both sides, at least those given, for a settled grid; as :func:`fit_grids` judges."""
    best, found = math.inf, (short, long)
    short_steps = short
    while short_steps / short - 1 < best:
        exact = short_steps / short_cells * long_cells
        deviation = _WEIGHT * abs(math.log(PIXEL_STEP * short_steps / short_cells / COMPRESSION))
        for long_steps in range(
            max(long, math.ceil(exact / math.exp(_LOG_TOLERANCE))), math.floor(exact * math.exp(_LOG_TOLERANCE)) + 1
        ):
            area = short_steps * long_steps / (short * long) - 1
            cost = area + deviation + _WEIGHT * abs(math.log(long_steps / exact))
            if cost < best:
                best, found = cost, (short_steps, long_steps)
        short_steps += 1
    return found
