"""Picture sizes and the grids of the stages: any picture from 64 to 8192 px a side, padded to the grid, cropped back.

Stage C works on a small grid of cells, Stage B on latents of a quarter of the picture's sides, even because it unfolds
them in pairs. Stage B stretches the Stage C grid over its own, so both must have one aspect: otherwise the picture is
stretched. The ratio of picture to Stage C grid, the compression, is free: Stage B was trained from 32 to 64, and the
published pictures use 1024 / 24 = 42.67.

Padding is shared by both sides, so that the composition stays centred, and counted in pixels.
"""

from __future__ import annotations

import math
import operator
from dataclasses import dataclass
from typing import Any

from ..errors import WrongInput
from .grids import (
    ASKED,
    COMPRESSION,
    OFFICIAL_COMPRESSION,
    PIXEL_STEP,
    TRAINED,
    cover_steps,
    fit_grids,
    list_wishes,
    match_steps,
)

MIN_SIDE = 64
MAX_SIDE = 8192
LATENT_PIXELS = 4
PRIOR_CHANNELS = 16
DECODER_CHANNELS = 4
ENCODER_PIXELS = 32
"""The image encoder makes one Stage C cell of this many pixels a side."""
ACCEPTED = (8.0, 128.0)
"""Compressions of latents made elsewhere; beyond them the latent is one of another model or another picture."""
MAX_PADDING = 0.06
OFFICIAL = "official"
GRIDS = ("without stretch", OFFICIAL)
"""The rules by which :func:`plan_canvas` can choose the Stage C grid."""


@dataclass(frozen=True)
class Canvas:
    """A picture's size in pixels, its padded size, and the grids of Stage C ("prior") and Stage B ("decoder")."""

    width: int
    height: int
    padded_width: int
    padded_height: int
    prior_width: int
    prior_height: int

    @property
    def decoder_width(self) -> int:
        """Stage B latents across."""
        return self.padded_width // LATENT_PIXELS

    @property
    def decoder_height(self) -> int:
        """Stage B latents down."""
        return self.padded_height // LATENT_PIXELS

    @property
    def compression(self) -> float:
        """Padded pixels a Stage C cell, the geometric mean of both axes."""
        return math.sqrt(self.padded_width / self.prior_width * self.padded_height / self.prior_height)

    @property
    def stretch(self) -> float:
        """How much the ratios of the two axes differ: 0 is none, 0.005 half a percent."""
        across, down = self.padded_width / self.prior_width, self.padded_height / self.prior_height
        return max(across, down) / min(across, down) - 1

    @property
    def padding(self) -> float:
        """The area added around the picture, as a share of the picture's own area."""
        return self.padded_width * self.padded_height / (self.width * self.height) - 1

    @property
    def crop(self) -> tuple[int, int, int, int]:
        """The picture inside the padded one: left, top, right, bottom in pixels, the last two exclusive."""
        left, top = (self.padded_width - self.width) // 2, (self.padded_height - self.height) // 2
        return left, top, left + self.width, top + self.height

    @property
    def encoder_size(self) -> tuple[int, int]:
        """Width and height to which the padded picture is resized so that the image encoder gives the Stage C grid."""
        return ENCODER_PIXELS * self.prior_width, ENCODER_PIXELS * self.prior_height

    def prior_shape(self, batch: int = 1) -> tuple[int, int, int, int]:
        """(B, 16, cells down, cells across) of the Stage C latent."""
        return batch, PRIOR_CHANNELS, self.prior_height, self.prior_width

    def decoder_shape(self, batch: int = 1) -> tuple[int, int, int, int]:
        """(B, 4, latents down, latents across) of the Stage B latent."""
        return batch, DECODER_CHANNELS, self.decoder_height, self.decoder_width

    def describe(self) -> str:
        """One plain sentence."""
        text = (
            f"{self.width} x {self.height} px on {self.prior_width} x {self.prior_height} Stage C cells and "
            f"{self.decoder_width} x {self.decoder_height} Stage B latents, compression {self.compression:.1f}"
        )
        if self.padding > 0:
            text += f", padded to {self.padded_width} x {self.padded_height} px ({self.padding:.1%} more area)"
        if not TRAINED[0] - 0.5 <= self.compression <= TRAINED[1] + 0.5:
            text += f", outside the {TRAINED[0]:.0f} to {TRAINED[1]:.0f} that Stage B was trained for"
        return text + "."


# Checks


def _whole(value: Any, name: str, low: int, high: int, need: str) -> int:
    try:
        number = operator.index(value)
    except TypeError:
        raise WrongInput(f"The {name} is {value!r}, but {need}.") from None
    if not low <= number <= high:
        advice = "choose a larger one" if number < low else "choose a smaller one, and enlarge the picture afterwards"
        raise WrongInput(f"The {name} is {number}, but {need}: {advice}.")
    return number


def _side(value: object, name: str) -> int:
    need = f"it has to be a whole number of pixels from {MIN_SIDE} to {MAX_SIDE}"
    return _whole(value, name, MIN_SIDE, MAX_SIDE, need)


def _cells(value: object, name: str) -> int:
    most = MAX_SIDE // LATENT_PIXELS
    need = f"it has to be a whole number of cells from 1 to {most}"
    return _whole(value, f"Stage C latent's {name}", 1, most, need)


