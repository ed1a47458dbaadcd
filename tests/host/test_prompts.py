"""Encode Prompt and Regional Prompt in the host: neutral ones change nothing, the others change what they should."""

from __future__ import annotations

import os
from typing import Any

import pytest
import torch
from graphs import check_sentence
from safetensors.torch import save_file
from world import Studio, changed, relative

SEED = 6


def encode(studio: Studio, text: str, **inputs) -> Any:
    return studio.call("CascadeStudio_EncodePrompt", clip=studio.parts.clip, text=text, **inputs)


def pooled(conditioning: Any) -> torch.Tensor:
    return conditioning[0][1]["pooled_output"]


def sample(studio: Studio, positive: Any, **inputs) -> torch.Tensor:
    latent = inputs.pop("latent", None) or studio.canvas()[0]
    given = {"steps": 1, "cfg": 1.0, "seed": SEED, "negative": studio.negative, **inputs}
    return studio.core_sample(studio.parts.prior, latent, positive=positive, **given)


def same(first: Any, second: Any) -> bool:
    return len(first) == len(second) and all(
        torch.equal(a[0], b[0])
        and a[1].keys() == b[1].keys()
        and torch.equal(a[1]["pooled_output"], b[1]["pooled_output"])
        for a, b in zip(first, second)
    )


# Encode Prompt


@pytest.mark.parametrize("weighting", ["contrast", "attention", "comfyui"])
def test_without_weights_it_is_core_s_own(studio, weighting):
    for text in ("a red house by the sea", "", "one (two:1.0) three", "word " * 100, "Rock AND Roll [x]"):
        assert same(encode(studio, text, weighting=weighting), studio.text(text)), text
    assert same(encode(studio, "a (red:1.4) house", weighting="comfyui"), studio.text("a (red:1.4) house"))


SPOILED = {
    "a (red:nan) apple": "weight nan",
    "a (red:inf) apple": "weight inf",
    "a (red:-1e999) apple": "weight -inf",
    "a (red:1e30) apple": "smaller ones",
    "a:1 AVG b:-0.99999999": "do not cancel",
    "(" * 3000 + "a" + ")" * 3000: "3000 deep",
    "a embedding:nothere, cat": "embedding:nothere",
    "(embedding:nothere:1.2)": "embedding:nothere",
    "a embedding: cat": "embedding:",
    "embedding:t_wide cat": "32 wide",
    "embedding:t_broken cat": "embedding:t_broken",
}


@pytest.mark.parametrize("text", SPOILED)
@pytest.mark.parametrize("weighting", ["contrast", "attention", "comfyui"])
def test_what_a_prompt_cannot_say(studio, text, weighting):
    """Every way to spoil the numbers, the brackets and the embeddings of a prompt gets the sentence for that."""
    folder = studio.models / "embeddings"
    folder.mkdir(exist_ok=True)
    save_file({"clip_g": torch.rand(2, 32)}, folder / "t_wide.safetensors")
    (folder / "t_broken.safetensors").write_bytes(b"no embedding")
    graph = studio.graph()
    node = graph.add("CascadeStudio_EncodePrompt", clip=studio.parts.clip, text=text, weighting=weighting)
    if weighting == "attention" and "1e30" in text:
        return  # weights of the attention are counted, not moved: that one is a long word, and works
    check_sentence(graph.error(node[0]), SPOILED[text])


def test_an_embedding_that_changed_is_read_again(studio):
    """Written, overwritten and deleted between two runs of one prompt."""
    folder = studio.models / "embeddings" / "deep"
    folder.mkdir(exist_ok=True, parents=True)
    width = encode(studio, "")[0][0].shape[-1]
    path = folder / "t_new.safetensors"
    stamp = studio.host.nodes.NODE_CLASS_MAPPINGS["CascadeStudio_EncodePrompt"].fingerprint_inputs
    texts = ("an embedding:t_new cat", "(embedding:t_new:1.2)", "embedding:deep/t_new,", None)
    seen = [{text: stamp(text=text) for text in (*texts, "a cat")}]
    for value in (1.0, 2.0):
        save_file({"clip_g": torch.full((1, width), value)}, path)
        os.utime(path, ns=(int(value * 1e18), int(value * 1e18)))
        seen.append({text: stamp(text=text) for text in (*texts, "a cat")})
    path.unlink()
    seen.append({text: stamp(text=text) for text in (*texts, "a cat")})
    for text in texts:
        assert len({each[text] for each in seen[:3]}) == 3 and seen[3][text] == seen[0][text], text
    assert len({each["a cat"] for each in seen}) == 1, "a prompt without it is not encoded again"


