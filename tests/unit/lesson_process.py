"""A short training run as a process of its own: ``lesson_process.py RESULT [FOLDER]``.

RESULT is a file for the one run, or with ``LESSON_KINDS`` one for a run of each kind that this names. With
``LESSON_KILLED`` a child for each of these kinds is killed in the middle of its third step instead.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

sys.path.append(str(Path(__file__).resolve().parents[2]))
from studio import load_pack  # noqa: E402

load_pack()
from lessons import SHORT, rows, run_of, trainer  # noqa: E402

from cascade_studio.stages.training.checkpoint import Store, train  # noqa: E402
from cascade_studio.stages.training.distributed import ALONE, Crew, from_environment  # noqa: E402
from cascade_studio.stages.training.trainer import Trainer  # noqa: E402

SETTINGS = replace(SHORT, steps=7, batch_size=4, accumulation=2, loss_weight="adaptive", offset_noise=0.1, save_every=2)


def train_here(stores_in: Path | None, crew: Crew = ALONE) -> dict[str, Any]:
    """Train, alone or as one of several, and tell the result."""
    torch.set_num_threads(1)
    settings = SETTINGS if crew.size > 1 else replace(SETTINGS, accumulation=4)
    run = trainer(settings, rows(((4, 4), (2, 6), (4, 4), (6, 2), (4, 4))), crew)
    go_through(run, stores_in)
    return {
        "learned": run.learned.state_dict(),
        "losses": run.losses,
        "adaptive": run.adaptive.losses,
        "parts": len(run.parts([0, 2, 4, 0])),
    }


def train_kind(kind: str, stores_in: Path | None, crew: Crew = ALONE, **changes: Any) -> dict[str, Any]:
    """Train one of :data:`lessons.KINDS`, with float32 weights, whose sums do not depend on how they are shared."""
    torch.set_num_threads(1)
    made = run_of(kind, crew, **{"steps": 3, "weights": "fp32", "optimiser": "adamw", "validate_every": 2, **changes})
    run = made.trainer
    go_through(run, stores_in)
    return {"learned": made.comfyui() or run.learned.state_dict(), "losses": run.losses, "judged": run.judged}


def die_amid(kind: str, stores_in: Path) -> None:
    """Train one of :data:`lessons.KINDS` in a child, which the system kills while its third step is half done."""
    child = os.fork()
    if child:
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
        return
    run = run_of(kind, steps=4, ema=0.5, save_every=1).trainer
    backward = torch.Tensor.backward

    def half(loss: torch.Tensor, *arguments: Any, **options: Any) -> None:
        backward(loss, *arguments, **options)
        if run.step == 2:
            os.kill(os.getpid(), signal.SIGKILL)

    torch.Tensor.backward = half
    train(run, Store(stores_in / kind, "x"))
    os._exit(0)


def go_through(run: Trainer, stores_in: Path | None) -> None:
    """All steps of ``run``; with a folder for its states, from where it was."""
    slowly = os.environ.get("LESSON_SLOWLY")
    if stores_in is None:
        while run.step < run.settings.steps:
            run.update()
    else:
        train(run, Store(stores_in, run.settings.identity()), lambda _: time.sleep(0.3 if slowly else 0))


if __name__ == "__main__":
    crew, _ = from_environment()
    folder = Path(sys.argv[2]) if len(sys.argv) > 2 else None
    for kind in os.environ.get("LESSON_KILLED", "").split():
        die_amid(kind, folder)
    kinds = os.environ.get("LESSON_KINDS", "").split()
    if "LESSON_KILLED" not in os.environ:
        found = {kind: train_kind(kind, folder, crew) for kind in kinds} if kinds else train_here(folder, crew)
        torch.save(found, sys.argv[1])
    crew.close()
