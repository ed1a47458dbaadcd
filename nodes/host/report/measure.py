"""What a piece of work took: seconds, and the most memory in use meanwhile."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import psutil
import torch

TICK = 0.02
"""Seconds between two looks at the process's memory."""


@dataclass
class Taken:
    """Seconds, and peak memory in bytes (None where it cannot be told)."""

    seconds: float = 0.0
    peak_memory: int | None = None


@contextmanager
def measure_work(device: torch.device) -> Iterator[Taken]:
    """Measure the body of a ``with``: weights and loading count too.

    On a graphics card the peak is what PyTorch allocated on it; elsewhere it is by how much the process's memory grew
    meanwhile, which is looked at all the time by a thread that ends with the body.
    """
    taken, start = Taken(), time.perf_counter()
    with _card(device, taken) if _counter(device) else _process(taken):
        yield taken
    taken.seconds = time.perf_counter() - start


def _counter(device: torch.device) -> Any:
    """PyTorch's module for the device, if it counts memory."""
    module = None if device.type == "cpu" else getattr(torch, device.type, None)
    return module if hasattr(module, "max_memory_allocated") else None


@contextmanager
def _card(device: torch.device, taken: Taken) -> Iterator[None]:
    counter = _counter(device)
    counter.reset_peak_memory_stats(device)
    yield
    counter.synchronize(device)
    taken.peak_memory = int(counter.max_memory_allocated(device))


@contextmanager
def _process(taken: Taken) -> Iterator[None]:
    process, done = psutil.Process(os.getpid()), threading.Event()
    before = process.memory_info().rss
    most = [before]

    def watch() -> None:
        while not done.wait(TICK):
            most[0] = max(most[0], process.memory_info().rss)

    watcher = threading.Thread(target=watch, name="cascade-studio-memory", daemon=True)
    watcher.start()
    try:
        yield
    finally:
        done.set()
        watcher.join()
    taken.peak_memory = max(most[0], process.memory_info().rss) - before
