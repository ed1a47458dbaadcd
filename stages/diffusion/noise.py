"""Noise that belongs to its picture: every picture of a batch draws from a generator of its own."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from ..errors import WrongInput

SEED_SPACE = 1 << 64


def list_image_seeds(seed: int, count: int) -> list[int]:
    """The seeds of a batch: picture i of seed S is picture 0 of seed S + i."""
    return [(seed + index) % SEED_SPACE for index in range(count)]


def _stream_seed(seed: int, stream: int) -> int:
    """Scatter all streams but the first over the seed space (splitmix64), away from the neighbouring pictures."""
    mixed = seed % SEED_SPACE
    if stream == 0:
        return mixed
    mixed = (mixed + stream * 0x9E3779B97F4A7C15) % SEED_SPACE
    mixed = (mixed ^ mixed >> 30) * 0xBF58476D1CE4E5B9 % SEED_SPACE
    mixed = (mixed ^ mixed >> 27) * 0x94D049BB133111EB % SEED_SPACE
    return mixed ^ mixed >> 31


class NoiseStreams:
    """Normal noise in which every picture draws from a generator of its own, so that none depends on its batch.

    Use ``stream`` 0 for the initial noise (the numbers that ``torch.manual_seed(seed)`` gives) and another one, 1 say,
    for the noise of the steps: two uses of the same stream would add the same noise twice.
    """

    def __init__(self, seeds: Iterable[int], stream: int = 0) -> None:
        self.generators = [torch.Generator("cpu").manual_seed(_stream_seed(seed, stream)) for seed in seeds]

    def next(self, shape: Sequence[int]) -> Tensor:
        """The next noise of the whole batch, float32 on the CPU; ``shape`` is (B, ...) with B the number of seeds."""
        if len(shape) == 0 or shape[0] != len(self.generators):
            raise WrongInput(
                f"Noise of shape {tuple(shape)} was asked from {len(self.generators)} seeds, but the "
                "first dimension has to be the number of seeds: give one seed for each picture."
            )
        rows = [torch.randn(tuple(shape[1:]), generator=g, dtype=torch.float32) for g in self.generators]
        return torch.stack(rows) if rows else torch.empty(tuple(shape), dtype=torch.float32)
