"""Optimisers that need little memory, in plain PyTorch, so that they run on every device and go on bit by bit.

Both can step one weight at a time while the backward pass goes on, and round bfloat16 weights by chance
(Gupta et al. 2015, arXiv 1502.02551): an update smaller than half a last place is then made in that share of all cases
instead of never.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from .seeding import make_number

BLOCK = 256
"""Moments that share a scale."""


def round_by_chance(value: Tensor, generator: torch.Generator | None) -> Tensor:
    """float32 → bfloat16, up or down with the probability that makes the mean right."""
    bits = value.contiguous().view(torch.int32)
    noise = torch.randint(0, 1 << 16, bits.shape, generator=generator, device=bits.device, dtype=torch.int32)
    return ((bits + noise) & -65536).view(torch.float32).to(torch.bfloat16)


def pack(values: Tensor, power: int, signed: bool) -> tuple[Tensor, Tensor]:
    """float32 of any shape → bytes and one scale for each :data:`BLOCK`. What is kept is |x/max|^(1/power), so that
    small values keep their digits (after Dettmers et al. 2022, arXiv 2110.02861)."""
    flat = values.flatten()
    flat = torch.nn.functional.pad(flat, (0, -len(flat) % BLOCK)).view(-1, BLOCK)
    scale = flat.abs().amax(1, keepdim=True).clamp(min=1e-38)
    part = (flat.abs() / scale) ** (1 / power)
    codes = (part * 127).round().to(torch.int8) * flat.sign().to(torch.int8) if signed else (part * 255).round()
    return codes.to(torch.int8 if signed else torch.uint8), scale.squeeze(1)


def unpack(codes: Tensor, scale: Tensor, power: int, shape: torch.Size) -> Tensor:
    """Inverse of :func:`pack`."""
    part = codes.float() / (127 if codes.dtype == torch.int8 else 255)
    values = part.abs() ** power * part.sign() * scale[:, None]
    return values.flatten()[: shape.numel()].view(shape)


class Slim(torch.optim.Optimizer):
    """Common parts. A subclass says in ``find_update`` how far a weight goes, in units of the learning rate."""

    PLACE: str | None = None
    """The device of its state where that is not the weight's own."""

    def __init__(
        self, parameters: Iterable[nn.Parameter], lr: float, weight_decay: float, seed: int, **more: Any
    ) -> None:
        super().__init__(list(parameters), {"lr": lr, "weight_decay": weight_decay, **more})
        self.seed = seed
        self.numbers = {p: n for n, p in enumerate(p for group in self.param_groups for p in group["params"])}

    def find_update(self, grad: Tensor, state: dict[str, Any], group: dict[str, Any]) -> Tensor:
        """The direction of this step, float32; ``state["step"]`` counts from 1."""
        raise NotImplementedError

    @torch.no_grad()
    def step_one(self, parameter: nn.Parameter) -> None:
        """Update one weight from its gradient."""
        group = next(group for group in self.param_groups if any(parameter is p for p in group["params"]))
        state = self.state[parameter]
        state["step"] = state.get("step", 0) + 1
        grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        direction = self.find_update(grad.float(), state, group)
        value = parameter.float() * (1 - group["lr"] * group["weight_decay"]) - group["lr"] * direction
        if parameter.dtype == torch.bfloat16:
            place = make_number(self.seed, "round", state["step"], self.numbers[parameter])
            chance = torch.Generator(parameter.device).manual_seed(place)
            parameter.copy_(round_by_chance(value, chance))
        else:
            parameter.copy_(value)

    @torch.no_grad()
    def step(self, closure=None):
        """Update every weight that has a gradient."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self.step_one(parameter)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """PyTorch casts a state to its weight's dtype, which bytes and float32 beside bfloat16 must be spared."""
        super().load_state_dict(state_dict)
        ordered = [p for group in self.param_groups for p in group["params"]]
        for number, state in state_dict["state"].items():
            self.state[ordered[number]] = {
                key: value.to(self.PLACE or ordered[number].device, copy=True) if isinstance(value, Tensor) else value
                for key, value in state.items()
            }


