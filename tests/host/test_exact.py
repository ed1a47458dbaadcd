"""Our nodes in the host give what the pure stages give with the same weights, seeds and conditions."""

from __future__ import annotations

import pytest
import torch
from steps import step_lcm
from world import DECODER_SCALE, changed, of_range, relative

from cascade_studio.stages.diffusion import sampling
from cascade_studio.stages.nets import encoder

TOLERANCE = 1e-3
SEED = 11


PRIOR_RUNS = {
    "official defaults": ({}, {}),
    "no shift": ({"steps": 5, "shift": 1.0}, {"steps": 5, "shift": 1.0}),
    "no rescale": ({"steps": 6, "rescale": 0.0}, {"steps": 6, "rescale": 0.0}),
    "strong guidance": ({"steps": 6, "cfg": 12.0, "rescale": 1.0}, {"steps": 6, "cfg": 12.0, "rescale": 1.0}),
    "rescale over the batch": (
        {"steps": 6, "cfg": 12.0, "rescale": 1.0, "rescale_batch": True},
        {"steps": 6, "cfg": 12.0, "rescale": 1.0, "per_image": False},
    ),
    "no guidance": ({"steps": 6, "cfg": 1.0}, {"steps": 6, "cfg": 1.0}),
    "linear scale": ({"steps": 6, "cfg": 5.0, "cfg_end": 2.0}, {"steps": 6, "cfg": 5.0, "scale_end": 2.0}),
    "interval": ({"guidance_start": 0.2, "guidance_end": 0.7}, {"interval": (0.8, 0.3)}),
    "linear scale in an interval": (
        {"steps": 6, "cfg_end": 8.0, "guidance_end": 0.5},
        {"steps": 6, "scale_end": 8.0, "interval": (1.0, 0.5)},
    ),
    "ddim": ({"steps": 6, "sampler": "ddim"}, {"steps": 6, "step": sampling.step_ddim}),
    "lcm": ({"steps": 4, "sampler": "lcm"}, {"steps": 4, "step": step_lcm}),
}


@pytest.mark.parametrize("given, run", PRIOR_RUNS.values(), ids=PRIOR_RUNS)
def test_prior(studio, given, run):
    """A batch of two on a grid that is not square."""
    empty = studio.canvas(320, 256, batch=2)[0]
    result = studio.sample_prior(empty, seed=SEED, **given)["samples"]
    expected = studio.pure_prior(tuple(empty["samples"].shape), [SEED, SEED + 1], **run)
    assert relative(result, expected) <= TOLERANCE


def test_settings_matter(studio):
    """The cases above differ from each other, so that each of them can fail alone."""
    shape = tuple(studio.canvas(320, 256, batch=2)[0]["samples"].shape)
    results = [studio.pure_prior(shape, [SEED, SEED + 1], **run) for _, run in PRIOR_RUNS.values()]
    for index, result in enumerate(results):
        assert all(relative(result, other) > 10 * TOLERANCE for other in results[:index])


DECODER_RUNS = {
    "official defaults": ({}, {}),
    "guided": ({"cfg": 3.0, "rescale": 0.5, "shift": 2.0}, {"cfg": 3.0, "rescale": 0.5, "shift": 2.0}),
    "ddim": ({"sampler": "ddim", "steps": 4}, {"step": sampling.step_ddim, "steps": 4}),
}


@pytest.mark.parametrize("given, run", DECODER_RUNS.values(), ids=DECODER_RUNS)
def test_decoder(studio, given, run):
    prior = studio.sample_prior(studio.canvas(320, 256, batch=2)[0], seed=SEED, steps=2)
    result = studio.sample_decoder(prior, seed=SEED, **given)["samples"]
    expected = studio.pure_decoder(prior["samples"], tuple(result.shape), [SEED, SEED + 1], **run)
    assert relative(result * DECODER_SCALE, expected) <= TOLERANCE


def test_picture(studio):
    """All three stages together: nothing is scaled, shifted or cut between them."""
    canvas, _ = studio.canvas(256, 256)
    prior = studio.sample_prior(canvas, seed=SEED)
    latent = studio.sample_decoder(prior, seed=SEED)
    image = studio.call("CascadeStudio_DecodeStageA", latent=latent, vae=studio.parts.stage_a)
    codes = studio.pure_prior(tuple(prior["samples"].shape), [SEED])
    painted = studio.nets["A"].decode(studio.pure_decoder(codes, tuple(latent["samples"].shape), [SEED]))
    assert relative(image, painted.clamp(0, 1).movedim(1, -1)) <= 2 * TOLERANCE


