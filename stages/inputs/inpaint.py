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

MOST_ASPECT = 2.0
"""A longer crop than this gets more of the picture beside its long sides, where there is any."""


@dataclass(frozen=True)
class CropSettings:
    """How to cut: lengths in pixels of the whole picture.

    context: side of the crop by the side of the mask; grow: by how much the mask is widened; feather: width of the
    fade around it; target: side of a square of the area to work at, 0 for the crop's own size; multiple: both working
    sides are multiples of it.
    """

    context: float = 1.5
    grow: int = 8
    feather: int = 16
    target: int = 1024
    multiple: int = 128


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


@dataclass(frozen=True, eq=False)
class Stitch:
    """What pasting back needs: the whole picture, the place, and how much of the new part to take, (B, h, w)."""

    image: Tensor
    crop: Crop
    blend: Tensor


def fit_mask(mask: Tensor, image: Tensor) -> Tensor:
    """``mask`` (B, H, W) in float32 at the size of ``image`` and one or as many as there are pictures."""
    mask = mask.reshape(-1, *mask.shape[-2:]).float()
    height, width = image.shape[1:3]
    if not mask.any():
        raise WrongInput(
            f"The mask of {mask.shape[-1]} x {mask.shape[-2]} px is empty, so there is nothing to inpaint: "
            "paint over the part to change, or wire another mask."
        )
    if tuple(mask.shape[-2:]) != (height, width):
        mask = F.interpolate(mask[:, None], (height, width), mode="bilinear", align_corners=False)[:, 0]
    if mask.shape[0] not in (1, image.shape[0]):
        raise WrongInput(
            f"{mask.shape[0]} masks were given for {image.shape[0]} pictures: give one mask for all, or one "
            "for each picture."
        )
    return mask.clamp(0, 1)


def plan_crop(mask: Tensor, settings: CropSettings) -> Crop:
    """The part around everything in ``mask`` (B, H, W) with its feather, and the size to work at; one for the batch."""
    height, width = mask.shape[-2:]
    marked = mask.amax(0) > 0
    margin = settings.grow + settings.feather
    spans = []
    for axis, size in ((0, width), (1, height)):
        places = marked.any(axis).nonzero()[:, 0]
        spans.append((max(0, int(places[0]) - margin), min(size, int(places[-1]) + 1 + margin)))
    (left, right), (top, bottom) = spans
    across = min(width, max(MIN_SIDE, math.ceil((right - left) * settings.context)))
    down = min(height, max(MIN_SIDE, math.ceil((bottom - top) * settings.context)))
    across, down = (
        min(width, max(across, math.ceil(down / MOST_ASPECT))),
        min(height, max(down, math.ceil(across / MOST_ASPECT))),
    )
    working = choose_working_size(across, down, settings)
    across, down = working if not settings.target else widen_to_aspect(across, down, working)
    across, down = min(across, width), min(down, height)
    left, top = place_span(left, right, across, width), place_span(top, bottom, down, height)
    return Crop(left, top, left + across, top + down, *working)


def choose_working_size(across: int, down: int, settings: CropSettings) -> tuple[int, int]:
    """Width and height to work at: the target's area in the aspect of the crop, both multiples,
    within what is allowed.
    """
    multiple = settings.multiple
    scale = settings.target / math.sqrt(across * down) if settings.target else 1.0
    rounding = round if settings.target else math.ceil
    least = math.ceil(MIN_SIDE / multiple) * multiple
    most = MAX_SIDE // multiple * multiple
    return tuple(min(most, max(least, rounding(side * scale / multiple) * multiple)) for side in (across, down))


def widen_to_aspect(across: int, down: int, working: tuple[int, int]) -> tuple[int, int]:
    """The crop widened to the aspect of the working size, so that nothing is stretched."""
    aspect = working[0] / working[1]
    wanted = max(across, math.ceil(down * aspect)), max(down, math.ceil(across / aspect))
    near = all(0 <= side - asked <= 1 for side, asked in zip(working, wanted))
    return working if near else wanted  # rounding alone is no reason to resample


