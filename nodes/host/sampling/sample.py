"""The official sampler and schedule on the host's sampling loop, and one call that runs a stage."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import comfy.model_management
import comfy.samplers
import comfy.utils
import torch
from comfy.k_diffusion import sampling as k_diffusion
from torch import Tensor

from ....stages.diffusion import sampling
from ....stages.diffusion.noise import SEED_SPACE, list_image_seeds
from ....stages.diffusion.reuse import OFF
from ....stages.diffusion.sampling import Guidance
from ....stages.diffusion.seeds import PER_PICTURE, STEP_STREAM, BatchSeed, Noise, Seeds
from ....stages.errors import BadValues, OutOfMemory, WrongInput
from ....stages.inputs.canvas import Canvas
from ....stages.units import GIB
from ..conditioning.control_chain import release_controls
from ..conditioning.part import pick_conditioning
from ..machine import measure_room
from ..models.finite import is_finite
from ..models.model import OWN_SAMPLER, make_sampling
from ..out_of_memory import is_out_of_memory, make_room
from ..report.card import StageReport, find_weights_path
from ..report.measure import measure_work
from .cache import find_preset
from .guide import measure_guide, name_picture
from .guider import CascadeGuider
from .levels import LeveledModel, Sigmas, bring_noise
from .live import show_steps
from .tiles import estimate_tiled_memory

STEPS: dict[str, tuple[Any, dict[str, float]]] = {
    "ddpm": (k_diffusion.sample_euler_ancestral, {"eta": 1.0}),
    "ddim": (k_diffusion.sample_euler, {}),
    "lcm": (k_diffusion.sample_lcm, {}),
}
"""The official steps by core's functions for them."""


def find_shift(model: Any, default: float) -> float:
    """The shift of a sampling node on the model's wire, or ``default`` where there is none."""
    patched = model.object_patches.get("model_sampling")
    return float(getattr(patched, "shift", default)) if patched is not None else default


def patch_shift(model: Any, shift: float) -> Any:
    """A clone of ``model`` whose sampling has ``shift``; a sampling node already on the wire wins."""
    clone = model.clone()
    if "model_sampling" not in model.object_patches:
        clone.add_object_patch("model_sampling", make_sampling(shift))
    return clone


def make_sampler(step: str = "ddpm", noise: Noise | None = None, start: Tensor | None = None) -> Any:
    """A SAMPLER that takes the official ``step``, which is core's under another name.

    ``noise`` is that of the steps (default: every picture's own, from seed + index); ``start`` (B, C, h, w) replaces
    the noised latent that the host would begin with.
    """
    return comfy.samplers.KSAMPLER(sample_officially, {"step": step, "noise": noise, "start": start})


def sample_officially(
    model: Any,
    x: Tensor,
    sigmas: Tensor,
    extra_args: dict[str, Any] | None = None,
    callback: Any = None,
    disable: bool | None = None,
    *,
    step: str = "ddpm",
    noise: Noise | None = None,
    start: Tensor | None = None,
) -> Tensor:
    """Core's sampler of the official ``step`` over ``sigmas`` (b/a), with our noise instead of its own."""
    if noise is None:
        seed = int((extra_args or {}).get("seed") or 0)
        noise = Seeds(tuple(list_image_seeds(seed, x.shape[0]))).open_stream(STEP_STREAM)

    def draw(sigma: Tensor, sigma_next: Tensor) -> Tensor:
        return bring_noise(noise.next(x.shape), x)

    run, options = STEPS[step]
    given = options if step == "ddim" else {**options, "noise_sampler": draw}
    sigmas = sigmas.cpu()
    model, args = LeveledModel(model, sigmas), {"model_options": {}, **(extra_args or {})}
    x = x if start is None else start.to(x)
    return run(model, x, sigmas.as_subclass(Sigmas), args, callback, disable, **given)


