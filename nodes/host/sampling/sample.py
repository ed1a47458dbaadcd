"""The official sampler, guidance and schedule on the host's sampling loop, and one call that runs a stage."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import comfy.model_base
import comfy.model_management
import comfy.samplers
import latent_preview
import torch
from torch import Tensor

from ....stages.diffusion import sampling
from ....stages.diffusion.sampling import Guidance
from ....stages.diffusion.seeds import Seeds
from ....stages.errors import BadValues, OutOfMemory
from ..conditioning.control_chain import pick_control, release_controls
from ..models import regions
from ..models.model import OWN_SAMPLER, CascadePrior, make_sampling
from ..models.regions import REGIONS_KEY
from ..out_of_memory import is_out_of_memory, make_room
from ..report.card import StageReport, find_weights_path
from ..report.measure import measure_work
from .tiles import needed_memory

STEPS = {"ddpm": sampling.ddpm_step, "ddim": sampling.ddim_step, "lcm": sampling.lcm_step}
GIB = 1024**3
STEP_NOISE = 1  # stream 0 is the initial noise


def shift_of(model: Any, default: float) -> float:
    """The shift of a sampling node on the model's wire, or ``default`` where there is none."""
    patched = model.object_patches.get("model_sampling")
    return float(getattr(patched, "shift", default)) if patched is not None else default


def patch_shift(model: Any, shift: float) -> Any:
    """A clone of ``model`` whose sampling has ``shift``; a sampling node already on the wire wins."""
    clone = model.clone()
    if "model_sampling" not in model.object_patches:
        clone.add_object_patch("model_sampling", make_sampling(shift))
    return clone


def official_sampler(
    step: str = "ddpm", seeds: Seeds | None = None, start: Tensor | None = None
) -> comfy.samplers.KSAMPLER:
    """A SAMPLER that takes the official ``step``; ``seeds`` name each picture's noise (default: seed + index).

    ``start`` (B, C, h, w) replaces the noised latent that the host would begin with.
    """
    return comfy.samplers.KSAMPLER(sample_official, {"step": step, "seeds": seeds, "start": start})


@torch.no_grad()
def sample_official(
    model: Any,
    x: Tensor,
    sigmas: Tensor,
    extra_args: dict[str, Any] | None = None,
    callback: Any = None,
    disable: bool | None = None,
    *,
    step: str = "ddpm",
    seeds: Seeds | None = None,
    start: Tensor | None = None,
) -> Tensor:
    """Run the official sampler over ``sigmas`` (b/a) and return x0 of the last step where they end at zero.

    The host's latents are x/a of the variance-preserving process. Each picture draws its noise from its own stream,
    so that it comes out the same alone as in a batch.
    """
    extra_args = extra_args or {}
    if seeds is None:
        seeds = Seeds(tuple(sampling.image_seeds(int(extra_args.get("seed") or 0), x.shape[0])))
    noise = seeds.streams(STEP_NOISE)
    x = x if start is None else start.to(x)
    ones = x.new_ones([x.shape[0]])
    for index in range(len(sigmas) - 1):
        sigma, following = sigmas[index], sigmas[index + 1]
        x0 = model(x, sigma * ones, **extra_args)
        if callback is not None:
            callback({"x": x, "i": index, "sigma": sigma, "sigma_hat": sigma, "denoised": x0})
        if following == 0:
            return x0
        here, there = sampling.logsnr_from_sigma(sigma), sampling.logsnr_from_sigma(following)
        epsilon = (x - x0) / sigma
        a_next, _ = sampling.alpha_sigma(there)
        x = STEPS[step](x0, epsilon, here, there, noise.next(x.shape).to(x)) / a_next
    return x