def place_span(start: int, end: int, size: int, limit: int) -> int:
    """Where a span of ``size`` around start to end begins, moved inside 0 to ``limit``."""
    return max(0, min(limit - size, (start + end - size) // 2))


def resize_image(image: Tensor, width: int, height: int, mode: str = "bicubic") -> Tensor:
    """``image`` (B, H, W, C) at another size with antialiasing; the same tensor where the size is right."""
    if tuple(image.shape[1:3]) == (height, width):
        return image
    return F.interpolate(image.movedim(-1, 1), (height, width), mode=mode, antialias=True).clamp(0, 1).movedim(1, -1)


def dilate(mask: Tensor, radius: int) -> Tensor:
    """The largest value of ``mask`` (B, H, W) within a square of ``radius`` around each pixel."""
    if radius <= 0:
        return mask
    side = 2 * radius + 1
    across = F.max_pool2d(mask[:, None], (1, side), stride=1, padding=(0, radius))
    return F.max_pool2d(across, (side, 1), stride=1, padding=(radius, 0))[:, 0]


def blur(mask: Tensor, radius: int) -> Tensor:
    """``mask`` (B, H, W) with a Gaussian blur that reaches ``radius`` pixels; its edges are repeated outwards."""
    if radius <= 0:
        return mask
    places = torch.arange(-radius, radius + 1, dtype=torch.float32, device=mask.device)
    weights = torch.exp(-0.5 * (places / (0.5 * radius)) ** 2)
    weights = weights / weights.sum()
    out = F.pad(mask[:, None], (radius, radius, radius, radius), mode="replicate")
    return F.conv2d(F.conv2d(out, weights.view(1, 1, 1, -1)), weights.view(1, 1, -1, 1))[:, 0]


def make_blend(mask: Tensor, feather: int) -> Tensor:
    """How much of the new part to take: ``mask`` itself inside, fading to exactly 0 at ``feather`` pixels from it."""
    if feather <= 0:
        return mask
    reach = dilate(mask, feather)
    soft = blur(dilate(mask, feather - feather // 2), feather // 2)
    return torch.maximum(mask, torch.minimum(soft, reach).where(reach > 0, torch.zeros_like(mask))).clamp(0, 1)


@dataclass(frozen=True, eq=False)
class Part:
    """A part to work on: the picture (B, h, w, 3), its mask (B, h, w), the mask on Stage C's grid, and the way back."""

    image: Tensor
    mask: Tensor
    cells: Tensor
    stitch: Stitch


def cut_part(image: Tensor, mask: Tensor, settings: CropSettings = CropSettings()) -> Part:
    """Cut the part around ``mask`` out of ``image``; raises WrongInput for an empty mask or a wrong number of them."""
    mask = fit_mask(mask, image)
    plan = plan_crop(mask, settings)
    grown = dilate(plan.of(mask), settings.grow)
    size = plan.width, plan.height
    working = resize_image(grown[..., None], *size, "bilinear")[..., 0]
    return Part(
        resize_image(plan.of(image)[..., :3], *size),
        working,
        mask_cells(working),
        Stitch(image, plan, make_blend(grown, settings.feather)),
    )


def mask_cells(mask: Tensor) -> Tensor:
    """``mask`` (B, H, W) on the Stage C grid of a picture of its size: a cell counts as soon as it is touched."""
    canvas = plan_canvas(int(mask.shape[2]), int(mask.shape[1]))
    left, top, right, bottom = canvas.crop
    sides = (left, canvas.padded_width - right, top, canvas.padded_height - bottom)
    padded = F.pad(mask[:, None], sides, mode="replicate") if any(sides) else mask[:, None]
    return F.adaptive_max_pool2d(padded, canvas.prior_shape()[2:])[:, 0]


def paste_part(stitch: Stitch, part: Tensor) -> Tensor:
    """The whole picture with ``part`` (B, h, w, 3) in its place; pixels beyond the feather are those that were there.

    A batch of parts for one picture gives a batch of pictures. Raises WrongInput where the numbers do not go together.
    """
    whole, blend, place = stitch.image, stitch.blend, stitch.crop
    count = max(part.shape[0], whole.shape[0])
    if count % part.shape[0] or count % whole.shape[0]:
        raise WrongInput(
            f"{part.shape[0]} parts were given for {whole.shape[0]} pictures: give as many parts as "
            "pictures, or one of either."
        )
    new = resize_image(part[..., :3], place.right - place.left, place.bottom - place.top).to(whole)
    new, blend = repeat_batch(new, count), repeat_batch(blend.to(whole)[..., None], count)
    out = repeat_batch(whole, count).clone()
    old = place.of(out)[..., :3]
    mixed = torch.where(blend >= 1, new, old + blend * (new - old))
    out[:, place.top : place.bottom, place.left : place.right, :3] = torch.where(blend > 0, mixed, old)
    return out


def repeat_batch(values: Tensor, count: int) -> Tensor:
    """``values`` (B, ...) repeated to ``count``."""
    return values if values.shape[0] == count else values.repeat(count // values.shape[0], *[1] * (values.ndim - 1))
