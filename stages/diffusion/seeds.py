"""Variations of a picture: noise of one seed turned part of the way towards the noise of another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import WrongInput
from .sampling import NoiseStreams

PARALLEL = 1e-6
"""Below this sine of the angle between two noises the arc between them is a straight line."""


def slerp(first: Tensor, second: Tensor, amount: float) -> Tensor:
    """Spherical interpolation (Shoemake 1985) from ``first`` to ``second``, both (B, ...), each picture on its own.

    The direction follows the arc and the length goes evenly from one to the other: noise stays as strong as noise,
    where a straight mix of two would be too weak.
    ``amount`` 0 gives ``first`` itself and 1 gives ``second`` itself. Raises WrongInput for other amounts.
    """
    if not 0 <= amount <= 1:
        raise WrongInput(
            f"The variation strength is {amount}, but it has to lie from 0 (the picture itself) to 1 (another picture)."
        )
    if first.shape != second.shape:
        raise WrongInput(
            f"Noise of shape {tuple(first.shape)} cannot be turned towards noise of shape "
            f"{tuple(second.shape)}: both have to be of one shape."
        )
    if amount in (0, 1):
        return second if amount else first
    lengths = [values.flatten(1).double().norm(dim=1, keepdim=True) for values in (first, second)]
    a, b = (values.flatten(1).double() / length.clamp(min=1e-12) for values, length in zip((first, second), lengths))
    angle = (a * b).sum(1, keepdim=True).clamp(-1, 1).acos()
    sine = angle.sin()
    straight = sine < PARALLEL
    safe = sine.where(~straight, torch.ones_like(sine))
    from_first = torch.where(straight, 1 - amount, ((1 - amount) * angle).sin() / safe)
    from_second = torch.where(straight, amount, (amount * angle).sin() / safe)
    length = torch.lerp(*lengths, amount)
    return (length * (from_first * a + from_second * b)).reshape(first.shape).to(first.dtype)


@dataclass(frozen=True)
class Seeds:
    """Where each picture's noise comes from: its own seed, and with ``strength`` above 0 a second one mixed in."""

    own: tuple[int, ...]
    other: tuple[int, ...] = ()
    strength: float = 0.0

    def __len__(self) -> int:
        return len(self.own)

    def only(self, index: int) -> Seeds:
        """The seeds of one picture."""
        return Seeds(self.own[index : index + 1], self.other[index : index + 1], self.strength)

    def streams(self, stream: int = 0) -> NoiseStreams | VariedNoise:
        """The noise of the whole batch; see :class:`NoiseStreams` for ``stream``."""
        if self.strength == 0:
            return NoiseStreams(self.own, stream)
        return VariedNoise(self, stream)


class VariedNoise:
    """As :class:`NoiseStreams`, from two streams a picture: with strength 1 it is the noise of the second seed."""

    def __init__(self, seeds: Seeds, stream: int = 0) -> None:
        if len(seeds.own) != len(seeds.other):
            raise WrongInput(
                f"{len(seeds.own)} seeds were given with {len(seeds.other)} seeds of variations: give one "
                "of both for each picture."
            )
        self.own, self.other = NoiseStreams(seeds.own, stream), NoiseStreams(seeds.other, stream)
        self.strength = seeds.strength

    def next(self, shape: Sequence[int]) -> Tensor:
        """The next noise of the whole batch, float32 on the CPU; ``shape`` is (B, ...)."""
        return slerp(self.own.next(shape), self.other.next(shape), self.strength)
