"""Steps of sampling as tests write them down, for comparison with what the pack and its host do."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from cascade_studio.stages.diffusion.reuse import Rule


def step_lcm(denoised: Tensor, epsilon: Tensor, sigma: Any, sigma_next: Any, noise: Tensor) -> Tensor:
    """Consistency step (Song et al. 2023; Luo et al. 2023): the picture noised afresh to ``sigma_next``."""
    level = torch.as_tensor(sigma_next, dtype=denoised.dtype, device=denoised.device)
    level = level.reshape(-1, *[1] * (denoised.ndim - 1)) if level.ndim else level
    return denoised + level * noise.to(denoised)


def choose_steps(rule: Rule, levels: Sequence[float]) -> list[int]:
    """The steps of a run over ``levels`` (r, falling) that are computed under ``rule``."""
    chosen: list[int] = []
    for index, level in enumerate(levels):
        if not rule.may_reuse(level, [levels[each] for each in chosen], levels[-1]):
            chosen.append(index)
    return chosen
