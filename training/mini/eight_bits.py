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


def round_together(weight: Tensor, features: Tensor, importance: Tensor, ridge: float = 1e-3) -> Tensor:
    """Numbers of float8 near ``weight`` (rows, F), so that ``features`` (T, F) times them stay what they are.

    Of every row the largest is rounded first, and those left make up for what that changes, by least squares weighted
    by ``importance`` (T,) (Frantar et al. 2023, "GPTQ", arXiv 2210.17323, here with an order of its own for each row).
    A row that float8 keeps comes back as it is.
    """
    table, left = features.double(), weight.double().clone()
    moments = (table * importance.double()[:, None]).T @ table
    moments += ridge * moments.diagonal().max() * torch.eye(len(moments), dtype=moments.dtype, device=moments.device)
    order = left.abs().argsort(1, descending=True)
    ranked = moments[order[:, :, None], order[:, None, :]]
    factor = torch.linalg.cholesky(torch.linalg.inv(ranked), upper=True)
    left, rounded = left.gather(1, order), torch.empty_like(left)
    for column in range(left.shape[1]):
        rounded[:, column] = eight_bits(left[:, column])
        change = (left[:, column] - rounded[:, column]) / factor[:, column, column]
        left[:, column:] -= change[:, None] * factor[:, column, column:]
    return torch.empty_like(rounded).scatter_(1, order, rounded).to(weight.dtype)
