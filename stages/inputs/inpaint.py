"""Inpainting that keeps the rest: cut the part around a mask out, work on it at its own size, and paste it back.

Pictures are (B, H, W, C) in [0, 1], masks (B, H, W) with 1 where something new goes; both are only read. What is
pasted fades out over the feather around the mask. Beyond it the picture keeps its very values.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from ..errors import WrongInput
from .canvas import MAX_SIDE, MIN_SIDE, plan_canvas
from .masks import blur_mask, fill_holes, grow_square, resize_mask
from .pictures import check_count, check_mask, check_pictures, to_rgb

MOST_ASPECT = 2.0
"""A longer crop than this gets more of the picture beside its long sides, where there is any."""

THRESHOLD = 0.02
"""Values up to this count as untouched: mattes and resized masks hold traces everywhere."""

CUT, PASTE = "Inpaint Crop", "Paste Inpainted Part"


@dataclass(frozen=True)
class CropSettings:
    """How to cut: lengths in pixels of the whole picture.

    context: side of the crop by the side of the mask; grow: by how much the mask is widened; feather: width of the
    fade around it; target: side of a square of the area to work at, 0 for the crop's own size; multiple: both working
    sides are multiples of it; threshold: values of the mask up to it are 0; fill: holes in the mask belong to it.
    """

    context: float = 1.5
    grow: int = 8
    feather: int = 16
    target: int = 1024
    multiple: int = 128
    threshold: float = THRESHOLD
    fill: bool = False


@dataclass(frozen=True)
class Crop:
    """A part of a picture in pixels, right and bottom exclusive, and the size at which to work on it."""

    left: int
    top: int
    right: int
    bottom: int
    width: int
    height: int

    def of(self, values: Tensor) -> Tensor:
        """This part of ``values`` (B, H, W, ...)."""
        return values[:, self.top : self.bottom, self.left : self.right]


Crops = tuple[Crop, ...]
"""One crop for all pictures, or one for each; all of one size."""


@dataclass(frozen=True, eq=False)
class Stitch:
    """What pasting back needs: the whole pictures, the places, and how much of the new part to take, (B, h, w)."""

    image: Tensor
    crops: Crops
    blend: Tensor


def prepare_mask(mask: Tensor, image: Tensor, settings: CropSettings = CropSettings(), where: str = CUT) -> Tensor:
    """``mask`` (B, H, W) in float32 at the size of ``image``, one or as many as there are pictures.

    where: the node, as the user sees it.

    Raises :class:`WrongInput` for a mask that is none, that marks nothing, or for a wrong number of them.
    """
    mask = check_mask(mask, where)
    check_count(mask, image, where)
    given, most = tuple(mask.shape[1:]), float(mask.max())
    mask = resize_mask(mask, *image.shape[1:3]).clamp(0, 1)
    mask = mask.masked_fill(mask <= settings.threshold, 0.0)
    if not mask.any():
        traces = f" but for traces up to {most:.2g}, which the threshold {settings.threshold:g} drops" if most else ""
        raise WrongInput(
            f"The mask of {given[1]} x {given[0]} px is empty{traces}, so there is nothing to inpaint: "
            "paint over the part to change, or wire another mask."
        )
    return fill_holes(mask) if settings.fill else mask


def plan_crops(mask: Tensor, settings: CropSettings) -> Crops:
    """The parts around everything in each of ``mask`` (B, H, W) with its feather, and the size to work at.

    Masks of a batch may lie apart: all crops are as large as the largest needs, each around its own mask.
    """
    height, width = mask.shape[-2:]
    margin = settings.grow + settings.feather
    places = [find_spans(each, margin) for each in mask]
    found = [spans for spans in places if spans]
    longest = [max(end - start for start, end in axis) for axis in zip(*found)]
    across, down = (
        min(size, max(MIN_SIDE, math.ceil(span * settings.context))) for span, size in zip(longest, (width, height))
    )
    across, down = (
        min(width, max(across, math.ceil(down / MOST_ASPECT))),
        min(height, max(down, math.ceil(across / MOST_ASPECT))),
    )
    working = choose_working_size(across, down, settings)
    across, down = working if not settings.target else widen_to_aspect(across, down, working)
    across, down = min(across, width), min(down, height)
    crops = []
    for spans in places:
        (left, right), (top, bottom) = spans or ((0, width), (0, height))
        left, top = place_span(left, right, across, width), place_span(top, bottom, down, height)
        crops.append(Crop(left, top, left + across, top + down, *working))
    return tuple(crops) if len(set(crops)) > 1 else (crops[0],)


def find_spans(mask: Tensor, margin: int) -> tuple[tuple[int, int], tuple[int, int]] | None:
    """First and last column, and row, of what ``mask`` (H, W) marks, with ``margin`` around; None for nothing."""
    spans = []
    for axis, size in ((0, mask.shape[1]), (1, mask.shape[0])):
        places = mask.amax(axis).nonzero()[:, 0]
        if not len(places):
            return None
        spans.append((max(0, int(places[0]) - margin), min(size, int(places[-1]) + 1 + margin)))
    return spans[0], spans[1]


def choose_working_size(across: int, down: int, settings: CropSettings) -> tuple[int, int]:
    """Width and height to work at: the target's area in the aspect of the crop, both multiples and allowed."""
    multiple = settings.multiple
    scale = settings.target / math.sqrt(across * down) if settings.target else 1.0
    rounding = round if settings.target else math.ceil
    least = math.ceil(MIN_SIDE / multiple) * multiple
    most = MAX_SIDE // multiple * multiple
    width, height = (min(most, max(least, rounding(side * scale / multiple) * multiple)) for side in (across, down))
    return width, height


