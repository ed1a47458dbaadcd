"""Frozen networks, the adapters beside their layers, and the files that hold what was learned."""

from __future__ import annotations

import json
from dataclasses import replace

import lessons
import pytest
import torch
from lessons import SHORT, randn, trainer
from safetensors import safe_open
from safetensors.torch import load_file
from tiny import relative, tiny_net, tiny_weights

from cascade_studio.stages.errors import WrongInput
from cascade_studio.stages.training import export
from cascade_studio.stages.training.frozen_net import FLOAT8, FrozenLinear
from cascade_studio.stages.training.lora_layers import Adapter, Lora, find_layers
from cascade_studio.stages.training.settings import ATTENTION

INPUTS = randn(2, 16, 4, 5, seed=1), torch.tensor([0.3, 0.8]), randn(2, 7, 96, seed=2), randn(2, 1, 96, seed=3)


def lora_of(net, **options) -> Lora:
    """A LoRA whose ups are not zero."""
    lora = Lora(net, 2, 3.0, options.pop("blocks", (ATTENTION,)), **options)
    with torch.no_grad():
        for number, up in enumerate(lora.up.values()):
            up.copy_(randn(*up.shape, seed=number))
    return lora


def merged(lora: Lora) -> dict[str, torch.Tensor]:
    """The tiny weights with the LoRA added to them, by the definition."""
    changes = {key: up @ down * (lora.alpha / lora.rank) for key, up, down in lora.pairs()}
    weights = {}
    for key, value in tiny_weights("stage_c_tiny").items():
        change = changes.get(key.removesuffix(".weight").replace(".", "_")) if key.endswith(".weight") else None
        weights[key] = value if change is None else value + change.view_as(value)
    return weights


@pytest.mark.parametrize("checkpointing", [False, True])
def test_frozen_net_is_the_net(checkpointing):
    net, wanted = lessons.net(checkpointing=checkpointing), tiny_net("stage_c_tiny")
    assert relative(net(*INPUTS), wanted(*INPUTS)) <= 1e-5
    assert not any(parameter.requires_grad for parameter in net.parameters())
    given = {value.data_ptr() for value in tiny_weights("stage_c_tiny").values()}
    assert not given & {p.data_ptr() for p in net.parameters()}, "the copy is private"


def test_eight_bits_are_a_quarter_of_the_room_and_near():
    net, wanted = lessons.net(base="fp8"), tiny_net("stage_c_tiny")
    layers = [module for module in net.modules() if isinstance(module, FrozenLinear)]
    assert layers and all(
        layer.weight.dtype == FLOAT8 and layer.scale.shape == (len(layer.weight),) for layer in layers
    )
    assert net.clf[1].weight.dtype == torch.bfloat16
    error = net(*INPUTS) - wanted(*INPUTS)
    assert error.std() <= 0.06 * wanted(*INPUTS).std()
    x = randn(3, 128, seed=4).requires_grad_()
    layer = next(layer for layer in layers if layer.in_features == 128)
    (grad,) = torch.autograd.grad(layer(x).sum(), x)
    stored = layer.weight.float() * layer.scale[:, None]
    assert torch.allclose(grad, stored.sum(0).expand_as(x), atol=1e-4 * float(stored.abs().sum(0).max()))


@pytest.mark.parametrize("blocks", [(ATTENTION,), (".channelwise", ".mapper"), (".kv_mapper", ".embedding", ".clf")])
@pytest.mark.parametrize("shared", [False, True])
def test_adapters_compute_the_merged_weights(blocks, shared):
    net = lessons.net()
    count = len(list(find_layers(net, blocks)))
    lora = lora_of(net, blocks=blocks, shared=shared)
    assert count == len(lora.layers) == sum(isinstance(module, Adapter) for module in net.modules()) > 1
    wanted = tiny_net("stage_c_tiny")
    before = wanted(*INPUTS)
    wanted.load_state_dict(merged(lora))
    assert relative(net(*INPUTS), wanted(*INPUTS)) <= 2e-5 < 0.01 < relative(wanted(*INPUTS), before)


