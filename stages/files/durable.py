"""Files that survive: replacing one in a single step, writing one as a whole or not at all, and its SHA-256."""

from __future__ import annotations

import errno
import glob
import hashlib
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

WINDOWS = os.name == "nt"
TRIES = 10
CHUNK = 4 << 20
_FULL = {errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC)}
_FULL_WINDOWS = {39, 112}
STALE = 3600
"""Seconds after which nobody writes a draft any more."""


def replace_file(source: str | os.PathLike[str], target: str | os.PathLike[str]) -> None:
    """Move ``source`` over ``target``. On Windows a virus scanner may hold a file for a moment; it is waited for."""
    for attempt in range(1, TRIES + 1):
        try:
            return os.replace(source, target)
        except PermissionError:
            if not WINDOWS or attempt == TRIES:
                raise
            time.sleep(0.1 * attempt)


def write_atomically(path: str | os.PathLike[str], content: str | bytes | Callable[[Path], Any]) -> None:
    """Write ``content`` (text as UTF-8, bytes, or what a function writes to the draft it is given) to ``path``.

    Whoever looks sees the old file or the whole new one, also after a crash. Folders on the way are made. Raises
    OSError, or what the function raises, and then leaves nothing behind.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f"{path.name}.{os.getpid()}.{threading.get_ident()}.new")
    try:
        if callable(content):
            content(draft)
        else:
            draft.write_bytes(content.encode("utf-8") if isinstance(content, str) else content)
        with open(draft, "rb+") as file:
            os.fsync(file.fileno())
        replace_file(draft, path)
        sweep_drafts(path)
    except BaseException:
        remove_file(draft)  # a virus scanner may hold it; what went wrong before is what counts
        raise


def sweep_drafts(path: Path, age: float = STALE) -> None:
    """Remove the drafts of ``path`` that a kill or a power cut left behind, from ``age`` seconds on.

    Whoever alone may write ``path`` sweeps at age 0.
    """
    for old in (
        *path.parent.glob(f"{glob.escape(path.name)}.*.new"),
        *path.parent.glob(f"{glob.escape(path.name)}.*.tmp"),
    ):
        try:
            if time.time() - old.stat().st_mtime >= age:
                os.remove(old)
        except OSError:
            continue


def is_full(error: OSError) -> bool:
    """Whether ``error`` means that the disk, or the quota, is used up."""
    return error.errno in _FULL or getattr(error, "winerror", None) in _FULL_WINDOWS


def remove_file(path: str | os.PathLike[str]) -> None:
    """Remove a file if it is there and can be removed."""
    try:
        os.remove(path)
    except OSError:
        pass


def hash_file(path: str | os.PathLike[str], tick: Callable[[], None] = lambda: None) -> str:
    """The SHA-256 of a file in hexadecimal digits; ``tick`` is called often and may raise to stop."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
            tick()
    return digest.hexdigest()
