"""The one check of pictures and masks, and how they become what the nets read.

Pictures are (B, H, W, C) in [0, 1] with 1 (grey), 3 (RGB) or 4 (RGB and alpha) channels, masks (B, H, W) in [0, 1].
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..errors import WrongInput

CHANNELS = (1, 3, 4)
HINT_CHANNELS = (16, 512)
"""Channels of hints that are no pictures: Super-Resolution Hint and Identity Hint."""

NEGATIVE = -1e-3
"""Masks that were resized may lie this little below 0."""


def check_pictures(image: Any, where: str, name: str = "image") -> Tensor:
    """``image`` itself if it is pictures, in float32 if it is of another float; raises :class:`WrongInput` otherwise.

    where, name: the node and its input, as the user sees them.
    """
    if not torch.is_tensor(image) or image.ndim != 4:
        given = f"a tensor of shape {tuple(image.shape)}" if torch.is_tensor(image) else f"a {type(image).__name__}"
        raise WrongInput(
            f"{where} got {given} on '{name}'. It needs pictures (batch, height, width, channels): wire an IMAGE "
            "output into it."
        )
    count, height, width, channels = image.shape
    if not (count and height and width):
        raise WrongInput(
            f"{where} got {count} pictures of {width} x {height} px on '{name}', so there is nothing to work with. "
            "Give at least one picture of at least one pixel."
        )
    if channels in HINT_CHANNELS:
        node = "Super-Resolution Hint" if channels == HINT_CHANNELS[0] else "Identity Hint"
        raise WrongInput(
            f"{where} got a hint of {channels} channels on '{name}', which is no picture. Wire it into ControlNet "
            f"for Cascade, and the 'preview' output of {node} into this input."
        )
    if channels not in CHANNELS:
        raise WrongInput(
            f"{where} got a picture of {channels} channels on '{name}'. It needs 1 (grey), 3 (RGB) or 4 (RGB "
            "and alpha)."
        )
    if not image.is_floating_point():
        raise WrongInput(
            f"{where} got a picture of whole numbers ({str(image.dtype).removeprefix('torch.')}) on '{name}'. An IMAGE "
            "holds 0 to 1: divide bytes by 255 first."
        )
    if not torch.isfinite(image).all():
        raise WrongInput(
            f"{where} got a picture on '{name}' that holds NaN or infinity. Look at the node that made it; a picture "
            "file or a working decode has none."
        )
    return image.float()


def check_mask(mask: Any, where: str, name: str = "mask") -> Tensor:
    """``mask`` (H, W), (B, H, W) or (B, 1, H, W) as (B, H, W) in float32, within [0, 1].

    Raises :class:`WrongInput` for what is no mask, and for one with NaN, infinity or negative values.
    """
    if not torch.is_tensor(mask) or mask.ndim not in (2, 3, 4) or (mask.ndim == 4 and mask.shape[1] != 1):
        given = f"a tensor of shape {tuple(mask.shape)}" if torch.is_tensor(mask) else f"a {type(mask).__name__}"
        raise WrongInput(
            f"{where} got {given} on '{name}'. It needs masks (batch, height, width): wire a MASK output into it."
        )
    mask = mask.reshape(mask.shape[0] if mask.ndim > 2 else 1, *mask.shape[-2:]).float()
    if not mask.numel():
        raise WrongInput(
            f"{where} got {mask.shape[0]} masks of {mask.shape[2]} x {mask.shape[1]} px on '{name}', so there is "
            "nothing to read. Give at least one mask of at least one pixel."
        )
    if not torch.isfinite(mask).all():
        raise WrongInput(
            f"{where} got a mask on '{name}' that holds NaN or infinity. A mask holds 0 (nothing) to 1 (all): look at "
            "the node that made it."
        )
    least = float(mask.min())
    if least < NEGATIVE:
        raise WrongInput(
            f"{where} got a mask on '{name}' with negative values, down to {least:.3g}. A mask holds 0 (nothing) to 1 "
            "(all): invert or clamp it first."
        )
    return mask.clamp(0, 1)


def check_count(mask: Tensor, image: Tensor, where: str) -> None:
    """Raises :class:`WrongInput` unless there is one mask, or one for each picture."""
    if mask.shape[0] not in (1, image.shape[0]):
        raise WrongInput(
            f"{where} got {mask.shape[0]} masks for {image.shape[0]} pictures. Give one mask for all, or one for "
            "each picture."
        )


def to_rgb(image: Tensor) -> Tensor:
    """Pictures (B, H, W, 1, 3 or 4) as (B, H, W, 3): grey on all three channels, alpha dropped."""
    return image[..., :3].expand(*image.shape[:-1], 3)
