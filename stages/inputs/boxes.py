"""Boxes and lists of things as detectors of many packs hand them on."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def read_boxes(values: Any) -> Tensor | None:
    """Boxes as (N, 4): left, top, right, bottom; None for what holds none.

    A box is four numbers in that order (a detector's score may follow), a dict of x, y, width and height, or a thing
    with a ``bbox``.
    """
    return read_numbers([find_box(each) for each in list_things(values)], 4, scored=True)


def list_things(values: Any) -> list[Any]:
    """``values`` as a list of one entry a thing."""
    if isinstance(values, dict) or hasattr(values, "bbox"):
        return [values]
    if torch.is_tensor(values) or hasattr(values, "__array__"):
        values = torch.as_tensor(values)
        return list(values.reshape(-1, values.shape[-1])) if values.ndim else []
    if not isinstance(values, (list, tuple)):
        return []
    flat = values and all(isinstance(value, (int, float)) for value in values)
    lists = [list_things(value) if isinstance(value, (list, tuple)) else [value] for value in values]
    nested = [each for things in lists for each in things]
    return [values] if flat else nested


def find_box(thing: Any) -> Any:
    """The four numbers of a box, whichever way it is held."""
    if isinstance(thing, dict) and {"x", "y", "width", "height"} <= set(thing):
        return [thing["x"], thing["y"], thing["x"] + thing["width"], thing["y"] + thing["height"]]
    return thing["bbox"] if isinstance(thing, dict) and "bbox" in thing else getattr(thing, "bbox", thing)


def read_numbers(rows: list[Any], width: int, scored: bool = False) -> Tensor | None:
    """Rows of ``width`` numbers as one float tensor; None where they are something else.

    scored: more numbers may follow in a row, as detectors append their score to a box.
    """
    try:
        table = [torch.as_tensor(row, dtype=torch.float32).flatten().cpu() for row in rows]
    except (TypeError, ValueError, RuntimeError):
        return None
    if not table or any(len(row) < width or (len(row) > width and not scored) for row in table):
        return None
    return torch.stack([row[:width] for row in table])
