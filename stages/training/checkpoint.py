"""A run on disk: its whole state, written in one step, and the loop that goes on from it."""

from __future__ import annotations

import errno
import logging
import os
import pickle
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from ..errors import BadValues, WrongInput
from ..files.durable import is_full, replace_file, write_atomically
from .trainer import WINDOW, Diverged, Trainer

log = logging.getLogger(__name__)

SAVE_SECONDS = 60
"""The most that a crash may cost, beside what one save takes."""
SAVE_SHARE = 20
"""A save that takes long is made less often: at most this part of all time is spent on them."""


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Let ``write`` fill a draft, and put it in the place of ``path``; what goes wrong with the disk is a sentence."""

    def fill(draft: Path) -> None:
        write(draft)
        os.chmod(draft, 0o666 & ~_umask())  # some writers make drafts that only their owner may read

    try:
        write_atomically(path, fill)
    except OSError as error:
        reason = "the disk is full" if is_full(error) else error.strerror or str(error)
        raise WrongInput(
            f"{path.name} could not be written into {path.parent}: {reason}. Make room there, or choose a folder that "
            "can be written to, and start again: what was saved before is still there."
        ) from error


def write_tensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """Write a safetensors file as :func:`write_whole` does.

    The library tells a full disk in words alone, so the disk is asked whether it has room.
    """

    def fill(draft: Path) -> None:
        try:
            save_file(tensors, draft, metadata=metadata)
        except SafetensorError as error:
            if shutil.disk_usage(path.parent).free < sum(tensor.nbytes for tensor in tensors.values()):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) from error
            raise

    write_whole(path, fill)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def check_target(folder: Path, size: int = 0) -> None:
    """Raise :class:`WrongInput` where ``folder`` cannot be written to or has no room for ``size`` bytes.

    Long work asks this first: a folder that refuses is told before the first step, not after the last.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
        free = shutil.disk_usage(folder).free
    except OSError as error:
        raise WrongInput(
            f"Nothing can be written into the folder {folder} ({error.strerror or error}), where the result is to go. "
            "Make it writable, or choose another one, and start again."
        ) from error
    if free < size:
        raise WrongInput(
            f"The run needs {size / 1e9:.1f} GB on the disk of {folder}, where {free / 1e9:.1f} GB are free. Make "
            "room, and start again."
        )


def _save_state(state: dict[str, Any], draft: Path) -> None:
    with open(draft, "wb") as file:  # through a file of our own, errors of the disk keep their numbers
        torch.save(state, file)


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
        write_whole(self.newest, lambda draft: _save_state(state, draft))

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
    on_start: Callable[[Trainer], None] | None = None,
    prepare: Callable[[Trainer], None] | None = None,
) -> None:
    """Train to ``settings.steps``, from where ``store`` is. ``on_step`` follows every update and may raise to stop;
    ``on_start`` is called before the first, and where there is no state yet ``prepare`` before all else.

    Whatever stops it, the last whole state is kept first. When the loss diverges, the trainer goes back to its last
    good state, ``on_save`` is called, and :class:`BadValues` is raised.
    """
    crew, settings, fresh = trainer.crew, trainer.settings, start(trainer, store)
    saved, took = (time.monotonic(), trainer.step), 0.0

    def save() -> None:
        nonlocal saved, took
        started = time.monotonic()
        if crew.rank == 0:
            store.save(trainer)
            if on_save is not None:
                on_save(trainer)
        saved = (time.monotonic(), trainer.step)
        took = saved[0] - started

    if fresh:
        if prepare is not None:
            prepare(trainer)
        save()
    if on_start is not None and trainer.step < settings.steps:
        on_start(trainer)
    try:
        while trainer.step < settings.steps:
            trainer.update()
            if on_step is not None:
                on_step(trainer)
            due = settings.save_every and trainer.step % settings.save_every == 0
            if due or time.monotonic() - saved[0] > max(SAVE_SECONDS, SAVE_SHARE * took):
                save()
        trainer.judge()
    except Diverged as reason:
        fall_back(trainer, store)
        save()
        kept = (
            f"The weights of step {trainer.step}, the last good ones, are kept and saved."
            if trainer.step
            else "No step before that was saved, so there is no result."
        )
        raise BadValues(
            f"Training stopped, because {reason}. {kept} Lower the learning rate, raise the batch size, or look for "
            "odd pictures in the training set; with other settings the run begins anew."
        ) from reason
    except BaseException:
        if trainer.whole and trainer.step > saved[1]:
            save()
        raise
    if trainer.step > saved[1]:
        save()


def start(trainer: Trainer, store: Store) -> bool:
    """Bring ``trainer`` to where ``store`` is; returns whether there is nothing, so that the run is a new one."""
    state, settings = trainer.crew.share(store.states() if trainer.crew.rank == 0 else None), trainer.settings
    if state is not None:
        try:
            trainer.load_state_dict(state)
        except (RuntimeError, KeyError, ValueError) as error:
            raise WrongInput(
                f"The state of the run '{settings.name}' in {store.folder} was written by a version of this pack that "
                "keeps other numbers. Delete that folder to begin anew, or finish the run with that version."
            ) from error
    if trainer.step > settings.steps:
        raise WrongInput(
            f"The run '{settings.name}' has made {trainer.step} steps already, and {settings.steps} are asked for. Ask "
            f"for at least {trainer.step}, take the file of an earlier step from its checkpoints, or begin another run "
            "by another name (in a terminal: by another seed or output)."
        )
    return state is None


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
