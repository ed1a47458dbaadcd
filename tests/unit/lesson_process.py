"""A short training run as a process of its own: ``lesson_process.py RESULT [FOLDER]``."""

from __future__ import annotations

import os
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from lessons import SHORT, rows, trainer

from cascade_studio.stages.training.checkpoint import Store, train
from cascade_studio.stages.training.distributed import ALONE, Crew, from_environment

SETTINGS = replace(SHORT, steps=7, batch_size=4, accumulation=2, loss_weight="adaptive", offset_noise=0.1, save_every=2)


def train_here(stores_in: Path | None, crew: Crew = ALONE) -> dict[str, Any]:
    """Train, alone or as one of several, and tell the result."""
    torch.set_num_threads(1)
    settings = SETTINGS if crew.size > 1 else replace(SETTINGS, accumulation=4)
    run = trainer(settings, rows(((4, 4), (2, 6), (4, 4), (6, 2), (4, 4))), crew)
    slowly = os.environ.get("LESSON_SLOWLY")
    if stores_in is None:
        while run.step < settings.steps:
            run.update()
    else:
        train(run, Store(stores_in, settings.identity()), lambda _: time.sleep(0.3 if slowly else 0))
    return {
        "learned": run.learned.state_dict(),
        "losses": run.losses,
        "adaptive": run.adaptive.losses,
        "parts": len(run.parts([0, 2, 4, 0])),
    }


if __name__ == "__main__":
    crew = from_environment()
    folder = Path(sys.argv[2]) if len(sys.argv) > 2 else None
    torch.save(train_here(folder, crew), sys.argv[1])
    crew.close()
