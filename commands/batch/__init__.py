"""Many pictures on many machines: a batch that never loses and never repeats one. See docs/batch.md."""

from __future__ import annotations

from .command import main
from .run import Batch, Outcome, run_batch

__all__ = ["Batch", "Outcome", "main", "run_batch"]
