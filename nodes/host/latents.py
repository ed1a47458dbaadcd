"""Latents of both stages: what they carry, and sentences for the ones that come over a wrong wire."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import comfy.model_base
import comfy.model_management
import torch
from torch import Tensor
from torch.nn import functional as F

from ...stages.errors import WrongInput
from ...stages.inputs.canvas import (
    DECODER_CHANNELS,
    LATENT_PIXELS,
    PRIOR_CHANNELS,
    Canvas,
    plan_canvas,
    plan_canvas_for_prior,
)
from ...stages.inputs.grids import COMPRESSION

CANVAS = "cascade_studio_canvas"
"""Key in a latent under which its canvas travels from node to node."""

MADE = "cascade_studio_samples"
"""Key in a latent under which its samples travel a second time: another node that changes them leaves these."""

FEATURES = "cascade_studio_features"
"""Key in a latent for what Stage C saw in the step that made it (see :mod:`.sampling.features`)."""

RATIO = "downscale_ratio_spacial"
PRIOR_RATIO, DECODER_RATIO = 42, 4
"""The host's own numbers for the two latents, by which its samplers recognise and resize empty ones."""

MOST_ENLARGED = 2.0
"""Times a side that other nodes may enlarge a Stage C latent: core's Upscale Latent, which counts 8 px a cell, makes a
picture five times as large as it was asked for."""

Latent = dict[str, Any]


def make_empty_prior(canvas: Canvas, batch: int, automatic: bool = False) -> Latent:
    """A zero Stage C latent for ``canvas``. If its grid is ``automatic``, samplers may fit it to their model."""
    latent = make_prior_latent(torch.zeros(canvas.prior_shape(batch), device=device()), canvas)
    if not automatic:
        del latent[RATIO]
    return latent


def make_empty_decoder(canvas: Canvas, batch: int) -> Latent:
    """A zero Stage B latent for ``canvas``."""
    return make_decoder_latent(torch.zeros(canvas.decoder_shape(batch), device=device()), canvas)


def device() -> torch.device:
    """Where latents rest between nodes."""
    return comfy.model_management.intermediate_device()


def make_prior_latent(samples: Tensor, canvas: Canvas) -> Latent:
    """``samples`` (B, 16, h, w) with what later nodes need to know."""
    return {"samples": samples, MADE: samples, RATIO: PRIOR_RATIO, CANVAS: canvas}


def make_decoder_latent(samples: Tensor, canvas: Canvas) -> Latent:
    """``samples`` (B, 4, h, w) with what later nodes need to know."""
    return {"samples": samples, MADE: samples, RATIO: DECODER_RATIO, CANVAS: canvas}


def replace_samples(latent: Latent, samples: Tensor) -> Latent:
    """A copy of ``latent`` that holds ``samples``, is no longer an empty one to be resized, and keeps no features."""
    out = {key: value for key, value in latent.items() if key not in (RATIO, "noise_mask", FEATURES)}
    return {**out, "samples": samples, MADE: samples}


def expect_prior(latent: Latent, where: str) -> Tensor:
    """The samples of a Stage C latent, or a sentence about what came over the wire instead."""
    return check_samples(
        latent,
        where,
        PRIOR_CHANNELS,
        "Stage C",
        "Wire the canvas node's Stage C latent, or the "
        "output of the Stage C sampler or of the image encoder, into this input.",
    )


def expect_decoder(latent: Latent, where: str) -> Tensor:
    """The samples of a Stage B latent, or a sentence about what came over the wire instead."""
    return check_samples(
        latent,
        where,
        DECODER_CHANNELS,
        "Stage B",
        "Wire the output of the Stage B sampler, the "
        "canvas node's Stage B latent or a picture encoded by Stage A into this input.",
    )


