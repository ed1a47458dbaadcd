"""Regions with image prompts and ControlNets of their own, and beside those of the whole picture."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from graphs import check_sentence
from world import Studio, changed, relative

SEED, STEPS = 4, 2
STRONG = 4.0
EVERYWHERE = torch.ones(1, 8, 8)


@pytest.fixture(scope="module")
def other(studio) -> Any:
    return studio.text("a purple dragon in a snow storm, oil on canvas")


@pytest.fixture(scope="module")
def net(studio) -> Any:
    return studio.call("CascadeStudio_LoadControlNet", controlnet="canny.safetensors", dtype="fp32")


def picture(seed: int = 0, batch: int = 1) -> torch.Tensor:
    return torch.rand(batch, 48, 48, 3, generator=torch.Generator().manual_seed(seed))


def right() -> torch.Tensor:
    mask = torch.zeros(1, 48, 96)
    mask[..., 48:] = 1
    return mask


def with_pictures(studio: Studio, prompt: Any, seed: int = 0, **inputs: Any) -> Any:
    given = {
        "positive": prompt,
        "negative": studio.negative,
        "image_1": picture(seed),
        "clip_vision": studio.parts.clip_vision,
        **inputs,
    }
    return studio.call("CascadeStudio_ImagePrompts", **given)


def steered(studio: Studio, net: Any, prompt: Any, hint: torch.Tensor | None = None, **inputs: Any) -> Any:
    """``prompt`` alone with a ControlNet."""
    return steered_pair(studio, net, {"positive": prompt, "negative": studio.negative}, hint, **inputs)["positive"]


def steered_pair(
    studio: Studio, net: Any, prompts: dict[str, Any], hint: torch.Tensor | None = None, **inputs: Any
) -> dict[str, Any]:
    given = {"control_net": net, "image": picture(9) if hint is None else hint, "strength": STRONG, **prompts, **inputs}
    return dict(zip(("positive", "negative"), studio.call("CascadeStudio_ApplyControl", range(2), **given)))


def regional(studio: Studio, base: Any, prompt: Any, mask: torch.Tensor = EVERYWHERE, **inputs: Any) -> Any:
    return studio.call("CascadeStudio_RegionalPrompt", conditioning=base, region=prompt, mask=mask, **inputs)


def sample(studio: Studio, positive: Any, **inputs: Any) -> torch.Tensor:
    latent = inputs.pop("latent", None) or studio.canvas()[0]
    given = {"model": studio.parts.prior, "steps": STEPS, "seed": SEED, "negative": studio.negative, **inputs}
    return studio.sample_prior(latent, positive=positive, **given)["samples"]


class Recorder:
    """A clone of the prior that keeps what every call gets."""

    def __init__(self, studio: Studio) -> None:
        from comfy.patcher_extension import WrappersMP

        self.calls: list[dict[str, Any]] = []
        self.model = studio.parts.prior.clone()
        self.model.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "recorder", self.record)

    def record(self, executor, x, r, context, control, options, **conditions):
        maps = None if control is None else [None if each is None else each.clone() for each in control["input"][::-1]]
        self.calls.append({"maps": maps, **conditions})
        return executor(x, r, context, control, options, **conditions)


def recorded(studio: Studio, positive: Any, **inputs: Any) -> list[dict[str, Any]]:
    recorder = Recorder(studio)
    sample(studio, positive, model=recorder.model, cfg=1.0, **inputs)
    return recorder.calls


# Image prompts


def test_a_region_that_is_everywhere_is_the_whole_picture(studio, other):
    """Its image prompt is then one of the whole picture; without the base prompt it is that prompt with its
    pictures.
    """
    held = with_pictures(studio, other)
    plain = regional(studio, studio.positive, other)
    whole = regional(studio, with_pictures(studio, studio.positive), other)
    assert relative(sample(studio, regional(studio, studio.positive, held)), sample(studio, whole)) <= 1e-4
    assert changed(sample(studio, whole), sample(studio, plain))
    alone = regional(studio, studio.positive, held, keep_base=False)
    assert relative(sample(studio, alone), sample(studio, held)) <= 1e-4
    assert changed(sample(studio, held), sample(studio, other))


def test_a_region_that_is_nowhere_is_not_there(studio, net, other):
    nowhere = torch.zeros(1, 8, 8)
    prompt = steered(studio, net, with_pictures(studio, other))
    for base in (studio.positive, with_pictures(studio, studio.positive, 3)):
        assert relative(sample(studio, regional(studio, base, prompt, nowhere)), sample(studio, base)) <= 1e-4
    assert regional(studio, studio.positive, prompt, strength=0.0) is not None
    assert torch.equal(
        sample(studio, regional(studio, studio.positive, prompt, strength=0.0)), sample(studio, studio.positive)
    )


def test_pictures_of_a_region_act_where_it_is(studio, other):
    latent = studio.canvas(512, 256)[0]
    given = {"latent": latent, "steps": 1, "cfg": 1.0}
    plain = sample(studio, regional(studio, studio.positive, other, right()), **given)
    result = sample(
        studio, regional(studio, studio.positive, with_pictures(studio, other, weight_1=5.0), right()), **given
    )
    difference = (result - plain).abs().mean(dim=(0, 1, 2))
    half = len(difference) // 2
    assert difference[half:].mean() > 1.5 * difference[:half].mean() and changed(result, plain)


def test_pictures_of_all_kinds_together(studio, other):
    """Two of the whole picture, none in the first region, two in the second: who hears what, and all of them matter."""
    base = with_pictures(studio, studio.positive, 1, image_2=picture(2))
    second = with_pictures(studio, studio.text("a tall oak"), 3, image_2=picture(4))
    chain = regional(studio, regional(studio, base, other, 1 - right()), second, right(), strength=0.5)
    call = recorded(studio, chain, steps=1)[0]
    assert call["region_layout"].images == (-1, -1, 2, 2) and call["clip_img"].shape[1] == 4
    weights = call["region_weights"][0]
    assert len(weights) == 4 and bool((weights[-1] == 1).all()), "those of the whole picture are heard everywhere"
    embeds = [
        entry["clip_vision_output"].image_embeds
        for _, extra in (*base, *second)
        for entry in extra["unclip_conditioning"]
    ]
    assert torch.equal(call["clip_img"][:1], torch.stack(embeds, dim=1))
    result = sample(studio, chain)
    without = [
        regional(studio, regional(studio, first, other, 1 - right()), last, right(), strength=0.5)
        for first, last in ((studio.positive, second), (base, studio.text("a tall oak")))
    ]
    assert all(changed(sample(studio, each), result) for each in without)


def test_batches_and_guidance(studio, net, other):
    """Each picture of a batch is the one that it is alone, with pictures, hints and regions of both prompts."""
    positive = regional(
        studio, with_pictures(studio, studio.positive, 1), steered(studio, net, with_pictures(studio, other)), right()
    )
    negative = regional(studio, studio.negative, with_pictures(studio, studio.negative, 5), 1 - right())
    two = sample(studio, positive, negative=negative, latent=studio.canvas(batch=2)[0], steps=1)
    one = sample(studio, positive, negative=negative, seed=SEED + 1, steps=1)
    assert relative(two[1:], one) <= 1e-4


def test_part_of_the_run(studio, other):
    """A region's pictures, or all of it, in a part of the run: the entries are cut, and each call hears its own."""
    timed = with_pictures(studio, other, start_percent=0.33, end_percent=0.67)
    prompt = regional(studio, studio.positive, timed)
    times = [(extra.get("start_percent"), extra.get("end_percent")) for _, extra in prompt]
    assert times == [(0.0, 0.33), (0.33, 0.67), (0.67, 1.0)]
    heard = [len(call["region_layout"].images) == 2 for call in recorded(studio, prompt, steps=10)]
    assert len(heard) == 10 and 3 <= sum(heard) <= 5 and not heard[0] and not heard[-1]
    late = studio.call("ConditioningSetTimestepRange", conditioning=other, start=0.53, end=1.0)
    prompt = regional(studio, studio.positive, late)
    assert prompt[0][1].keys() == {*studio.positive[0][1], "start_percent", "end_percent"}
    there = ["region_layout" in call for call in recorded(studio, prompt, steps=10)]
    assert there == sorted(there) and 4 <= sum(there) <= 6