@pytest.mark.parametrize("stage", ["prior", "decoder"])
def test_custom_sampling(studio, stage):
    """Our SIGMAS, SAMPLER and GUIDER in core's SamplerCustomAdvanced are our sampler nodes, to the last bit."""
    model = getattr(studio.parts, stage)
    if stage == "prior":
        latent, prompts, steps, cfg = studio.canvas()[0], studio.prompts, 20, 4.0
        expected = studio.sample_prior(latent, seed=SEED)
    else:
        (prompts, latent), steps, cfg = studio.decoder_prompts(), 10, 1.1
        expected = studio.sample_decoder(studio.prior_latent, seed=SEED)
    graph = studio.graph()
    result = graph.run(
        graph.add(
            "SamplerCustomAdvanced",
            noise=graph.add("RandomNoise", noise_seed=SEED)[0],
            guider=graph.add("CascadeStudio_Guider", model=model, cfg=cfg, **prompts)[0],
            sampler=graph.add("CascadeStudio_Sampler")[0],
            sigmas=graph.add("CascadeStudio_Schedule", model=model, steps=steps)[0],
            latent_image=latent,
        )[0]
    )
    assert torch.equal(result["samples"], expected["samples"])


@pytest.mark.parametrize("stage", ["prior", "decoder"])
def test_picture_alone(studio, stage):
    """Picture i of a batch is the picture of seed + i."""

    def sample(batch: int, seed: int, **extra) -> torch.Tensor:
        latent = studio.canvas(batch=batch)[0]
        if stage == "prior":
            return studio.sample_prior({**latent, **extra}, seed=seed, steps=4)["samples"]
        codes = studio.prior_latent["samples"].repeat(batch, 1, 1, 1)
        return studio.sample_decoder({**studio.prior_latent, "samples": codes, **extra}, seed=seed, steps=4)["samples"]

    batch = sample(3, SEED)
    assert changed(batch[1], batch[0])
    for index in range(3):
        assert of_range(sample(1, SEED + index), batch[index : index + 1]) <= 1e-5
    assert of_range(sample(1, SEED, batch_index=[2]), batch[2:]) <= 1e-5
    assert of_range(sample(2, SEED, batch_index=[2, 0]), batch[[2, 0]]) <= 1e-5


def test_pictures_of_a_batch_follow_their_own_prior(studio):
    prior = studio.sample_prior(studio.canvas(batch=2)[0], seed=SEED, steps=2)
    batch = studio.sample_decoder(prior, seed=SEED, steps=3)["samples"]
    second = {**prior, "samples": prior["samples"][1:]}
    assert of_range(studio.sample_decoder(second, seed=SEED + 1, steps=3)["samples"], batch[1:]) <= 1e-5


def picture(width: int, height: int) -> torch.Tensor:
    """A colourful picture (1, H, W, 3)."""
    y, x = torch.meshgrid(torch.linspace(0, 9, height), torch.linspace(0, 7, width), indexing="ij")
    return (0.5 + 0.5 * torch.stack((x.sin(), (x + y).cos(), (x * y / 3).sin()), dim=-1))[None]


def test_image_to_image(studio):
    """Encoded by the image encoder and sampled from half the noise."""
    image = picture(256, 256)
    encoded = studio.call("CascadeStudio_EncodeImage", image=image, vae=studio.parts.stage_c_vae)
    height, width = encoded["samples"].shape[2:]
    resized = torch.nn.functional.interpolate(
        image.movedim(-1, 1), (32 * height, 32 * width), mode="bilinear", antialias=True
    ).clamp(0, 1)
    codes = studio.nets["encoder"](encoder.normalise(resized))
    assert relative(encoded["samples"], codes) <= TOLERANCE
    result = studio.sample_prior(encoded, seed=SEED, steps=10, denoise=0.5)["samples"]
    expected = studio.pure_prior(tuple(codes.shape), [SEED], codes, steps=10, denoise=0.5)
    assert relative(result, expected) <= TOLERANCE
    assert changed(result, studio.sample_prior(encoded, seed=SEED, steps=10)["samples"])


def test_refined_picture(studio):
    """Stage B from a picture that Stage A encoded, and less than all of the noise."""
    image = picture(256, 256)
    latent = studio.call("CascadeStudio_EncodeStageA", image=image, vae=studio.parts.stage_a)
    codes = studio.nets["A"].encode(image.movedim(-1, 1))
    assert relative(latent["samples"] * DECODER_SCALE, codes) <= TOLERANCE
    result = studio.sample_decoder(studio.prior_latent, latent=latent, seed=SEED, denoise=0.4)["samples"]
    expected = studio.pure_decoder(studio.prior_latent["samples"], tuple(codes.shape), [SEED], codes, denoise=0.4)
    assert relative(result * DECODER_SCALE, expected) <= TOLERANCE
