"""What the ControlNets look at: pictures laid onto a canvas, inpaint packing, outpaint borders and identity maps.

All tensors are (B, C, H, W). The packing is that of the official filters (StableCascade, modules/controlnet.py).
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional as F

from ..errors import WrongInput
from ..nets.encoder import CELL
from .canvas import MAX_SIDE, Canvas, plan_canvas_for_prior
from .masks import resize_mask

WHITE = 1.0
MARKED = 0.5
"""A pixel of a mask above this is painted anew by the inpaint ControlNet."""
MOST_FACES = 4
COLOURS = ((1.0, 0.2, 0.2), (0.2, 0.8, 0.2), (0.3, 0.4, 1.0), (1.0, 0.8, 0.1))

Sides = tuple[int, int, int, int]
"""Pixels to add: left, top, right, bottom."""


# Onto the canvas


def lay_on_canvas(
    image: Tensor, canvas: Canvas, size: tuple[int, int] | None = None, keep_size: bool = False
) -> Tensor:
    """``image`` as it lies on ``canvas``: centre-cropped to its aspect, edges repeated into its padding, resized.

    size: width and height of the result, by default those at which the image encoder and the ControlNets read the
    canvas (32 pixels to a Stage C cell); ``keep_size`` leaves the picture's own. Bilinear with antialiasing, as the
    official loader resizes.
    """
    left, top, width, height = find_window(image.shape[-1], image.shape[-2], canvas)
    image = image[..., top : top + height, left : left + width]
    border = measure_padding(width, height, canvas)
    if any(border):
        left, top, right, bottom = border
        image = F.pad(image, (left, right, top, bottom), mode="replicate")
    width, height = size or canvas.encoder_size
    if keep_size or tuple(image.shape[-2:]) == (height, width):
        return image
    return F.interpolate(image, (height, width), mode="bilinear", antialias=True)


def lay_mask_on_canvas(mask: Tensor, canvas: Canvas) -> Tensor:
    """``mask`` (B, H, W) as its picture lies on ``canvas``, of 0 and 1: (B, 1, h, w).

    A pixel counts where the mask has touched any part of it, so that thin strokes are there on a small canvas too.
    """
    width, height = canvas.encoder_size
    laid = lay_on_canvas(mask[:, None], canvas, keep_size=True)[:, 0]
    return (resize_mask(laid, height, width, "nearest-exact") > MARKED).float()[:, None]


def find_window(width: int, height: int, canvas: Canvas) -> Sides:
    """Left, top, width and height of the middle of a picture that has the aspect of the canvas."""
    across = min(width, max(1, round(height * canvas.width / canvas.height)))
    down = min(height, max(1, round(width * canvas.height / canvas.width)))
    return (width - across) // 2, (height - down) // 2, across, down


def measure_padding(width: int, height: int, canvas: Canvas) -> Sides:
    """The canvas's padding around a picture of its aspect, in that picture's own pixels."""
    left, top, right, bottom = canvas.crop
    across, down = width / canvas.width, height / canvas.height
    return (
        round(left * across),
        round(top * down),
        round((canvas.padded_width - right) * across),
        round((canvas.padded_height - bottom) * down),
    )


# Super-resolution


def pad_to_cells(image: Tensor) -> Tensor:
    """``image`` with its edges repeated, evenly on both sides, to whole cells of the image encoder (32 pixels)."""
    across, down = (-side % CELL for side in (image.shape[-1], image.shape[-2]))
    borders = (across // 2, across - across // 2, down // 2, down - down // 2)
    return F.pad(image, borders, mode="replicate") if any(borders) else image


def plan_enlarged(width: int, height: int) -> Canvas:
    """The canvas that a picture is enlarged to: two Stage C cells for each of its encoder's, so 2.67 times the size."""
    columns, rows = (-(-side // CELL) for side in (width, height))
    whole = plan_canvas_for_prior(2 * rows, 2 * columns)
    return replace(
        whole,
        width=round(width * whole.padded_width / (CELL * columns)),
        height=round(height * whole.padded_height / (CELL * rows)),
    )


# Inpainting and outpainting


def pack_inpaint(image: Tensor, mask: Tensor) -> Tensor:
    """RGB (B, 3, H, W) in [0, 1] and a mask (1 or B, 1, H, W) → the hint (B, 4, H, W) of the inpaint ControlNet.

    Where the mask is above one half the picture is white and the fourth channel 1, elsewhere that is 0.
    """
    repaint = (mask > MARKED).expand(image.shape[0], -1, -1, -1)
    return torch.cat([image.masked_fill(repaint, WHITE), repaint.to(image)], dim=1)


def complete_sides(width: int, height: int, sides: Sides, wanted_width: int = 0, wanted_height: int = 0) -> Sides:
    """``sides`` plus what a picture of ``width`` × ``height`` then lacks to the wanted size, shared by opposite sides.

    A wanted side of 0 asks for nothing. Raises WrongInput where the picture is larger than what is wanted.
    """
    left, top, right, bottom = sides
    grown_width, grown_height = width + left + right, height + top + bottom
    if (wanted_width and wanted_width < grown_width) or (wanted_height and wanted_height < grown_height):
        raise WrongInput(
            f"The picture with its new borders is {grown_width} x {grown_height} px, but a canvas of "
            f"{wanted_width or grown_width} x {wanted_height or grown_height} px was asked for, which "
            "does not hold it. Ask for a larger canvas, or make the picture smaller first."
        )
    whole_width, whole_height = max(wanted_width, grown_width), max(wanted_height, grown_height)
    if max(whole_width, whole_height) > MAX_SIDE:
        raise WrongInput(
            f"The picture with its new borders would be {whole_width} x {whole_height} px, but {MAX_SIDE} px a side "
            "are the most that a canvas holds. Add narrower borders, or make the picture smaller first."
        )
    across, down = whole_width - grown_width, whole_height - grown_height
    return left + across // 2, top + down // 2, right + across - across // 2, bottom + down - down // 2


def add_borders(image: Tensor, mask: Tensor, sides: Sides) -> tuple[Tensor, Tensor]:
    """The picture with white borders, and its mask (B, 1, H, W), 1 on the borders."""
    left, top, right, bottom = sides
    borders = (left, right, top, bottom)
    return F.pad(image, borders, value=WHITE), F.pad(mask, borders, value=1.0)


# Identity


def choose_faces(boxes: Tensor, width: int, height: int, most: int = MOST_FACES) -> Tensor:
    """Indices of the ``most`` largest and most central boxes (N, 4: left, top, right, bottom in pixels).

    The official rule: the area minus twice the squared distance from the picture's centre.
    """
    if len(boxes) <= most:
        return torch.arange(len(boxes))
    area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    middle = (boxes[:, :2] + boxes[:, 2:]) / 2 - boxes.new_tensor([width / 2, height / 2])
    return (area - 2 * middle.square().sum(1)).topk(most).indices


def find_face_cells(boxes: Tensor, width: int, height: int, canvas: Canvas) -> list[Sides]:
    """Boxes in the pixels of a picture → left, top, right, bottom in the Stage C cells of ``canvas``, one at least."""
    left, top, across, down = find_window(width, height, canvas)
    border = measure_padding(across, down, canvas)
    cells = []
    for box in boxes.tolist():
        found = []
        axes = ((left, across, canvas.prior_width), (top, down, canvas.prior_height))
        for axis, (start, size, count) in enumerate(axes):
            whole = border[axis] + size + border[axis + 2]
            scaled = [(edge - start + border[axis]) / whole * count for edge in (box[axis], box[axis + 2])]
            first = min(max(round(scaled[0]), 0), count - 1)
            found.append((first, min(max(round(scaled[1]), first + 1), count)))
        cells.append((found[0][0], found[1][0], found[0][1], found[1][1]))
    return cells


def paint_identities(cells: list[Sides], identities: Tensor, canvas: Canvas) -> Tensor:
    """Identity vectors (N, C), made unit length, painted over their cells: (1, C, cells down, cells across)."""
    lengths = identities.float().norm(dim=1, keepdim=True)
    if not torch.isfinite(lengths).all() or (lengths == 0).any():
        raise WrongInput(
            "An identity vector is zero or not a number. Give the embedding that a face recogniser "
            "(ArcFace, 512 numbers) makes of each face."
        )
    painted = torch.zeros(1, identities.shape[1], canvas.prior_height, canvas.prior_width)
    for (left, top, right, bottom), vector in zip(cells, identities.float() / lengths):
        painted[0, :, top:bottom, left:right] = vector[:, None, None]
    return painted


def tint_faces(image: Tensor, cells: list[Sides]) -> Tensor:
    """``image`` (1, 3, H, W) on its canvas at 32 pixels to a cell, every face tinted in a colour of its own."""
    image = image.clone()
    for index, (left, top, right, bottom) in enumerate(cells):
        part = image[..., top * CELL : bottom * CELL, left * CELL : right * CELL]
        part.add_(part.new_tensor(COLOURS[index % len(COLOURS)])[:, None, None]).mul_(0.5)
    return image
