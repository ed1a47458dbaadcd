"""Guidance beyond the official one, as pure functions on predictions (B, C, H, W)."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from ..attention.layers import QUERIES


def match_contrast(guided: Tensor, like: Tensor, share: float) -> Tensor:
    """``guided`` with ``share`` of its contrast taken from ``like``, picture by picture.

    share · guided · std(like) / std(guided) + (1 - share) · guided (Lin et al., arXiv 2305.08891, section 3.4).
    """
    if share == 0:
        return guided
    ratio = like.std((1, 2, 3), keepdim=True) / guided.std((1, 2, 3), keepdim=True).clamp(min=1e-9)
    return guided * (share * ratio + (1 - share))


def sum_attention(q: Tensor, k: Tensor, heads: int) -> Tensor:
    """How much all queries together attend to each key, the mean over heads: q (B, N, C), k (B, M, C) → (B, M)."""
    batch, length, width = q.shape
    q, k = (x.view(batch, -1, heads, width // heads).transpose(1, 2).float() for x in (q, k))
    total = q.new_zeros(batch, k.shape[2])
    for first in range(0, length, QUERIES):
        products = q[:, :, first : first + QUERIES] @ k.transpose(2, 3) * (width // heads) ** -0.5
        total += products.softmax(-1).sum(2).mean(1)
    return total


def blur(x: Tensor, sigma: float) -> Tensor:
    """``x`` under a Gaussian of ``sigma`` cells, mirrored at its borders; itself at 0."""
    radius = [min(math.ceil(2 * sigma), side - 1) for side in x.shape[-2:]]
    if sigma <= 0 or max(radius) == 0:
        return x
    out = x.float()
    for axis, reach in ((2, radius[0]), (3, radius[1])):
        if reach == 0:
            continue
        weights = torch.exp(-0.5 * (torch.arange(-reach, reach + 1, device=x.device) / sigma).square())
        kernel = (weights / weights.sum()).view(1, 1, *((-1, 1) if axis == 2 else (1, -1)))
        pad = (0, 0, reach, reach) if axis == 2 else (reach, reach, 0, 0)
        out = F.conv2d(F.pad(out, pad, mode="reflect"), kernel.expand(x.shape[1], 1, -1, -1), groups=x.shape[1])
    return out.to(x.dtype)


def blur_where_attended(x0: Tensor, mass: Tensor, grid: tuple[int, int], sigma: float, threshold: float) -> Tensor:
    """Self-attention guidance's adversary: ``x0`` blurred where the network looks (Hong et al., arXiv 2210.00939).

    ``mass`` (B, cells of ``grid``) is :func:`sum_attention`, 1 on average; cells above ``threshold`` are blurred.
    """
    looked = (mass > threshold).to(x0.dtype).view(-1, 1, *grid)
    looked = F.interpolate(looked, size=x0.shape[-2:], mode="nearest")
    return blur(x0, sigma) * looked + x0 * (1 - looked)


def find_optimal_scale(cond: Tensor, uncond: Tensor) -> Tensor:
    """CFG-Zero*'s s = <cond, uncond> / |uncond|², (B, 1, 1, 1): s · uncond comes nearest to cond (arXiv 2503.18886)."""
    products = (cond * uncond).flatten(1).sum(1) / uncond.square().flatten(1).sum(1).clamp(min=1e-8)
    return products.view(-1, 1, 1, 1)


def hold_still(x: Tensor, sigma: Tensor | float) -> Tensor:
    """x0 for which the velocity v = a ε - b x0 is zero; ``x`` is x/a of the variance-preserving process and sigma b/a.

    With x/a = x0 + sigma ε it is x / (1 + sigma²).
    """
    sigma = torch.as_tensor(sigma, dtype=x.dtype, device=x.device).reshape(-1, *([1] * (x.ndim - 1)))
    return x / (1 + sigma.square())
