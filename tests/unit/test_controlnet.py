"""ControlNets against the official outputs."""

from __future__ import annotations

import pytest
import torch
from recipe import weights_for
from tiny import TOLERANCE, golden, index, relative

from cascade_studio.stages.errors import WrongInput
from cascade_studio.stages.nets.controlnet import ControlNet, ControlNetConfig
from cascade_studio.stages.nets.encoder import EncoderConfig

GOLDENS = ["controlnet_canny", "controlnet_inpainting", "controlnet_simple_tiny", "controlnet_super_resolution"]
SMALL = EncoderConfig(
    c_stem=8, widths=(8, 12), repeats=(1, 2), expansions=(1, 2), strides=(2, 2), fused=(True, False), c_features=24
)


def config_of(name: str) -> ControlNetConfig:
    given = index()[name]["config"]
    return ControlNetConfig(**{**given, "proj_blocks": tuple(given["proj_blocks"])})


@pytest.mark.parametrize("name", GOLDENS)
def test_golden(name):
    tensors, keys = golden(name), index()[name]["keys"]
    net = ControlNet(config_of(name), device="meta")
    assert {key: list(value.shape) for key, value in net.state_dict().items()} == keys
    net.load_state_dict(weights_for(keys), assign=True)
    with torch.inference_mode():
        maps = net(tensors["hint"])
    assert list(maps) == list(net.config.proj_blocks)
    for block, given in maps.items():
        assert relative(given, tensors[f"out_{block}"]) <= TOLERANCE


@pytest.mark.parametrize(
    "changes, count",
    [
        ({}, 796),
        ({"c_in": 16, "bottleneck_mode": "large"}, 86),
        ({"c_in": 512, "bottleneck_mode": "simple", "proj_blocks": tuple(range(64))}, 132),
    ],
)
def test_published_key_counts(changes, count):
    assert len(ControlNet(ControlNetConfig(**changes), device="meta").state_dict()) == count


@pytest.mark.parametrize("c_in, size", [(1, 5), (3, 6), (4, 5)])
def test_only_an_rgb_stem_is_padded(c_in, size):
    """Rows that reach the stem's output: 45 pixels give 22 without padding and 23 with it, then 5 or 6 cells."""
    net = ControlNet(ControlNetConfig(c_in=c_in, c_proj=8, proj_blocks=(0, 2), trunk=SMALL))
    net.load_state_dict(weights_for({key: value.shape for key, value in net.state_dict().items()}))
    stem = net.backbone[0](torch.rand(1, c_in, 45, 45)).shape[-1]
    maps = net(torch.rand(2, c_in, 45, 45))
    assert stem == (23 if c_in == 3 else 22) and list(maps) == [0, 2]
    assert maps[0].shape == (2, 8, -(-stem // 4), -(-stem // 4)) and maps[0].shape[-1] >= size


@pytest.mark.parametrize("mode", ["effnet", "simple", "large"])
def test_gradients_with_frozen_statistics(mode):
    net = ControlNet(
        ControlNetConfig(
            c_in=6,
            c_proj=8,
            proj_blocks=(1,),
            bottleneck_mode=mode,
            trunk=SMALL,
            c_large=(32, 16),
            blocks_large=2,
            c_embed=24,
        )
    ).train()
    net.load_state_dict(weights_for({key: value.shape for key, value in net.state_dict().items()}))
    statistics = {key: value.clone() for key, value in net.named_buffers()}
    net(torch.rand(2, 6, 32, 32))[1].square().mean().backward()
    assert all(each.grad.abs().sum() > 0 for each in net.parameters())
    assert all(torch.equal(value, statistics[key]) for key, value in net.named_buffers())


def test_wrong_input():
    with pytest.raises(WrongInput, match="hint of 6 channels, but 3"):
        ControlNet(ControlNetConfig(c_in=6, trunk=SMALL))(torch.zeros(1, 3, 32, 32))
    with pytest.raises(WrongInput, match="'sketch'"):
        ControlNet(ControlNetConfig(bottleneck_mode="sketch"))
