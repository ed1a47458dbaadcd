"""Where sampling starts: from a picture, officially or consistently; from a variation; within a mask; rebuilding."""

from __future__ import annotations

import pytest
import torch
from graphs import check_sentence
from world import DECODER_SCALE, Studio, changed, of_range, relative

from cascade_studio.stages.diffusion import sampling
from cascade_studio.stages.diffusion.noise import list_image_seeds

TOLERANCE = 1e-3
SEED = 7


@pytest.fixture(scope="module")
def image() -> torch.Tensor:
    """A colourful picture (1, 256, 256, 3)."""
    y, x = torch.meshgrid(torch.linspace(0, 9, 256), torch.linspace(0, 7, 256), indexing="ij")
    return (0.5 + 0.5 * torch.stack((x.sin(), (x + y).cos(), (x * y / 3).sin()), dim=-1))[None]


@pytest.fixture(scope="module")
def encoded(studio, image) -> dict:
    return studio.call("CascadeStudio_EncodeImage", image=image, vae=studio.parts.stage_c_vae)


# Image to image


@pytest.mark.parametrize("sampler", ["ddpm", "ddim"])
@pytest.mark.parametrize("denoise", [0.8, 0.35])
def test_official_image_to_image(studio, encoded, denoise, sampler):
    """Noised at shift 1, sampled at shift 2 in int(20 x noise level) steps."""
    codes, given = encoded["samples"], {"seed": SEED, "denoise": denoise, "sampler": sampler}
    result = studio.sample_prior(encoded, **given, official_noise=True, fewer_steps=True)["samples"]
    expected = studio.pure_prior(
        tuple(codes.shape),
        [SEED],
        codes,
        steps=int(20 * denoise),
        denoise=denoise,
        noise_shift=1.0,
        step={"ddpm": sampling.step_ddpm, "ddim": sampling.step_ddim}[sampler],
    )
    assert relative(result, expected) <= TOLERANCE
    if sampler == "ddim":  # the ancestral step soon forgets where it started
        for other in ({"official_noise": True}, {"fewer_steps": True}, {}):
            assert changed(studio.sample_prior(encoded, **given, **other)["samples"], result), other


def test_official_noise_keeps_more_of_the_picture(studio, encoded):
    """At shift 2 the consistent noise level is higher than the official one."""
    far, near = (
        relative(
            studio.sample_prior(encoded, seed=SEED, denoise=0.5, steps=8, official_noise=official)["samples"],
            encoded["samples"],
        )
        for official in (False, True)
    )
    assert near < far


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_the_noise_level_follows_the_shift(studio, encoded, shift):
    """With shift 1 both ways of noising are one; with any other the consistent one follows it."""
    codes = encoded["samples"]
    given = {"seed": SEED, "denoise": 0.6, "steps": 5, "shift": shift}
    ours = studio.sample_prior(encoded, **given)["samples"]
    expected = studio.pure_prior(tuple(codes.shape), [SEED], codes, steps=5, denoise=0.6, shift=shift)
    assert relative(ours, expected) <= TOLERANCE
    official = studio.sample_prior(encoded, **given, official_noise=True)["samples"]
    assert relative(official, ours) <= 1e-5 if shift == 1 else changed(official, ours)


def test_the_official_ways_mean_nothing_for_text_to_image(studio):
    latent = studio.canvas()[0]
    plain = studio.sample_prior(latent, seed=SEED, steps=3)["samples"]
    assert torch.equal(
        studio.sample_prior(latent, seed=SEED, steps=3, official_noise=True, fewer_steps=True)["samples"], plain
    )


def test_less_denoising_stays_nearer(studio, encoded):
    away = [
        relative(studio.sample_prior(encoded, seed=SEED, steps=5, denoise=denoise)["samples"], encoded["samples"])
        for denoise in (0.05, 0.4, 0.9)
    ]
    assert away == sorted(away)


# Rebuilding a picture, and refining it


def test_reconstruction(studio, image, encoded):
    """Image encoder, Stage B and Stage A alone, as the official reconstruction; no Stage C takes part."""
    graph = studio.graph()
    latent = graph.add(
        "CascadeStudio_SampleDecoder", model=studio.parts.decoder, prior=encoded, seed=SEED, **studio.prompts
    )
    rebuilt = graph.run(graph.add("CascadeStudio_DecodeStageA", latent=latent[0], vae=studio.parts.stage_a)[0])
    codes = studio.pure_decoder(encoded["samples"], (1, 4, 64, 64), [SEED])
    expected = studio.nets["A"].decode(codes).clamp(0, 1).movedim(1, -1)
    assert rebuilt.shape == image.shape and relative(rebuilt, expected) <= 2 * TOLERANCE
    other = {**encoded, "samples": encoded["samples"].flip(-1)}
    assert changed(
        studio.sample_decoder(other, seed=SEED)["samples"], studio.sample_decoder(encoded, seed=SEED)["samples"]
    ), "the picture matters"


