"""Where the noise of a run comes from: one generator a picture, or one for all as elsewhere, and variations of both."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from ..errors import WrongInput
from .noise import SEED_SPACE, NoiseStreams

STEP_STREAM = 1
"""The stream of :class:`NoiseStreams` that the steps draw from; 0 is that of the start."""
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
    length = torch.lerp(lengths[0], lengths[1], amount)
    return (length * (from_first * a + from_second * b)).reshape(first.shape).to(first.dtype)


PER_PICTURE, OFFICIAL, COMFYUI = "per picture", "official", "comfyui"
NOISES = (PER_PICTURE, OFFICIAL, COMFYUI)
"""How a seed becomes noise: a generator for each picture; one generator that goes on from the start into the steps, as
the release and diffusers draw it; or one for the start and a new one for the steps, as core's KSampler draws it."""


class Noise(Protocol):
    """A source of normal noise."""

    def next(self, shape: Sequence[int]) -> Tensor:
        """The next noise of the whole batch; ``shape`` is (B, ...)."""


class BatchNoise:
    """Noise of one generator for a whole batch of ``count`` pictures, of which a run has those in ``rows``."""

    def __init__(self, generator: torch.Generator, count: int, rows: Sequence[int]) -> None:
        self.generator, self.count, self.rows = generator, count, list(rows)

    def next(self, shape: Sequence[int]) -> Tensor:
        """The next noise, (B, ...) float32: drawn for the whole batch, of which the chosen rows are given."""
        whole = (self.count, *shape[1:])
        drawn = torch.randn(whole, generator=self.generator, device=self.generator.device, dtype=torch.float32)
        return drawn if self.rows == list(range(self.count)) else drawn[self.rows]


class VariedNoise:
    """Noise of ``own`` turned towards that of ``other``: with strength 1 it is the latter."""

    def __init__(self, own: Noise, other: Noise, strength: float) -> None:
        self.own, self.other, self.strength = own, other, strength

    def next(self, shape: Sequence[int]) -> Tensor:
        """The next noise on the great circle from the own one to the other, (B, ...) float32."""
        return slerp(self.own.next(shape), self.other.next(shape), self.strength)


@dataclass(frozen=True)
class Seeds:
    """Where each picture's noise comes from: its own seed, and with ``strength`` above 0 a second one mixed in."""

    own: tuple[int, ...]
    other: tuple[int, ...] = ()
    strength: float = 0.0

    def __post_init__(self) -> None:
        if self.strength and len(self.own) != len(self.other):
            raise WrongInput(
                f"{len(self.own)} seeds were given with {len(self.other)} seeds of variations: give one "
                "of both for each picture."
            )

    def __len__(self) -> int:
        return len(self.own)

    def take(self, index: int) -> Seeds:
        """The seeds of one picture."""
        return Seeds(self.own[index : index + 1], self.other[index : index + 1], self.strength)

    def open_stream(self, stream: int = 0) -> Noise:
        """The noise of the whole batch; see :class:`NoiseStreams` for ``stream``."""
        if self.strength == 0:
            return NoiseStreams(self.own, stream)
        return VariedNoise(NoiseStreams(self.own, stream), NoiseStreams(self.other, stream), self.strength)

    def open(self, device: torch.device | str = "cpu") -> tuple[Noise, Noise]:
        """The noise of the start and that of the steps."""
        return self.open_stream(), self.open_stream(STEP_STREAM)


@dataclass(frozen=True)
class BatchSeed:
    """One seed for a batch, whose pictures are the ``places`` of what it draws; ``rows`` are those of this run.

    ``noise`` is :data:`OFFICIAL` or :data:`COMFYUI`. The official code draws on its device; this draws on the CPU, as
    diffusers does with a CPU generator. Core draws the start on the CPU and the steps on the model's device, there with
    seed + 1 on a CPU.
    """

    noise: str
    seed: int
    places: tuple[int, ...]
    rows: tuple[int, ...]
    other: int = 0
    strength: float = 0.0

    def __len__(self) -> int:
        return len(self.rows)

    def take(self, index: int) -> BatchSeed:
        """The seed for one picture of the run, whose noise is still that of the batch."""
        return replace(self, rows=(self.rows[index],))

    def open(self, device: torch.device | str = "cpu") -> tuple[Noise, Noise]:
        """The noise of the start and that of the steps, for a model on ``device``."""
        own = self._open_one(self.seed, device)
        if self.strength == 0:
            return own
        start, steps = zip(own, self._open_one(self.other, device))
        return VariedNoise(*start, self.strength), VariedNoise(*steps, self.strength)

    def _open_one(self, seed: int, device: torch.device | str) -> tuple[Noise, Noise]:
        first = torch.Generator("cpu").manual_seed(seed % SEED_SPACE)
        drawn, chosen = max(self.places) + 1, [self.places[row] for row in self.rows]
        start = BatchNoise(first, drawn, chosen)
        if self.noise == OFFICIAL:
            return start, start
        device = torch.device(device)
        second = torch.Generator(device).manual_seed((seed + (device.type == "cpu")) % SEED_SPACE)
        return start, BatchNoise(second, len(self.places), self.rows)
