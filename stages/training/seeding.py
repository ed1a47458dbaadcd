"""Chance, by place: what is drawn for a sample depends on the seed, the step and its place in the batch alone.

So the result does not depend on how a batch is split over parts, processes or machines, and a run that was stopped
goes on as if it had not been.
"""

from __future__ import annotations

import heapq
from collections.abc import Hashable, Sequence
from hashlib import blake2b

import torch


def make_number(seed: int, *place: int | str) -> int:
    """64 bits for ``place``, unrelated to those of any other place."""
    return int.from_bytes(blake2b(repr((seed, *place)).encode(), digest_size=8).digest(), "big")


def generator(seed: int, *place: int | str) -> torch.Generator:
    """A CPU generator for ``place``."""
    return torch.Generator("cpu").manual_seed(make_number(seed, *place))


class BatchOrder:
    """Which pictures each step sees: always of one shape, so that a batch is one pass, and each as often as all others.

    ``groups`` says the shape of every picture and ``repeats`` how often an epoch shows it. Every group has an endless
    list, one shuffled epoch after another, of which a batch takes the next pictures. A group with a share p of all
    pictures gets one batch in every stretch of 1/p steps, at a random place of it.
    """

    def __init__(self, seed: int, batch: int, groups: Sequence[Hashable], repeats: Sequence[int] | None = None) -> None:
        self.seed, self.batch = seed, batch
        members: dict[Hashable, list[int]] = {}
        for index, group in enumerate(groups):
            members.setdefault(group, []).extend([index] * (1 if repeats is None else repeats[index]))
        self.members = list(members.values())
        total = sum(map(len, self.members))
        self.shares = [len(some) / total for some in self.members]
        self.batches: list[tuple[int, int]] = []
        self.due = [(self._time(group, 0), group, 0) for group in range(len(self.members))]
        heapq.heapify(self.due)

    def _time(self, group: int, number: int) -> float:
        """When a group's batch of this number is due, in steps."""
        return (number + make_number(self.seed, "due", group, number) / 2**64) / self.shares[group]

    def choose(self, step: int) -> list[int]:
        """The pictures of ``step``."""
        while len(self.batches) <= step:
            _, group, number = heapq.heappop(self.due)
            self.batches.append((group, number))
            heapq.heappush(self.due, (self._time(group, number + 1), group, number + 1))
        group, number = self.batches[step]
        some = self.members[group]
        places = range(number * self.batch, (number + 1) * self.batch)
        name = ("order",) if len(self.members) == 1 else ("order", group)
        orders = {
            epoch: torch.randperm(len(some), generator=generator(self.seed, *name, epoch)).tolist()
            for epoch in {place // len(some) for place in places}
        }
        return [some[orders[place // len(some)][place % len(some)]] for place in places]
