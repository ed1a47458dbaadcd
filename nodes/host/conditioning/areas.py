"""Core's areas of a prompt, which count 8 px a cell as Stable Diffusion's latents do, on the grids of both stages."""

from __future__ import annotations

from typing import Any

from ....stages.errors import WrongInput
from ....stages.inputs.canvas import Canvas

CORE_PIXELS = 8
"""Pixels to one cell in the numbers that core's ConditioningSetArea leaves in a conditioning."""


def place_areas(conditioning: Any, canvas: Canvas, grid: tuple[int, int]) -> Any:
    """``conditioning`` with areas in pixels moved to the cells (down, across) of ``grid``, which shows ``canvas``.

    Areas as parts of the picture (ConditioningSetAreaPercentage) stay. An area that touches an edge of the picture
    takes the padding beside it. Raises :class:`WrongInput` for one outside of the picture.
    """
    if conditioning is None:
        return None
    return [[text, _place_area(extra, canvas, grid)] for text, extra in conditioning]


def _place_area(extra: dict[str, Any], canvas: Canvas, grid: tuple[int, int]) -> dict[str, Any]:
    area = extra.get("area")
    if area is None or len(area) != 4 or any(isinstance(value, str) for value in area):
        return extra
    height, width, top, left = (CORE_PIXELS * value for value in area)
    if top >= canvas.height or left >= canvas.width:
        raise WrongInput(
            f"A prompt's area begins at x {left}, y {top} px, outside of the picture of {canvas.width} x "
            f"{canvas.height} px. Move the area in Conditioning (Set Area) into the picture."
        )
    rows = _place_side(top, height, canvas.crop[1], canvas.height, canvas.padded_height, grid[0])
    columns = _place_side(left, width, canvas.crop[0], canvas.width, canvas.padded_width, grid[1])
    return {**extra, "area": (rows[1] - rows[0], columns[1] - columns[0], rows[0], columns[0])}


def _place_side(start: int, length: int, before: int, side: int, padded: int, cells: int) -> tuple[int, int]:
    """First cell and the one after the last of an area from ``start`` on a side with ``before`` px of padding."""
    end = padded if start + length >= side else before + start + length
    begin = 0 if start <= 0 else before + start
    first = min(round(begin * cells / padded), cells - 1)
    return first, max(first + 1, min(cells, round(end * cells / padded)))