@pytest.mark.parametrize("weighting", ["contrast", "attention", "comfyui"])
def test_an_embedding_works(studio, weighting):
    folder = studio.models / "embeddings"
    folder.mkdir(exist_ok=True)
    width = encode(studio, "")[0][0].shape[-1]
    save_file({"clip_g": torch.ones(2, width)}, folder / "t_word.safetensors")
    for text in ("a embedding:t_word cat", "a (embedding:t_word:1.3), cat", "embedding:t_word, a cat"):
        assert changed(encode(studio, text, weighting=weighting)[0][0], studio.text("a cat")[0][0])


def test_nan_in_a_core_prompt_is_told_as_that(studio):
    """Core's own node lets such a weight pass; the sampler blames the prompt, not the model's file or a LoRA."""
    latent = {"samples": torch.randn(1, 16, 6, 6, generator=torch.Generator().manual_seed(0))}
    for sample_stage in (studio.sample_prior, studio.sample_decoder):
        text, extra = studio.text("a red apple")[0]
        spoiled = [[text * float("nan"), {**extra, "pooled_output": extra["pooled_output"] * float("nan")}]]
        with pytest.raises(AssertionError) as caught:
            sample_stage(latent, positive=spoiled, negative=studio.negative, steps=1)
        check_sentence(str(caught.value), "of a prompt", "weight")


def test_contrast_moves_tokens_and_pooled_along_one_line(studio):
    """Weight 0 is the prompt without the word; every weight lies on the line through that and the prompt."""
    weights = (0.0, 0.5, 1.0, 1.3, 2.0)
    found = {weight: encode(studio, f"a (red:{weight}) house") for weight in weights}
    for read in (lambda c: c[0][0], pooled):
        start, end = read(found[0.0]), read(found[1.0])
        assert changed(end, start)
        for weight in weights:
            torch.testing.assert_close(read(found[weight]), start + weight * (end - start), rtol=0, atol=1e-4)
    assert same(encode(studio, "a (red:1.0) house"), studio.text("a red house"))
    torch.testing.assert_close(pooled(found[0.0]), pooled(studio.text("a , house")), rtol=0, atol=1e-5)


@pytest.mark.parametrize("weighting", ["contrast", "attention"])
def test_the_picture_follows_the_weight(studio, weighting):
    """The further a weight is from 1, the further is the picture from the one of the plain prompt, either way."""
    plain = sample(studio, studio.text("a red house"))
    distance = {
        weight: float(
            (sample(studio, encode(studio, f"a (red:{weight}) house", weighting=weighting)) - plain).square().mean()
        )
        for weight in (0.25, 0.6, 1.0, 1.5, 2.5)
    }
    assert distance[0.25] > distance[0.6] > distance[1.0] == 0 < distance[1.5] < distance[2.5], distance


def test_attention_weights_are_carried_and_counted(studio):
    conditioning = encode(studio, "a (red:2) house", weighting="attention")
    assert torch.equal(conditioning[0][0], studio.text("a red house")[0][0])
    weights = conditioning[0][1]["cascade_studio_token_weights"]
    assert weights.shape == (1, 77) and int((weights == 2).sum()) == 1
    graph = studio.graph()
    node = graph.add("CascadeStudio_EncodePrompt", clip=studio.parts.clip, text="(red:-1)", weighting="attention")
    check_sentence(graph.error(node[0]), "Encode Prompt", "negative", "contrast")


