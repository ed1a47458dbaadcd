"""The official training objectives: noise to predict, loss weights, noise kinds, condition dropout.

Everything is a plain function or a small object with a ``state_dict``. Sources: the
official gdf and train packages; Choi et al. 2022 (P2), Kingma et al. 2021 (logsnr). Initial weights: :mod:`.initial`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from ..diffusion.sampling import add_noise, logsnr, noise_condition

EARLIEST = 0.001
"""Training times lie in [0.001, 1]."""


class Noised(NamedTuple):
    """What a network sees and what it has to say: ``x`` and ``noise`` (B, ...), ``logsnr`` and ``r`` (B,) float32."""

    x: Tensor
    noise: Tensor
    logsnr: Tensor
    r: Tensor


def sample_times(
    count: int, generator: torch.Generator | None = None, device: torch.device | str | None = None
) -> Tensor:
    """``count`` times, t = (1 - rand) + 0.001 in [0.001, 1]."""
    return (1 - torch.rand(count, generator=generator, device=device) + EARLIEST).clamp(EARLIEST, 1)


def add_training_noise(x0: Tensor, noise: Tensor, t: Tensor, shift: float = 1.0) -> Noised:
    """``x0`` (B, ...) at times ``t`` (B,); the target of the official training is the noise (epsilon)."""
    level = logsnr(t, shift)
    return Noised(add_noise(x0, noise, level), noise, level, noise_condition(level))


def epsilon_losses(predicted: Tensor, noise: Tensor) -> Tensor:
    """Mean squared error of each sample, (B, ...) → (B,) float32."""
    return (predicted.float() - noise.float()).square().flatten(1).mean(1)


# Loss weights


def p2_weight(logsnr: Tensor, k: float = 1.0, gamma: float = 1.0, scale: float = 1.0) -> Tensor:
    """(k + exp(scale · logsnr))^-gamma, P2 weighting (Choi et al. 2022) with the official defaults."""
    return (k + (scale * logsnr).exp()) ** -gamma


def velocity_weight(logsnr: Tensor, most: float = 1000.0) -> Tensor:
    """1 / a² = 1 + exp(-logsnr), at most ``most``: errors of the noise weigh as those of v = a·noise - b·x0.

    (Salimans & Ho 2022.) Close to pure noise it grows to 10,000, where rounding would be all that is learned.
    """
    return (1 + (-logsnr).exp()).clamp(max=most)


def min_snr_weight(logsnr: Tensor, gamma: float = 5.0) -> Tensor:
    """min(SNR, gamma) / SNR (Hang et al. 2023, arXiv 2303.09556): clear pictures weigh less, noisy ones all alike."""
    return (gamma * (-logsnr).exp()).clamp(max=1.0)


class AdaptiveLossWeight:
    """Weights by the inverse of a running mean of the loss at each noise level, in 300 buckets of logsnr.

    ``update`` uses every sample: n losses in one bucket move it as n steps of the moving average towards their mean
    would, whatever their order. Several processes hand in all their samples (gathered) to stay equal.
    """

    def __init__(
        self,
        buckets: int = 300,
        limits: tuple[float, float] = (-10.0, 10.0),
        decay: float = 0.99,
        weight_limits: tuple[float, float] = (1e-7, 1e7),
    ) -> None:
        self.edges = torch.linspace(*limits, buckets - 1)
        self.losses = torch.ones(buckets)
        self.decay, self.weight_limits = decay, weight_limits

    def indices(self, logsnr: Tensor) -> Tensor:
        """The bucket of each logsnr, (B,) → (B,) on the CPU."""
        return torch.searchsorted(self.edges, logsnr.detach().float().cpu().contiguous())

    def weights(self, logsnr: Tensor) -> Tensor:
        """(B,) → (B,) float32, on the device of ``logsnr``."""
        return (1 / self.losses[self.indices(logsnr)]).clamp(*self.weight_limits).to(logsnr.device)

    def update(self, logsnr: Tensor, losses: Tensor) -> None:
        """Take in the unweighted ``losses`` (B,) of samples at ``logsnr`` (B,)."""
        index, losses = self.indices(logsnr), losses.detach().float().cpu()
        count = torch.zeros_like(self.losses).index_add_(0, index, torch.ones_like(losses))
        total = torch.zeros_like(self.losses).index_add_(0, index, losses)
        kept = self.decay**count
        self.losses = torch.where(count > 0, kept * self.losses + (1 - kept) * total / count.clamp(min=1), self.losses)

    def state_dict(self) -> dict[str, Tensor]:
        """Bucket losses, and the edges that they belong to."""
        return {"losses": self.losses.clone(), "edges": self.edges.clone()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Inverse of :meth:`state_dict`."""
        self.losses, self.edges = state["losses"].clone().float(), state["edges"].clone().float()


# Noise


def offset_noise(noise: Tensor, strength: float, generator: torch.Generator | None = None) -> Tensor:
    """Noise (B, C, H, W) plus ``strength`` times one normal number for each channel."""
    shift = torch.randn(*noise.shape[:2], 1, 1, generator=generator, device=noise.device, dtype=noise.dtype)
    return noise + strength * shift


def pyramid_noise(
    noise: Tensor,
    discount: float = 0.75,
    sizes: tuple[int, int] = (1, 16),
    levels: int = 9,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Noise (B, C, H, W) plus coarser noise, of unit variance again.

    Level i in 1..9 has H/2^i x W/2^i cells, weighs ``discount``^i and is enlarged by repeating; only levels whose
    sides both lie within ``sizes`` take part. Divided by the root of the sum of squared weights.
    """
    total, power = noise.clone(), 1.0
    height, width = noise.shape[2:]
    for level in range(1, levels + 1):
        side = height // 2**level, width // 2**level
        if not all(sizes[0] <= cells <= sizes[1] for cells in side):
            continue
        coarse = torch.randn(*noise.shape[:2], *side, generator=generator, device=noise.device, dtype=noise.dtype)
        total += discount**level * F.interpolate(coarse, size=(height, width), mode="nearest")
        power += discount ** (2 * level)
    return total / math.sqrt(power)


# Conditions


def keep_mask(count: int, drop: float, generator: torch.Generator | None = None) -> Tensor:
    """Which of ``count`` samples keep their condition: True with probability 1 - ``drop``, (B,) bool on the CPU."""
    return torch.rand(count, generator=generator) >= drop


def replace_dropped(condition: Tensor, keep: Tensor, empty: Tensor | float = 0.0) -> Tensor:
    """``condition`` (B, ...) where ``keep`` (B,), else ``empty``: a number, or a tensor that broadcasts to it."""
    mask = keep.to(condition.device).reshape(-1, *[1] * (condition.ndim - 1))
    empty = torch.as_tensor(empty, dtype=condition.dtype, device=condition.device)
    return torch.where(mask, condition, empty)
