"""Cache for Cascade leaves out the steps that it says, in our samplers and core's, and nothing stays behind."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from steps import choose_steps
from world import Studio, relative

from cascade_studio.nodes.host.report import card
from cascade_studio.stages.diffusion import reuse
from cascade_studio.stages.diffusion.sampling import OFFICIAL, logsnr, noise_condition, timesteps

SEED = 6
KEYS = {"prior": "stage_c", "decoder": "stage_b"}


def levels_of(key: str) -> list[float]:
    official = OFFICIAL[key]
    return noise_condition(logsnr(timesteps(official.steps)[:-1], official.shift)).tolist()


def sample(studio: Studio, stage: str, model: Any = None, **more: Any) -> dict[str, Any]:
    model = model or getattr(studio.parts, stage)
    given = {"model": model, "seed": SEED, **more}
    if stage == "prior":
        return studio.sample_prior(studio.canvas()[0], **given)
    return studio.sample_decoder(studio.prior_latent, **given)


def cached(studio: Studio, stage: str, preset: str) -> Any:
    return studio.call("CascadeStudio_Cache", model=getattr(studio.parts, stage), preset=preset)


@pytest.fixture
def passes(studio, monkeypatch) -> dict[str, int]:
    """How often each stage's network ran."""
    found = dict.fromkeys(KEYS, 0)
    for stage in KEYS:
        net = getattr(studio.parts, stage).model.diffusion_model

        def forward(*args: Any, stage: str = stage, real: Any = net.forward, **kwargs: Any) -> torch.Tensor:
            found[stage] += 1
            return real(*args, **kwargs)

        monkeypatch.setattr(net, "forward", forward)
    return found


@pytest.mark.parametrize("stage", KEYS)
def test_presets_leave_out_what_they_say(studio, passes, stage):
    exact = sample(studio, stage)["samples"]
    official = passes[stage]
    assert official == OFFICIAL[KEYS[stage]].steps
    counts = {}
    for preset in reuse.PRESETS:
        passes[stage] = 0
        found = sample(studio, stage, cached(studio, stage, preset))
        counts[preset] = passes[stage]
        assert torch.equal(found["samples"], exact) == (counts[preset] == official)
        told = dict(found[card.REPORT][-1].settings).get("cache")
        assert told == (None if preset == reuse.OFF else preset)
    assert counts[reuse.OFF] == official
    for preset in (reuse.CAREFUL, reuse.FAST):
        assert counts[preset] == len(choose_steps(reuse.RULES[KEYS[stage]][preset], levels_of(KEYS[stage])))
    assert list(counts.values()) == {"prior": [20, 12, 8], "decoder": [10, 10, 6]}[stage]
    assert torch.equal(sample(studio, stage)["samples"], exact), "the model that was given is changed"


@pytest.mark.parametrize("sampler", ["euler_ancestral", "dpm_2", "dpmpp_2m"])
def test_cores_samplers(studio, passes, sampler):
    """Also those that look twice at a step; the noise level is read where nobody counts it."""
    given = {"sampler_name": sampler, "steps": 12, "seed": SEED}
    exact = studio.core_sample(studio.parts.prior, studio.canvas()[0], **given)
    every, passes["prior"] = passes["prior"], 0
    found = studio.core_sample(cached(studio, "prior", reuse.FAST), studio.canvas()[0], **given)
    assert 1 < passes["prior"] < every
    assert torch.isfinite(found).all() and relative(found, exact) > 0


def test_two_runs_know_nothing_of_each_other(studio):
    """The first step of a run is computed, whatever the run before saw."""
    model = cached(studio, "prior", reuse.FAST)
    first = sample(studio, "prior", model)["samples"]
    sample(studio, "prior", model, seed=SEED + 1)
    assert torch.equal(sample(studio, "prior", model)["samples"], first)


@pytest.mark.parametrize("power", [1.0, 0.5])
@pytest.mark.parametrize("slope", [0.0, 0.5])
@pytest.mark.parametrize("key", KEYS.values())
def test_the_rule(key, slope, power):
    levels = levels_of(key)
    for gap in (0.0, 0.05, 0.1, 0.3, 2.0):
        chosen = choose_steps(reuse.Rule(gap, slope, power), levels)
        assert chosen[0] == 0 and chosen[-1] == len(levels) - 1
        assert chosen == sorted(set(chosen)) and (not slope or chosen[1] == 1)
    assert choose_steps(reuse.Rule(0.0, slope, power), levels) == list(range(len(levels)))
    assert choose_steps(reuse.Rule(2.0, slope, power), levels) == [0, *([1] if slope else []), len(levels) - 1]
    assert choose_steps(reuse.Rule(1.0, slope, power), []) == []


def test_a_power_below_one_keeps_the_end():
    """As many steps, of which more lie at the end, where r falls in the largest steps."""
    levels = levels_of("stage_c")
    even, late = (choose_steps(reuse.Rule(gap, 0.0, power), levels) for gap, power in ((0.1, 1.0), (0.07, 0.5)))
    assert len(even) == len(late) == 8
    assert sum(late) > sum(even) and late[-3:] == [17, 18, 19]