class CascadeGuider(comfy.samplers.CFGGuider):
    """The host's guider with the official guidance: rescale, interval and linear scale."""

    def set_guidance(self, guidance: Guidance) -> None:
        self.guidance = guidance
        self.set_cfg(guidance.scale)

    def set_prompts(self, positive: Any, negative: Any = None) -> None:
        """As the host's ``set_conds``; raises ``WrongInput`` for prompts with more than the model can hear."""
        if not isinstance(self.model_patcher.model, (CascadePrior, comfy.model_base.StableCascade_B)):
            regions.refuse(positive, negative)
        self.inner_set_conds(
            {"positive": positive} if negative is None else {"positive": positive, "negative": negative}
        )

    def predict_noise(
        self,
        x: Tensor,
        timestep: Tensor,
        model_options: dict[str, Any] = {},  # noqa: B006
        seed: int | None = None,
    ) -> Tensor:
        negative = self.conds.get("negative")
        scale = self.scale_at(timestep) if negative is not None else 1.0
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

    def scale_at(self, sigma: Tensor) -> float:
        """The guidance scale at the time that ``sigma`` stands for."""
        if self.guidance.scale_end is None and self.guidance.interval == (1.0, 0.0):
            return self.guidance.scale
        shift = getattr(self.inner_model.model_sampling, "shift", 1.0)
        t = sampling.time_from_logsnr(sampling.logsnr_from_sigma(sigma.float().max()), shift)
        return self.guidance.scale_at(t)

    def combine(self, args: dict[str, Any]) -> Tensor:
        """Guided sigma·epsilon from the host's conditional and unconditional sigma·epsilon."""
        return sampling.guide(
            args["cond"], args["uncond"], args["cond_scale"], self.guidance.rescale, self.guidance.per_image
        )


@dataclass(frozen=True)
class Run:
    """One stage's sampling: what to run, how long, how guided, and from which noise.

    With ``denoise`` below 1, ``unshifted_noise`` noises the latent as at shift 1, whatever the shift of the sampling
    (official). With ``variation_strength`` above 0 every picture starts from ``seed`` and is turned towards its own
    variation's seed; without, picture i has ``seed`` + i.
    """

    stage: str
    steps: int
    shift: float
    guidance: Guidance
    seed: int
    step: str = "ddpm"
    denoise: float = 1.0
    unshifted_noise: bool = False
    variation_seed: int = 0
    variation_strength: float = 0.0

    def seeds(self, latent: dict[str, Any]) -> Seeds:
        """The seeds of the pictures of ``latent``."""
        if self.variation_strength == 0:
            return Seeds(tuple(picture_seeds(self.seed, latent)))
        other = tuple(picture_seeds(self.variation_seed, latent))
        return Seeds((self.seed % 2**64,) * len(other), other, self.variation_strength)

    def settings(self) -> tuple[tuple[str, Any], ...]:
        """What a report says of it."""
        told = [
            ("steps", self.steps),
            ("sampler", self.step),
            ("cfg", self.guidance.scale),
            ("shift", self.shift),
            ("seed", self.seed),
        ]
        if self.denoise < 1:
            told += [("denoise", self.denoise), ("official_noise", self.unshifted_noise)]
        if self.variation_strength:
            told += [("variation_seed", self.variation_seed), ("variation_strength", self.variation_strength)]
        return tuple(told)


def picture_seeds(seed: int, latent: dict[str, Any]) -> list[int]:
    """One seed a picture: ``seed`` plus its place in the batch (or its ``batch_index``)."""
    count = latent["samples"].shape[0]
    places = list(latent.get("batch_index") or range(count))
    return [(seed + place) % 2**64 for place in (places + list(range(count)))[:count]]


def run_reported(
    model: Any, positive: Any, negative: Any, latent: dict[str, Any], run: Run
) -> tuple[Tensor, StageReport]:
    """As :func:`run_stage`, with what it took."""
    with measure_work(model.load_device) as taken:
        samples = run_stage(model, positive, negative, latent, run)
    run = replace(run, shift=shift_of(model, run.shift))
    count, _, height, width = samples.shape
    report = StageReport(
        run.stage,
        width,
        height,
        count,
        "cells" if run.stage == "Stage C" else "latents",
        run.settings(),
        find_weights_path(model),
        len(model.patches),
    )
    return samples, report.taking(taken)


def run_stage(model: Any, positive: Any, negative: Any, latent: dict[str, Any], run: Run) -> Tensor:
    """Sample one stage through the host and return the latent; errors are sentences.

    A batch that does not fit into memory is tried once more picture by picture, which gives the same pictures.
    """
    seeds = run.seeds(latent)
    check_memory(model, latent["samples"].shape, run.stage)
    model = patch_shift(model, run.shift)
    model.model_options.setdefault("transformer_options", {})[OWN_SAMPLER] = True
    samples = None
    try:
        samples = sample_batch(model, positive, negative, latent, run, seeds)
    except Exception as error:
        if not is_out_of_memory(error):
            raise
    if samples is None:  # outside of the handler, whose traceback would keep the failed run's tensors alive
        samples = sample_singly(model, positive, negative, latent, run, seeds)
    if not torch.isfinite(samples).all():
        raise BadValues(
            f"{run.stage} ended with NaN or infinite values. Load the model with dtype bf16 or fp32, "
            "and lower the guidance scale if it is far above the default."
        )
    return samples