def check_samples(latent: Latent, where: str, channels: int, stage: str, advice: str) -> Tensor:
    """The samples (B, C, H, W) of ``latent``; raises :class:`WrongInput` unless they have ``channels``, as a ``stage``
    latent has."""
    samples = latent["samples"]
    if getattr(samples, "is_nested", False):
        raise WrongInput(
            f"{where} got a latent of several parts (a video or audio latent). It needs a {stage} latent "
            f"with {channels} channels. {advice}"
        )
    if samples.ndim == 4 and samples.shape[1] == channels and min(samples.shape[2:]) > 0:
        return samples
    looks = {4: "a Stage B latent (or one of another model)", 16: "a Stage C latent"}
    given = looks.get(samples.shape[1], "a latent of another model") if samples.ndim == 4 else "no picture's latent"
    raise WrongInput(
        f"{where} got {given}, of shape {tuple(samples.shape)}. It needs a {stage} latent with {channels} "
        f"channels. {advice}"
    )


def is_empty(latent: Latent) -> bool:
    """Whether nothing has been sampled or encoded into ``latent`` yet."""
    return not torch.count_nonzero(latent["samples"])


def expect_finished_prior(latent: Latent, where: str) -> Tensor:
    """As :func:`expect_prior`, for inputs at which an empty latent would make a picture of nothing."""
    samples = expect_prior(latent, where)
    if is_empty(latent):
        raise WrongInput(
            f"{where} got an empty Stage C latent: all its values are 0, nothing has been sampled into it. Wire the "
            "output of Sample Stage C or of Encode for Stage C into this input; a sampler that is bypassed hands the "
            "canvas's empty latent on."
        )
    return samples


def expect_finished_decoder(latent: Latent, where: str) -> Tensor:
    """As :func:`expect_decoder`, for inputs at which an empty latent would make a picture of nothing."""
    samples = expect_decoder(latent, where)
    if is_empty(latent):
        raise WrongInput(
            f"{where} got an empty Stage B latent: all its values are 0, nothing has been sampled into it. Wire the "
            "output of Sample Stage B or of Encode Stage A into this input; a sampler that is bypassed hands the empty "
            "latent on."
        )
    return samples


def measure_empty(latent: Latent) -> tuple[int, int] | None:
    """Width and height in pixels that another model's empty latent stands for; None for every other latent.

    Core's nodes that make them say how many pixels a cell has, so that a sampler can fit them to its own model.
    """
    samples, ratio = latent["samples"], latent.get(RATIO)
    if (
        ratio in (None, PRIOR_RATIO, DECODER_RATIO)
        or CANVAS in latent
        or getattr(samples, "is_nested", False)
        or samples.ndim != 4
    ):
        return None
    if not is_empty(latent):
        return None
    return round(samples.shape[-1] * ratio), round(samples.shape[-2] * ratio)


def fit_empty_prior(latent: Latent, compression: float | None = None) -> Latent:
    """``latent``, or for another model's empty one Stage C's empty latent of the same picture.

    So it is with our own whose compression nobody asked for, where the model was trained with ``compression`` pixels to
    one cell.
    """
    size = measure_empty(latent) or (measure_automatic(latent) if compression else None)
    if size is None:
        return latent
    return {**latent, **make_empty_prior(plan_canvas(*size, compression), latent["samples"].shape[0])}


def measure_automatic(latent: Latent) -> tuple[int, int] | None:
    """Width and height of the picture of an empty Stage C latent whose grid is the automatic one; None for others."""
    canvas = latent.get(CANVAS)
    if not isinstance(canvas, Canvas) or latent.get(RATIO) != PRIOR_RATIO or not is_empty(latent):
        return None
    return canvas.width, canvas.height


def fit_empty_decoder(latent: Latent, canvas: Canvas, compression: float | None = None) -> Latent:
    """``latent``, or for an empty one that is not on the cells of ``canvas`` Stage B's, of its size and with them.

    Such are another model's, and our own of a canvas that did not know of a model with ``compression`` pixels a cell.
    """
    size = measure_empty(latent) or (measure_other_grid(latent, canvas) if compression else None)
    if size is None:
        return latent
    fitted = plan_on_cells(canvas.prior_height, canvas.prior_width, *size, compression)
    return {**latent, **make_empty_decoder(fitted, latent["samples"].shape[0])}