def widen_to_aspect(across: int, down: int, working: tuple[int, int]) -> tuple[int, int]:
    """The crop widened to the aspect of the working size, so that nothing is stretched."""
    aspect = working[0] / working[1]
    wanted = max(across, math.ceil(down * aspect)), max(down, math.ceil(across / aspect))
    near = all(0 <= side - asked <= 1 for side, asked in zip(working, wanted))
    return working if near else wanted  # rounding alone is no reason to resample


def place_span(start: int, end: int, size: int, limit: int) -> int:
    """Where a span of ``size`` around start to end begins, moved inside 0 to ``limit``."""
    return max(0, min(limit - size, (start + end - size) // 2))


def resize_image(image: Tensor, width: int, height: int) -> Tensor:
    """As :func:`resample_image`, for pictures in [0, 1], which stay there."""
    moved = resample_image(image, width, height)
    return moved if moved is image else moved.clamp(0, 1)


def resample_image(values: Tensor, width: int, height: int) -> Tensor:
    """``values`` (B, H, W, C) at another size, bicubic with antialiasing; the same tensor where the size is right."""
    if tuple(values.shape[1:3]) == (height, width):
        return values
    return F.interpolate(values.movedim(-1, 1), (height, width), mode="bicubic", antialias=True).movedim(1, -1)


def make_blend(mask: Tensor, feather: int) -> Tensor:
    """How much of the new part to take: ``mask`` itself inside, fading to exactly 0 at ``feather`` pixels from it."""
    if feather <= 0:
        return mask
    reach = grow_square(mask, feather)
    soft = blur_mask(grow_square(mask, feather - feather // 2), feather // 2)
    return torch.maximum(mask, torch.minimum(soft, reach).where(reach > 0, torch.zeros_like(mask))).clamp(0, 1)


@dataclass(frozen=True, eq=False)
class CutPart:
    """A part to work on: the picture (B, h, w, 3), its mask (B, h, w), the mask on Stage C's grid, and the way back."""

    image: Tensor
    mask: Tensor
    cells: Tensor
    stitch: Stitch


def cut_part(image: Tensor, mask: Tensor, settings: CropSettings = CropSettings()) -> CutPart:
    """Cut the part around ``mask`` out of ``image``; masks of a batch that lie apart get a crop each.

    Raises :class:`WrongInput` for an empty mask, a wrong number of them, and what is no picture or no mask.
    """
    image = check_pictures(image, CUT)
    mask = prepare_mask(mask, image, settings)
    crops = plan_crops(mask, settings)
    grown = grow_square(take_crops(mask, crops), settings.grow)
    width, height = crops[0].width, crops[0].height
    working = resize_mask(grown, height, width)
    return CutPart(
        resize_image(to_rgb(take_crops(image, crops)), width, height),
        working,
        mask_cells(working),
        Stitch(image, crops, make_blend(grown, settings.feather)),
    )


def take_crops(values: Tensor, crops: Crops) -> Tensor:
    """The part of ``values`` (B, H, W, ...) in each of ``crops``, which are one for all or one for each."""
    if len(crops) == 1:
        return crops[0].of(values)
    return torch.cat([crop.of(values[index : index + 1]) for index, crop in enumerate(crops)])


def mask_cells(mask: Tensor) -> Tensor:
    """``mask`` (B, H, W) on the Stage C grid of a picture of its size: a cell counts as soon as it is touched."""
    canvas = plan_canvas(int(mask.shape[2]), int(mask.shape[1]))
    left, top, right, bottom = canvas.crop
    sides = (left, canvas.padded_width - right, top, canvas.padded_height - bottom)
    padded = F.pad(mask[:, None], sides, mode="replicate") if any(sides) else mask[:, None]
    return F.adaptive_max_pool2d(padded, canvas.prior_shape()[2:])[:, 0]


def paste_part(stitch: Stitch, part: Tensor) -> Tensor:
    """The whole picture with ``part`` (B, h, w, C) in its place; pixels beyond the feather are those that were there.

    A batch of parts for one picture gives a batch of pictures. Raises WrongInput where the numbers do not go together.
    """
    whole, blend, crops = stitch.image, stitch.blend, stitch.crops
    part = to_rgb(check_pictures(part, PASTE))
    count = max(part.shape[0], whole.shape[0])
    if count % part.shape[0] or count % whole.shape[0]:
        raise WrongInput(
            f"{part.shape[0]} parts were given for {whole.shape[0]} pictures: give as many parts as "
            "pictures, or one of either."
        )
    width, height = crops[0].right - crops[0].left, crops[0].bottom - crops[0].top
    new = repeat_batch(resize_image(part, width, height).to(whole), count)
    blend, out = repeat_batch(blend.to(whole)[..., None], count), repeat_batch(whole, count).clone()
    colours = min(3, whole.shape[-1])  # a grey picture stays grey, an alpha channel stays as it is
    for index in range(count):
        place = crops[index % len(crops)].of(out[index : index + 1])[..., :colours]
        mixed = mix_part(place, new[index : index + 1], blend[index : index + 1])
        place.copy_(mixed)
    return out


def mix_part(old: Tensor, new: Tensor, blend: Tensor) -> Tensor:
    """``new`` (1, h, w, 3) over ``old`` (1, h, w, 1 or 3) by ``blend``; the very values of ``old`` where that is 0."""
    if old.shape[-1] == 1:
        new = new.mean(-1, keepdim=True)
    mixed = torch.where(blend >= 1, new, old + blend * (new - old))
    return torch.where(blend > 0, mixed, old)


def repeat_batch(values: Tensor, count: int) -> Tensor:
    """``values`` (B, ...) repeated to ``count``."""
    return values if values.shape[0] == count else values.repeat(count // values.shape[0], *[1] * (values.ndim - 1))
