"""The host's patches, replacements, overrides and wrappers act on our networks, and neutral ones change nothing."""

from __future__ import annotations

import copy

import pytest
import torch
from world import Studio, changed, relative

SEED = 3
STAGES = ("prior", "decoder")


@pytest.fixture(scope="module")
def plain(studio) -> dict[str, torch.Tensor]:
    return {name: sample(studio, name) for name in STAGES}


def sample(studio: Studio, name: str, model=None, **inputs) -> torch.Tensor:
    if name == "prior":
        prompts, latent = studio.prompts, studio.canvas()[0]
    else:
        prompts, latent = studio.decoder_prompts()
    return studio.core_sample(model or getattr(studio.parts, name), latent, seed=SEED, steps=1, **prompts, **inputs)


def patched(studio: Studio, name: str, method: str, *arguments):
    model = getattr(studio.parts, name).clone()
    getattr(model, method)(*arguments)
    return model


class Seen:
    """A patch that remembers the options it was called with."""

    def __init__(self, change) -> None:
        self.change, self.options = change, []

    def __call__(self, *arguments, **keywords):
        self.options.append(next((a for a in reversed(arguments) if isinstance(a, dict)), {}))
        return self.change(*arguments, **keywords)

    @property
    def blocks(self) -> set[tuple[str, int]]:
        return {tuple(options.get("block") or options["transformer_options"]["block"]) for options in self.options}


def tilted(x: torch.Tensor, factor: float) -> torch.Tensor:
    """(B, C, H, W) times 1 for the first channel up to ``factor`` for the last: norms do not take it back."""
    return x * torch.linspace(1.0, factor, x.shape[1])[:, None, None]


def after_middle(factor: float):
    return lambda args: {**args, "h": tilted(args["h"], factor)}


PATCHES = {
    "attn1_patch": (lambda f: lambda q, k, v, extra: (q, k, v * f), {"input", "middle", "output"}),
    "attn2_patch": (lambda f: lambda q, k, v, extra: (q, k, v * f), {"input", "middle", "output"}),
    "attn1_output_patch": (lambda f: lambda x, extra: x * f, {"input", "middle", "output"}),
    "attn2_output_patch": (lambda f: lambda x, extra: x * f, {"input", "middle", "output"}),
    "input_block_patch": (lambda f: lambda x, options: tilted(x, f), {"input"}),
    "input_block_patch_after_skip": (lambda f: lambda x, options: tilted(x, f), {"input"}),
    "middle_block_after_patch": (after_middle, {"middle"}),
    "output_block_patch": (lambda f: lambda x, skip, options: (tilted(x, f), skip), {"output"}),
}


ROUNDING = 1e-5
"""A patch that looks takes the blocks off the way on which they write over the stream: the same but for rounding."""


@pytest.mark.parametrize("name", STAGES)
@pytest.mark.parametrize("kind", PATCHES)
def test_patches(studio, plain, name, kind):
    make, groups = PATCHES[kind]
    seen = Seen(make(1.0))
    neutral = sample(studio, name, patched(studio, name, "set_model_patch", seen, kind))
    assert relative(neutral, plain[name]) <= ROUNDING
    assert {group for group, _ in seen.blocks} == groups
    assert all("sigmas" in options or "sigmas" in options["transformer_options"] for options in seen.options)
    result = sample(studio, name, patched(studio, name, "set_model_patch", make(5.0), kind))
    assert not torch.equal(result, plain[name]) and torch.isfinite(result).all()
    assert name == "decoder" or relative(result, plain[name]) > 1e-4
    assert torch.equal(sample(studio, name), plain[name]), "the patch stayed behind"


def test_block_names(studio):
    """Every group has one name: down groups in order, the last of them the middle, then up groups in order."""
    config = studio.nets["C"].config
    down, up = (sum(n * repeat for n, repeat in zip(config.blocks[way], config.block_repeat[way])) for way in (0, 1))
    seen = Seen(lambda x, extra: x)
    sample(studio, "prior", patched(studio, "prior", "set_model_attn1_output_patch", seen))
    assert [tuple(options["block"]) for options in seen.options] == [
        *(("input", i) for i in range(down - 1)),
        ("middle", 0),
        *(("output", i) for i in range(up)),
    ]
    assert {options["n_heads"] for options in seen.options} == set(config.nhead)
    assert all(options["dim_head"] * options["n_heads"] == config.c_hidden[0] for options in seen.options)


def test_skips_reach_output_patches(studio, plain):
    """A patch may change the skip as well; its sizes are those of the block's input."""
    skips = []

    def patch(x, skip, options):
        skips.append(skip.shape)
        assert skip.shape == x.shape
        return x, skip * 3.0

    result = sample(studio, "prior", patched(studio, "prior", "set_model_output_block_patch", patch))
    assert len(skips) == 1, "groups without a skip are not asked: patches of core take it as given"
    assert not torch.equal(result, plain["prior"])