# ControlNets


def test_a_control_net_of_the_whole_picture(studio, net, other):
    """Before the region or after it in the chain, it is the same."""
    pair = {"positive": studio.positive, "negative": studio.negative}
    before = steered_pair(studio, net, pair)
    first = {**before, "positive": regional(studio, before["positive"], other, right())}
    after = steered_pair(studio, net, {**pair, "positive": regional(studio, studio.positive, other, right())})
    results = [sample(studio, **each) for each in (first, after)]
    assert relative(*results) <= 1e-5
    assert changed(results[0], sample(studio, regional(studio, studio.positive, other, right())))
    assert changed(results[0], sample(studio, **before))


def test_a_control_net_of_a_region(studio, net, other):
    """Its maps are those of the whole picture, inside the region alone, beside those of the whole picture."""
    plain = recorded(studio, steered(studio, net, studio.positive), steps=1)[0]["maps"]
    inside = recorded(studio, regional(studio, studio.positive, steered(studio, net, other), right()), steps=1)[0][
        "maps"
    ]
    assert (
        [block is not None for block in inside] == [block is not None for block in plain] == [True, False, False, True]
    )
    for given, masked in ((plain[0], inside[0]), (plain[3], inside[3])):
        half = given.shape[-1] // 2
        assert not masked[..., :half].any() and torch.equal(masked[..., half:], given[..., half:]) and given.std() > 0
    base = steered(studio, net, studio.positive, picture(11))
    both = recorded(studio, regional(studio, base, steered(studio, net, other), right()), steps=1)[0]["maps"]
    alone = recorded(studio, base, steps=1)[0]["maps"]
    torch.testing.assert_close(both[3], alone[3] + inside[3], rtol=0, atol=1e-5)
    everywhere = sample(studio, regional(studio, studio.positive, steered(studio, net, other)))
    after = steered(studio, net, regional(studio, studio.positive, other))
    assert torch.equal(everywhere, sample(studio, after))


