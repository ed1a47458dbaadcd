"""How near a seed's picture comes to that of other programs, on Cascade Mini in this process, for docs/same_picture.md.

    python3 dev.py run tests/benchmarks/same_picture.py

Compared are Stage C latents (largest difference in units of their standard deviation) and pictures (PSNR in dB): Sample
Stage C and B with ``noise`` comfyui against core's KSampler, with ``noise`` official against the official loop of
``stages`` with one generator, and core's KSampler with and without core's own sampling node, scheduler by scheduler.
"""

from __future__ import annotations

import math
import os
import sys
from pathlib import Path

os.environ.setdefault("CASCADE_STUDIO_OFFLINE", "1")
TESTS = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(TESTS))

import inprocess  # noqa: E402
import torch  # noqa: E402
from mini_studio import MiniStudio  # noqa: E402
from torch import Tensor  # noqa: E402
from world import relative  # noqa: E402

from cascade_studio.stages.diffusion import sampling  # noqa: E402
from cascade_studio.stages.diffusion.official import OFFICIAL  # noqa: E402

PROMPT, SEED = "red apple on a blue background", 7
PLAIN = {"rescale": 0.0}
CORE = {"sampler_name": "euler_ancestral", "scheduler": "simple"}


def psnr(given: Tensor, expected: Tensor) -> float:
    """Peak signal to noise ratio of two pictures in [0, 1], in dB."""
    error = float((given - expected).square().mean())
    return math.inf if error == 0 else -10 * math.log10(error)


def tell(name: str, given: tuple[Tensor, Tensor], expected: tuple[Tensor, Tensor]) -> None:
    """One line: latents and pictures of both."""
    (latent, picture), (other, wanted) = given, expected
    print(f"{name:<44} latent {relative(latent, other):.1e}   picture {psnr(picture, wanted):6.1f} dB", flush=True)


def paint(studio: MiniStudio, prior: dict, core: bool = False, **given: object) -> tuple[Tensor, Tensor]:
    """The latent of ``prior``, and its picture by Stage B (core's KSampler or ours) and Stage A."""
    prompts = {"positive": studio.text(PROMPT), "negative": studio.negative}
    if core:
        conditioned, empty = studio.decoder_prompts(prior, **prompts)
        samples = studio.core_sample(studio.parts.decoder, empty, steps=10, cfg=1.1, seed=SEED, **CORE, **conditioned)
        latent = {"samples": samples}
    else:
        latent = studio.sample_decoder(prior, seed=SEED, **prompts, **given)
    return prior["samples"], studio.call("CascadeStudio_DecodeStageA", latent=latent, vae=studio.parts.stage_a)


def by_core(studio: MiniStudio, model: object, **given: object) -> dict:
    """Stage C by core's KSampler."""
    prompts = {"positive": studio.text(PROMPT), "negative": studio.negative}
    latent = studio.canvas()[0]
    samples = studio.core_sample(model, latent, **{"steps": 20, "cfg": 4.0, "seed": SEED, **CORE, **prompts, **given})
    return {**latent, "samples": samples}


def by_release(studio: MiniStudio, shape: tuple[int, ...]) -> Tensor:
    """Stage C by the official loop, all noise from one generator as in the release; ``shape`` is (B, 16, h, w)."""
    generator = torch.Generator().manual_seed(SEED)
    texts = studio.text(PROMPT), studio.negative
    conds = [
        {
            "clip_text": text[0][0].expand(shape[0], -1, -1),
            "clip_text_pooled": text[0][1]["pooled_output"].expand(shape[0], -1),
        }
        for text in texts
    ]
    official = OFFICIAL["stage_c"]
    with torch.inference_mode():
        *_, last = sampling.sample(
            sampling.pair_conditions(studio.eyes.stage_c, *conds),
            torch.randn(shape, generator=generator),
            timesteps=sampling.timesteps(official.steps),
            shift=official.shift,
            guidance=sampling.Guidance(official.cfg, per_image=False),
            noise=lambda size: torch.randn(tuple(size), generator=generator),
        )
    return last.denoised


def main() -> None:
    """Print the table."""
    host = inprocess.Host(inprocess.prepare())
    torch.set_num_threads(1)
    studio = MiniStudio(host)
    model, text = studio.parts.prior, studio.text(PROMPT)
    core = paint(studio, by_core(studio, model), core=True)
    for noise in ("comfyui", "per picture"):
        run = {"seed": SEED, "noise": noise, **PLAIN}
        ours = studio.sample_prior(studio.canvas()[0], positive=text, negative=studio.negative, **run)
        tell(f"Sample Stage C and B, {noise}: KSampler", paint(studio, ours, noise=noise, **PLAIN), core)
    for noise in ("official", "per picture"):
        run = {"seed": SEED, "noise": noise, "rescale_batch": True}
        latent = studio.canvas(batch=2)[0]
        ours = studio.sample_prior(latent, positive=text, negative=studio.negative, **run)
        release = {**ours, "samples": by_release(studio, tuple(ours["samples"].shape))}
        tell(f"Sample Stage C, {noise}: official loop", paint(studio, ours), paint(studio, release))
    patched = studio.call("ModelSamplingStableCascade", model=model, shift=2.0)
    for sampler, scheduler in (
        *(("euler_ancestral", name) for name in ("simple", "normal", "karras", "exponential", "sgm_uniform", "beta")),
        *(("euler", name) for name in ("kl_optimal", "linear_quadratic")),
        ("dpmpp_2m", "karras"),
    ):
        given = {"sampler_name": sampler, "scheduler": scheduler}
        mine, theirs = (paint(studio, by_core(studio, each, **given)) for each in (model, patched))
        tell(f"KSampler {sampler}, {scheduler}: core's sampling", mine, theirs)


if __name__ == "__main__":
    main()