@pytest.mark.parametrize("name", STAGES)
@pytest.mark.parametrize("kind", ["attn1", "attn2"])
def test_replaced_attention(studio, plain, name, kind):
    """A replacement as ``attn1`` gets the picture's own tokens alone, one as ``attn2`` the condition tokens alone."""
    from comfy.ldm.modules.attention import optimized_attention

    method = f"set_model_{kind}_replace"

    def same(q, k, v, extra):
        assert q.shape[1] == extra["n_self"] and k.shape == v.shape
        assert (k.shape[1] == extra["n_self"]) == (kind == "attn1")
        return optimized_attention(q, k, v, extra["n_heads"])

    for block in (("middle", 0), ("output", 0)):
        seen = Seen(same)
        # The two halves add up in another order than the joint attention.
        assert relative(sample(studio, name, patched(studio, name, method, seen, *block)), plain[name]) <= 1e-5
        assert seen.blocks == {block}
        result = sample(studio, name, patched(studio, name, method, lambda *given: 9.0 * same(*given), *block))
        assert not torch.equal(result, plain[name])


def test_perturbed_attention_guidance(studio, plain):
    def guided(scale: float) -> torch.Tensor:
        model = studio.call("PerturbedAttentionGuidance", model=studio.parts.prior, scale=scale)
        return sample(studio, "prior", model)

    assert torch.equal(guided(0.0), plain["prior"])
    assert relative(guided(3.0), plain["prior"]) > 1e-4
    assert relative(guided(30.0), plain["prior"]) > 5 * relative(guided(3.0), plain["prior"])


@pytest.mark.parametrize("name", STAGES)
def test_attention_override(studio, plain, name):
    calls = []

    def override(function, *arguments, **keywords):
        calls.append(keywords.get("transformer_options"))
        return function(*arguments, **keywords)

    def with_override(function):
        model = getattr(studio.parts, name).clone()
        model.model_options.setdefault("transformer_options", {})["optimized_attention_override"] = function
        return sample(studio, name, model)

    assert torch.equal(with_override(override), plain[name])
    assert calls and all(options is not None and "sigmas" in options for options in calls)
    blocks = sum(
        kind.count("A") * n * repeat
        for way in (0, 1)
        for kind, n, repeat in zip(
            studio.nets["C"].config.level_config[:: 1 if way == 0 else -1],
            studio.nets["C"].config.blocks[way],
            studio.nets["C"].config.block_repeat[way],
        )
    )
    assert name == "decoder" or len(calls) == blocks
    assert not torch.equal(with_override(lambda function, *a, **k: 9.0 * function(*a, **k)), plain[name])


@pytest.mark.parametrize("name", STAGES)
def test_wrappers(studio, plain, name):
    """DIFFUSION_MODEL wrappers surround the network: they may watch, change what goes in, and what comes out."""
    from comfy.patcher_extension import WrappersMP

    def with_wrapper(wrapper):
        model = getattr(studio.parts, name).clone()
        model.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "test", wrapper)
        return sample(studio, name, model)

    seen = []

    def watch(executor, x, *arguments, **keywords):
        seen.append(executor.class_obj)
        return executor(x, *arguments, **keywords)

    assert torch.equal(with_wrapper(watch), plain[name])
    assert seen == [getattr(studio.parts, name).model.diffusion_model]
    assert changed(with_wrapper(lambda executor, *a, **k: 0.5 * executor(*a, **k)), plain[name])


def test_options_are_left_as_they_are(studio):
    """The options that a model carries come out of a run as they went in."""
    model = patched(studio, "prior", "set_model_attn1_patch", lambda q, k, v, extra: (q, k, v))
    options = model.model_options["transformer_options"]
    before = copy.deepcopy({key: value for key, value in options.items() if key != "patches"})
    patches = {key: list(value) for key, value in options["patches"].items()}
    sample(studio, "prior", model)
    options = model.model_options["transformer_options"]
    assert {key: list(value) for key, value in options["patches"].items()} == patches
    assert {key: value for key, value in options.items() if key != "patches"} == before


def test_control_is_read_and_never_consumed(studio):
    """The same control maps act the same twice, as they do on the host's own net, and their lists stay whole."""
    from reference_nets import host_net

    net = studio.parts.prior.model.diffusion_model
    torch.manual_seed(0)
    x, r = torch.randn(2, 16, 6, 7), torch.tensor([0.3, 0.8])
    maps = [torch.randn(2, 128, 6, 7), None, torch.randn(2, 128, 12, 14), torch.randn(2, 128, 6, 7)]
    control = {"input": list(reversed(maps)), "middle": [], "output": []}
    conditions = {
        "clip_text": torch.randn(2, 5, 64),
        "clip_text_pooled": torch.randn(2, 1, 64),
        "clip_img": torch.randn(2, 1, 64),
    }
    with torch.inference_mode():
        first = net(x, r, control=control, transformer_options={}, **conditions)
        assert len(control["input"]) == 4
        assert all(kept is each for kept, each in zip(control["input"], reversed(maps)))
        assert torch.equal(net(x, r, control=control, transformer_options={}, **conditions), first)
        assert changed(first, net(x, r, control=None, transformer_options={}, **conditions))
        theirs = host_net(studio.nets["C"])
        expected = theirs(x, r, control={"input": list(reversed(maps))}, **conditions)
        assert relative(first, expected) <= 1e-4
        shorter = {"input": list(reversed(maps[:1]))}
        padded = {"input": [None, None, None, maps[0]]}
        assert (
            relative(
                net(x, r, control=shorter, transformer_options={}, **conditions),
                theirs(x, r, control=padded, **conditions),
            )
            <= 1e-4
        )
