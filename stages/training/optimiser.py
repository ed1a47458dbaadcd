"""Weights over time: learning rates, the optimisers' steps, and running averages of what was learned."""

from __future__ import annotations

import copy
import importlib
import math
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import WrongInput
from .slim import Adafactor, AdamW8bit, HostAdamW, Slim

PACKAGES = {"prodigy": ("prodigyopt", "Prodigy"), "schedule_free": ("schedulefree", "AdamWScheduleFree")}
"""Optimisers that come from a package of their own: its name, and that of the class."""
LOWEST = 0.01
"""The share of the learning rate that a falling schedule ends at."""


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


def scale_rate(schedule: str, update: int, steps: int, warm_up: int, restarts: int = 3) -> float:
    """The factor of the learning rate at ``update`` (from 1) of ``steps``.

    Linear warm-up, then "constant", "linear" or "cosine" down to :data:`LOWEST`, or "restarts" (SGDR, Loshchilov &
    Hutter 2016): that many cosines, each from the top.
    """
    if update <= warm_up:
        return update / max(1, warm_up)
    past = min(1.0, (update - warm_up) / max(1, steps - warm_up))
    if schedule == "constant":
        return 1.0
    if schedule == "linear":
        return 1 - (1 - LOWEST) * past
    within = past if schedule == "cosine" or past == 1 else past * restarts % 1
    return LOWEST + (1 - LOWEST) * (1 + math.cos(math.pi * within)) / 2


def split_groups(parameters: list[nn.Parameter], shares: Mapping[nn.Parameter, float]) -> list[Any]:
    """``parameters``, or groups of them where some learn by a share of the rate."""
    found: dict[float, list[nn.Parameter]] = {}
    for parameter in parameters:
        found.setdefault(shares.get(parameter, 1.0), []).append(parameter)
    if set(found) <= {1.0}:
        return list(parameters)
    return [{"params": some, "share": share} for share, some in found.items()]


def build(kind: str, parameters: list[Any], lr: float, seed: int = 0, **options: Any) -> torch.optim.Optimizer:
    """The optimiser that the settings call ``kind``; :class:`WrongInput` where its package is not installed."""
    if kind in PACKAGES:
        package, name = PACKAGES[kind]
        try:
            made = getattr(importlib.import_module(package), name)
        except ImportError as error:
            raise WrongInput(
                f"The optimiser '{kind}' comes from the Python package {package}, which is not installed. Install it "
                "into ComfyUI's Python (pip install {package}), or choose adamw.".replace("{package}", package)
            ) from error
        return made(parameters, lr=lr, **options)
    if kind in ("adamw_8bit", "adamw_cpu"):
        made = AdamW8bit if kind == "adamw_8bit" else HostAdamW
        return made(parameters, lr=lr, seed=seed, **options)
    if kind == "adafactor":
        return Adafactor(parameters, lr=lr, seed=seed, weight_decay=options.get("weight_decay", 0.0))
    return torch.optim.AdamW(parameters, lr=lr, fused=True, **options)


class Optimiser:
    """Steps with warm-up, a schedule and clipped gradients: one ``step`` a batch.

    Official values: AdamW, lr 1e-4, betas (0.9, 0.999), weight decay 0.01, warm-up over 1 update, gradient norm 1.
    ``schedule`` gives the factor of the rate from the number of the update; by default the warm-up alone. ``shares``:
    of the rate, for parameters that learn at another one than the rest.
    """

    def __init__(
        self,
        parameters: Iterable[nn.Parameter],
        lr: float = 1e-4,
        *,
        kind: str = "adamw",
        betas: tuple[float, float] = (0.9, 0.999),
        weight_decay: float = 0.01,
        warm_up: int = 1,
        clip: float = 1.0,
        seed: int = 0,
        schedule: Callable[[int], float] | None = None,
        shares: Mapping[nn.Parameter, float] | None = None,
    ) -> None:
        self.parameters = [p for p in parameters if p.requires_grad]
        self.lr, self.clip, self.updates = lr, clip, 0
        self.schedule = schedule or (lambda update: min(1.0, update / max(1, warm_up)))
        groups = split_groups(self.parameters, shares or {})
        self.inner = build(kind, groups, lr, seed, betas=betas, weight_decay=weight_decay)
        if hasattr(self.inner, "train"):
            self.inner.train()
        self.fused: list[Any] = []
        self.armed = self.broken = False

    def step(self, loss: Tensor, factor: float = 1.0) -> float:
        """Backward, clip, update with lr · ``factor`` · schedule; returns the gradient norm before clipping.

        A loss or a gradient that is not finite leaves the weights as they are and returns NaN.
        """
        self.clear()
        loss.backward()
        return self.update(factor) if torch.isfinite(loss.detach()) else math.nan

    def clear(self) -> None:
        """Drop all gradients, before the first backward of a step that has several."""
        self.inner.zero_grad(set_to_none=True)

    @property
    def rate(self) -> float:
        """The learning rate of the last update."""
        return max(group["lr"] for group in self.inner.param_groups)

    def set_rate(self, factor: float = 1.0) -> None:
        """Count an update and give its learning rate to the optimiser."""
        self.updates += 1
        for group in self.inner.param_groups:
            group["lr"] = self.lr * factor * self.schedule(self.updates) * group.get("share", 1.0)

    def update(self, factor: float = 1.0) -> float:
        """The second half of :meth:`step`, from the gradients that are there; NaN where they are not finite."""
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, self.clip)
        if not torch.isfinite(norm):
            return math.nan
        self.set_rate(factor)
        self.inner.step()
        return float(norm)

    def fuse(self) -> None:
        """From now on :meth:`arm` makes the next backward update each weight as soon as its gradient is there, and drop
        that (Lv et al. 2023, LOMO, arXiv 2306.09782). Each gradient is then clipped on its own: their common norm is
        not known before the last one."""
        if not isinstance(self.inner, Slim):
            raise WrongInput("Only adamw_8bit, adafactor and adamw_cpu update during the backward pass. Choose one.")
        update = partial(self._update_one, self.inner)
        self.fused = [p.register_post_accumulate_grad_hook(update) for p in self.parameters]

    def arm(self) -> None:
        """The next backward is the last of its step."""
        self.set_rate()
        self.armed, self.broken = True, False

    def disarm(self) -> float:
        """After that backward: NaN where a gradient was not finite, whose weight was left alone."""
        self.armed = False
        return math.nan if self.broken else 0.0

    @torch.no_grad()
    def _update_one(self, inner: Slim, parameter: nn.Parameter) -> None:
        grad = parameter.grad
        if not self.armed or grad is None:
            return
        norm = grad.float().norm()
        if not torch.isfinite(norm):
            self.broken = True
        else:
            share = self.clip * math.sqrt(parameter.numel() / sum(p.numel() for p in self.parameters))
            grad.mul_(min(1.0, share / (float(norm) + 1e-6)))
            inner.step_one(parameter)
        parameter.grad = None

    def state_dict(self) -> dict[str, Any]:
        """The optimiser's state and the number of updates."""
        return {"inner": self.inner.state_dict(), "updates": self.updates}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Inverse of :meth:`state_dict`."""
        self.inner.load_state_dict(state.get("inner", state.get("adamw")))
        self.updates = state["updates"]