def measure_other_grid(latent: Latent, canvas: Canvas) -> tuple[int, int] | None:
    """Width and height of the picture of our empty Stage B latent whose Stage C has other cells than ``canvas``."""
    made = find_decoder_canvas(latent)
    if made is None or latent.get(RATIO) != DECODER_RATIO or not is_empty(latent):
        return None
    return None if made.prior_shape() == canvas.prior_shape() else (made.width, made.height)


def plan_on_cells(rows: int, columns: int, width: int, height: int, compression: float | None) -> Canvas:
    """The canvas of a picture on ``columns`` x ``rows`` cells: as planned with ``compression`` where that gives them,
    else one that covers it."""
    planned = plan_canvas(width, height, compression)
    same = (planned.prior_height, planned.prior_width) == (rows, columns)
    return planned if same else plan_canvas_for_prior(rows, columns, width, height)


def fit_batch(latent: Latent, prior: Latent, where: str) -> Latent:
    """The Stage B latent for the pictures of the Stage C latent ``prior``.

    A single or an empty one serves them all; a single prior serves any number of latents. Which pictures of a batch
    they are, and so their noise, is told by the prior where the latent does not. Raises :class:`WrongInput` for other
    numbers.
    """
    samples, count = expect_decoder(latent, where), prior["samples"].shape[0]
    given = samples.shape[0]
    if given != count and count > 1:
        if given > 1 and torch.count_nonzero(samples):
            raise WrongInput(
                f"{where} got {given} Stage B latents on 'latent' for {count} Stage C latents on 'prior'. "
                "Give one Stage B latent for all, or one for each."
            )
        latent = {key: value for key, value in latent.items() if key != "batch_index"}
        latent["samples"] = samples[:1].repeat(count, 1, 1, 1)
    if "batch_index" in prior and len(latent["samples"]) == count:
        latent = {"batch_index": prior["batch_index"], **latent}
    return latent


def find_prior_canvas(latent: Latent, where: str, compression: float | None = None) -> Canvas:
    """The canvas that a Stage C latent was made for; worked out from its grid, at ``compression`` pixels a cell, where
    another node made it, or where core's sampler gave a canvas the cells that its model was trained with."""
    samples = expect_prior(latent, where)
    canvas = latent.get(CANVAS)
    if isinstance(canvas, Canvas) and canvas.prior_shape()[2:] == tuple(samples.shape[2:]):
        return canvas
    rows, columns = samples.shape[2:]
    if isinstance(canvas, Canvas) and compression and is_refitted(canvas, rows, columns, compression):
        return plan_on_cells(rows, columns, canvas.width, canvas.height, compression)
    found = plan_canvas_for_prior(rows, columns, compression=compression)
    if isinstance(canvas, Canvas) and measure_enlargement(canvas, found) > MOST_ENLARGED:
        raise WrongInput(
            f"{where} got a Stage C latent of {found.prior_width} x {found.prior_height} cells that was made for "
            f"{canvas.width} x {canvas.height} px on {canvas.prior_width} x {canvas.prior_height} cells: a node "
            f"enlarged it that counts 8 px a cell, and the picture would have {found.width} x {found.height} px. Use "
            "Enlarge Stage C Latent, which counts in the picture's size."
        )
    return found


def is_refitted(canvas: Canvas, rows: int, columns: int, compression: float) -> bool:
    """Whether ``columns`` x ``rows`` cells are what the host's samplers make of the empty latent of ``canvas`` for a
    model with ``compression`` pixels a cell (``comfy.sample.fix_empty_latent_channels``)."""
    size, ratio = (canvas.width, canvas.height), PRIOR_RATIO / count_host_ratio(compression)
    if canvas.prior_shape() not in [plan_canvas(*size, official=official).prior_shape() for official in (False, True)]:
        return False  # its cells were asked for, and the host leaves such as they are
    return (rows, columns) == (round(canvas.prior_height * ratio), round(canvas.prior_width * ratio))