def test_apply_in_a_mask(studio, net):
    """On both prompts, which share their maps; nowhere is exactly nothing, everywhere what it is without a mask."""
    pair = {"positive": studio.positive, "negative": studio.negative}
    plain, whole = sample(studio, **pair), sample(studio, **steered_pair(studio, net, pair))
    assert torch.equal(sample(studio, **steered_pair(studio, net, pair, mask=torch.zeros(1, 8, 8))), plain)
    assert torch.equal(sample(studio, **steered_pair(studio, net, pair, mask=EVERYWHERE)), whole)
    half = steered_pair(studio, net, pair, mask=right())
    assert half["positive"][0][1]["control"] is half["negative"][0][1]["control"]
    result = sample(studio, **half)
    assert changed(result, plain) and changed(result, whole)
    left = steered_pair(studio, net, half, mask=1 - right())
    assert relative(sample(studio, **left), whole) <= 1e-3, "two halves are the whole"


def test_memory_copies_and_ends(studio, net, other):
    """What is inside of a region is loaded, counted, copied for other devices and cleaned up as any ControlNet."""
    base = steered(studio, net, studio.positive)
    control = regional(studio, base, steered(studio, net, other), right())[0][1]["control"]
    assert control.get_models() == [net.patcher, net.patcher]
    inner = control.inner.inference_memory_requirements(torch.float32)
    assert control.inference_memory_requirements(torch.float32) == 2 * inner > 0
    control.pre_run(studio.parts.prior.model, float)
    assert control.inner.run is not None and control.previous_controlnet.run is not None and control.count == 4
    control.cleanup()
    assert control.inner.run is None and control.previous_controlnet.run is None
    if hasattr(net, "multigpu_clones"):  # hosts that paint on several devices
        cpu = torch.device("cpu")
        clone = control.deepclone_multigpu(cpu, autoregister=True)
        assert clone.inner.patcher.model is not net.patcher.model and control.multigpu_clones == {cpu: clone}
        assert clone.mask is control.mask and len(control.get_models()) == 3
    control.pre_run(studio.parts.decoder.model, float)
    assert control.get_control(torch.zeros(1, 4, 8, 8), torch.ones(1), {}, 1, {}) is None, "Stage B is left alone"


