"""Stage B against the records of the official code."""

from __future__ import annotations

import pytest
import torch
from tiny import TOLERANCE, fused_keys, golden, index, relative, tiny_net, tiny_weights

from cascade_studio.stages.errors import WrongInput
from cascade_studio.stages.nets.stage_b import StageB, StageBConfig

LITE = {
    "c_hidden": (320, 576, 1152, 1152),
    "nhead": (-1, 9, 18, 18),
    "blocks": ((2, 4, 14, 4), (4, 14, 4, 2)),
    "block_repeat": ((1, 1, 1, 1), (2, 2, 2, 2)),
}
INPUTS = ("x", "r", "effnet", "clip")


@pytest.fixture(scope="module")
def net() -> StageB:
    return tiny_net("stage_b_tiny")


@pytest.fixture(scope="module")
def tensors() -> dict[str, torch.Tensor]:
    return golden("stage_b_tiny")


def inputs(tensors: dict[str, torch.Tensor]) -> list[torch.Tensor]:
    return [tensors[name] for name in INPUTS]


def test_golden(net, tensors):
    assert relative(net(*inputs(tensors)), tensors["out"]) <= TOLERANCE
    assert relative(net(*inputs(tensors), tensors["pixels"]), tensors["out_pixels"]) <= TOLERANCE
    first = [tensor[:1] for tensor in inputs(tensors)[1:]]
    assert relative(net(tensors["x_even"], *first), tensors["out_even"]) <= TOLERANCE


@pytest.mark.parametrize("config, count, keys", [({}, 1_562_941_136, 1454), (LITE, 699_471_248, 826)])
def test_published_sizes(config, count, keys):
    net = StageB(StageBConfig(**config), device="meta")
    assert sum(p.numel() for p in net.parameters()) == count
    assert len(fused_keys(net.state_dict())) == keys


def test_official_keys(net):
    assert net.state_dict().keys() == tiny_weights("stage_b_tiny").keys()
    assert fused_keys(net.state_dict()) == index()["stage_b_tiny"]["keys"].keys()


def test_conditions_broadcast(net, tensors):
    x, r, effnet, clip = (
        tensor if name == "x" else tensor[:1].expand(2, *tensor.shape[1:])
        for name, tensor in zip(INPUTS, inputs(tensors))
    )
    pixels = torch.zeros(2, 3, 8, 8)
    expected = net(x, r, effnet, clip, pixels, torch.zeros(2))
    assert relative(net(x, r, effnet[:1], clip[:1, 0]), expected) < 1e-5
    assert relative(net(x, r, effnet[:1], clip, pixels[:1]), expected) < 1e-5


@pytest.mark.parametrize(
    "changes",
    [
        {"block_repeat": ((2, 1, 1, 3), (1, 2, 1, 2)), "c_r": 33},
        {"level_config": ("CF", "T", "CTA", "ACT"), "self_attn": (True, True, False, True), "t_conds": ()},
    ],
    ids=",".join,
)
def test_other_configurations_run(tensors, changes):
    net = tiny_net("stage_b_tiny", **changes)
    out = net(*inputs(tensors))
    assert out.shape == tensors["x"].shape and out.isfinite().all()
    apart = [net(*(tensor[i : i + 1] for tensor in inputs(tensors))) for i in range(2)]
    assert relative(torch.cat(apart), out) < 1e-5


@pytest.mark.parametrize(
    "change, words",
    [
        ({"x": torch.zeros(2, 16, 24, 24)}, ("Stage C", "4 channels", "Stage B")),
        ({"x": torch.zeros(2, 4, 35, 28)}, ("28 x 35", "multiples of 2")),
        ({"effnet": torch.zeros(2, 4, 36, 28)}, ("effnet", "16 channels", "Stage C latent")),
        ({"clip": torch.zeros(2, 1, 64)}, ("clip", "64", "96")),
        ({"pixels": torch.zeros(2, 4, 8, 8)}, ("pixels", "3 channels")),
    ],
)
def test_wrong_inputs_are_sentences(net, tensors, change, words):
    with pytest.raises(WrongInput) as caught:
        net(**{**{name: tensors[name] for name in INPUTS}, **change})
    assert all(word in str(caught.value) for word in words)
