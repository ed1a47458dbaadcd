"""A picture through all three stages once more: what the detailer and the upscaler do with each of their parts."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ....stages.inputs import inpaint
from ....stages.inputs.canvas import plan_canvas
from ....stages.inputs.inpaint import CropSettings, CutPart, resize_image
from ....stages.inputs.masks import resize_mask
from ....stages.inputs.pictures import to_rgb
from ....stages.inputs.segments import Segments
from ....stages.inputs.source import keep_source
from .. import latents
from ..conditioning.part import crop_conditioning, pick_conditioning
from ..models import use_vae as vaes
from .sample import StageRun, run_stage


@dataclass(frozen=True)
class Models:
    """The models of a picture's way through the stages, and back into Stage C, which may be absent."""

    prior: Any
    decoder: Any
    stage_a: Any
    coder: Any

    def check(self, where: str) -> None:
        """Raises :class:`WrongInput` for a model on the wrong wire."""
        if self.prior is not None:
            latents.check_model(self.prior, "Stage C", where, "prior")
        latents.check_model(self.decoder, "Stage B", where, "decoder")
        vaes.expect_stage_a(self.stage_a, where, "stage_a")
        vaes.expect_stage_c(self.coder, where, "stage_c_vae")


@dataclass(frozen=True)
class Prompts:
    """What Stage C and Stage B hear."""

    positive: Any
    negative: Any


@dataclass(frozen=True)
class Detailing:
    """How parts of pictures are painted anew: with which models, how long and how strongly, how they are cut, and how
    much of what they show at half their size comes back."""

    models: Models
    prior: StageRun
    decoder: StageRun
    cut: CropSettings
    keep: float = 0.0

    @property
    def steps(self) -> int:
        """Steps of one part."""
        return self.prior.steps + self.decoder.steps


def repaint_part(job: Detailing, part: CutPart, prompts: Prompts, place: int, before: int, of: int) -> Tensor:
    """The picture (1, h, w, 3) of ``part`` painted anew within its mask by Stage C, then Stage B, then Stage A.

    place: what is added to the seed; before, of: steps that the node has done, and all it will do. Stage B starts from
    noise, or from the part itself with less denoise, and keeps what lies outside of the mask in any case, so that the
    new goes on where the old ends.
    """
    models, count = job.models, {"batch_index": [place]}
    height, width = part.image.shape[1:3]
    canvas = plan_canvas(width, height, vaes.read_compression(models.coder))
    padded = latents.pad_to_canvas(part.image, canvas)
    prior = latents.make_prior_latent(vaes.encode_for_prior(models.coder, padded, canvas), canvas)
    if job.prior.denoise:
        run = replace(job.prior, canvas=canvas, before=before, of=of)
        given = {**prior, **count, "noise_mask": part.cells[:, None]}
        prior = latents.replace_samples(prior, run_stage(models.prior, prompts.positive, prompts.negative, given, run))
    codes = prior["samples"]
    mask = latents.pad_to_canvas(part.mask[..., None], canvas)[..., 0]
    sides = canvas.decoder_shape()[2:]
    given = {
        **latents.make_decoder_latent(vaes.encode(models.stage_a, padded), canvas),
        **count,
        "noise_mask": resize_mask(mask, *sides)[:, None],
    }
    samples = run_stage(
        models.decoder,
        latents.attach_prior(prompts.positive, codes),
        latents.attach_prior(prompts.negative, codes.new_zeros(codes.shape)),
        given,
        replace(job.decoder, canvas=canvas, before=before + job.prior.steps, of=of),
    )
    return latents.crop_padding(vaes.decode(models.stage_a, samples), canvas)


def halve_picture(image: Tensor) -> Tensor:
    """``image`` (B, H, W, 3) at half its size: what of a part is right where its details are not."""
    return resize_image(image, -(-image.shape[2] // 2), -(-image.shape[1] // 2))


def detail_pictures(
    job: Detailing, image: Tensor, segments: list[Segments], prompts: Prompts, own: list[Any]
) -> tuple[Tensor, Tensor]:
    """``image`` (B, H, W, C) with each of its ``segments`` painted anew, and where it changed (B, H, W).

    own: the prompt of the first segment of each picture, of the second, and so on, None for the common one. Segment k
    of picture i takes the seed + i + k. What no mask or feather reaches keeps its very values.
    """
    height, width = image.shape[1:3]
    total = sum(bool(each.mask.any()) for found in segments for each in found) * job.steps
    pictures, changed, done = [], [], 0
    for index, found in enumerate(segments):
        picture, reached = image[index : index + 1], torch.zeros(1, height, width)
        for number, segment in enumerate(found):
            if not segment.mask.any():
                continue
            part = inpaint.cut_part(picture, segment.lay_out(height, width), job.cut)
            crop = part.stitch.crops[0]
            positive = prompts.positive if number >= len(own) or own[number] is None else own[number]
            heard = Prompts(
                *(
                    crop_conditioning(pick_conditioning(given, index), crop, width, height)
                    for given in (positive, prompts.negative)
                )
            )
            painted = repaint_part(job, part, heard, index + number, done, total)
            painted = keep_source(painted, halve_picture(crop.of(to_rgb(picture))), job.keep)
            picture = inpaint.paste_part(part.stitch, painted)
            crop.of(reached).copy_(torch.maximum(crop.of(reached), part.stitch.blend.to(reached)))
            done += job.steps
        pictures.append(picture)
        changed.append(reached)
    return torch.cat(pictures), torch.cat(changed)
