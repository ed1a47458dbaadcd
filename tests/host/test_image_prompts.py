"""Image prompts in the host: the official variation, weights of both signs, text, time, crops, and errors."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import family_shapes
import pytest
import torch
from graphs import check_sentence
from safetensors.torch import load_file
from world import Studio, changed, pure, relative

from cascade_studio.stages.inputs import image_prompts

NODE = "CascadeStudio_ImagePrompts"
SEED, STEPS = 11, 3


def picture(seed: int = 0, height: int = 60, width: int = 90, batch: int = 1) -> torch.Tensor:
    coarse = torch.rand(batch, 3, 6, 9, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.interpolate(coarse, (height, width), mode="bilinear").movedim(1, -1)


def prompts(studio: Studio, before: dict[str, Any] | None = None, **inputs: Any) -> dict[str, Any]:
    given = {"clip_vision": studio.parts.clip_vision, "image_1": picture(), **(before or studio.prompts), **inputs}
    return dict(zip(("positive", "negative"), studio.call(NODE, range(2), **given)))


def sample(studio: Studio, given: dict[str, Any], **inputs: Any) -> torch.Tensor:
    latent = studio.canvas()[0]
    return studio.sample_prior(latent, **{"seed": SEED, "steps": STEPS, **given, **inputs})["samples"]


@pytest.fixture(scope="module")
def plain(studio) -> torch.Tensor:
    return sample(studio, studio.prompts)


def reference_embeds(studio: Studio, image: torch.Tensor) -> torch.Tensor:
    """(B, 64) of the official preparation and the CLIP class of the official code, with the family's weights."""
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    names = (
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "projection_dim",
        "image_size",
        "patch_size",
        "num_channels",
        "hidden_act",
    )
    net = CLIPVisionModelWithProjection(CLIPVisionConfig(**{name: family_shapes.VISION[name] for name in names})).eval()
    weights = load_file(studio.models / "clip_vision/clip_l_vision.safetensors")
    result = net.load_state_dict({key: value.float() for key, value in weights.items()}, strict=False)
    assert not [key for key in result.missing_keys if "position_ids" not in key]
    pixels = image_prompts.normalise_for_clip(image_prompts.prepare_for_clip(image.movedim(-1, 1)))
    with torch.inference_mode():
        return net(pixel_values=pixels).image_embeds


def test_official_variation(studio):
    """One picture is what the official code makes of it: the embedding for the prompt alone, zeros for the negative."""
    image = picture(1)
    embeds = reference_embeds(studio, image)
    given = prompts(studio, image_1=image)
    [held] = given["positive"][0][1]["unclip_conditioning"]
    assert relative(held["clip_vision_output"].image_embeds, embeds) <= 1e-4
    assert given["negative"] is studio.negative or given["negative"] == studio.negative
    conds = [
        {"clip_text": text[0][0], "clip_text_pooled": text[0][1]["pooled_output"], "clip_img": seen}
        for text, seen in ((studio.positive, embeds[:, None]), (studio.negative, torch.zeros(1, 1, 64)))
    ]
    expected = pure(studio.nets["C"], conds, (1, 16, 6, 6), [SEED], None, steps=STEPS, shift=2.0, cfg=4.0)
    result = sample(studio, given)
    assert result.shape == expected.shape and relative(result, expected) <= 1e-3
    assert relative(sample(studio, studio.prompts), expected) > 1e-2


def test_core_nodes_go_on_with_it(studio):
    """Core's nodes add to ours and ours to core's, in the same list."""
    image = picture(2, 224, 224)
    vision = studio.call("CLIPVisionEncode", clip_vision=studio.parts.clip_vision, image=image, crop="center")

    def core(positive: Any) -> Any:
        return studio.call(
            "unCLIPConditioning", conditioning=positive, clip_vision_output=vision, strength=0.7, noise_augmentation=0.0
        )

    ours_first = core(prompts(studio, weight_1=0.5)["positive"])
    core_first = prompts(studio, {**studio.prompts, "positive": core(studio.positive)}, weight_1=0.5)["positive"]
    for positive, strengths in ((ours_first, [0.5, 0.7]), (core_first, [0.7, 0.5])):
        entries = positive[0][1]["unclip_conditioning"]
        assert [entry["strength"] for entry in entries] == strengths
        assert set(entries[0]) == set(entries[1])
        assert changed(sample(studio, {**studio.prompts, "positive": positive}), sample(studio, studio.prompts))


