"""What a sampler tells beside its work: a picture far from the model's own size, a latent that another node resized."""

from __future__ import annotations

import logging
import math
from typing import Any

from ....stages.inputs.canvas import Canvas
from ....stages.inputs.grids import COMPRESSION
from ..latents import CANVAS, MADE
from .guide import find_guide

log = logging.getLogger(__name__)

FAR = 2.0
"""Times larger or smaller a side than the pictures that a model was trained on, beyond which it is said."""


def read_native_side(model: Any) -> int | None:
    """Side in pixels of the pictures that a Stage C was trained on; None where its loader does not know."""
    return getattr(getattr(model.model.diffusion_model, "config", None), "native_side", None)


def read_native_compression(model: Any) -> float | None:
    """Pixels to one cell that a stage was trained with; None for the published number, and where nothing is known."""
    native = getattr(getattr(model.model.diffusion_model, "config", None), "native_compression", None)
    return None if native == COMPRESSION else native


def advise_on_size(model: Any, canvas: Canvas) -> list[str]:
    """A sentence where the picture is far from the size that ``model`` was trained on, and nothing guides it there."""
    native = read_native_side(model)
    side = math.sqrt(canvas.width * canvas.height)
    if not native or find_guide(model) or 1 / FAR <= side / native <= FAR:
        return []
    expect = "motifs that repeat" if side > native else "a picture without detail"
    return [
        f"This Stage C was trained on pictures of about {native} x {native} px; the canvas has {canvas.width} x "
        f"{canvas.height}. Expect {expect}: choose a size near {native} px, and enlarge the picture afterwards."
    ]


def advise_on_resizing(latent: dict[str, Any], canvas: Canvas) -> list[str]:
    """A sentence where ``latent`` no longer has the grid of the canvas that it was made for."""
    made = latent.get(CANVAS)
    if not isinstance(made, Canvas) or (made.width, made.height) == (canvas.width, canvas.height):
        return []  # with other cells it is the same picture: those that its model was trained with
    return [
        f"The Stage C latent was made for {made.width} x {made.height} px on {made.prior_width} x {made.prior_height} "
        f"cells; another node changed it to {canvas.prior_width} x {canvas.prior_height} cells, which is a picture of "
        f"{canvas.width} x {canvas.height} px. Core's latent nodes count 8 px a cell, Stage C has one for about 42."
    ]


def show_native(model: Any, sizes: list[str]) -> dict[str, Any]:
    """For the web extension, which offers a canvas of it: the trained side in pixels, where ``sizes`` says it."""
    return {"cascade_studio_native": [model.model.diffusion_model.config.native_side]} if sizes else {}


def advise_on_placing(latent: dict[str, Any], canvas: Canvas, stage: str) -> list[str]:
    """A sentence where another node placed something into ``latent`` by pixels, as core's Latent Composite does.

    It is told by the cells that changed since the latent was made: not all of them. What is placed beyond the edge
    changes none, as do nodes that only copy, and nothing is said.
    """
    made, samples = latent.get(MADE), latent["samples"]
    if made is None or made is samples or made.shape != samples.shape:
        return []
    changed = (made != samples.to(made)).any(1).any(0)
    height, width = changed.shape
    across, down = (changed.any(axis).nonzero().flatten().tolist() for axis in (0, 1))
    if not across or (len(across), len(down)) == (width, height):
        return []
    cell = canvas.padded_width / width
    left, top, right, bottom = (cell * edge for edge in (across[0], down[0], across[-1] + 1, down[-1] + 1))
    return [
        f"A node before {stage} changed its latent from {left:.0f}, {top:.0f} px to {right:.0f}, {bottom:.0f} px of "
        f"the picture. Core's nodes that take x and y, as Latent Composite, count 8 px a cell; {stage} has one for "
        f"{cell:.4g} px: give them {8 / cell:.3g} times the pixels that you mean, or put the pictures together before "
        "they are encoded."
    ]


def show_notes(notes: list[str]) -> dict[str, Any]:
    """``notes`` for the user interface, under the node; also in the log."""
    for note in notes:
        log.warning("%s", note)
    return {"text": notes} if notes else {}
