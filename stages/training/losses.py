"""The official training objectives: noise to predict, loss weights, noise kinds, condition dropout, EMA, optimiser.

Everything is a plain function or a small object with a ``state_dict``; loops belong to whoever trains. Sources: the
official gdf and train packages; Choi et al. 2022 (P2), Kingma et al. 2021 (logsnr). Initial weights: :mod:`.initial`.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
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


def noised(x0: Tensor, noise: Tensor, t: Tensor, shift: float = 1.0) -> Noised:
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


# Weights over time


class EMA:
    """A running average of a network's tensors, float32; integer buffers are copied.

    ``start`` updates copy the weights (the official decay of 0 until ``ema_start_iters``), later ones average.
    """

    def __init__(self, net: nn.Module, decay: float = 0.999, start: int = 0) -> None:
        self.decay, self.start, self.updates = decay, start, 0
        self.tensors = {name: self._copy(value) for name, value in net.state_dict().items()}

    @staticmethod
    def _copy(value: Tensor) -> Tensor:
        return value.detach().to(torch.float32 if value.is_floating_point() else value.dtype, copy=True)

    @torch.no_grad()
    def update(self, net: nn.Module) -> None:
        """Take in the weights of ``net`` after an optimiser step."""
        decay = 0.0 if self.updates < self.start else self.decay
        self.updates += 1
        for name, value in net.state_dict().items():
            mine = self.tensors[name]
            if value.is_floating_point():
                mine.lerp_(value.to(mine), 1 - decay)
            else:
                mine.copy_(value)

    def copy_of(self, net: nn.Module) -> nn.Module:
        """A copy of ``net`` with the averaged weights, in eval mode and without gradients."""
        averaged = copy.deepcopy(net).eval().requires_grad_(False)
        averaged.load_state_dict(self.tensors)
        return averaged

    def state_dict(self) -> dict[str, Any]:
        """Tensors and the number of updates."""
        return {"tensors": self.tensors, "updates": self.updates}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Inverse of :meth:`state_dict`."""
        self.updates = state["updates"]
        for name, mine in self.tensors.items():
            mine.copy_(state["tensors"][name])


class Optimiser:
    """AdamW with linear warm-up and clipped gradients: one ``step`` a batch.

    Official values: lr 1e-4, betas (0.9, 0.999), weight decay 0.01, warm-up over 1 update, gradient norm 1.
    """

    def __init__(
        self,
        parameters: Iterable[nn.Parameter],
        lr: float = 1e-4,
        *,
        betas: tuple[float, float] = (0.9, 0.999),
        weight_decay: float = 0.01,
        warm_up: int = 1,
        clip: float = 1.0,
    ) -> None:
        self.parameters = [p for p in parameters if p.requires_grad]
        self.lr, self.warm_up, self.clip, self.updates = lr, warm_up, clip, 0
        self.adamw = torch.optim.AdamW(self.parameters, lr=lr, betas=betas, weight_decay=weight_decay, fused=True)

    def step(self, loss: Tensor, factor: float = 1.0) -> float:
        """Backward, clip, update with lr · ``factor`` · warm-up; returns the gradient norm before clipping.

        A loss or a gradient that is not finite leaves the weights as they are and returns NaN.
        """
        self.clear()
        loss.backward()
        return self.update(factor) if torch.isfinite(loss.detach()) else math.nan

    def clear(self) -> None:
        """Drop all gradients, before the first backward of a step that has several."""
        self.adamw.zero_grad(set_to_none=True)

    def update(self, factor: float = 1.0) -> float:
        """The second half of :meth:`step`, from the gradients that are there; NaN where they are not finite."""
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, self.clip)
        if not torch.isfinite(norm):
            return math.nan
        self.updates += 1
        for group in self.adamw.param_groups:
            group["lr"] = self.lr * factor * min(1.0, self.updates / max(1, self.warm_up))
        self.adamw.step()
        return float(norm)

    def state_dict(self) -> dict[str, Any]:
        """AdamW's state and the number of updates."""
        return {"adamw": self.adamw.state_dict(), "updates": self.updates}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Inverse of :meth:`state_dict`."""
        self.adamw.load_state_dict(state["adamw"])
        self.updates = state["updates"]
