"""Extraction of LoRAs from differences, and the parts of a network that merges weigh."""

from __future__ import annotations

import pytest
import torch
from tiny import tiny_weights

from cascade_studio.stages import KINDS, StageB, StageC
from cascade_studio.stages.lora.extract import (
    ATTENTION_ONLY,
    EVERYTHING,
    MATRICES,
    Extraction,
    extract_layer,
    in_scope,
    low_rank,
)
from cascade_studio.stages.lora.merge import GROUPS, group_of


def noise(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


def test_full_rank_is_the_matrix_itself():
    matrix = noise(40, 60)
    up, down, energy = low_rank(matrix, 40)
    assert torch.allclose(up @ down, matrix, atol=1e-5) and energy == pytest.approx(1.0)


@pytest.mark.parametrize("rank", [1, 8, 30])
def test_energy_is_what_is_kept(rank):
    matrix = noise(40, 60)
    up, down, energy = low_rank(matrix, rank)
    assert up.shape == (40, rank) and down.shape == (rank, 60)
    lost = (matrix - up @ down).square().sum() / matrix.square().sum()
    assert float(lost) == pytest.approx(1 - energy, abs=1e-5)
    values = torch.linalg.svdvals(matrix).square()
    assert energy == pytest.approx(float(values[:rank].sum() / values.sum()), abs=1e-5), "no rank keeps more"


def test_wanted_energy_gives_the_lowest_rank():
    matrix = noise(40, 60)
    _, down, energy = low_rank(matrix, 40, 0.7)
    assert energy >= 0.7 and low_rank(matrix, len(down) - 1)[2] < 0.7
    assert len(low_rank(matrix, 3, 0.99)[1]) == 3, "the rank is the most"


def test_large_matrices_are_decomposed_by_sampling():
    """A change of low rank is found whole, the same each time, and without touching the random numbers of others."""
    matrix = noise(600, 8) @ noise(700, 8).T
    torch.manual_seed(5)
    state = torch.random.get_rng_state()
    up, down, energy = low_rank(matrix, 8)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert energy > 0.9999 and (up @ down - matrix).abs().max() < 1e-3 * matrix.abs().max()
    assert torch.equal(low_rank(matrix, 8)[0], up)


def test_parts_of_each_kind_of_parameter():
    parts, layer = extract_layer("down_blocks.0.0.channelwise.0.weight", noise(64, 32), 4)
    assert set(parts) == {"lora_up.weight", "lora_down.weight", "alpha"} and float(parts["alpha"]) == layer.rank == 4
    parts, _ = extract_layer("down_downscalers.1.1.weight", noise(64, 32, 2, 2), 4, dtype=torch.float16)
    assert parts["lora_up.weight"].shape == (64, 4, 1, 1) and parts["lora_down.weight"].shape == (4, 32, 2, 2)
    assert parts["lora_up.weight"].dtype == torch.float16
    for name, shape, part in (
        ("a.bias", (64,), "diff_b"),
        ("a.channelwise.2.gamma", (1, 1, 1, 64), "diff"),
        ("a.depthwise.weight", (64, 1, 3, 3), "diff"),
        ("a.weight", (8, 8), "diff"),
    ):
        parts, layer = extract_layer(name, noise(*shape), 16)
        assert set(parts) == {part} and torch.equal(parts[part], noise(*shape)) and layer.rank == 0
    assert extract_layer("a.weight", torch.zeros(64, 32), 4) is None
    assert set(extract_layer("a.weight", noise(64, 32), 64, energy=0.3)[0]) > {"lora_up.weight"}, "a low rank is enough"
    assert set(extract_layer("a.weight", noise(64, 32), 64, energy=0.999)[0]) == {"diff"}


def test_scopes():
    names = {
        "down_blocks.0.2.attention.attn.to_q.weight": (8, 8),
        "down_blocks.0.0.channelwise.0.weight": (8, 8),
        "down_blocks.0.2.attention.attn.to_q.bias": (8,),
        "down_blocks.0.0.channelwise.2.gamma": (1, 1, 1, 8),
    }
    counts = {
        scope: sum(in_scope(name, shape, scope) for name, shape in names.items())
        for scope in (ATTENTION_ONLY, MATRICES, EVERYTHING)
    }
    assert counts == {ATTENTION_ONLY: 1, MATRICES: 2, EVERYTHING: 4}


def test_extraction_reports_what_loses_most():
    _, first = extract_layer("a.weight", noise(64, 32), 2)
    _, second = extract_layer("b.weight", noise(64, 2) @ noise(2, 32), 2)
    text = Extraction((second, first), 3).text(1)
    assert "2 layers differ, 3 are the same" in text and "  a: " in text and "  b: " not in text
    assert "same" in Extraction((), 3).text()


EXPECTED = {
    "stage_c": {
        "embedding.1.weight": "input",
        "down_blocks.0.2.attention.attn.to_q.weight": "input",
        "down_downscalers.1.1.blocks.0.weight": "deep_down",
        "down_blocks.1.0.depthwise.weight": "deep_down",
        "up_blocks.0.0.depthwise.weight": "deep_up",
        "up_upscalers.0.1.blocks.1.weight": "deep_up",
        "up_blocks.1.0.channelwise.2.gamma": "output",
        "clf.1.bias": "output",
        "clip_txt_mapper.weight": "conditioning",
        "clip_img_mapper.bias": "conditioning",
        "up_blocks.0.2.kv_mapper.1.weight": "conditioning",
        "up_blocks.0.1.mapper.weight": "time",
        "down_blocks.0.1.mapper_crp.bias": "time",
    },
    "stage_b": {
        "embedding.1.weight": "input",
        "down_blocks.1.0.depthwise.weight": "input",
        "down_downscalers.2.1.weight": "deep_down",
        "down_blocks.3.2.attention.attn.out_proj.weight": "deep_down",
        "up_blocks.0.0.channelwise.4.weight": "deep_up",
        "up_blocks.1.0.depthwise.weight": "deep_up",
        "up_upscalers.1.1.weight": "deep_up",
        "up_repeat_mappers.0.0.weight": "deep_up",
        "up_blocks.2.0.depthwise.weight": "output",
        "up_repeat_mappers.3.0.weight": "output",
        "effnet_mapper.0.weight": "conditioning",
        "pixels_mapper.2.bias": "conditioning",
        "clip_mapper.weight": "conditioning",
        "up_blocks.3.1.mapper_sca.weight": "time",
    },
}


@pytest.mark.parametrize("kind", EXPECTED)
def test_groups(kind):
    config = next(iter(KINDS[kind].published.values()))
    names = (StageC if kind == "stage_c" else StageB)(config, device="meta").state_dict()
    levels = len(config.c_hidden)
    assert {name: group_of(name, levels) for name in EXPECTED[kind]} == EXPECTED[kind]
    assert EXPECTED[kind].keys() <= names.keys()
    assert {group_of(name, levels) for name in names} == set(GROUPS)


def test_tiny_networks_have_every_group():
    for name, levels in (("stage_c_tiny", 2), ("stage_b_tiny", 4)):
        assert {group_of(key, levels) for key in tiny_weights(name)} == set(GROUPS)
