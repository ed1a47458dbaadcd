"""Steps that are not computed: the picture that an earlier step predicted stands in for theirs.

From step to step the predicted picture (x0) changes little, while the noise around it changes as the sampler says. So
a step may take x0 of the last computed one, and the sampler goes on with the noise of its own level. What that costs
was measured on Cascade Mini (``tests/benchmarks/measure_cache.py``): it is least where the computed steps lie about
evenly in r, the noise level in [0, 1] that the networks are told, or, of few steps, in a power of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

OFF, CAREFUL, FAST = "off", "careful", "fast"
PRESETS = (OFF, CAREFUL, FAST)
ROUNDING = 1e-4


@dataclass(frozen=True)
class Rule:
    """Computed steps are at least ``gap`` apart in r to the ``power``; ``slope`` of the last change of x0 over logsnr
    is carried on.

    The noise that Stage C's sampler adds makes its changes wild, so that carrying them on makes things worse. A power
    below 1 leaves out less of the end of a run, one above 1 less of its beginning.
    """

    gap: float
    slope: float = 0.0
    power: float = 1.0

    def may_reuse(self, r: float, computed: Sequence[float], last: float) -> bool:
        """Whether the step at noise level ``r`` may do without the network; ``computed`` are the levels before it.

        The run's ``last`` level is always computed, since its x0 is the picture.
        """
        if len(computed) < (2 if self.slope else 1) or r <= last + ROUNDING:
            return False
        return computed[-1] ** self.power - r**self.power < self.gap - ROUNDING


RULES = {
    "stage_c": {CAREFUL: Rule(0.06), FAST: Rule(0.07, 0.0, 0.5)},
    "stage_b": {CAREFUL: Rule(0.09, 0.5), FAST: Rule(0.19, 0.5)},
}
"""By stage and preset. Of the official 20 + 10 steps *careful* leaves 12 + 10 and *fast* 8 + 6."""