# Weights


def test_weight_zero_is_exact(studio, plain):
    given = prompts(studio, weight_1=0.0, image_2=picture(3), weight_2=0.0)
    assert torch.equal(sample(studio, given), plain)
    one = prompts(studio, image_3=picture(3), weight_3=0.0)
    assert torch.equal(sample(studio, one), sample(studio, prompts(studio)))


def cosine(one: torch.Tensor, other: torch.Tensor) -> float:
    return float(torch.cosine_similarity(one.flatten(), other.flatten(), dim=0))


def test_a_negative_weight_pushes_the_other_way(studio, plain):
    towards, away, further = (sample(studio, prompts(studio, weight_1=weight)) - plain for weight in (0.2, -0.2, -0.4))
    assert cosine(towards, away) < -0.5 and cosine(away, further) > 0.9
    assert further.norm() > away.norm() > 0
    given = prompts(studio, weight_1=-0.4)
    assert "unclip_conditioning" not in given["positive"][0][1]
    assert given["negative"][0][1]["unclip_conditioning"][0]["strength"] == 0.4


def test_weights_grow_the_effect(studio, plain):
    moves = [float((sample(studio, prompts(studio, weight_1=weight)) - plain).norm()) for weight in (0.1, 0.3, 0.6)]
    assert 0 < moves[0] < moves[1] < moves[2]