def test_the_official_filter_means_four_projections_of_every_attention():
    lora = Lora(lessons.net(), 2, 2.0, (ATTENTION,))
    assert len(lora.layers) == 4 * 6 and all("_attention_attn_" in key for key in lora.layers)
    assert len(lora.down) == 24 and len(Lora(lessons.net(), 2, 2.0, (ATTENTION,), shared=True).down) == 12
    with pytest.raises(WrongInput, match="nothing to train"):
        Lora(lessons.net(), 2, 2.0, (".nowhere",))


def test_nothing_is_changed_before_training_and_seeds_matter():
    net = lessons.net()
    before = net(*INPUTS)
    one = Lora(net, 2, 2.0, (ATTENTION,), seed=1)
    assert torch.equal(net(*INPUTS), before)
    same, other = (Lora(lessons.net(), 2, 2.0, (ATTENTION,), seed=seed) for seed in (1, 2))
    assert all(
        torch.equal(one.down[key], same.down[key]) and not torch.equal(one.down[key], other.down[key])
        for key in one.down
    )


@pytest.mark.parametrize("checkpointing", [False, True])
def test_gradients_are_on_the_lora_only(checkpointing):
    run = trainer(replace(SHORT, checkpointing=checkpointing))
    before = {key: value.clone() for key, value in run.objective.net.state_dict().items()}
    run.update()
    run.update()
    learned = {id(parameter) for parameter in run.learned.parameters()}
    for name, parameter in run.objective.net.named_parameters():
        assert (parameter.grad is not None) == (id(parameter) in learned), name
    assert all(parameter.grad.abs().max() > 0 for parameter in run.learned.parameters())
    for key, value in run.objective.net.state_dict().items():
        assert torch.equal(value, before[key]) != (key.endswith((".up", ".down"))), key


def test_checkpointing_changes_no_gradient():
    """Also through control maps, whose place depends on a count that a second pass must not move."""
    results = []
    for checkpointing in (False, True):
        net = lessons.net(checkpointing=checkpointing)
        lora = lora_of(net)
        control = [
            None,
            randn(1, 128, 4, 5, seed=8).requires_grad_(),
            None,
            None,
            randn(1, 128, 2, 2, seed=9).requires_grad_(),
        ]
        net(*INPUTS, control=control).square().mean().backward()
        results.append([*(p.grad for p in lora.parameters()), control[1].grad, control[4].grad])
    assert all(torch.allclose(a, b, rtol=1e-4, atol=1e-7) and a.abs().max() > 0 for a, b in zip(*results))


def test_bfloat16_products_train_float32_parameters():
    run = trainer(SHORT, base="bf16")
    run.objective.bfloat16 = True
    loss = run.update()
    assert loss == pytest.approx(trainer().update(), rel=0.05)
    assert {p.dtype for p in run.learned.parameters()} == {torch.float32}
    assert {p.grad.dtype for p in run.learned.parameters()} == {torch.float32}


# Files


def test_comfyui_file(tmp_path):
    net = lessons.net()
    lora = lora_of(net, blocks=(ATTENTION, ".clf"))
    path = tmp_path / "lora.safetensors"
    told = export.metadata(SHORT, "run1", 6)
    export.save_tensors(export.comfyui_names(lora, lora.state_dict()), path, told, torch.float32)
    tensors = load_file(path)
    key = "lora_prior_unet_down_blocks_0_2_attention_attn_to_q"
    assert {f"{key}.lora_up.weight", f"{key}.lora_down.weight", f"{key}.alpha"} <= set(tensors)
    assert len(tensors) == 3 * 25
    changes = merged(lora)
    for name, value in tiny_weights("stage_c_tiny").items():
        start = "lora_prior_unet_" + name.removesuffix(".weight").replace(".", "_")
        if f"{start}.alpha" in tensors and name.endswith(".weight"):
            up, down = tensors[f"{start}.lora_up.weight"], tensors[f"{start}.lora_down.weight"]
            change = (up @ down * tensors[f"{start}.alpha"] / len(down)).view_as(value)
            assert torch.allclose(value + change, changes[name], atol=1e-6)
    with safe_open(path, "pt") as file:
        said = file.metadata()
    assert said["ss_network_dim"] == "2" and said["ss_network_alpha"] == "2.0" and said["ss_steps"] == "6"
    assert json.loads(said[export.SETTINGS])["learning_rate"] == 1e-2
    assert export.read_run(path) == "run1"


