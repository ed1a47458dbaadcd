"""What of a conditioning is meant for one picture of a batch, or for a part of a picture."""

from __future__ import annotations

from typing import Any

import torch

from ....stages.inputs.canvas import MAX_SIDE, MIN_SIDE, plan_canvas
from ....stages.inputs.inpaint import Crop
from ..models.regions import REGIONS_KEY, pick_regions
from .control_chain import crop_control, pick_control


def pick_conditioning(conditioning: Any, index: int) -> Any:
    """The conditioning of picture ``index``: tensors that hold one entry a picture are narrowed to it."""
    if conditioning is None:
        return None

    def narrow(value: Any) -> Any:
        if torch.is_tensor(value) and value.ndim > 1 and value.shape[0] > 1:
            place = index % value.shape[0]
            return value[place : place + 1]
        return value

    special = {"control": pick_control, REGIONS_KEY: pick_regions}
    return [
        [
            narrow(text),
            {key: special[key](value, index) if key in special else narrow(value) for key, value in extra.items()},
        ]
        for text, extra in conditioning
    ]


def crop_conditioning(conditioning: Any, crop: Crop, width: int, height: int) -> Any:
    """``conditioning`` for a part of a picture of ``width`` x ``height``: hints and masks of ControlNets are cropped.

    Hints are taken to show the whole picture on its canvas, as the hint nodes lay them there.
    """
    if conditioning is None or not any(extra.get("control") for _, extra in conditioning):
        return conditioning
    left = top = 0
    if MIN_SIDE <= min(width, height) and max(width, height) <= MAX_SIDE:  # larger ones have no canvas
        canvas = plan_canvas(width, height)
        (left, top), (width, height) = canvas.crop[:2], (canvas.padded_width, canvas.padded_height)
    part = (
        (left + crop.left) / width,
        (top + crop.top) / height,
        (left + crop.right) / width,
        (top + crop.bottom) / height,
    )
    made: dict[Any, Any] = {}

    def of(control: Any) -> Any:
        if control not in made:  # prompt and negative prompt share a hint, so that the host runs them in one batch
            made[control] = crop_control(control, part)
        return made[control]

    return [
        [text, {**extra, "control": of(extra["control"])} if extra.get("control") else extra]
        for text, extra in conditioning
    ]
