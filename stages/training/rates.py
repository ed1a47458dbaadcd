"""Which learning rate a run can take: short runs from one start, judged on the same noise."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import replace

from .heap import return_memory
from .optimiser import Optimiser
from .trainer import Diverged, Trainer

RATES = tuple(10 ** (power / 2) for power in range(-10, -1))
"""1e-5 to 0.03, two to a power of ten."""


def try_rates(
    trainer: Trainer,
    steps: int = 20,
    rates: Sequence[float] = RATES,
    on_rate: Callable[[float, float], None] | None = None,
    on_step: Callable[[Trainer], None] | None = None,
) -> dict[float, float]:
    """The loss on fixed noise after ``steps`` at each rate, infinite where the run diverged.

    ``trainer`` is a fresh one, and is left as it was. The pictures and their noise are those of the run itself.
    ``on_step`` follows every update and may raise to stop.
    """
    start, settings, optimiser = copy.deepcopy(trainer.state_dict()), trainer.settings, trainer.optimiser
    found: dict[float, float] = {}
    for rate in rates:
        trainer.settings = replace(settings, validate_every=steps, learning_rate=rate)
        trainer.optimiser = Optimiser(
            trainer.learned.parameters(), rate, kind=settings.optimiser, weight_decay=settings.weight_decay, warm_up=1
        )
        try:
            with return_memory():
                for _ in range(steps):
                    trainer.update()
                    if on_step is not None:
                        on_step(trainer)
                trainer.judge()
            found[rate] = trainer.judged[-1][1]
        except Diverged:
            found[rate] = math.inf
        trainer.optimiser.clear()
        trainer.settings, trainer.optimiser = settings, optimiser
        trainer.load_state_dict(copy.deepcopy(start))
        if on_rate is not None:
            on_rate(rate, found[rate])
    return found


def choose_rate(found: dict[float, float]) -> float:
    """Half of the rate that learned most, to two digits: longer runs get further with less than a short one."""
    return float(f"{min(found, key=lambda rate: found[rate]) / 2:.2g}")