def test_official_file_is_the_same_change():
    """out_proj at even, the fused in_proj at odd places, and a scale of 1/rank that the file does not say."""
    net = lessons.net()
    lora = lora_of(net, shared=True)
    tensors = export.official_names(lora, lora.state_dict(), net)
    assert set(tensors) == {f"weights.{i}.lora_{end}" for i in range(12) for end in ("up", "down")}
    assert tensors["weights.0.lora_up"].shape == (128, 2) and tensors["weights.1.lora_up"].shape == (384, 2)
    weights, changed = tiny_weights("stage_c_tiny"), merged(lora)
    places = [
        f"{way}.{level}.{3 * group + 2}.attention.attn"
        for way, level, groups in (
            ("down_blocks", 0, 1),
            ("down_blocks", 1, 2),
            ("up_blocks", 0, 2),
            ("up_blocks", 1, 1),
        )
        for group in range(groups)
    ]
    assert len(places) == 6
    for number, place in enumerate(places):
        for index, names in ((2 * number, ["out_proj"]), (2 * number + 1, ["to_q", "to_k", "to_v"])):
            change = tensors[f"weights.{index}.lora_up"] @ tensors[f"weights.{index}.lora_down"] / lora.rank
            for name, part in zip(names, change.chunk(len(names))):
                key = f"{place}.{name}.weight"
                assert torch.allclose(weights[key] + part, changed[key], atol=1e-5)


def test_files_of_others_are_never_replaced(tmp_path):
    lora = Lora(lessons.net(), 2, 2.0, (ATTENTION,))
    assert export.find_free_path(tmp_path, "mine", "run1").name == "mine.safetensors"
    for run in ("run1", "run2"):
        path = export.find_free_path(tmp_path, "mine", run)
        export.save_tensors(export.comfyui_names(lora, lora.state_dict()), path, export.metadata(SHORT, run, 1))
    assert (
        path.name == "mine_2.safetensors" and export.find_free_path(tmp_path, "mine", "run1").name == "mine.safetensors"
    )
    (tmp_path / "note.safetensors").write_bytes(b"something else")
    assert export.find_free_path(tmp_path, "note", "run1").name == "note_2.safetensors"
    assert {p.name for p in tmp_path.iterdir()} == {"mine.safetensors", "mine_2.safetensors", "note.safetensors"}


def test_rows_that_are_nearly_empty_do_not_explode():
    """Weights of fresh or pruned layers have such rows: their magnitude times a thousand is one step of a rate."""
    layer = torch.nn.Linear(8, 6, bias=False)
    layer.requires_grad_(False)
    layer.weight[:3] = 0
    net, x = torch.nn.ModuleDict({"attn": layer}), randn(32, 8)
    plain = net["attn"](x)
    adapters = Lora(net, 2, 2.0, ("attn",), method="dora")
    optimiser = torch.optim.Adam(adapters.parameters(), 1e-3)
    for _ in range(5):
        optimiser.zero_grad()
        (net["attn"](x) - x[:, :6]).square().mean().backward()
        optimiser.step()
    assert 0 < (net["attn"](x) - plain).abs().max() <= 0.1
    (_, parts), *_ = adapters.name_parts(adapters.state_dict())
    assert torch.isfinite(parts["dora_scale"]).all() and parts["dora_scale"][:3].abs().max() < 1e-6
