"""Looking for NaN and infinity without making a graphics card wait."""

from __future__ import annotations

from typing import Any

import comfy.patcher_extension
import torch
from torch import Tensor

WRAPPER = "cascade_studio_finite"


def is_finite(values: Tensor) -> bool:
    """Whether all values are finite, in one pass without a copy; both extremes are NaN where any value is."""
    return bool(torch.isfinite(measure_spread(values)))


def measure_spread(values: Tensor) -> Tensor:
    """The difference of the extremes in float32: not finite where any value is not."""
    lowest, highest = torch.aminmax(values)
    return highest.float() - lowest.float()


class FiniteWatch:
    """Looks at what a network gave at every step, and tells of it once the device has got there by itself.

    Reading a value makes a graphics card finish everything before the next step is queued. So the spread of the values
    (NaN or infinite where any of them is) is copied beside the other work, and read when that is done: at a later
    step, or by :meth:`settle` at the end of the run. On a processor it is read at once.
    """

    def __init__(self) -> None:
        self.pending: list[tuple[Tensor, Any]] = []

    def note(self, values: Tensor) -> bool:
        """Whether everything known so far is finite; ``values`` may become known later."""
        if values.device.type != "cuda":
            return is_finite(values)
        spread = torch.empty((), dtype=torch.float32, pin_memory=True)
        spread.copy_(measure_spread(values), non_blocking=True)
        done = torch.cuda.Event()
        done.record()
        self.pending.append((spread, done))
        return self.read(wait=False)

    def settle(self) -> bool:
        """Whether all values were finite; waits for the last of them."""
        return self.read(wait=True)

    def forget(self) -> None:
        """Drop what an earlier run left."""
        self.pending.clear()

    def read(self, wait: bool) -> bool:
        """Whether all that is known, or with ``wait`` everything, is finite."""
        finite = True
        while self.pending and (wait or self.pending[0][1].query()):
            spread, done = self.pending.pop(0)
            done.synchronize()
            finite = finite and bool(torch.isfinite(spread))
        return finite


def watch_runs(patcher: Any) -> None:
    """Have every sampling run with a model of ours end by reading what its steps gave."""

    def sample(executor: Any, *args: Any, **kwargs: Any) -> Any:
        model = executor.class_obj.model_patcher.model
        model.watch.forget()
        samples = executor(*args, **kwargs)
        model.settle()
        return samples

    points = comfy.patcher_extension.WrappersMP
    patcher.add_wrapper_with_key(points.OUTER_SAMPLE, WRAPPER, sample)
