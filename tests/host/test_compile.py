"""Compile Cascade in the host: what acts on a model goes on acting, and nothing is compiled anew for it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from forward import comfyui, forward, inputs_for, low_rank, streamed
from graphs import FILES
from world import FP32, Studio, relative

from cascade_studio.nodes.host.models.hooks import COMPILER_KEY
from cascade_studio.stages.nets import compiled
from cascade_studio.stages.nets.compiled import BlockCompiler

SEED = 4


class Graphs:
    """A backend that runs what it is given as it is, and counts."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, graph: torch.fx.GraphModule, example_inputs: list) -> Any:
        self.count += 1
        return graph.forward


@pytest.fixture
def graphs(monkeypatch) -> Iterator[Graphs]:
    """Counts what Compile Cascade has compiled."""
    torch._dynamo.reset()
    compiled.compile_function.cache_clear()
    counted = Graphs()
    monkeypatch.setattr(BlockCompiler.__init__, "__defaults__", (counted,))
    yield counted
    torch._dynamo.reset()


@pytest.fixture(scope="module")
def lora(studio) -> str:
    shapes = {
        key.removesuffix(".weight"): tuple(value.shape)
        for key, value in studio.parts.prior.model.diffusion_model.state_dict().items()
        if key.endswith((".channelwise.0.weight", ".to_v.weight"))
    }
    return studio.write("loras/t_compiled", comfyui(low_rank(shapes, size=3.0)))


def with_lora(studio: Studio, model: Any, lora: str, strength: float) -> Any:
    return studio.call("LoraLoaderModelOnly", model=model, lora_name=lora, strength_model=strength)


def hooked(studio: Studio, lora: str) -> dict[str, Any]:
    """Prompts with a hook LoRA on the positive one."""
    hooks = studio.call("CreateHookLoraModelOnly", lora_name=lora, strength_model=0.7)
    positive = studio.call(
        "ConditioningSetProperties", cond_NEW=studio.positive, strength=1.0, hooks=hooks, set_cond_area="default"
    )
    return {"positive": positive, "negative": studio.negative}


def test_all_that_acts_goes_on_acting(studio, lora, graphs):
    """Two graphs for LoRAs of two strengths, a hook LoRA, patches, prompts, seeds and sizes; all as uncompiled."""
    plain, wide = studio.parts.prior, studio.canvas(384, 256, batch=3)[0]
    patched = studio.call("CascadeStudio_PerturbedAttention", model=plain, scale=5.0)
    rows: list[tuple[Any, dict[str, Any]]] = [
        (plain, {}),
        (with_lora(studio, plain, lora, 1.0), {}),
        (with_lora(studio, plain, lora, 0.4), {"seed": 9}),
        (studio.call("CascadeStudio_TiledAttention", model=patched, window=2), {}),
        (plain, {"latent": wide, "cfg": 1.0}),
        (plain, hooked(studio, lora)),
    ]
    made = []
    for model, more in rows:
        given = {"latent": studio.canvas()[0], "seed": SEED, "steps": 2, **more}
        expected = studio.sample_prior(model=model, **given)["samples"]
        fast = studio.call("CascadeStudio_Compile", model=model)
        assert fast.is_dynamic() == model.is_dynamic() and fast.model is model.model
        found = studio.sample_prior(model=fast, **given)["samples"]
        assert relative(found, expected) < 1e-4
        made.append(found)
    same_size = [each for each in made if each.shape == made[0].shape]
    assert all(relative(each, made[0]) > 1e-3 for each in same_size[1:])
    assert graphs.count == 2


def test_streamed_weights_run_compiled(studio, lora, graphs):
    """Of a partly loaded model, layers in the processor's memory are cast and patched at use, compiled or not."""
    model = with_lora(studio, studio.parts.prior, lora, 1.0)
    expected = forward(model)
    with streamed(model) as net, torch.inference_mode():
        x, r, conditions = inputs_for(net.config)
        found = net(x, r, transformer_options={COMPILER_KEY: BlockCompiler()}, **conditions)
    assert relative(found, expected) < 1e-4
    assert graphs.count == 2


def test_both_stages_by_the_loader(studio, graphs):
    fast_prior, fast_decoder = studio.call("CascadeStudio_Load", range(2), **FILES, **FP32, compile=True)
    prior = studio.sample_prior(studio.canvas()[0], model=fast_prior, seed=SEED, steps=2)
    latent = studio.sample_decoder(prior, model=fast_decoder, seed=SEED, steps=2)
    expected = studio.sample_decoder(prior, seed=SEED, steps=2)
    assert relative(latent["samples"], expected["samples"]) < 1e-4
    assert graphs.count == 2
    assert not studio.parts.prior.model_options["transformer_options"].get(COMPILER_KEY)