def test_refining_a_picture_with_stage_b(studio, image, encoded):
    """Less denoising in Stage B leaves more of the picture that Stage A encoded."""
    latent = studio.call("CascadeStudio_EncodeStageA", image=image, vae=studio.parts.stage_a)
    away = [
        relative(
            studio.sample_decoder(encoded, latent=latent, seed=SEED, steps=4, denoise=denoise)["samples"],
            latent["samples"],
        )
        for denoise in (0.05, 0.4, 0.9)
    ]
    assert away == sorted(away) and away[0] < 0.5 * away[2]
    result = studio.sample_decoder(encoded, latent=latent, seed=SEED, steps=4, denoise=0.3)["samples"]
    codes = studio.nets["A"].encode(image.movedim(-1, 1))
    expected = studio.pure_decoder(encoded["samples"], tuple(codes.shape), [SEED], codes, steps=4, denoise=0.3)
    assert relative(result * DECODER_SCALE, expected) <= TOLERANCE


# Variations


def sample(studio: Studio, stage: str, batch: int = 1, **inputs) -> torch.Tensor:
    latent = {**studio.canvas(batch=batch)[0], **inputs.pop("extra", {})}
    given = {"seed": SEED, "steps": 3, **inputs}
    if stage == "prior":
        return studio.sample_prior(latent, **given)["samples"]
    codes = studio.prior_latent["samples"].repeat(batch, 1, 1, 1)
    return studio.sample_decoder({**latent, "samples": codes}, **given)["samples"]


@pytest.mark.parametrize("stage", ["prior", "decoder"])
def test_no_strength_is_no_variation(studio, stage):
    plain = sample(studio, stage, batch=2)
    assert torch.equal(sample(studio, stage, batch=2, variation_seed=99, variation_strength=0.0), plain)


@pytest.mark.parametrize("stage", ["prior", "decoder"])
def test_variations_go_from_the_seed_to_the_other(studio, stage):
    plain, other = sample(studio, stage), sample(studio, stage, seed=99)
    near, far = (sample(studio, stage, variation_seed=99, variation_strength=strength) for strength in (0.1, 0.8))
    assert changed(near, plain) and relative(near, plain) < relative(far, plain)
    assert relative(far, other) < relative(near, other)
    assert torch.equal(sample(studio, stage, variation_seed=99, variation_strength=1.0), other)


@pytest.mark.parametrize("stage", ["prior", "decoder"])
def test_a_variation_alone_is_the_one_in_the_batch(studio, stage):
    given = {"variation_seed": 40, "variation_strength": 0.4}
    batch = sample(studio, stage, batch=3, **given)
    assert changed(batch[1], batch[0]) and changed(batch[2], batch[1])
    for index in range(3):
        alone = sample(studio, stage, variation_seed=40 + index, variation_strength=0.4)
        assert of_range(alone, batch[index : index + 1]) <= 1e-5
    assert of_range(sample(studio, stage, extra={"batch_index": [2]}, **given), batch[2:]) <= 1e-5


def test_variations_one_by_one_after_memory_ran_out(studio, monkeypatch):
    """The batch that does not fit is sampled picture by picture, with the same noise."""
    import sys

    module = next(module for name, module in sys.modules.items() if name.endswith("nodes.host.sampling.sample"))
    given = {"variation_seed": 40, "variation_strength": 0.4, "batch": 2}
    expected = sample(studio, "prior", **given)
    once = module.sample_batch

    def tight(model, positive, negative, latent, run, seeds):
        if len(seeds) > 1:
            raise torch.cuda.OutOfMemoryError("out of memory")
        return once(model, positive, negative, latent, run, seeds)

    for name, found in list(sys.modules.items()):
        if name.endswith("nodes.host.sampling.sample"):
            monkeypatch.setattr(found, "sample_batch", tight)
    assert of_range(sample(studio, "prior", **given), expected) <= 1e-5


# Batches of both latents


@pytest.fixture(scope="module")
def three(encoded) -> dict:
    """Three Stage C latents that were picked from a larger batch."""
    return {
        **encoded,
        "samples": encoded["samples"] * torch.tensor([1.0, 0.9, 0.8])[:, None, None, None],
        "batch_index": [4, 0, 2],
    }


