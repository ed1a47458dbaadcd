"""Weights over time: the optimiser's steps, and running averages of what it learned."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn


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
