"""Chance, by place: what is drawn for a sample depends on the seed, the step and its place in the batch alone.

So the result does not depend on how a batch is split over parts, processes or machines, and a run that was stopped
goes on as if it had not been.
"""

from __future__ import annotations

from hashlib import blake2b

import torch


def generator(seed: int, *place: int | str) -> torch.Generator:
    """A CPU generator for ``place``, unrelated to that of any other place."""
    digest = blake2b(repr((seed, *place)).encode(), digest_size=8).digest()
    return torch.Generator("cpu").manual_seed(int.from_bytes(digest, "big"))


def order(seed: int, epoch: int, count: int) -> list[int]:
    """All of ``count`` pictures in the order of ``epoch``."""
    return torch.randperm(count, generator=generator(seed, "order", epoch)).tolist()


def choose_pictures(seed: int, step: int, batch: int, count: int) -> list[int]:
    """The pictures of ``step``: the next ``batch`` of the endless list of all epochs' orders."""
    places = range(step * batch, (step + 1) * batch)
    orders = {epoch: order(seed, epoch, count) for epoch in {place // count for place in places}}
    return [orders[place // count][place % count] for place in places]
