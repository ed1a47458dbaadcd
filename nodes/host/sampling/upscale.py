"""A picture enlarged by Stage B in tiles, each with the part of the Stage C latent that belongs to it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor
from torch.nn import functional as F

from ....stages.inputs.canvas import ENCODER_PIXELS, LATENT_PIXELS, Canvas, plan_canvas
from ....stages.inputs.control_rules import BlockWeights
from ....stages.inputs.inpaint import resize_image
from .. import latents
from ..conditioning.control_chain import apply_control
from ..models import use_vae as vaes
from .repaint import Models, Prompts
from .sample import StageRun, run_stage
from .tiles import TILES, make_tiling, patch_tiles

HINT_CELLS = 2
"""Stage C cells a side to one of the super-resolution ControlNet's hint."""
WHOLE_RUN = (0.0, 1.0)


@dataclass(frozen=True)
class Tiles:
    """Tiles of Stage B in pixels, and how many go through it at once."""

    size: int
    overlap: int
    together: int


@dataclass(frozen=True)
class Control:
    """A super-resolution ControlNet, its strength, and how Stage C is sampled with it."""

    net: Any
    strength: float
    run: StageRun


def upscale_pictures(
    models: Models, image: Tensor, scale: float, prompts: Prompts, run: StageRun, tiles: Tiles, control: Control | None
) -> Tensor:
    """``image`` (B, H, W, 3) ``scale`` times as wide and high.

    Stage B starts from the plainly enlarged picture with as much noise as ``run`` says, and follows the Stage C latent
    of it: what the image encoder sees, or what Stage C paints with ``control``.
    """
    height, width = (round(side * scale) for side in image.shape[1:3])
    canvas = plan_canvas(width, height, vaes.read_compression(models.coder))
    large = latents.pad_to_canvas(resize_image(image, width, height), canvas)
    steps = run.steps + (control.run.steps if control else 0)
    if control is None:
        codes = vaes.encode_for_prior(models.coder, large, canvas)
    else:
        codes = paint_prior(models, large, canvas, prompts, replace(control, run=replace(control.run, of=steps)))
    tiling = make_tiling(TILES, tiles.size // LATENT_PIXELS, tiles.overlap // LATENT_PIXELS, tiles.together)
    samples = run_stage(
        patch_tiles(models.decoder, tiling),
        latents.attach_prior(prompts.positive, codes),
        latents.attach_prior(prompts.negative, codes.new_zeros(codes.shape)),
        latents.make_decoder_latent(vaes.encode(models.stage_a, large), canvas),
        replace(run, canvas=canvas, before=steps - run.steps, of=steps),
    )
    return latents.crop_padding(vaes.decode(models.stage_a, samples), canvas)


def paint_prior(models: Models, large: Tensor, canvas: Canvas, prompts: Prompts, control: Control) -> Tensor:
    """The Stage C latent of a picture (B, H, W, 3) on its ``canvas``, painted anew by the super-resolution ControlNet.

    Its hint is what the image encoder sees in half as many cells a side, each given twice (the official example).
    """
    rows, columns = (-(-cells // HINT_CELLS) for cells in (canvas.prior_height, canvas.prior_width))
    small = resize_image(large, ENCODER_PIXELS * columns, ENCODER_PIXELS * rows)
    sides = (canvas.prior_height, canvas.prior_width)
    hint = F.interpolate(vaes.encode_picture(models.coder, small), sides, mode="nearest-exact").movedim(1, -1)
    positive, negative = apply_control(
        prompts.positive, prompts.negative, control.net, hint, control.strength, WHOLE_RUN, BlockWeights()
    )
    empty = latents.make_empty_prior(canvas, len(large))
    return run_stage(models.prior, positive, negative, empty, replace(control.run, canvas=canvas))
