"""The official guidance as the host's guider, with prompts whose areas lie where the picture has them."""

from __future__ import annotations

import math
from typing import Any

import comfy.model_base
import comfy.samplers
from torch import Tensor

from ....stages.diffusion import sampling
from ....stages.diffusion.sampling import Guidance
from ....stages.inputs.canvas import Canvas
from ..conditioning.areas import place_areas
from ..conditioning.control_chain import align_controls
from ..latents import guess_canvas
from ..models import regions
from ..models.model import CascadePrior
from .levels import read_level


class CascadeGuider(comfy.samplers.CFGGuider):
    """The host's guider with the official guidance: rescale, interval and linear scale."""

    def set_guidance(self, guidance: Guidance) -> None:
        """Guide by this schedule; its scale is told to the host as cfg."""
        self.guidance = guidance
        self.set_cfg(guidance.scale)

    def __init__(self, model_patcher: Any, canvas: Canvas | None = None) -> None:
        super().__init__(model_patcher)
        self.canvas = canvas
        self.prompts: dict[str, Any] = {}

    def set_prompts(self, positive: Any, negative: Any = None) -> None:
        """As the host's ``set_conds``; raises ``WrongInput`` for prompts with more than the model can hear."""
        if not isinstance(self.model_patcher.model, (CascadePrior, comfy.model_base.StableCascade_B)):
            regions.refuse_foreign(positive, negative)
        positive, negative = align_controls(positive), align_controls(negative)
        self.prompts = {"positive": positive} if negative is None else {"positive": positive, "negative": negative}
        self.inner_set_conds(self.prompts)

    def sample(self, noise: Tensor, latent_image: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """As the host's, with the prompts' areas where they lie on this latent."""
        grid = tuple(latent_image.shape[-2:])
        canvas = self.canvas or guess_canvas(latent_image.shape)
        self.inner_set_conds({name: place_areas(value, canvas, grid) for name, value in self.prompts.items()})
        return super().sample(noise, latent_image, *args, **kwargs)

    def predict_noise(
        self,
        x: Tensor,
        timestep: Tensor,
        model_options: dict[str, Any] = {},  # noqa: B006
        seed: int | None = None,
    ) -> Tensor:
        """As the host's, with the scale of the moment; without a negative, or at 1, one pass is enough."""
        negative = self.conds.get("negative")
        scale = self.scale_at(timestep, model_options) if negative is not None else 1.0
        if not math.isclose(scale, 1.0) and "sampler_cfg_function" not in model_options:
            model_options = {**model_options, "sampler_cfg_function": self.combine}
        return comfy.samplers.sampling_function(
            self.inner_model,
            x,
            timestep,
            negative,
            self.conds.get("positive"),
            scale,
            model_options=model_options,
            seed=seed,
        )

    def scale_at(self, sigma: Tensor, model_options: dict[str, Any]) -> float:
        """The guidance scale at the time that ``sigma`` stands for."""
        if self.guidance.scale_end is None and self.guidance.interval == (1.0, 0.0):
            return self.guidance.scale
        shift = getattr(self.inner_model.model_sampling, "shift", 1.0)
        return self.guidance.scale_at(sampling.time_from_logsnr(read_level(sigma, model_options), shift))

    def combine(self, args: dict[str, Any]) -> Tensor:
        """Guided sigma·epsilon from the host's conditional and unconditional sigma·epsilon."""
        return sampling.guide(
            args["cond"], args["uncond"], args["cond_scale"], self.guidance.rescale, self.guidance.per_image
        )
