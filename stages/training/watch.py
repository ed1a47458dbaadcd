"""What a run tells while it learns: the losses as CSV, and for TensorBoard where that is installed."""

from __future__ import annotations

import csv
import importlib
import io
from pathlib import Path
from typing import Any

from .checkpoint import write_whole
from .trainer import Trainer

BOARD = "torch.utils.tensorboard"
FIXED = "loss on fixed noise"


def save_losses(trainer: Trainer, path: Path) -> None:
    """The loss of every step, and that on fixed noise where it was taken, as CSV."""
    judged, text = dict(trainer.judged), io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(["step", "loss", FIXED])
    rows.writerow([0, "", f"{judged[0]:.6g}" if 0 in judged else ""])
    for step, loss in enumerate(trainer.losses, 1):
        rows.writerow([step, f"{loss:.6g}", f"{judged[step]:.6g}" if step in judged else ""])
    write_whole(path, lambda draft: draft.write_text(text.getvalue(), encoding="utf-8"))


class Board:
    """Writes losses and learning rate for TensorBoard into ``folder``; does nothing without one, or where TensorBoard
    is not installed.

    A run that goes on from an earlier state replaces what was written of the steps after that.
    """

    def __init__(self, folder: Path | None, trainer: Trainer) -> None:
        self.writer: Any = None
        self.judged = len(trainer.judged)
        if folder is None:
            return
        try:
            made = importlib.import_module(BOARD).SummaryWriter
        except ImportError:
            return
        self.writer = made(str(folder), purge_step=trainer.step + 1)

    def write(self, trainer: Trainer) -> None:
        """What the last step says."""
        if self.writer is None:
            return
        self.writer.add_scalar("loss", trainer.losses[-1], trainer.step)
        self.writer.add_scalar("learning rate", trainer.optimiser.rate, trainer.step)
        for step, loss in trainer.judged[self.judged :]:
            self.writer.add_scalar(FIXED, loss, step)
        self.judged = len(trainer.judged)

    def close(self, trainer: Trainer) -> None:
        """Write what is left."""
        if self.writer is not None:
            for step, loss in trainer.judged[self.judged :]:
                self.writer.add_scalar(FIXED, loss, step)
            self.writer.close()
