"""Features of a small Stage C run, from which UltraPixel's guide reads the structure of the picture.

They come from the last step of a sampling run, or from any finished latent by one more pass of the model: the latent
is noised a little, as in the guide's training, and the model looks at it with its prompt.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import comfy.patcher_extension
import comfy.samplers
import torch
from torch import Tensor

from ....stages.attention.guide import FEATURE_NOISE, FeatureRecorder, Features, find_guided_groups
from ....stages.attention.layers import NO_CHANGES, Changes
from ....stages.diffusion import sampling
from ....stages.diffusion.sampling import Guidance
from ....stages.diffusion.seeds import Seeds
from ....stages.errors import WrongInput
from .. import latents
from ..conditioning.control_chain import release_controls
from ..models.hooks import CHANGES_KEY
from .guidance import check_own
from .guider import CascadeGuider
from .notes import read_native_compression

WRAPPER = "cascade_studio_features"
PASS_SEED = 0
"""The seed of the little noise under the extra pass: the same for every picture, whatever batch it is in."""


@dataclass(frozen=True, eq=False)
class KeptFeatures:
    """Features of the last step of a run, and the samples that it ended with."""

    features: Features
    samples: Tensor

    def belong_to(self, samples: Tensor) -> bool:
        """Whether ``samples`` are what the run ended with: other nodes may have changed or picked from them since."""
        return self.samples.shape == samples.shape and torch.equal(self.samples.to(samples), samples)


class Recording:
    """Keeps the features of the last step of every run with a model, of conditional rows that see the whole picture.

    A step may ask the model several times, for prompts that cannot share a pass; a prompt that is asked for again in
    the same step (by a guidance that shows the model something worse) is not looked at.
    """

    def __init__(self) -> None:
        self.size: tuple[int, int] = (0, 0)
        self.step: dict[Any, Features] = {}
        self.runs: list[Features] = []

    def put_on(self, model: Any) -> Any:
        """A clone of ``model`` that is recorded."""
        clone, points = model.clone(), comfy.patcher_extension.WrappersMP
        clone.add_wrapper_with_key(points.OUTER_SAMPLE, WRAPPER, self.run)
        clone.add_wrapper_with_key(points.PREDICT_NOISE, WRAPPER, self.predict)
        clone.add_wrapper_with_key(points.APPLY_MODEL, WRAPPER, self.apply)
        return clone

    def run(self, executor: Any, noise: Tensor, *args: Any, **kwargs: Any) -> Any:
        """Around a sampling run: keeps what its last step gave, where the run ends well."""
        self.size = (int(noise.shape[-2]), int(noise.shape[-1]))
        out = executor(noise, *args, **kwargs)
        maps = list(self.step.values())
        if maps:
            mean = (torch.stack(each).mean(0) if len(each) > 1 else each[0] for each in zip(*maps, strict=True))
            self.runs.append(tuple(each.to(latents.device()) for each in mean))
        self.step = {}
        return out

    def predict(self, executor: Any, *args: Any, **kwargs: Any) -> Any:
        """Around a step: what the one before it gave is gone."""
        self.step = {}
        return executor(*args, **kwargs)

    def apply(
        self, executor: Any, x: Tensor, t: Tensor, concat: Any, cross: Any, control: Any, options: Any, **kwargs: Any
    ) -> Tensor:
        """Around a pass: records the rows of conditional prompts that see the whole picture."""
        kinds = options.get("cond_or_uncond", [0])
        whole = tuple(x.shape[-2:]) == self.size
        conditional = [chunk for chunk, kind in enumerate(kinds) if kind == 0 and whole]
        changes = options.get(CHANGES_KEY, NO_CHANGES)
        recorder = FeatureRecorder(executor.class_obj.diffusion_model.config, others=changes.blocks)
        asked = {**options, CHANGES_KEY: Changes(changes.layers, recorder)} if conditional else options
        out = executor(x, t, concat, cross, control, asked, **kwargs)
        names = options.get("uuids", kinds)
        chunks = [each.chunk(len(kinds)) for each in recorder.features] if conditional else []
        for chunk in conditional:
            self.step.setdefault(names[chunk], tuple(each[chunk].clone() for each in chunks))
        return out

    def features(self) -> Features:
        """Of all runs, one after another: a batch may have been sampled picture by picture.

        Raises :class:`WrongInput` where parts of the picture had prompts of their own, so that no pass saw it whole.
        """
        if not self.runs:
            raise WrongInput(
                "Stage C saw no picture as a whole in its last step, so that its features cannot guide a larger one. "
                "Use Regional Prompt instead of prompts with areas."
            )
        return tuple(torch.cat(maps) for maps in zip(*self.runs, strict=True))


def start_recording(model: Any, where: str) -> Recording:
    """A recording of ``model``; raises ``WrongInput`` for a network that has no features to keep."""
    check_own(model, where, "Stage C")
    find_guided_groups(model.model.diffusion_model.config)
    return Recording()


def keep_features(latent: dict[str, Any], recording: Recording | None) -> dict[str, Any]:
    """``latent`` with what was recorded while it was sampled."""
    if recording is None or not recording.runs:
        return latent
    return {**latent, latents.FEATURES: KeptFeatures(recording.features(), latent["samples"])}


def find_kept_features(latent: dict[str, Any], where: str) -> Features:
    """The features kept by the run that made ``latent``; a sentence where there are none, or it was changed since."""
    kept = latent.get(latents.FEATURES)
    if kept is None or not kept.belong_to(latents.expect_prior(latent, where)):
        why = "holds none" if kept is None else "was changed by another node since"
        raise WrongInput(
            f"{where} was asked for the features of the last step, but the latent on 'prior' {why}. Switch "
            "'keep_features' on in Sample Stage C and wire its latent straight into this input, or choose 'extra pass'."
        )
    return kept.features


def pass_once(model: Any, x: Tensor, sigmas: Tensor, extra_args: dict[str, Any], **unused: Any) -> Tensor:
    """A sampler that asks the model once, at the first of ``sigmas``."""
    return model(x, sigmas[0] * x.new_ones([x.shape[0]]), **extra_args)


def extract_features(model: Any, positive: Any, prior: dict[str, Any], where: str) -> Features:
    """The features of a finished Stage C latent, (B, C, h, w) each, by one pass of ``model`` with its prompt."""
    samples = latents.expect_finished_prior(prior, where)
    recording = Recording()
    canvas = latents.find_prior_canvas(prior, where, read_native_compression(model))
    guider = CascadeGuider(recording.put_on(model), canvas)
    guider.set_prompts(positive)
    guider.set_guidance(Guidance(1.0))
    sigma = sampling.sigma_from_logsnr(sampling.logsnr(FEATURE_NOISE))
    noise = Seeds((PASS_SEED,) * samples.shape[0]).open_stream().next(samples.shape)
    sigmas = torch.stack([sigma, torch.zeros_like(sigma)])
    try:
        guider.sample(noise, samples, comfy.samplers.KSAMPLER(pass_once), sigmas, disable_pbar=True, seed=PASS_SEED)
    finally:
        release_controls(positive)
    return recording.features()
