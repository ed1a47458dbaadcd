"""One download of a file at a time, across threads and processes, also on disks that several computers share."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from . import disk

log = logging.getLogger(__name__)

POLL = 0.2


def lock_path(target: Path) -> Path:
    """The hidden, empty file that stands for the right to fetch ``target``."""
    return target.with_name(f".{target.name}.lock")


@contextmanager
def locked(target: Path, tick: Callable[[], None]) -> Iterator[None]:
    """Hold the lock of ``target``. While another holds it, ``tick`` is called five times a second; it may raise.

    The system frees the lock of a process that was killed.
    """
    import filelock

    lock = filelock.FileLock(disk.system_path(lock_path(target)))
    told = False
    while True:
        try:
            lock.acquire(timeout=0)
            break
        except filelock.Timeout:
            if not told:
                log.info("%s is being fetched by another process; waiting for it.", target.name)
                told = True
            tick()
            time.sleep(POLL)
        except NotImplementedError:
            log.warning("The disk of %s offers no locks; do not fetch the same file from two programs.", target.parent)
            break
    try:
        yield
    finally:
        # While the file is not there, removing the lock's name could let two of those who wait for it in at once.
        if target.exists():
            disk.remove(lock_path(target))
        lock.release(force=True)