@dataclass(frozen=True)
class StageRun:
    """One stage's sampling: what to run, how long, how guided, and from which noise.

    With ``denoise`` below 1, ``unshifted_noise`` noises the latent as at shift 1, whatever the shift of the sampling
    (official). With ``variation_strength`` above 0 every picture starts from ``seed`` and is turned towards its own
    variation's seed; without, picture i has ``seed`` + i. ``canvas`` is the picture that the latent shows.
    A run that is one of several in a node says how many steps were ``before`` it, ``of`` how many in all.
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
    noise: str = PER_PICTURE
    canvas: Canvas | None = None
    before: int = 0
    of: int = 0

    def seeds(self, latent: dict[str, Any]) -> Seeds | BatchSeed:
        """The seeds of the pictures of ``latent``."""
        places = tuple(list_places(latent))
        if self.noise != PER_PICTURE:
            rows = tuple(range(len(places)))
            return BatchSeed(self.noise, self.seed, places, rows, self.variation_seed, self.variation_strength)
        if self.variation_strength == 0:
            return Seeds(tuple((self.seed + place) % SEED_SPACE for place in places))
        other = tuple((self.variation_seed + place) % SEED_SPACE for place in places)
        return Seeds((self.seed % SEED_SPACE,) * len(other), other, self.variation_strength)

    def settings(self) -> tuple[tuple[str, Any], ...]:
        """What a report says of it."""
        told = [
            ("steps", self.steps),
            ("sampler", self.step),
            ("cfg", self.guidance.scale),
            ("rescale", self.guidance.rescale),
            ("shift", self.shift),
            ("seed", self.seed),
        ]
        if self.guidance.scale_end is not None:
            told.append(("cfg_end", self.guidance.scale_end))
        if self.guidance.interval != (1.0, 0.0):
            start, end = self.guidance.interval
            told += [("guidance_start", round(1 - start, 6)), ("guidance_end", round(1 - end, 6))]
        if not self.guidance.per_image:
            told.append(("rescale_batch", True))
        if self.denoise < 1:
            told += [("denoise", self.denoise), ("official_noise", self.unshifted_noise)]
        if self.variation_strength:
            told += [("variation_seed", self.variation_seed), ("variation_strength", self.variation_strength)]
        if self.noise != PER_PICTURE:
            told.append(("noise", self.noise))
        return tuple(told)


def list_places(latent: dict[str, Any]) -> list[int]:
    """Which picture of its batch each one is: its ``batch_index``, or its place."""
    count = latent["samples"].shape[0]
    return (list(latent.get("batch_index") or range(count)) + list(range(count)))[:count]


def run_with_report(
    model: Any, positive: Any, negative: Any, latent: dict[str, Any], run: StageRun
) -> tuple[Tensor, StageReport]:
    """As :func:`run_stage`, with what it took."""
    with measure_work(model.load_device) as taken:
        samples = run_stage(model, positive, negative, latent, run)
    run = replace(run, shift=find_shift(model, run.shift))
    count, _, height, width = samples.shape
    cache = find_preset(model)
    report = StageReport(
        run.stage,
        width,
        height,
        count,
        "cells" if run.stage == "Stage C" else "latents",
        (*run.settings(), *((("cache", cache),) if cache != OFF else ())),
        find_weights_path(model),
        len(model.patches),
    )
    return samples, report.with_measured(taken)


def check_run(latent: dict[str, Any], run: StageRun) -> None:
    """Refuse numbers that are none (the host lets NaN pass) before anything is computed from them."""
    numbers = {
        "cfg": run.guidance.scale,
        "cfg_end": run.guidance.scale_end or 0.0,
        "guidance_start": run.guidance.interval[0],
        "guidance_end": run.guidance.interval[1],
        "rescale": run.guidance.rescale,
        "shift": run.shift,
        "denoise": run.denoise,
        "variation_strength": run.variation_strength,
    }
    for name, value in numbers.items():
        if not math.isfinite(value):
            raise WrongInput(
                f"The {name} of {run.stage} is {value}, which is no number to sample with: give another one."
            )
    for words, value in (("latent", latent["samples"]), ("mask of the latent", latent.get("noise_mask"))):
        if value is not None and not is_finite(value):
            raise BadValues(
                f"{run.stage} was given NaN or infinite values in the {words}. They come from the node before it: look "
                "there for a number, mask or picture with such values, or for a model that computes in fp16."
            )


def run_stage(model: Any, positive: Any, negative: Any, latent: dict[str, Any], run: StageRun) -> Tensor:
    """Sample one stage through the host and return the latent; errors are sentences.

    A batch that does not fit into memory is tried once more picture by picture, which gives the same pictures.
    """
    check_run(latent, run)
    seeds = run.seeds(latent)
    check_one_fits(model, latent["samples"].shape, run.stage)
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


def check_one_fits(model: Any, shape: Sequence[int], stage: str) -> None:
    """Refuse a latent of which not even one picture fits into the device, with the estimate."""
    needed = estimate_tiled_memory(model, [1, *shape[1:]]) + measure_guide(model, [1, *shape[1:]])
    total = measure_room(model.load_device)
    if total is not None and needed > total:
        raise OutOfMemory(
            f"{stage} needs about {needed / GIB:.1f} GiB beside its weights for a latent of {shape[-1]}x{shape[-2]}, "
            f"but this device has {total / GIB:.1f} GiB. Choose a smaller picture, "
            + (
                "or put Tile Stage B on the model's wire."
                if stage == "Stage B"
                else "or a higher compression on the canvas."
            )
        )


def sample_batch(
    model: Any, positive: Any, negative: Any, latent: dict[str, Any], run: StageRun, seeds: Seeds | BatchSeed
) -> Tensor:
    """Sample the whole batch at once."""
    image = latent["samples"]
    shift = find_shift(model, run.shift)
    sigmas = sampling.schedule_sigmas(run.steps, shift, start=run.denoise)
    first, later = seeds.open(model.load_device)
    noise = first.next(image.shape)
    start = noise_unshifted(model, image, noise, sigmas[0], run.denoise) if run.unshifted_noise else None
    guider = CascadeGuider(model, run.canvas)
    guider.set_prompts(positive, negative)
    guider.set_guidance(run.guidance)
    try:
        samples = guider.sample(
            noise,
            image,
            make_sampler(run.step, later, start),
            sigmas,
            denoise_mask=latent.get("noise_mask"),
            callback=make_callback(model, run, len(sigmas) - 1),
            disable_pbar=not comfy.utils.PROGRESS_BAR_ENABLED,
            seed=run.seed,
        )
    finally:
        release_controls(positive, negative)
    return samples.to(comfy.model_management.intermediate_device())


def make_callback(model: Any, run: StageRun, steps: int) -> Any:
    """The host's progress and preview, with the steps counted among those of the whole node."""
    callback = show_steps(model, steps)
    if not run.of:
        return callback
    return lambda step, x0, x, total: callback(run.before + step, x0, x, run.of)


def noise_unshifted(model: Any, image: Tensor, noise: Tensor, sigma: Tensor, denoise: float) -> Tensor | None:
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


def sample_singly(
    model: Any, positive: Any, negative: Any, latent: dict[str, Any], run: StageRun, seeds: Seeds | BatchSeed
) -> Tensor:
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
                sample_batch(
                    name_picture(model, index),
                    pick_conditioning(positive, index),
                    pick_conditioning(negative, index),
                    part,
                    run,
                    seeds.take(index),
                )
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
