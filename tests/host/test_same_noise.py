"""A seed is one picture: on any machine alone or in a batch, and with the choice ``noise`` that of other programs."""

from __future__ import annotations

import pytest
import torch
from steps import step_lcm
from world import Studio, changed, of_range, relative

from cascade_studio.stages.diffusion import sampling
from cascade_studio.stages.diffusion.seeds import COMFYUI, OFFICIAL, PER_PICTURE

SEED, STEPS = 29, 5


def sample(studio: Studio, stage: str, batch: int, **given) -> torch.Tensor:
    latent = studio.canvas(batch=batch)[0]
    if stage == "prior":
        return studio.sample_prior(latent, seed=SEED, steps=STEPS, **given)["samples"]
    codes = studio.prior_latent["samples"].repeat(batch, 1, 1, 1)
    prior = {**studio.prior_latent, "samples": codes}
    return studio.sample_decoder(prior, seed=SEED, steps=STEPS, **given)["samples"]


@pytest.mark.parametrize("step, sampler", [("ddpm", "euler_ancestral"), ("ddim", "euler"), ("lcm", "lcm")])
@pytest.mark.parametrize("stage", ["prior", "decoder"])
def test_comfyui_is_the_picture_of_core(studio, stage, step, sampler):
    """Core's KSampler with the same seed, a batch of two; rescale is off, which core does not have."""
    ours = sample(studio, stage, 2, noise=COMFYUI, sampler=step, rescale=0.0, cfg=2.0)
    given = {"sampler_name": sampler, "scheduler": "simple", "steps": STEPS, "cfg": 2.0, "seed": SEED}
    if stage == "prior":
        model = studio.call("ModelSamplingStableCascade", model=studio.parts.prior, shift=2.0)
        core = studio.core_sample(studio.parts.prior, studio.canvas(batch=2)[0], **given)
        assert not changed(studio.core_sample(model, studio.canvas(batch=2)[0], **given), core)
    else:
        codes = studio.prior_latent["samples"].repeat(2, 1, 1, 1)
        prompts, latent = studio.decoder_prompts({**studio.prior_latent, "samples": codes})
        core = studio.core_sample(studio.parts.decoder, latent, **given, **prompts)
    assert relative(ours, core) <= 1e-3
    assert changed(sample(studio, stage, 2, sampler=step, rescale=0.0, cfg=2.0), core)


@pytest.mark.parametrize("step", ["ddpm", "lcm"])
def test_official_is_one_generator_for_start_and_steps(studio, step):
    """As the release draws it: the start of the whole batch, then each step's, from ``torch.manual_seed(seed)``."""
    ours = sample(studio, "prior", 2, noise=OFFICIAL, sampler=step, rescale_batch=True)
    generator = torch.Generator().manual_seed(SEED)
    conds = [
        {"clip_text": text[0][0].expand(2, -1, -1), "clip_text_pooled": text[0][1]["pooled_output"].expand(2, -1, -1)}
        for text in (studio.positive, studio.negative)
    ]
    times = sampling.timesteps(STEPS)
    *_, last = sampling.sample(
        sampling.pair_conditions(studio.nets["C"], *conds),
        torch.randn(tuple(ours.shape), generator=generator),
        timesteps=times,
        shift=2.0,
        step={"ddpm": sampling.step_ddpm, "lcm": step_lcm}[step],
        guidance=sampling.Guidance(4.0, per_image=False),
        noise=lambda shape: torch.randn(tuple(shape), generator=generator),
    )
    assert relative(ours, last.denoised) <= 1e-3


@pytest.mark.parametrize("noise", [OFFICIAL, COMFYUI])
def test_a_batch_out_of_memory_keeps_its_noise(studio, noise, monkeypatch):
    """Picture by picture the noise is still that of the batch."""
    from cascade_studio.nodes.host.sampling import sample as host_sample

    whole = sample(studio, "prior", 3, noise=noise)
    real = host_sample.sample_batch

    def fail_on_batches(model, positive, negative, latent, run, seeds):
        if latent["samples"].shape[0] > 1:
            raise torch.OutOfMemoryError("made up")
        return real(model, positive, negative, latent, run, seeds)

    monkeypatch.setattr(host_sample, "sample_batch", fail_on_batches)
    assert of_range(sample(studio, "prior", 3, noise=noise), whole) <= 1e-5


def test_variations_of_every_noise(studio):
    for noise in (PER_PICTURE, OFFICIAL, COMFYUI):
        own = sample(studio, "prior", 2, noise=noise)
        assert torch.equal(sample(studio, "prior", 2, noise=noise, variation_seed=3), own)
        near = sample(studio, "prior", 2, noise=noise, variation_seed=3, variation_strength=0.2)
        assert changed(near, own) or noise == PER_PICTURE


@pytest.mark.parametrize("steps, shift", [(78, 2.0), (40, 4.0)])
def test_crowded_schedules_do_not_shift_the_noise(studio, steps, shift):
    """Where neighbouring levels are equal the official loop takes the step all the same, and draws its noise."""
    ours = studio.sample_prior(studio.canvas()[0], seed=SEED, steps=steps, shift=shift)["samples"]
    assert (sampling.schedule_sigmas(steps, shift).diff() == 0).any()
    assert relative(ours, studio.pure_prior(tuple(ours.shape), [SEED], steps=steps, shift=shift)) <= 1e-3


def test_the_official_steps_show_their_progress(studio, capfd):
    """They are core's, with its console bar."""
    studio.sample_prior(studio.canvas()[0], seed=SEED, steps=3)
    assert "3/3" in capfd.readouterr().err


@pytest.mark.parametrize("stage, shift", [("prior", 2.0), ("decoder", 1.0)])
def test_every_scheduler_gives_cores_levels(studio, stage, shift):
    """Core's own sampling node at the shift that the model has changes nothing: with core's loader it is the same."""
    from comfy.samplers import SCHEDULER_NAMES

    model = getattr(studio.parts, stage)
    patched = studio.call("ModelSamplingStableCascade", model=model, shift=shift)
    for scheduler in SCHEDULER_NAMES:
        given = {"scheduler": scheduler, "steps": 7, "denoise": 1.0}
        own, core = (studio.call("BasicScheduler", model=each, **given) for each in (model, patched))
        assert own.shape == core.shape and torch.allclose(own, core, rtol=1e-5, atol=0), scheduler
    if stage == "prior":
        run = {"scheduler": "karras", "sampler_name": "euler", "seed": SEED}
        own, core = (studio.core_sample(each, studio.canvas()[0], **run) for each in (model, patched))
        assert relative(own, core) <= 1e-4