def test_masks_and_hints_for_every_picture(monkeypatch, studio, net, other):
    """Picture i has mask i, prompt i and hint i; also when the batch has to be made picture by picture."""
    from cascade_studio.nodes.host.sampling import sample as sampling

    masks, hints = torch.cat([right(), 1 - right()]), picture(7, batch=2)
    prompt = regional(studio, studio.positive, steered(studio, net, other, hints), masks)
    latent = studio.canvas(batch=2)[0]
    batch = sample(studio, prompt, latent=latent)
    alone = [
        sample(
            studio,
            regional(studio, studio.positive, steered(studio, net, other, hints[i : i + 1]), masks[i : i + 1]),
            seed=SEED + i,
        )
        for i in range(2)
    ]
    assert relative(batch, torch.cat(alone)) <= 1e-4 and changed(alone[0], alone[1])
    real = sampling.sample_batch

    def fail(*arguments, **keywords):
        monkeypatch.setattr(sampling, "sample_batch", real)
        raise torch.cuda.OutOfMemoryError("no memory")

    monkeypatch.setattr(sampling, "sample_batch", fail)
    assert relative(sample(studio, prompt, latent=latent), batch) <= 1e-4


# Errors


def test_errors(studio, net, other):
    def error(kind: str = "CascadeStudio_RegionalPrompt", **inputs: Any) -> str:
        graph = studio.graph()
        given = {"conditioning": studio.positive, "region": other, "mask": right(), **inputs}
        return graph.error(graph.add(kind, **given)[0])

    louder = studio.call("ConditioningSetAreaStrength", conditioning=other, strength=2.0)
    check_sentence(error(region=louder), "a strength of its own", "base prompt")
    early, late = (
        studio.call("ConditioningSetTimestepRange", conditioning=other, start=start, end=end)
        for start, end in ((0.0, 0.6), (0.4, 1.0))
    )
    check_sentence(error(region=[*late, *early]), "2 prompts", "exactly one")
    hooks = studio.call("CascadeStudio_LoadHookLora", lora="kohya.safetensors", model=studio.parts.prior)
    hooked = [[text, {**extra, "hooks": hooks}] for text, extra in other]
    check_sentence(error(region=hooked), "a hook", "base prompt")
    graph = studio.graph()
    apply = graph.add(
        "CascadeStudio_ApplyControl",
        positive=other,
        negative=other,
        control_net=net,
        image=picture(),
        mask=torch.ones(1, 2, 4, 4),
    )
    check_sentence(graph.error(apply[0]), "ControlNet for Cascade", "MASK")
    narrow = [
        [
            text,
            {
                **extra,
                "unclip_conditioning": [
                    {"strength": 1.0, "clip_vision_output": type("Vision", (), {"image_embeds": torch.ones(1, 32)})()}
                ],
            },
        ]
        for text, extra in other
    ]
    graph = studio.graph()
    node = graph.add(
        "CascadeStudio_SamplePrior",
        model=studio.parts.prior,
        negative=studio.negative,
        steps=1,
        positive=regional(studio, studio.positive, narrow),
        latent=studio.canvas()[0],
    )
    check_sentence(graph.error(node[0]), "32 wide", "64", "CLIP vision")
