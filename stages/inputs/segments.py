"""What to work on in a picture: the spots of a mask, boxes, or the SEGS of a detector, each as one :class:`Segment`.

SEGS are known as a pair ((height, width), things) or a dict of the same. A thing has a ``crop_region`` and a ``bbox``
(left, top, right, bottom in pixels), a ``cropped_mask`` over the crop region and a ``label``: as attributes, as keys,
or as a plain tuple in the order (picture, mask, confidence, crop region, box, label, ...).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..errors import WrongInput
from .boxes import list_things, read_boxes
from .masks import flood, grow_square, resize_mask

COARSE = 256
"""Cells a side at most on which spots are told apart: those nearer than a cell are one."""
MOST_SPOTS = 64
"""A mask in more spots than this is a texture or the noise of a matte."""
PLACES = {"cropped_mask": 1, "crop_region": 3, "bbox": 4, "label": 5}
"""Where a plain tuple of a SEGS list holds what."""
Box = tuple[int, int, int, int]


@dataclass(frozen=True, eq=False)
class Segment:
    """One thing in a picture: its box in pixels (left, top, right, bottom; the last two exclusive), and its mask
    (bottom - top, right - left) in [0, 1]."""

    box: Box
    mask: Tensor
    label: str = ""

    def lay_out(self, height: int, width: int) -> Tensor:
        """The mask (1, height, width) on the whole picture."""
        left, top, right, bottom = self.box
        whole = self.mask.new_zeros(1, height, width)
        whole[0, top:bottom, left:right] = self.mask
        return whole


Segments = tuple[Segment, ...]


# The spots of a mask


def split_mask(mask: Tensor, reach: int, where: str) -> Segments:
    """Every spot of ``mask`` (H, W) as a segment, row by row; spots within two ``reach`` of each other are one.

    Raises :class:`WrongInput` for a mask that falls into more spots than anyone painted.
    """
    height, width = mask.shape
    rows, columns = min(height, COARSE), min(width, COARSE)
    coarse = resize_mask(mask[None].float(), rows, columns) > 0
    by = -(-reach * COARSE // max(height, width)) if reach else 0
    left = grow_square(coarse.float(), by) > 0
    down = torch.arange(height, device=mask.device) * rows // height
    across = torch.arange(width, device=mask.device) * columns // width
    found: list[Segment] = []
    while left.any():
        if len(found) == MOST_SPOTS:
            raise WrongInput(
                f"{where} got a mask that falls into more than {MOST_SPOTS} spots. Paint fewer of them, raise the "
                "threshold, or switch each_spot off, so that the whole mask is one part."
            )
        seed = torch.zeros_like(left)
        seed.view(-1)[int(left.view(-1).float().argmax())] = True
        spot = flood(seed, left)
        left = left & ~spot
        found.extend(trim(mask * spot[0][down[:, None], across]))
    return tuple(sorted(found, key=lambda each: (each.box[1], each.box[0])))


def trim(mask: Tensor, label: str = "") -> Segments:
    """All that ``mask`` (H, W) marks as one segment, no larger than needed; none where it marks nothing."""
    rows, columns = (mask.amax(axis).nonzero()[:, 0] for axis in (1, 0))
    if not len(rows):
        return ()
    top, bottom, left, right = int(rows[0]), int(rows[-1]) + 1, int(columns[0]), int(columns[-1]) + 1
    return (Segment((left, top, right, bottom), mask[top:bottom, left:right], label),)


def limit_segments(given: Segments, limit: Tensor | None, threshold: float) -> Segments:
    """``given`` within the mask ``limit`` (H, W), where there is one. Values up to ``threshold`` become 0; a segment
    of which nothing is left keeps its place in the list."""
    kept = []
    for each in given:
        left, top, right, bottom = each.box
        mask = each.mask if limit is None else each.mask * limit[top:bottom, left:right]
        kept.append(Segment(each.box, mask.masked_fill(mask <= threshold, 0.0), each.label))
    return tuple(kept)


# Boxes and SEGS


def read_segments(given: Any, height: int, width: int, where: str) -> Segments:
    """The segments of SEGS or boxes on a picture of ``height`` x ``width``; none for an empty list.

    SEGS that were found on a picture of another size are moved to this one. Raises :class:`WrongInput` for anything
    else, and for what lies outside of the picture.
    """
    size, things = open_list(given)
    if not things:
        if isinstance(given, (list, tuple, dict)) or hasattr(given, "__len__") and not isinstance(given, str):
            return ()
        raise WrongInput(describe_wrong_segments(where))
    scale = (1.0, 1.0) if size is None else (width / size[1], height / size[0])
    if not any(holds_mask(thing) for thing in things):
        boxes = read_boxes([spread(thing) for thing in things])
        if boxes is None:
            raise WrongInput(describe_wrong_segments(where))
        labels = [str(read_field(thing, "label") or "") for thing in things]
        labels += [""] * (len(boxes) - len(labels))
        return tuple(
            fit_segment(box.tolist(), None, scale, (height, width), label, where) for box, label in zip(boxes, labels)
        )
    found = []
    for thing in things:
        mask = read_field(thing, "cropped_mask")
        box = read_field(thing, "crop_region") if mask is not None else read_field(thing, "bbox")
        box = read_field(thing, "crop_region") if box is None else box
        corners = read_boxes([box])
        if corners is None:
            raise WrongInput(describe_wrong_segments(where))
        label = str(read_field(thing, "label") or "")
        found.append(fit_segment(corners[0].tolist(), mask, scale, (height, width), label, where))
    return tuple(found)


def describe_wrong_segments(where: str) -> str:
    """What to wire instead of things that are no segments, for the node ``where``."""
    return (
        f"{where} could not read 'segments'. It needs SEGS of a detector, or boxes in pixels: left, top, right and "
        "bottom, or a bounding box with x, y, width and height. Wire a detector's SEGS or boxes output into it."
    )


def open_list(given: Any) -> tuple[tuple[float, float] | None, list[Any]]:
    """The size (height, width) of the picture that ``given`` was found on, where it is told, and its things."""
    if isinstance(given, dict) and "segs" in given:
        size = given.get("size", given.get("shape"))
        return (None if size is None else read_size(size)), list(given["segs"])
    if isinstance(given, (list, tuple)) and len(given) == 2 and isinstance(given[1], (list, tuple)):
        size = read_size(given[0])
        if size is not None and not is_box(given[1]):
            return size, list(given[1])
    if isinstance(given, (list, tuple)) and any(holds_mask(each) for each in given) and not holds_mask(given):
        return None, list(given)
    return None, [given] if holds_mask(given) else list_things(given)


def read_size(value: Any) -> tuple[float, float] | None:
    """Two numbers above 0, of a sequence that holds just these."""
    numbers = list(value) if isinstance(value, (list, tuple)) or hasattr(value, "__array__") else []
    good = len(numbers) == 2 and all(isinstance(each, (int, float)) or hasattr(each, "item") for each in numbers)
    return (float(numbers[0]), float(numbers[1])) if good and min(numbers) > 0 else None


def is_box(value: Sequence[Any]) -> bool:
    """Whether these are the bare numbers of one box."""
    return bool(value) and all(isinstance(each, (int, float)) for each in value)


def holds_mask(thing: Any) -> bool:
    """Whether this is a thing of a SEGS list, and no bare box."""
    named = isinstance(thing, dict) and bool({"cropped_mask", "crop_region"} & set(thing))
    return named or hasattr(thing, "crop_region") or is_plain(thing)


def is_plain(thing: Any) -> bool:
    """Whether this is a plain tuple in the order of a SEGS list."""
    if not isinstance(thing, (list, tuple)) or len(thing) <= PLACES["label"]:
        return False
    region = thing[PLACES["crop_region"]]
    return (isinstance(region, (list, tuple)) or hasattr(region, "__array__")) and len(region) == 4


def read_field(thing: Any, name: str) -> Any:
    """What ``thing`` holds under ``name``, whichever way it is held; None for nothing."""
    if isinstance(thing, dict):
        return thing.get(name)
    if hasattr(thing, name):
        return getattr(thing, name)
    return thing[PLACES[name]] if is_plain(thing) else None


def spread(thing: Any) -> Any:
    """A box as :func:`read_boxes` takes it: other packs' named tuples hold theirs under ``bbox``."""
    box = read_field(thing, "bbox")
    return thing if box is None else box


