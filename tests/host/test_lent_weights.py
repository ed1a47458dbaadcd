"""Where a block asks a layer for its weights instead of calling it, patches and streaming still act on them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch
from forward import comfyui, forward, inputs_for, low_rank, streamed
from world import Studio, relative


@pytest.fixture(scope="module")
def lora(studio) -> str:
    """A strong change of every layer that may be asked for its weights."""
    shapes = {
        key.removesuffix(".weight"): tuple(value.shape)
        for key, value in studio.parts.decoder.model.diffusion_model.state_dict().items()
        if key.endswith(".channelwise.4.weight")
    }
    return studio.write("loras/t_lent", comfyui(low_rank(shapes, size=3.0)))


@contextmanager
def watched(model: Any, asked: list[Any] | None = None) -> Iterator[None]:
    """Every layer of ``model`` is called, or with ``asked`` given, what was lent is noted there."""
    net = model.model.diffusion_model
    blocks = [module for module in net.modules() if hasattr(module, "backend")]
    before = [module.backend for module in blocks]

    def lend(layer: Any, like: torch.Tensor, real: Any = before[0].lend_weights) -> Any:
        if asked is None:
            return None
        lent = real(layer, like)
        asked.append(lent)
        return lent

    try:
        for module, backend in zip(blocks, before, strict=True):
            module.backend = replace(backend, lend_weights=lend)
        yield
    finally:
        for module, backend in zip(blocks, before, strict=True):
            module.backend = backend


def called(model: Any, asked: list[Any] | None = None) -> torch.Tensor:
    """What the network answers when every layer is called, or with what was ``asked`` for noted."""
    with watched(model, asked):
        return forward(model)


@pytest.mark.parametrize("patched", [False, True], ids=["plain", "LoRA"])
def test_asking_and_calling_give_the_same(studio, lora, patched):
    model = studio.parts.decoder
    plain = forward(model)
    if patched:
        model = studio.call("LoraLoaderModelOnly", model=model, lora_name=lora, strength_model=1.0)
    asked: list[Any] = []
    given = called(model, asked)
    assert asked and all(lent is not None for lent in asked)
    assert relative(given, called(model)) < 1e-4
    assert (relative(given, plain) > 0.01) == patched


@pytest.mark.parametrize("patched", [False, True], ids=["plain", "LoRA"])
def test_streamed_weights(studio, lora, patched):
    """Layers that stay in the processor's memory are cast and patched at use, by the host's own functions."""
    model = studio.parts.decoder
    if patched:
        model = studio.call("LoraLoaderModelOnly", model=model, lora_name=lora, strength_model=1.0)
    expected = forward(model)
    with streamed(model) as net, torch.inference_mode():
        x, r, conditions = inputs_for(net.config)
        given = net(x, r, transformer_options={}, **conditions)
    assert relative(given, expected) < 1e-4


def change(studio: Studio, lora: str, how: str) -> tuple[Any, dict[str, Any]]:
    """Stage B with weights that another node changed, and the prompts that go with it."""
    model, given = studio.parts.decoder, {"lora_name": lora, "strength_model": 0.8}
    if how == "hook LoRA":
        hooks = studio.call("CreateHookLoraModelOnly", **given)
        hooked = studio.call(
            "ConditioningSetProperties", cond_NEW=studio.positive, strength=1.0, set_cond_area="default", hooks=hooks
        )
        return model, {"positive": hooked, "negative": studio.negative}
    tuned = studio.call("LoraLoaderModelOnly", model=model, **given)
    return studio.call("ModelMergeSimple", model1=model, model2=tuned, ratio=0.3), studio.prompts


@pytest.mark.parametrize("how", ["hook LoRA", "merge"])
def test_changed_weights_act_either_way(studio, lora, how):
    model, prompts = change(studio, lora, how)

    def run(model: Any, **prompts: Any) -> torch.Tensor:
        return studio.sample_decoder(studio.prior_latent, model=model, steps=2, seed=3, **prompts)["samples"]

    asked: list[Any] = []
    with watched(model, asked):
        lent = run(model, **prompts)
    with watched(model):
        expected = run(model, **prompts)
    assert asked and all(each is not None for each in asked)
    assert relative(lent, expected) < 1e-4
    assert relative(lent, run(studio.parts.decoder)) > 0.01
