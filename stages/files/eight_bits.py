"""Which weights of a network can be stored in 8 bits without a scale, and which have to stay in more."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

SHARE = 0.2
"""This part of a network's weights, its smallest layers, stays in more bits: the finest levels, which decide most."""

ROUNDING = {torch.float8_e4m3fn: 0.0265, torch.float8_e5m2: 0.053}
"""Root mean square of the relative rounding error of each format, for numbers well within its range."""

MOST_ROUNDING = 1.5
"""A layer that loses more than this many times that has values outside of the format's range."""

SAMPLES = 2**16


def choose_full_layers(tensors: Mapping[str, Tensor], dtype: torch.dtype) -> set[str]:
    """The names of ``tensors`` that are not to be stored as ``dtype``, a float of 8 bits; empty for other dtypes.

    These are all vectors (biases, norms, gates), the smallest layers up to :data:`SHARE` of all weights (embeddings,
    read-out, noise levels, the finest levels of the U), and every layer that ``dtype`` would round more than it does
    numbers of its range.
    """
    if dtype not in ROUNDING:
        return set()
    whole = {name: tensor for name, tensor in tensors.items() if tensor.is_floating_point() and tensor.itemsize > 1}
    room = SHARE * sum(tensor.numel() for tensor in whole.values())
    kept = set()
    for name, tensor in sorted(whole.items(), key=lambda item: item[1].numel()):
        room -= tensor.numel()
        if room >= 0 or tensor.ndim < 2 or not measure_rounding(tensor, dtype) < MOST_ROUNDING * ROUNDING[dtype]:
            kept.add(name)
    return kept


def measure_rounding(weight: Tensor, dtype: torch.dtype) -> float:
    """The error of storing ``weight`` as ``dtype`` by the size of ``weight``, from :data:`SAMPLES` values or fewer.

    NaN where ``dtype`` has none for them.
    """
    values = weight.detach().flatten()
    values = values[:: max(1, values.numel() // SAMPLES)].float()
    return float((values - values.to(dtype).float()).norm() / values.norm().clamp(min=1e-30))
