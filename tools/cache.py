"""Where downloads, hosts and environments are kept: outside every clone, shared by all of them."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

from cascade_studio.commands.messages import say

if os.name == "nt":
    import msvcrt
else:
    import fcntl

STAMP = "complete"


def sha256(path: Path) -> str:
    """The SHA-256 of a file, as lower-case hexadecimal digits."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def remove(path: Path) -> None:
    """Delete a file or a folder, whatever is there; a missing one is fine."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def is_complete(folder: Path) -> bool:
    """Whether the work that fills ``folder`` came to its end: the stamp is written last."""
    return (folder / STAMP).is_file()


def read_mark(folder: Path) -> str:
    """The text of the stamp of ``folder``; empty where there is none."""
    return (folder / STAMP).read_text(encoding="utf-8") if is_complete(folder) else ""


def mark_complete(folder: Path, text: str) -> None:
    """Write the stamp of ``folder`` in one step."""
    draft = folder / (STAMP + ".new")
    draft.write_text(text, encoding="utf-8")
    draft.replace(folder / STAMP)


def _try_lock(handle: int) -> bool:
    try:
        if os.name == "nt":
            msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)
        else:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


@contextlib.contextmanager
def locked(target: Path) -> Iterator[None]:
    """Hold the lock of ``target`` (a file beside it). The system drops it when its process ends, however it ends."""
    target.parent.mkdir(parents=True, exist_ok=True)
    handle = os.open(str(target) + ".lock", os.O_RDWR | os.O_CREAT, 0o644)
    try:
        if not _try_lock(handle):
            say(f"Waiting for another setup of {target.name} to finish ...")
            while not _try_lock(handle):
                time.sleep(0.5)
        yield
    finally:
        os.close(handle)