class TwoMoments(Slim):
    """What takes the settings of AdamW: rates of two moments, and what keeps their quotient finite."""

    def __init__(
        self,
        parameters: Iterable[nn.Parameter],
        lr: float = 1e-4,
        betas: tuple[float, float] = (0.9, 0.999),
        weight_decay: float = 0.01,
        eps: float = 1e-8,
        seed: int = 0,
    ) -> None:
        super().__init__(parameters, lr, weight_decay, seed, betas=betas, eps=eps)


class AdamW8bit(TwoMoments):
    """AdamW (Loshchilov & Hutter 2017) whose two moments take a byte each."""

    def find_update(self, grad: Tensor, state: dict[str, Any], group: dict[str, Any]) -> Tensor:
        (first, second), count, shape = group["betas"], state["step"], grad.shape
        if count == 1:
            mean, square = torch.zeros_like(grad), torch.zeros_like(grad)
        else:
            mean = unpack(state["mean"], state["mean_scale"], 2, shape)
            square = unpack(state["square"], state["square_scale"], 4, shape)
        mean.lerp_(grad, 1 - first)
        square.lerp_(grad.square(), 1 - second)
        state["mean"], state["mean_scale"] = pack(mean, 2, signed=True)
        state["square"], state["square_scale"] = pack(square, 4, signed=False)
        root = (square / (1 - second**count)).sqrt_()
        return mean / (1 - first**count) / root.add_(group["eps"])


class Adafactor(Slim):
    """Adafactor without a first moment (Shazeer & Stern 2018, arXiv 1804.04235): of a matrix's squared gradients only
    the means of rows and columns are kept; an update's root mean square is at most 1."""

    EPS = 1e-30

    def __init__(
        self, parameters: Iterable[nn.Parameter], lr: float = 1e-4, weight_decay: float = 0.0, seed: int = 0
    ) -> None:
        super().__init__(parameters, lr, weight_decay, seed)

    def find_update(self, grad: Tensor, state: dict[str, Any], group: dict[str, Any]) -> Tensor:
        share = state["step"] ** -0.8
        squared = grad.square().add_(self.EPS)
        if grad.ndim < 2:
            square = state.setdefault("square", torch.zeros_like(squared)).lerp_(squared, share)
            update = grad * square.rsqrt()
        else:
            table = squared.flatten(1)
            rows = state.setdefault("rows", torch.zeros_like(table[:, 0])).lerp_(table.mean(1), share)
            columns = state.setdefault("columns", torch.zeros_like(table[0])).lerp_(table.mean(0), share)
            root = (rows / rows.mean()).rsqrt()[:, None] * columns.rsqrt()
            update = (grad.flatten(1) * root).view_as(grad)
        return update / (update.norm() / math.sqrt(update.numel())).clamp(min=1.0)


class HostAdamW(TwoMoments):
    """AdamW whose moments and float32 weights stay in the computer's memory (ZeRO-Offload, Ren et al. 2021, arXiv
    2101.06840): the device holds the weights alone, rounded to their dtype."""

    PLACE = "cpu"

    @torch.no_grad()
    def step_one(self, parameter: nn.Parameter) -> None:
        group = next(group for group in self.param_groups if any(parameter is p for p in group["params"]))
        state, (first, second) = self.state[parameter], group["betas"]
        given = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        grad = given.to("cpu", torch.float32)
        if not state:
            whole = parameter.detach().to("cpu", torch.float32, copy=True)
            state.update(step=0, whole=whole, mean=torch.zeros_like(whole), square=torch.zeros_like(whole))
        state["step"] += 1
        state["mean"].lerp_(grad, 1 - first)
        state["square"].mul_(second).addcmul_(grad, grad, value=1 - second)
        root = (state["square"] / (1 - second ** state["step"])).sqrt_().add_(group["eps"])
        state["whole"].mul_(1 - group["lr"] * group["weight_decay"])
        state["whole"].addcdiv_(state["mean"], root, value=-group["lr"] / (1 - first ** state["step"]))
        parameter.copy_(state["whole"])