def _check_compression(compression: object) -> float:
    low, high = ASKED
    if isinstance(compression, bool) or not isinstance(compression, (int, float)) or not low <= compression <= high:
        raise WrongInput(
            f"The compression is {compression!r}, but it has to be a number from {low:.0f} to {high:.0f} "
            f"(Stage B was trained from {TRAINED[0]:.0f}): leave it out to get about {COMPRESSION:.1f}."
        )
    return float(compression)


# From a picture to grids


def plan_canvas(width: int, height: int, compression: float | None = None, official: bool = False) -> Canvas:
    """The grids for a picture of ``width`` x ``height`` pixels, each a whole number from 64 to 8192.

    From 512 px a side up, automatic compression stays within 38 to 48, near 42.67, with at most 6 % padding. Smaller
    pictures may go to 32 or 64, since few cells cannot have every aspect, and are padded as much as that still needs.
    An asked ``compression`` (16 to 64) is met within 6 % where the padding allows it. ``official`` takes the grid of
    the official code, ceil(side / 42.67) cells a side without a look at the aspect, which stretches some pictures by
    up to a few percent. Raises WrongInput.
    """
    width, height = _side(width, "width"), _side(height, "height")
    wishes = list_wishes(None if compression is None else _check_compression(compression))
    if official:
        return _plan_officially(width, height, OFFICIAL_COMPRESSION if compression is None else compression)
    short, long = (math.ceil(side / PIXEL_STEP) for side in sorted((width, height)))
    rounding = short * long * PIXEL_STEP**2 / (width * height)
    fits = []
    for wish in wishes:
        fits.append(fit_grids(short, long, wish))
        if (1 + fits[-1].padding) * rounding - 1 <= MAX_PADDING:
            best = fits[-1]
            break
    else:
        best = fits[2]
    sides = (PIXEL_STEP * best.short_steps, best.short_cells), (PIXEL_STEP * best.long_steps, best.long_cells)
    (padded_width, columns), (padded_height, rows) = sides if width <= height else sides[::-1]
    return Canvas(width, height, padded_width, padded_height, columns, rows)


def _plan_officially(width: int, height: int, compression: float) -> Canvas:
    """The official ``calculate_latent_sizes``: every side on its own, rounded up; padded to whole pairs of latents."""
    padded_width, padded_height = (PIXEL_STEP * math.ceil(side / PIXEL_STEP) for side in (width, height))
    columns, rows = (math.ceil(side / compression) for side in (width, height))
    return Canvas(width, height, padded_width, padded_height, columns, rows)


# From a Stage C grid to the rest


def plan_canvas_for_prior(
    prior_height: int,
    prior_width: int,
    width: int | None = None,
    height: int | None = None,
    compression: float | None = None,
) -> Canvas:
    """The canvas of a Stage C latent made elsewhere, (B, 16, prior_height, prior_width).

    Without a size the picture has the latent's aspect at ``compression`` (42.67 unless asked) and no padding. With
    ``width`` and ``height`` in pixels the picture is cropped out of the smallest one that has the latent's aspect
    and covers it. Raises WrongInput if the size and the latent, or the size and the limits, do not go together.
    """
    rows, columns = _cells(prior_height, "height"), _cells(prior_width, "width")
    if (width is None) != (height is None):
        raise WrongInput("Only one of width and height was given with a Stage C latent: give both or none.")
    if width is None or height is None:
        ratio = (COMPRESSION if compression is None else _check_compression(compression)) / PIXEL_STEP
        across, down = match_steps(rows, columns, ratio)
        size = PIXEL_STEP * across, PIXEL_STEP * down
        _check_padded(rows, columns, *size, MAX_SIDE)
        return Canvas(*size, *size, columns, rows)
    if compression is not None:
        raise WrongInput(
            f"A compression of {compression!r} was given together with a width and a height, which "
            "already settle it: leave one of them out."
        )
    planned = plan_canvas(width, height)
    if (planned.prior_width, planned.prior_height) == (columns, rows):
        return planned
    return _cover(planned.width, planned.height, rows, columns)


def _check_padded(rows: int, columns: int, width: int, height: int, most: float) -> None:
    if max(width, height) > most:
        raise WrongInput(
            f"The Stage C latent of {columns} x {rows} cells would become a picture of {width} x {height} "
            f"px, but {MAX_SIDE} px a side is the most: use a smaller latent, or one with the aspect of "
            "the picture."
        )


def _cover(width: int, height: int, rows: int, columns: int) -> Canvas:
    """The canvas of a picture that some other grid than the planned one was made for."""
    across, down = (math.ceil(side / PIXEL_STEP) for side in (width, height))
    ratio = PIXEL_STEP * max(across / columns, down / rows)
    low, high = ACCEPTED
    if not low <= ratio <= high:
        raise WrongInput(
            f"The Stage C latent of {columns} x {rows} cells was given for a picture of {width} x "
            f"{height} px, a compression of {ratio:.1f}, but it has to lie from {low:.0f} to {high:.0f} "
            f"and is best near {COMPRESSION:.1f}: make the latent for this size, or choose another size."
        )
    if width <= height:
        across, down = cover_steps(across, down, columns, rows)
    else:
        down, across = cover_steps(down, across, rows, columns)
    size = PIXEL_STEP * across, PIXEL_STEP * down
    _check_padded(rows, columns, *size, MAX_SIDE * (1 + MAX_PADDING))
    return Canvas(width, height, *size, columns, rows)
