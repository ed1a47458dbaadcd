"""What the machine does well: bfloat16 where the processor has it, and as many threads as really make it faster."""

from __future__ import annotations

import logging
import time

import torch
from torch import nn

from cascade_studio.stages.nets.backend import processor_has_bf16

log = logging.getLogger(__name__)

GAIN = 1.15
"""All threads have to be this much faster than one: beside other work they wait for each other, many times a step."""


def has_fast_bfloat16(device: torch.device) -> bool:
    """Whether products in bfloat16 are quicker than in float32: elsewhere they are imitated, 10 to 14 times slower."""
    if device.type == "cpu":
        return processor_has_bf16()
    return device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)


def choose_threads(most: int | None = None) -> int:
    """All of torch's threads (or ``most``), or one where they gain nothing: measured, as other work may be running."""
    everything = most or torch.get_num_threads()
    found = {}
    for threads in {1, everything}:
        torch.set_num_threads(threads)
        found[threads] = _measure()
    chosen = everything if found[everything] * GAIN < found[1] else 1
    torch.set_num_threads(chosen)
    log.info(
        "%d of %d threads: a small step takes %s ms",
        chosen,
        everything,
        ", ".join(f"{1000 * seconds:.1f} with {threads}" for threads, seconds in sorted(found.items())),
    )
    return chosen


def _measure(repeats: int = 5) -> float:
    """The median wall time of a few layers as Mini's nets have them, forth and back."""
    net = nn.Sequential(
        nn.Conv2d(128, 128, 3, padding=1, groups=128), nn.Conv2d(128, 256, 1), nn.GELU(), nn.Conv2d(256, 128, 1)
    )
    x = torch.ones(8, 128, 16, 16)
    taken = []
    for _ in range(repeats + 1):
        started = time.perf_counter()
        net(x).sum().backward()
        taken.append(time.perf_counter() - started)
    return sorted(taken[1:])[repeats // 2]
