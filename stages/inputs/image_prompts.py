"""Pictures as CLIP reads them for image prompts, and prompts faded towards the empty one."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from ..errors import WrongInput

CENTRE, WHOLE, SQUASH = "centre", "whole picture", "squash"
CROPS = (CENTRE, WHOLE, SQUASH)
SHORT_SIDE = 768
"""The official code brings every picture to this short side first."""
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
MOST = 8
MOST_ASPECT = 20
"""A narrower picture would fill the memory while its short side is brought to 768."""


def prepare_for_clip(image: Tensor, size: int = 224, crop: str = CENTRE) -> Tensor:
    """RGB (B, 3, H, W) in [0, 1] → (B, 3, size, size), as the official code prepares it for CLIP.

    First the short side becomes 768 (bilinear, antialiased), then ``size`` (bicubic without antialiasing, as
    torchvision 0.16 resizes tensors; values may leave [0, 1] a little), then the centre is cut out. ``crop`` "whole
    picture" pads to a square with CLIP's mean colour instead, "squash" ignores the aspect.
    """
    if crop not in CROPS:
        raise WrongInput(f"The crop is {crop!r}, but it has to be one of: {', '.join(CROPS)}.")
    short, long = sorted(image.shape[-2:])
    if long > MOST_ASPECT * short:
        raise WrongInput(
            f"A picture of {image.shape[-1]} x {image.shape[-2]} px is too narrow for an image prompt: its long side "
            f"may be {MOST_ASPECT} times the short one. Cut a part out of it first."
        )
    image = _resize_short_side(image, SHORT_SIDE, "bilinear", antialias=True)
    if crop == CENTRE:
        image = _resize_short_side(image, size, "bicubic")
        top, left = (round((side - size) / 2) for side in image.shape[-2:])
        return image[..., top : top + size, left : left + size]
    if crop == WHOLE:
        image = _pad_to_square(image)
    return F.interpolate(image, (size, size), mode="bicubic")


def normalise_for_clip(picture: Tensor) -> Tensor:
    """Pictures (B, 3, h, w) in [0, 1] → what the CLIP vision tower takes."""
    mean, std = (picture.new_tensor(values).view(3, 1, 1) for values in (CLIP_MEAN, CLIP_STD))
    return (picture - mean) / std


def _resize_short_side(image: Tensor, size: int, mode: str, antialias: bool = False) -> Tensor:
    height, width = image.shape[-2:]
    short = min(height, width)
    if short == size:
        return image
    return F.interpolate(image, (int(size * height / short), int(size * width / short)), mode=mode, antialias=antialias)


def _pad_to_square(image: Tensor) -> Tensor:
    """``image`` in the middle of a square of CLIP's mean colour, which normalises to zero."""
    height, width = image.shape[-2:]
    side = max(height, width)
    square = image.new_tensor(CLIP_MEAN).view(1, 3, 1, 1).repeat(image.shape[0], 1, side, side)
    top, left = (side - height) // 2, (side - width) // 2
    square[..., top : top + height, left : left + width] = image
    return square


def fade_text(text: Tensor, empty: Tensor, weight: float) -> Tensor:
    """``weight`` of ``text`` and the rest of the empty prompt's, both (B, tokens, width) or (B, width).

    Longer prompts are several windows of tokens; the empty prompt is repeated for each.
    """
    if text.ndim == 3:
        windows = -(-text.shape[1] // empty.shape[1])
        empty = empty.repeat(1, windows, 1)[:, : text.shape[1]]
    return torch.lerp(empty.to(text).expand_as(text), text, weight)