def count_host_ratio(compression: float) -> int:
    """Pixels to a cell, in the host's own count of whole ones, of a Stage C with ``compression``."""
    return round(PRIOR_RATIO * compression / COMPRESSION)


def measure_enlargement(before: Canvas, after: Canvas) -> float:
    """How many times more cells a side a latent has than it was made with."""
    return max(after.prior_width / before.prior_width, after.prior_height / before.prior_height)


def find_decoder_canvas(latent: Latent) -> Canvas | None:
    """The canvas that a Stage B latent belongs to, if it still fits it."""
    canvas = latent.get(CANVAS)
    fits = isinstance(canvas, Canvas) and canvas.decoder_shape()[2:] == tuple(latent["samples"].shape[2:])
    return canvas if fits else None


def guess_canvas(shape: Sequence[int]) -> Canvas:
    """The canvas of a latent (B, C, h, w) of either stage of which no more is known than its grid."""
    if shape[1] == PRIOR_CHANNELS:
        return plan_canvas_for_prior(*shape[-2:])
    height, width = (LATENT_PIXELS * side for side in shape[-2:])
    return Canvas(width, height, width, height, 1, 1)


def crop_padding(image: Tensor, canvas: Canvas | None) -> Tensor:
    """``image`` (B, H, W, C) without the padding of its canvas."""
    if canvas is None or tuple(image.shape[1:3]) != (canvas.padded_height, canvas.padded_width):
        return image
    left, top, right, bottom = canvas.crop
    return image[:, top:bottom, left:right]


def pad_to_canvas(image: Tensor, canvas: Canvas) -> Tensor:
    """``image`` (B, H, W, C) on its canvas, its edges repeated outwards."""
    left, top, right, bottom = canvas.crop
    sides = (left, canvas.padded_width - right, top, canvas.padded_height - bottom)
    if not any(sides):
        return image
    return F.pad(image.movedim(-1, 1), sides, mode="replicate").movedim(1, -1)


def measure_picture(image: Tensor | None) -> tuple[int, int, int] | None:
    """How many pictures (B, H, W, C) there are, and their width and height."""
    return None if image is None else (int(image.shape[0]), int(image.shape[2]), int(image.shape[1]))


def plan_canvas_for_image(image: Tensor, compression: float | None = None) -> Canvas:
    """The canvas of a picture (B, H, W, C)."""
    return plan_canvas(int(image.shape[2]), int(image.shape[1]), compression)


def check_model(model: Any, stage: str, where: str, name: str = "model") -> None:
    """Refuse a MODEL of the other stage, or of another architecture, on the input ``name``, in plain words."""
    kinds = {"Stage C": comfy.model_base.StableCascade_C, "Stage B": comfy.model_base.StableCascade_B}
    if isinstance(model.model, kinds[stage]):
        return
    given = next(
        (f"a Stable Cascade {name} model" for name, kind in kinds.items() if isinstance(model.model, kind)),
        f"a {type(model.model).__name__} model",
    )
    output = "prior" if stage == "Stage C" else "decoder"
    raise WrongInput(
        f"{where} got {given} on its '{name}' input. It needs the Stable Cascade {stage} model: wire the "
        f"'{output}' output of Load Stable Cascade into it."
    )


def attach_prior(conditioning: Any, prior: Tensor) -> Any:
    """``conditioning`` with the Stage C latent that Stage B is to follow, under the key of the host's own node.

    ControlNets act on Stage C only; left in, the host would load them for Stage B as well.
    """
    return [
        [text, {**{key: value for key, value in extra.items() if key != "control"}, "stable_cascade_prior": prior}]
        for text, extra in conditioning
    ]