def fit_segment(
    box: Sequence[float], mask: Any, scale: tuple[float, float], size: tuple[int, int], label: str, where: str
) -> Segment:
    """A segment out of ``box`` and its ``mask``, None for all of it, cut at the edges of the picture."""
    height, width = size
    if not all(map(math.isfinite, box)) or not (mask is None or torch.isfinite(torch.as_tensor(mask)).all()):
        raise WrongInput(
            f"{where} got a thing on 'segments' with NaN or infinite numbers in its box or mask. Look at the detector "
            "that made it."
        )
    left, right = (round(value * scale[0]) for value in (box[0], box[2]))
    top, bottom = (round(value * scale[1]) for value in (box[1], box[3]))
    inside = max(0, left), max(0, top), min(width, right), min(height, bottom)
    if inside[0] >= inside[2] or inside[1] >= inside[3]:
        raise WrongInput(
            f"{where} got a box from {left}, {top} to {right}, {bottom} px, of which the picture of {width} x {height} "
            "px shows nothing. Wire the boxes of this very picture, in pixels."
        )
    full = torch.ones(bottom - top, right - left) if mask is None else read_mask(mask, bottom - top, right - left)
    kept = full[inside[1] - top : inside[3] - top, inside[0] - left : inside[2] - left]
    return Segment(inside, kept.clamp(0, 1), label)


def read_mask(mask: Any, height: int, width: int) -> Tensor:
    """A thing's own mask, of any float or whole numbers, as (height, width) in float32."""
    values = torch.as_tensor(mask)
    most = 255.0 if values.dtype == torch.uint8 and values.numel() and values.max() > 1 else 1.0
    values = values.float().reshape(-1, *values.shape[-2:])[:1] / most
    return resize_mask(values, height, width)[0]
