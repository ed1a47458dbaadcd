"""Stage B as a MODEL that needs no prior from outside: every sampling run makes the one of the picture it begins with.

Tiled upscalers and detailers know one MODEL and one VAE: they encode a tile, sample it and decode it. The wrapper sits
around a whole sampling run, where the latent that the caller encoded is at hand, paints it by Stage A, and has the
image encoder look at it. Nothing is kept from one run to the next.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import comfy.patcher_extension
import torch
from torch import Tensor

from ....stages.errors import WrongInput
from ....stages.inputs.canvas import LATENT_PIXELS, MIN_SIDE, plan_canvas
from .. import latents
from ..models import use_vae as vaes
from .repaint import Models
from .sample import StageRun, run_stage

WRAPPER = "cascade_studio_own_prior"
PRIOR_KEY = "stable_cascade_prior"
"""The host's own key of the Stage C latent in a conditioning."""


def patch_own_prior(models: Models, run: StageRun | None, where: str) -> Any:
    """A clone of Stage B that makes its prior itself; ``run`` is how Stage C paints it anew, None for not at all."""
    clone = models.decoder.clone()
    kind = comfy.patcher_extension.WrappersMP.OUTER_SAMPLE
    clone.remove_wrappers_with_key(kind, WRAPPER)
    clone.add_wrapper_with_key(kind, WRAPPER, OwnPrior(models, run, where))
    return clone


class OwnPrior:
    """Surrounds a sampling run: gives its prompts the Stage C latent of the picture that the run begins with."""

    def __init__(self, models: Models, run: StageRun | None, where: str) -> None:
        self.models, self.run, self.where = models, run, where

    def __call__(self, executor: Any, noise: Tensor, latent_image: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        guider = executor.class_obj
        seed = kwargs.get("seed", args[5] if len(args) > 5 else None)
        codes = self.make_prior(latent_image, guider.conds, int(seed or 0))
        for name, entries in guider.conds.items():
            given = codes.new_zeros(codes.shape) if name == "negative" else codes
            guider.conds[name] = [{**entry, PRIOR_KEY: given} for entry in entries]
            for entry in guider.conds[name]:
                entry.pop("control", None)
        return executor(noise, latent_image, *args, **kwargs)

    def make_prior(self, latent: Tensor, conds: dict[str, list[dict[str, Any]]], seed: int) -> Tensor:
        """The Stage C latent (B, 16, h, w) of the picture in a Stage B latent (B, 4, H, W)."""
        if not torch.count_nonzero(latent):
            raise WrongInput(
                f"The model of {self.where} was sampled from an empty latent, so there is no picture whose Stage C "
                "latent it could follow. Encode a picture with the VAE of the same node first, as tiled upscalers and "
                "detailers do; for a picture from nothing use Sample Stage C and Sample Stage B."
            )
        height, width = (LATENT_PIXELS * side for side in latent.shape[-2:])
        if min(height, width) < MIN_SIDE:
            raise WrongInput(
                f"The model of {self.where} was given a tile of {width} x {height} px, but Stable Cascade needs "
                f"{MIN_SIDE} px a side: set larger tiles in the node that calls it."
            )
        # The grid may be stretched a little, since the encoder stretches the picture alike: a tile gets no padding.
        canvas = plan_canvas(width, height, vaes.read_compression(self.models.coder), official=True)
        picture = latents.pad_to_canvas(vaes.decode(self.models.stage_a, latent), canvas)
        codes = vaes.encode_for_prior(self.models.coder, picture, canvas)
        if self.run is None:
            return codes
        positive, negative = (
            [unpack_conditioning(entry) for entry in conds.get(name, ())] for name in ("positive", "negative")
        )
        start = latents.make_prior_latent(codes, canvas)
        run = replace(self.run, seed=seed, canvas=canvas)
        return run_stage(self.models.prior, positive, negative or positive, start, run)


def unpack_conditioning(entry: dict[str, Any]) -> list[Any]:
    """An entry of a run's conditioning as nodes hand it on."""
    extra = {key: value for key, value in entry.items() if key not in ("cross_attn", "model_conds", "uuid")}
    return [entry.get("cross_attn"), extra]