def test_parts_and_long_prompts(studio):
    both = encode(studio, "a red house BREAK autumn leaves")
    assert both[0][0].shape[1] == 154
    first, second = studio.text("a red house"), studio.text("autumn leaves")
    torch.testing.assert_close(both[0][0], torch.cat([first[0][0], second[0][0]], dim=1), rtol=0, atol=1e-5)
    torch.testing.assert_close(pooled(both), pooled(first), rtol=0, atol=1e-5)
    for text in ("a red house BREAK autumn leaves", "a (red:1.5) house BREAK autumn leaves"):
        whole = encode(studio, text, pooled="all parts")
        one = encode(studio, text.split(" BREAK")[0])
        torch.testing.assert_close(pooled(whole), (pooled(one) + pooled(second)) / 2, rtol=0, atol=1e-5)
    long = encode(studio, "(a:1.2) " + "word " * 100)
    assert long[0][0].shape[1] == 154
    assert torch.isfinite(sample(studio, long, cfg=3.0)).all()


def test_a_long_prompt_does_not_change_the_other_one(studio):
    """With guidance the negative prompt gives the same whether it is computed beside a long prompt or alone."""
    from comfy.patcher_extension import WrappersMP

    lengths = []
    model = studio.parts.prior.clone()
    model.add_wrapper_with_key(
        WrappersMP.DIFFUSION_MODEL,
        "test",
        lambda executor, *a, **k: (
            lengths.append((k["clip_text"].shape[0], k["clip_text"].shape[1])) or executor(*a, **k)
        ),
    )
    studio.core_sample(model, studio.canvas()[0], positive=encode(studio, "a BREAK b"), steps=1)
    assert sorted(lengths) == [(1, 77), (1, 154)]


def test_averages(studio):
    first, second = studio.text("a cat"), studio.text("a dog")
    mean = encode(studio, "a cat AVG a dog:0.5")
    for read in (lambda c: c[0][0], pooled):
        torch.testing.assert_close(read(mean), (2 * read(first) + read(second)) / 3, rtol=0, atol=1e-5)
    uneven = encode(studio, "a cat AVG a dog BREAK leaves")
    assert uneven[0][0].shape[1] == 154
    ends = (studio.text("leaves")[0][0] + studio.text("")[0][0]) / 2
    torch.testing.assert_close(uneven[0][0][:, 77:], ends, rtol=0, atol=1e-5)
    graph = studio.graph()
    node = graph.add("CascadeStudio_EncodePrompt", clip=studio.parts.clip, text="a:1 AVG b:-2")
    check_sentence(graph.error(node[0]), "average", "larger weight")


def test_both_stages_hear_the_weight(studio):
    """Stage B hears the pooled text alone, which core's weighting leaves as it is."""
    latents = {}
    for weighting in ("contrast", "comfyui"):
        for weight in (1.0, 2.5):
            given, latent = studio.decoder_prompts(
                positive=encode(studio, f"a (red:{weight}) house", weighting=weighting)
            )
            latents[weighting, weight] = studio.core_sample(studio.parts.decoder, latent, steps=1, cfg=1.0, **given)
    moved = {kind: relative(latents[kind, 2.5], latents[kind, 1.0]) for kind in ("contrast", "comfyui")}
    assert moved["comfyui"] <= 1e-5 and moved["contrast"] > 10 * max(moved["comfyui"], 1e-6), moved


# Regional Prompt


