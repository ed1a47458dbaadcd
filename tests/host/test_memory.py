"""Models under the host's memory management: partial loading, patches on offloaded layers, estimates, refusals."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from graphs import Graph, check_sentence
from torch import Tensor
from world import Parts

CPU = torch.device("cpu")


def noise(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(3))


def denoised(patcher: Any, parts: Parts, stage: str) -> Tensor:
    """One call of the model through the host's wrapper."""
    text, extra = parts.positive[0]
    if stage == "prior":
        conditions = {"clip_text": text, "clip_text_pooled": extra["pooled_output"], "clip_img": torch.zeros(1, 1, 64)}
        return patcher.model.apply_model(noise(1, 16, 4, 3), torch.tensor([2.0]), **conditions)
    conditions = {"effnet": noise(1, 16, 4, 3), "clip": extra["pooled_output"]}
    return patcher.model.apply_model(noise(1, 4, 16, 12), torch.tensor([2.0]), **conditions)


@pytest.mark.parametrize("stage", ["prior", "decoder"])
@pytest.mark.parametrize("patched", [False, True], ids=["plain", "with a LoRA"])
def test_a_partly_loaded_model_computes_the_same(host, parts, stage, patched):
    """Layers beyond the budget stay where they are and are cast as they run, patches included."""
    whole = getattr(parts, stage).clone()
    if patched:
        keys = [
            key
            for key in whole.model.state_dict()
            if key.endswith((".to_v.weight", "kv_mapper.1.weight", "mapper_sca.weight"))
        ]
        assert len(keys) >= 3
        whole.add_patches({key: ("diff", (noise(*whole.model.state_dict()[key].shape) * 0.1,)) for key in keys}, 1.0)
    with torch.inference_mode():
        whole.patch_model(device_to=CPU)
        expected = denoised(whole, parts, stage)
        whole.unpatch_model(device_to=CPU)
        part = whole.clone()
        part.patch_model(device_to=CPU, lowvram_model_memory=max(1, part.model_size() // 3))
        assert part.model.model_lowvram, "the budget was large enough for the whole model: the test proves nothing"
        given = denoised(part, parts, stage)
        part.unpatch_model(device_to=CPU)
        plain = denoised(getattr(parts, stage), parts, stage)
    assert torch.equal(given, expected) or (given - expected).abs().max() <= 1e-5 * expected.std()
    assert patched != bool((plain - expected).abs().max() <= 1e-6 * expected.std())


def test_every_layer_with_weights_can_be_offloaded(parts):
    """Only the raw vectors of GRN and Stage A's gates are no layers of the host's; they are cast where they are
    used.
    """
    nets = [
        parts.prior.model.diffusion_model,
        parts.decoder.model.diffusion_model,
        parts.stage_a.first_stage_model,
        parts.stage_c_vae.first_stage_model,
    ]
    allowed = {"gamma", "beta", "gammas"}
    for net in nets:
        for name, module in net.named_modules():
            own = {key for key, _ in module.named_parameters(recurse=False)}
            assert hasattr(module, "comfy_cast_weights") or own <= allowed, f"{type(net).__name__}: {name} holds {own}"


def test_estimates_grow_with_the_work(parts):
    for model in (parts.prior.model, parts.decoder.model):
        small, wide, many = (model.memory_required(shape) for shape in ([1, 4, 32, 32], [1, 4, 64, 32], [2, 4, 32, 32]))
        assert 0 < small < wide and wide == many


def test_published_stage_b_does_not_reserve_what_core_does(host):
    """Core's guess for one guided 1024x1024 Stage B step is 5 GiB and more; the truth is a fraction of it."""
    from cascade_studio.stages import StageBConfig
    from cascade_studio.stages.nets.memory import activation_memory

    needed = activation_memory(StageBConfig(), 2, 256, 256, 2, (1, 2, 4, 8))
    assert 0.15 * 2**30 < needed < 0.3 * 2**30


@pytest.mark.parametrize("stage", ["C", "B"])
def test_a_picture_that_cannot_fit_is_refused_with_the_estimate(host, parts, monkeypatch, stage):
    import comfy.model_management

    graph = Graph(host)
    canvas = graph.add("CascadeStudio_Canvas", width=256, height=256)
    node = graph.add("CascadeStudio_SamplePrior", model=parts.prior, latent=canvas[0], steps=1, **parts.prompts)
    if stage == "B":
        prior = {"samples": noise(1, 16, 6, 6)}
        node = graph.add("CascadeStudio_SampleDecoder", model=parts.decoder, prior=prior, steps=1, **parts.prompts)
    monkeypatch.setattr(comfy.model_management, "get_total_memory", lambda *_, **__: 2**10)
    check_sentence(graph.error(node[0]), f"Stage {stage}", "GiB", "smaller picture")


def test_stages_make_room_for_each_other(host, parts):
    """After a run everything can be unloaded, and the next run loads it again."""
    import comfy.model_management
    from world import check_works

    check_works(host)
    comfy.model_management.unload_all_models()
    assert not comfy.model_management.loaded_models()
    check_works(host)
