"""Numbers that float8 (e4m3) keeps: three bits of mantissa."""

from __future__ import annotations

import math

import torch
from torch import Tensor

RIDGES = tuple(0.005 * 1.25**step for step in range(20))
FLOAT8, MOST = torch.float8_e4m3fn, 448.0


def eight_bits(value: Tensor) -> Tensor:
    """``value`` rounded to float8 (e4m3), in its own dtype."""
    return value.float().clamp(-MOST, MOST).to(FLOAT8).to(value.dtype)


def power_of_two(value: float) -> float:
    """The nearest power of two, by ratio."""
    return 2.0 ** round(math.log2(value))


def time_factor(features: Tensor, target: Tensor, weight: Tensor, constants: int) -> tuple[list[float], list[float]]:
    """Numbers of float8 that make ``target`` (T,) out of ``features`` (T, F) and a sum of ``constants`` numbers.

    Least squares weighted by ``weight``. The largest coefficient is rounded first and the others found anew for what
    it leaves, so that they make up for its rounding; the constants round each other's rest.
    """
    found = [_fit_rounded(features, target, weight, ridge, constants) for ridge in RIDGES]
    return min(found, key=lambda fit: fit[2])[:2]


def _fit_rounded(
    features: Tensor, target: Tensor, weight: Tensor, ridge: float, constants: int
) -> tuple[list[float], list[float], float]:
    """One fit of :func:`time_factor`, and its weighted error."""
    table = torch.cat([features, torch.ones_like(target)[:, None]], 1)
    rest, weights, left = target, [0.0] * features.shape[1], list(range(features.shape[1]))
    while left:
        chosen = [*left, -1]
        known = torch.cat([table[:, chosen] * weight[:, None], ridge * torch.eye(len(chosen), dtype=table.dtype)])
        solved = torch.linalg.lstsq(known, torch.cat([rest * weight, rest.new_zeros(len(chosen))])).solution[:-1]
        index = int(solved.abs().argmax())
        value = float(eight_bits(solved[index]))
        weights[left[index]] = value
        rest = rest - value * table[:, left.pop(index)]
    offset, chain = float((rest * weight.square()).sum() / weight.square().sum()), []
    for _ in range(constants):
        chain.append(float(eight_bits(torch.tensor(offset))))
        offset -= chain[-1]
    return weights, chain, float(((rest - sum(chain)) * weight).square().mean())