def check_memory(model: Any, shape: Sequence[int], stage: str) -> None:
    """Refuse a latent of which not even one picture fits into the device, with the estimate."""
    needed = needed_memory(model, [1, *shape[1:]])
    total = comfy.model_management.get_total_memory(model.load_device)
    if needed > total:
        raise OutOfMemory(
            f"{stage} needs about {needed / GIB:.1f} GiB beside its weights for a latent of "
            f"{shape[-1]}x{shape[-2]}, but this device has {total / GIB:.1f} GiB. Choose a smaller picture, "
            + (
                "or put Tile Stage B on the model's wire."
                if stage == "Stage B"
                else "or a higher compression on the canvas."
            )
        )


def sample_batch(model: Any, positive: Any, negative: Any, latent: dict[str, Any], run: Run, seeds: Seeds) -> Tensor:
    """Sample the whole batch at once."""
    image = latent["samples"]
    shift = shift_of(model, run.shift)
    sigmas = sampling.schedule_sigmas(run.steps, shift, start=run.denoise)
    noise = seeds.streams().next(image.shape)
    start = unshifted_start(model, image, noise, sigmas[0], run.denoise) if run.unshifted_noise else None
    guider = CascadeGuider(model)
    guider.set_prompts(positive, negative)
    guider.set_guidance(run.guidance)
    try:
        samples = guider.sample(
            noise,
            image,
            official_sampler(run.step, seeds, start),
            sigmas,
            denoise_mask=latent.get("noise_mask"),
            callback=latent_preview.prepare_callback(model, len(sigmas) - 1),
            seed=run.seed,
        )
    finally:
        release_controls(positive, negative)
    return samples.to(comfy.model_management.intermediate_device())


def unshifted_start(model: Any, image: Tensor, noise: Tensor, sigma: Tensor, denoise: float) -> Tensor | None:
    """The latent as the official image to image noises it: to time ``denoise`` of the schedule at shift 1.

    The host's latents are x/a, with a at the first ``sigma`` of the sampling. None at ``denoise`` 1, where both agree.
    """
    if denoise >= 1:
        return None
    if torch.count_nonzero(image):
        image = model.model.process_latent_in(image)
    noised = sampling.add_noise(image.float(), noise.to(image.device), sampling.logsnr(denoise, 1.0))
    a, _ = sampling.alpha_sigma(sampling.logsnr_from_sigma(sigma))
    return noised / a.to(noised)


def sample_singly(model: Any, positive: Any, negative: Any, latent: dict[str, Any], run: Run, seeds: Seeds) -> Tensor:
    """Sample picture by picture after the batch ran out of memory."""
    make_room()
    image, mask = latent["samples"], latent.get("noise_mask")
    pictures = []
    try:
        for index in range(len(seeds)):
            part = {**latent, "samples": image[index : index + 1]}
            if mask is not None and mask.shape[0] > 1:
                part["noise_mask"] = mask[index % mask.shape[0]][None]
            pictures.append(
                sample_batch(model, pick(positive, index), pick(negative, index), part, run, seeds.only(index))
            )
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        height, width = image.shape[-2:]
        raise OutOfMemory(
            f"{run.stage} ran out of memory on a {width}x{height} latent, even one picture at a time. Lower the "
            "picture's size, load the lite model, choose an fp8 dtype in the loader, or close other programs that use "
            "the graphics card."
        ) from error
    return torch.cat(pictures)


def pick(conditioning: Any, index: int) -> Any:
    """The conditioning of picture ``index``: tensors that hold one entry a picture are narrowed to it."""
    if conditioning is None:
        return None

    def narrow(value: Any) -> Any:
        if torch.is_tensor(value) and value.ndim > 1 and value.shape[0] > 1:
            place = index % value.shape[0]
            return value[place : place + 1]
        return value

    special = {"control": pick_control, REGIONS_KEY: regions.for_picture}
    return [
        [
            narrow(text),
            {key: special[key](value, index) if key in special else narrow(value) for key, value in extra.items()},
        ]
        for text, extra in conditioning
    ]