def test_one_stage_b_latent_serves_all(studio, image, encoded, three):
    """Each picture is the one that its prior and its place in the batch make alone."""
    given = {"seed": SEED, "steps": 2, "denoise": 0.5}
    latent = studio.call("CascadeStudio_EncodeStageA", image=image, vae=studio.parts.stage_a)
    found = studio.sample_decoder(three, latent={**latent, "batch_index": [7]}, **given)
    assert found["batch_index"] == [4, 0, 2] and found["samples"].shape[0] == 3
    for index, place in enumerate(three["batch_index"]):
        prior = {**encoded, "samples": three["samples"][index : index + 1]}
        alone = studio.sample_decoder(prior, latent=latent, **{**given, "seed": SEED + place})["samples"]
        assert of_range(alone, found["samples"][index : index + 1]) <= 1e-5
    each = {**latent, "samples": latent["samples"].repeat(3, 1, 1, 1)}
    assert torch.equal(studio.sample_decoder(three, latent=each, **given)["samples"], found["samples"])
    own = studio.sample_decoder(three, latent={**each, "batch_index": [0, 1, 2]}, **given)
    assert own["batch_index"] == [0, 1, 2] and changed(own["samples"][0], found["samples"][0])
    assert studio.sample_decoder(encoded, latent=each, **given)["samples"].shape[0] == 3, "one prior for three latents"


def test_an_empty_stage_b_latent_gives_the_size_alone(studio, three):
    plain = studio.sample_decoder(three, seed=SEED, steps=2)["samples"]
    for batch in (1, 2, 5):
        empty = studio.canvas(batch=batch)[1]
        assert torch.equal(studio.sample_decoder(three, latent=empty, seed=SEED, steps=2)["samples"], plain)


def test_latents_of_other_numbers_are_refused(studio, three):
    latent = {"samples": torch.ones(2, 4, 64, 64)}
    graph = studio.graph()
    node = graph.add(
        "CascadeStudio_SampleDecoder", model=studio.parts.decoder, prior=three, latent=latent, **studio.prompts
    )
    check_sentence(graph.error(node[0]), "2 Stage B latents", "3 Stage C latents", "latent for all", "one for each")


# Masks


def masked(studio: Studio, latent: dict, mask: torch.Tensor) -> dict:
    return studio.call("SetLatentNoiseMask", samples=latent, mask=mask)


@pytest.mark.parametrize("official", [False, True])
@pytest.mark.parametrize("denoise", [1.0, 0.6])
def test_a_noise_mask_keeps_the_other_cells(studio, encoded, denoise, official):
    """Core's Set Latent Noise Mask on Stage C: cells outside of it come out as they were, those inside are new."""
    mask = torch.zeros(1, 6, 6)
    mask[:, 2:4, 1:5] = 1
    latent = masked(studio, encoded, mask)
    result = studio.sample_prior(latent, seed=SEED, steps=4, denoise=denoise, official_noise=official)
    inside = mask[:, None].bool().expand_as(encoded["samples"])
    assert torch.equal(result["samples"][~inside], encoded["samples"][~inside])
    assert changed(result["samples"][inside], encoded["samples"][inside])
    assert "noise_mask" not in result, "Stage B has no use for it"
    whole = studio.sample_prior(
        masked(studio, encoded, torch.ones(1, 6, 6)), seed=SEED, steps=4, denoise=denoise, official_noise=official
    )["samples"]
    free = studio.sample_prior(encoded, seed=SEED, steps=4, denoise=denoise, official_noise=official)["samples"]
    assert relative(whole, free) <= 1e-5, "a mask over everything is no mask"


def test_a_noise_mask_on_stage_b(studio, image, encoded):
    latent = studio.call("CascadeStudio_EncodeStageA", image=image, vae=studio.parts.stage_a)
    mask = torch.zeros(1, 64, 64)
    mask[:, 16:48, 16:48] = 1
    result = studio.sample_decoder(encoded, latent=masked(studio, latent, mask), seed=SEED, steps=3)["samples"]
    inside = mask[:, None].bool().expand_as(result)
    assert (result[~inside] - latent["samples"][~inside]).abs().max() <= 1e-6
    assert changed(result[inside], latent["samples"][inside])


def test_the_core_sampler_takes_ours(studio):
    """Our SAMPLER without seeds of its own still gives each picture the noise of seed + index."""
    assert list_image_seeds(SEED, 2) == [SEED, SEED + 1]
    graph = studio.graph()
    latent = studio.canvas(batch=2)[0]
    node = graph.add(
        "SamplerCustomAdvanced",
        latent_image=latent,
        noise=graph.add("RandomNoise", noise_seed=SEED)[0],
        guider=graph.add("CascadeStudio_Guider", model=studio.parts.prior, **studio.prompts)[0],
        sampler=graph.add("CascadeStudio_Sampler")[0],
        sigmas=graph.add("CascadeStudio_Schedule", model=studio.parts.prior, steps=3)[0],
    )
    result = graph.run(node[0])["samples"]
    assert result.shape[0] == 2 and changed(result[1], result[0])
