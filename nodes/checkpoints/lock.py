"""One download of a file at a time, across threads and processes, also on disks that several computers share."""

from __future__ import annotations

import errno
import logging
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from . import disk

if disk.WINDOWS:
    import msvcrt
else:
    import fcntl

log = logging.getLogger(__name__)

POLL = 0.2
NO_LOCKS = {errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP}
"""What a disk answers that offers no locks."""


def lock_path(target: Path) -> Path:
    """The hidden, empty file that stands for the right to fetch ``target``."""
    return target.with_name(f".{target.name}.lock")


@contextmanager
def locked(target: Path, tick: Callable[[], None]) -> Iterator[None]:
    """Hold the lock of ``target``. While another holds it, ``tick`` is called five times a second; it may raise.

    The system frees the lock of a process that was killed. Nothing is left of it afterwards.
    """
    path, told = disk.system_path(lock_path(target)), False
    while (handle := _take(path)) is None:
        if not told:
            log.info("%s is being fetched by another process; waiting for it.", target.name)
            told = True
        tick()
        time.sleep(POLL)
    try:
        yield
    finally:
        _give_back(path, handle)


def _take(path: str) -> int | None:
    """The open lock file, which is ours alone; None while another has it."""
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            if not _lock(handle):
                os.close(handle)
                return None
            # Whoever had it before may have removed the file that was opened here: its lock keeps nobody out.
            if disk.WINDOWS or _is_at(handle, path):
                return handle
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)


def _lock(handle: int) -> bool:
    try:
        if disk.WINDOWS:
            msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)
        else:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in NO_LOCKS:
            return False
        log.warning("This disk offers no locks; do not fetch the same file from two programs.")
    return True


def _is_at(handle: int, path: str) -> bool:
    """Whether the open file is still the one at ``path``."""
    try:
        return os.path.samestat(os.fstat(handle), os.stat(path))
    except FileNotFoundError:
        return False


def _give_back(path: str, handle: int) -> None:
    """Remove the file while it is locked; on Windows, where nobody can remove a file that is open, afterwards."""
    if not disk.WINDOWS:
        disk.remove(path)
    os.close(handle)
    if disk.WINDOWS:
        disk.remove(path)
