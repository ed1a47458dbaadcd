"""A run on disk: its whole state, written in one step, and the loop that goes on from it."""

from __future__ import annotations

import logging
import pickle
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from ..errors import BadValues, WrongInput
from ..files.durable import replace_file, write_atomically
from .trainer import WINDOW, Diverged, Trainer

log = logging.getLogger(__name__)

SAVE_SECONDS = 60
"""The most that a crash may cost, beside what one save takes."""


class Store:
    """The folder of one run. ``identity`` (see :meth:`.Settings.identity`) tells whether a state there belongs to it.

    Two states are kept: the newest, and the one before it, for a run that diverges just after a save.
    """

    def __init__(self, folder: Path, identity: str) -> None:
        self.folder, self.identity = folder, identity
        self.newest, self.before = folder / "state.pt", folder / "state.before.pt"

    def save(self, trainer: Trainer) -> None:
        """Keep the state of ``trainer``."""
        state = {"identity": self.identity, **trainer.state_dict()}
        if self.newest.is_file():
            replace_file(self.newest, self.before)
        write_atomically(self.newest, lambda draft: torch.save(state, draft))

    def read(self, path: Path) -> dict[str, Any] | None:
        """The state in ``path``; None where there is none, or no whole one."""
        if not path.is_file():
            return None
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
        except (OSError, RuntimeError, EOFError, ValueError, KeyError, pickle.UnpicklingError) as error:
            log.warning("%s cannot be read (%s); an older state is used", path.name, error)
            return None
        if state["identity"] != self.identity:
            raise WrongInput(
                f"The folder '{self.folder.name}' holds a training run with other settings, pictures or "
                "another model. Choose another name for this run, or delete that folder."
            )
        return state

    def states(self, most: int | None = None) -> dict[str, Any] | None:
        """The newest whole state, of at most ``most`` steps."""
        for path in (self.newest, self.before):
            state = self.read(path)
            if state is not None and (most is None or len(state["losses"]) <= most):
                return state
        return None


def train(
    trainer: Trainer,
    store: Store,
    on_step: Callable[[Trainer], None] | None = None,
    on_save: Callable[[Trainer], None] | None = None,
) -> None:
    """Train to ``settings.steps``, from where ``store`` is. ``on_step`` follows every update and may raise to stop.

    Whatever stops it, the last whole state is kept first. When the loss diverges, the trainer goes back to its last
    good state, ``on_save`` is called, and :class:`BadValues` is raised.
    """
    crew, settings = trainer.crew, trainer.settings
    state = crew.share(store.states() if crew.rank == 0 else None)
    if state is not None:
        trainer.load_state_dict(state)
    saved = (time.monotonic(), trainer.step)

    def save() -> None:
        nonlocal saved
        if crew.rank == 0:
            store.save(trainer)
            if on_save is not None:
                on_save(trainer)
        saved = (time.monotonic(), trainer.step)

    if state is None:
        save()
    try:
        while trainer.step < settings.steps:
            trainer.update()
            if on_step is not None:
                on_step(trainer)
            due = settings.save_every and trainer.step % settings.save_every == 0
            if due or time.monotonic() - saved[0] > SAVE_SECONDS:
                save()
    except Diverged as reason:
        fall_back(trainer, store)
        save()
        raise BadValues(
            f"Training stopped, because {reason}. The weights of step {trainer.step}, the last good ones, "
            "are kept and saved. Lower the learning rate, raise the batch size, or look for odd pictures "
            "in the training set."
        ) from reason
    except BaseException:
        if trainer.whole and trainer.step > saved[1]:
            save()
        raise
    if trainer.step > saved[1]:
        save()


def fall_back(trainer: Trainer, store: Store) -> None:
    """Bring ``trainer`` to the newest saved state that is older than the window in which it diverged."""
    crew = trainer.crew
    most = max(0, trainer.step - WINDOW)
    state = None
    if crew.rank == 0:
        state = store.states(most) or store.states()
    state = crew.share(state)
    if state is not None:
        trainer.load_state_dict(state)