def test_eight_pictures(studio):
    """Every one of them counts, in order; a batch is as many pictures."""
    images = {f"image_{n}": picture(n) for n in range(1, 9)}
    weights = {f"weight_{n}": 0.1 * n * (-1) ** (n // 4) for n in range(1, 9)}
    given = prompts(studio, **images, **weights)
    held = {name: [entry["strength"] for entry in text[0][1]["unclip_conditioning"]] for name, text in given.items()}
    assert held["positive"] == pytest.approx([0.1, 0.2, 0.3, 0.8])
    assert held["negative"] == pytest.approx([0.4, 0.5, 0.6, 0.7])
    result = sample(studio, given, steps=1)
    for n in (1, 4, 8):
        other = sample(studio, prompts(studio, **{**images, f"image_{n}": picture(n + 20)}, **weights), steps=1)
        assert not torch.equal(other, result), n
    batch = torch.cat([picture(1), picture(2)])
    apart = prompts(studio, image_1=batch[:1], image_2=batch[1:])
    assert relative(sample(studio, prompts(studio, image_1=batch)), sample(studio, apart)) <= 1e-4


def test_chaining_adds(studio):
    given = prompts(studio, prompts(studio, image_1=picture(4)), image_1=picture(5))
    together = prompts(studio, image_1=picture(4), image_2=picture(5))
    assert torch.equal(sample(studio, given), sample(studio, together))


# Crop, text and time


def test_crops(studio):
    wide = picture(6, 60, 240)
    results = [sample(studio, prompts(studio, image_1=wide, crop=crop), steps=1) for crop in image_prompts.CROPS]
    assert not any(torch.equal(one, other) for one, other in zip(results, results[1:] + results[:1]))
    square = picture(6, 64, 64)
    results = [sample(studio, prompts(studio, image_1=square, crop=crop), steps=1) for crop in image_prompts.CROPS]
    assert relative(results[0], results[1]) <= 1e-4 and relative(results[0], results[2]) <= 1e-4


def test_text_weight(studio):
    """1 is the prompt, 0 the empty one, half is between them; long prompts too."""
    clip = studio.parts.clip
    faint = {weight: prompts(studio, text_weight=weight, clip=clip) for weight in (0.0, 0.5, 1.0)}
    empty = prompts(studio, {**studio.prompts, "positive": studio.text("")})
    assert torch.equal(sample(studio, faint[1.0]), sample(studio, prompts(studio)))
    assert relative(sample(studio, faint[0.0]), sample(studio, empty)) <= 1e-5
    ends = [sample(studio, faint[weight], steps=1) for weight in (0.0, 1.0)]
    half = sample(studio, faint[0.5], steps=1)
    distance = (ends[1] - ends[0]).norm()
    assert 0.1 * distance < (half - ends[0]).norm() < distance and 0.1 * distance < (half - ends[1]).norm() < distance
    long = {**studio.prompts, "positive": studio.text("a very long prompt, " * 40)}
    shape = prompts(studio, long, text_weight=0.5, clip=clip)["positive"][0][0].shape
    assert shape == long["positive"][0][0].shape and shape[1] > 77


class Recorder:
    """A clone of the prior that keeps how many image tokens' embeddings are not zero in every call."""

    def __init__(self, model: Any) -> None:
        from comfy.patcher_extension import WrappersMP

        self.calls: list[bool] = []
        self.model = model.clone()
        self.model.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "recorder", self.record)

    def record(self, executor, x, r, context, control, options, **conditions):
        self.calls.append(bool(conditions["clip_img"].any()))
        return executor(x, r, context, control, options, **conditions)


def test_start_and_end(studio, plain):
    """Outside its part of the run a picture is not heard, and the words are heard throughout."""
    recorder = Recorder(studio.parts.prior)
    given = prompts(studio, start_percent=0.3, end_percent=0.7)
    sample(studio, given, model=recorder.model, steps=10, cfg=1.0)
    heard = recorder.calls
    assert len(heard) == 10 and 3 <= sum(heard) <= 5
    first = heard.index(True)
    assert 2 <= first <= 4 and heard == [first <= n < first + sum(heard) for n in range(10)]
    assert torch.equal(
        sample(studio, prompts(studio, end_percent=0.001), steps=1, denoise=0.5),
        sample(studio, studio.prompts, steps=1, denoise=0.5),
    )
    away = prompts(studio, weight_1=-1.0, end_percent=0.5)
    assert len(away["negative"]) == 2 and len(away["positive"]) == 1
    assert torch.isfinite(sample(studio, away)).all() and changed(sample(studio, away), plain)


def test_a_range_inside_a_range(studio):
    """A prompt that has a time range of its own keeps to it."""
    ranged = studio.call("ConditioningSetTimestepRange", conditioning=studio.positive, start=0.2, end=0.6)
    parts = prompts(studio, {**studio.prompts, "positive": ranged}, start_percent=0.5, end_percent=0.9)["positive"]
    found = [(extra["start_percent"], extra["end_percent"], "unclip_conditioning" in extra) for _, extra in parts]
    assert found == [(0.2, 0.5, False), (0.5, 0.6, True)]
    outside = prompts(studio, {**studio.prompts, "positive": ranged}, start_percent=0.7)["positive"]
    assert len(outside) == 1 and "unclip_conditioning" not in outside[0][1]


def refused(studio: Studio, **inputs: Any) -> str:
    graph = studio.graph()
    given = {"clip_vision": studio.parts.clip_vision, "image_1": picture(), **studio.prompts, **inputs}
    return graph.error(graph.add(NODE, **given)[0])


def test_errors(studio):
    check_sentence(refused(studio, image_1=picture(batch=9)), "9 pictures", "8 are the most")
    check_sentence(refused(studio, text_weight=0.5), "text weight", "0.5", "'clip'")
    check_sentence(refused(studio, start_percent=0.5, end_percent=0.5), "0.5", "never be heard")
    other = SimpleNamespace(model_type="siglip_vision_model", image_size=224)
    check_sentence(refused(studio, clip_vision=other), "siglip_vision_model", "ViT-L/14")


def test_what_clip_sees_is_shown(studio):
    graph = studio.graph()
    node = graph.add(NODE, clip_vision=studio.parts.clip_vision, image_1=picture(batch=2), **studio.prompts)
    shown = graph.execute(node[0]).ui[node.name]
    assert len(shown["images"]) == 2 and json.dumps(shown)
