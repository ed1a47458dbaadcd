"""Our guidance nodes and core's own act on our networks; neutral settings change nothing at all."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from graphs import check_sentence
from world import Studio, changed, relative

SEED = 8
STAGES = ("prior", "decoder")
NEUTRAL = {
    "PerturbedAttention": {"scale": 0.0},
    "SelfAttentionGuidance": {"scale": 0.0},
    "CFGZero": {"strength": 0.0, "zero_steps": 0},
    "TiledAttention": {"window": 0},
}
ACTIVE = {
    "PerturbedAttention": {"scale": 5.0},
    "SelfAttentionGuidance": {"scale": 5.0, "threshold": 0.5, "blur": 1.5},
    "CFGZero": {"strength": 1.0},
    "TiledAttention": {"window": 2},
}


def patched(studio: Studio, kind: str, stage: str = "prior", **inputs) -> Any:
    return studio.call(f"CascadeStudio_{kind}", model=getattr(studio.parts, stage), **inputs)


def sample(studio: Studio, stage: str, model: Any = None, **inputs) -> torch.Tensor:
    if stage == "prior":
        prompts, latent = studio.prompts, studio.canvas()[0]
    else:
        prompts, latent = studio.decoder_prompts()
    given = {"steps": 2, "cfg": 3.0, "seed": SEED, **inputs}
    return studio.core_sample(model or getattr(studio.parts, stage), latent, **{**prompts, **given})


@pytest.fixture(scope="module")
def plain(studio) -> dict[str, torch.Tensor]:
    return {stage: sample(studio, stage) for stage in STAGES}


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("kind", NEUTRAL)
def test_neutral_changes_nothing_and_active_something(studio, plain, kind, stage):
    assert torch.equal(sample(studio, stage, patched(studio, kind, stage, **NEUTRAL[kind])), plain[stage])
    active = sample(studio, stage, patched(studio, kind, stage, **ACTIVE[kind]))
    assert torch.isfinite(active).all() and not torch.equal(active, plain[stage])
    assert stage == "decoder" or relative(active, plain[stage]) > 1e-4
    assert torch.equal(sample(studio, stage), plain[stage]), "the model that was given is changed"


@pytest.mark.parametrize("kind", ACTIVE)
def test_our_sampler_is_guided_too(studio, kind):
    latent, given = studio.canvas()[0], {"steps": 2, "seed": SEED}
    expected = studio.sample_prior(latent, **given)["samples"]
    result = studio.sample_prior(latent, model=patched(studio, kind, **ACTIVE[kind]), **given)["samples"]
    assert torch.isfinite(result).all() and not torch.equal(result, expected)
    neutral = studio.sample_prior(latent, model=patched(studio, kind, **NEUTRAL[kind]), **given)["samples"]
    assert torch.equal(neutral, expected)


@pytest.mark.parametrize("kind", ["PerturbedAttention", "SelfAttentionGuidance"])
def test_strength_and_range(studio, plain, kind):
    def guided(**inputs) -> torch.Tensor:
        return sample(studio, "prior", patched(studio, kind, **{**ACTIVE[kind], **inputs}))

    weak, strong = guided(scale=0.5), guided(scale=5.0)
    assert relative(strong, plain["prior"]) > 3 * relative(weak, plain["prior"])
    early, late = guided(end=0.4), guided(start=0.4)
    assert not torch.equal(early, late) and not torch.equal(early, plain["prior"])
    assert not torch.equal(late, strong)


def test_perturbed_blocks_and_rescale(studio):
    found = [
        sample(studio, "prior", patched(studio, "PerturbedAttention", scale=5.0, **each))
        for each in ({"blocks": "middle"}, {"blocks": "middle and up"}, {"blocks": "everywhere"}, {"rescale": 0.7})
    ]
    assert all(not torch.equal(a, b) for i, a in enumerate(found) for b in found[:i])


def test_perturbed_attention_without_a_negative(studio):
    """At scale 1 of the guidance nothing but the prompt is computed, and it is guided all the same."""
    plain = sample(studio, "prior", cfg=1.0)
    for kind in ("PerturbedAttention", "SelfAttentionGuidance"):
        assert not torch.equal(sample(studio, "prior", patched(studio, kind, **ACTIVE[kind]), cfg=1.0), plain)


def test_self_attention_needs_the_whole_picture(studio):
    model = patched(studio, "SelfAttentionGuidance", "decoder", **ACTIVE["SelfAttentionGuidance"])
    from cascade_studio.nodes.host.sampling.tiles import TILES, make_tiling, patch_tiles

    model = patch_tiles(model, make_tiling(TILES, 64, 16, 1))
    prompts, latent = studio.decoder_prompts(studio.sample_prior(studio.canvas(448, 256)[0], steps=1))
    graph = studio.graph()
    node = graph.add(
        "KSampler", model=model, latent_image=latent, steps=1, sampler_name="euler", scheduler="simple", **prompts
    )
    check_sentence(graph.error(node[0]), "Self-Attention Guidance", "whole picture", "Upscale with Cascade")


def test_zero_star_against_the_formula(studio):
    """One step by hand: s scales the negative prediction; the first zero steps keep the velocity at zero."""
    from cascade_studio.nodes.host.sampling.guidance import make_zero_star

    torch.manual_seed(0)
    x, cond, uncond = (torch.randn(2, 16, 6, 6) for _ in range(3))
    sigma = torch.tensor([4.0, 4.0])
    args = {
        "conds": [1, 2],
        "conds_out": [cond, uncond],
        "input": x,
        "sigma": sigma,
        "model_options": {"transformer_options": {"sample_sigmas": torch.tensor([9.0, 4.0, 1.0, 0.0])}},
    }
    same, scaled = make_zero_star(1.0, 0)(args)
    assert same is cond
    c, u = (x - cond) / 4, (x - uncond) / 4
    s = (c * u).sum((1, 2, 3), keepdim=True) / u.square().sum((1, 2, 3), keepdim=True)
    torch.testing.assert_close(scaled, x - 4 * s * u, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(make_zero_star(0.0, 2)(args)[0], x / 17)
    assert make_zero_star(0.0, 1)(args) is args["conds_out"], "the second step is none of the first one"


def test_windows_larger_than_the_picture_change_nothing(studio, plain):
    assert torch.equal(sample(studio, "prior", patched(studio, "TiledAttention", window=64)), plain["prior"])
    twice = studio.call("CascadeStudio_TiledAttention", model=patched(studio, "TiledAttention", window=2), window=0)
    assert torch.equal(sample(studio, "prior", twice), plain["prior"]), "the last node decides"


def test_everything_at_once(studio, plain):
    """All nodes on one wire, with regional prompts: finite, and different from each alone."""
    model = studio.parts.prior
    for kind in ("TiledAttention", "PerturbedAttention", "SelfAttentionGuidance", "CFGZero"):
        model = studio.call(f"CascadeStudio_{kind}", model=model, **ACTIVE[kind])
    mask = torch.zeros(1, 8, 8)
    mask[..., 4:] = 1
    positive = studio.call(
        "CascadeStudio_RegionalPrompt", conditioning=studio.positive, region=studio.negative, mask=mask
    )
    result = sample(studio, "prior", model, positive=positive)
    assert torch.isfinite(result).all() and not torch.equal(result, plain["prior"])


# Core's own nodes


def test_core_self_attention_guidance(studio, plain):
    """It finds the attention of the picture's own tokens, on grids of any number of cells and condition tokens."""

    def guided(scale: float, **inputs) -> torch.Tensor:
        model = studio.call("SelfAttentionGuidance", model=studio.parts.prior, scale=scale, blur_sigma=2.0)
        return sample(studio, "prior", model, **inputs)

    assert relative(guided(0.0), plain["prior"]) <= 1e-4
    assert relative(guided(2.0), plain["prior"]) > 1e-4
    assert torch.isfinite(guided(2.0, steps=1, cfg=1.0)).all()


def test_core_rescale_and_zero_star(studio, plain):
    for kind, inputs in (("RescaleCFG", {"multiplier": 0.7}), ("CFGZeroStar", {})):
        model = studio.call(kind, model=studio.parts.prior, **inputs)
        assert changed(sample(studio, "prior", model), plain["prior"]), kind
    neutral = studio.call("RescaleCFG", model=studio.parts.prior, multiplier=0.0)
    assert relative(sample(studio, "prior", neutral), plain["prior"]) <= 1e-4


def test_models_of_other_loaders_are_refused(studio):
    """On core's own network these nodes would do nothing: they say so instead."""
    from types import SimpleNamespace

    for kind in (*ACTIVE, "TileDecoder"):
        model = SimpleNamespace(model=SimpleNamespace())
        graph = studio.graph()
        check_sentence(graph.error(graph.add(f"CascadeStudio_{kind}", model=model)[0]), "model", "Load Stable Cascade")
