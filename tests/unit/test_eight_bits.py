"""Which weights may be stored in 8 bits: by size, by shape, and by what the format would lose of them."""

from __future__ import annotations

import pytest
import torch

from cascade_studio.stages.files.eight_bits import ROUNDING, SHARE, choose_full_layers, measure_rounding

E4M3, E5M2 = FORMATS = (torch.float8_e4m3fn, torch.float8_e5m2)


def matrix(size: int = 512, scale: float = 0.05, seed: int = 0) -> torch.Tensor:
    return scale * torch.randn(size, size, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("dtype", FORMATS)
def test_the_rounding_of_a_format_is_that_of_its_mantissa(dtype):
    assert measure_rounding(matrix(scale=1.0), dtype) == pytest.approx(ROUNDING[dtype], rel=0.05)


@pytest.mark.parametrize("dtype", FORMATS)
def test_small_layers_and_vectors_stay(dtype):
    tensors = {f"large.{index}": matrix(seed=index) for index in range(12)}
    tensors |= {"small": matrix(64), "bias": torch.ones(2048), "counter": torch.ones(4, dtype=torch.long)}
    kept = choose_full_layers(tensors, dtype)
    assert {"small", "bias"} <= kept and "counter" not in kept
    assert sum(tensors[name].numel() for name in kept) <= SHARE * sum(tensor.numel() for tensor in tensors.values())
    assert len(kept & {f"large.{index}" for index in range(12)}) <= 12 * SHARE


def test_layers_outside_of_the_range_stay():
    """Numbers below what e4m3 holds are lost, those above become NaN; e5m2 holds the small ones."""
    tensors = {f"large.{index}": matrix(seed=index) for index in range(20)}
    tensors |= {"tiny": matrix(700, 1e-4), "huge": matrix(700, 300.0)}
    assert {"tiny", "huge"} <= choose_full_layers(tensors, E4M3)
    assert not {"tiny", "huge"} & choose_full_layers(tensors, E5M2)


def test_other_formats_keep_nothing_apart():
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        assert not choose_full_layers({"large": matrix(), "bias": torch.ones(3)}, dtype)
    stored = {"large": matrix().to(E4M3), "large.bias": torch.ones(8)}
    assert choose_full_layers(stored, E4M3) == {"large.bias"}, "what is stored in 8 bits already is as it is"