def halves(width: int = 64) -> torch.Tensor:
    mask = torch.zeros(1, 48, width)
    mask[..., width // 2 :] = 1
    return mask


def regional(studio: Studio, base: Any, prompt: Any, mask: torch.Tensor, **inputs) -> Any:
    return studio.call("CascadeStudio_RegionalPrompt", conditioning=base, region=prompt, mask=mask, **inputs)


@pytest.fixture(scope="module")
def other(studio) -> Any:
    return studio.text("a purple dragon in a snow storm, oil on canvas")


def test_neutral_regions_change_nothing(studio, other):
    plain = sample(studio, studio.positive)
    assert torch.equal(sample(studio, regional(studio, studio.positive, other, halves(), strength=0.0)), plain)
    empty = regional(studio, studio.positive, other, torch.zeros(1, 8, 8))
    assert relative(sample(studio, empty), plain) <= 1e-4
    assert torch.equal(sample(studio, studio.positive), plain)


def test_a_region_acts_where_it_is(studio, other):
    latent = studio.canvas(512, 256)[0]
    plain = sample(studio, studio.positive, latent=latent)
    result = sample(studio, regional(studio, studio.positive, other, halves(), strength=4.0), latent=latent)
    difference = (result - plain).abs().mean(dim=(0, 1, 2))
    half = len(difference) // 2
    assert difference[half:].mean() > 2 * difference[:half].mean()
    assert changed(result, plain)


def test_a_region_of_everything_is_the_joint_prompt(studio, other):
    """Its tokens and its pooled text beside those of the base, none of them muted."""
    from comfy.patcher_extension import WrappersMP

    calls = []
    model = studio.parts.prior.clone()
    model.add_wrapper_with_key(
        WrappersMP.DIFFUSION_MODEL,
        "test",
        lambda executor, x, r, context, control, options, **k: (
            calls.append((x, r, k, executor(x, r, context, control, options, **k))) or calls[-1][3]
        ),
    )
    everywhere = regional(studio, studio.positive, other, torch.ones(1, 8, 8))
    studio.core_sample(model, studio.canvas()[0], positive=everywhere, steps=1, cfg=1.0)
    [(x, r, given, out)] = calls
    text = torch.cat([studio.positive[0][0], other[0][0]], dim=1)
    both = torch.stack([pooled(studio.positive), pooled(other)], dim=1)
    assert torch.equal(given["clip_text"], text) and torch.equal(given["clip_text_pooled"], both)
    with torch.inference_mode():
        expected = studio.nets["C"](x, r, text, both, given["clip_img"])
    assert relative(out, expected) <= 1e-4


def test_the_base_can_be_left_out_of_regions(studio, other):
    everywhere = {"mask": torch.ones(1, 8, 8), "keep_base": False}
    bases = [studio.positive, studio.text("something else")]
    alone = [sample(studio, regional(studio, base, other, **everywhere)) for base in bases]
    assert relative(alone[0], alone[1]) <= 1e-4
    kept = [sample(studio, regional(studio, base, other, mask=torch.ones(1, 8, 8))) for base in bases]
    assert changed(kept[0], kept[1])


def test_regions_with_batches_areas_weights_and_guidance(studio, other):
    """Two regions, one of them weighted, beside an area; each picture of a batch is the one it is alone."""
    weighted = encode(studio, "a (green:1.8) tree", weighting="attention")
    chain = regional(studio, regional(studio, studio.positive, other, halves()), weighted, 1 - halves(), strength=0.5)
    area = studio.call(
        "ConditioningSetAreaPercentage", conditioning=chain, width=0.5, height=1.0, x=0.5, y=0.0, strength=1.0
    )
    both = studio.call("ConditioningCombine", conditioning_1=chain, conditioning_2=area)
    for positive in (chain, both):
        two = studio.sample_prior(studio.canvas(batch=2)[0], positive=positive, steps=1, seed=SEED)["samples"]
        one = studio.sample_prior(studio.canvas()[0], positive=positive, steps=1, seed=SEED + 1)["samples"]
        assert relative(two[1:], one) <= 1e-4
    swapped = regional(studio, regional(studio, studio.positive, other, 1 - halves()), weighted, halves(), strength=0.5)
    assert changed(sample(studio, swapped), sample(studio, chain))


def test_what_a_region_cannot_carry(studio, other):
    def error(**inputs: Any) -> str:
        graph = studio.graph()
        given = {"conditioning": studio.positive, "region": other, "mask": halves(), **inputs}
        return graph.error(graph.add("CascadeStudio_RegionalPrompt", **given)[0])

    area = studio.call(
        "ConditioningSetAreaPercentage", conditioning=other, width=0.5, height=1.0, x=0.5, y=0.0, strength=1.0
    )
    check_sentence(error(region=area), "Regional Prompt", "an area", "base prompt")
    check_sentence(error(region=[*other, *other]), "2 prompts", "exactly one")
    check_sentence(error(region=[[other[0][0], {}]]), "pooled output")
    check_sentence(error(mask=torch.ones(1, 3, 4, 4)), "mask", "MASK")
    narrow = [[other[0][0][..., :32], {**other[0][1], "pooled_output": pooled(other)[..., :32]}]]
    graph = studio.graph()
    node = graph.add(
        "CascadeStudio_SamplePrior",
        model=studio.parts.prior,
        negative=studio.negative,
        steps=1,
        positive=regional(studio, studio.positive, narrow, halves()),
        latent=studio.canvas()[0],
    )
    check_sentence(graph.error(node[0]), "32 wide", "64 wide", "text encoders")
