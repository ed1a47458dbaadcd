"""One driver at a time: which process works on a batch.

On one machine the system's lock of a file tells it, which ends with its process however that ends and knows no clock.
Other machines, which may see the same disk without its locks, are told by a beat in the manifest.
"""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ...nodes.checkpoints.lock import locked
from ..messages import Stop
from .manifest import Manifest

BEAT_SECONDS = 20.0
"""Age of the last beat at which a driver on another machine counts as gone."""


@contextmanager
def driving(manifest: Manifest) -> Iterator[None]:
    """Be the one driver; raises ``Stop`` while another one works there."""

    def refuse() -> None:
        raise _busy(manifest, find_driver(manifest))

    with locked(manifest.path, refuse):
        with manifest.writing() as db:
            other = manifest.get("driver")
            if other and other["host"] != socket.gethostname() and _beats(other):
                raise _busy(manifest, other)
            now = time.time()
            mine = {"host": socket.gethostname(), "pid": os.getpid(), "beat": now, "since": now}
            db.execute("INSERT OR REPLACE INTO meta VALUES('driver', ?)", (json.dumps(mine),))
        try:
            yield
        finally:
            with manifest.writing() as db:
                if _is_mine(manifest.get("driver")):
                    db.execute("DELETE FROM meta WHERE name='driver'")
                    db.execute("DELETE FROM workers")


def _busy(manifest: Manifest, other: dict[str, Any] | None) -> Stop:
    who = f"Process {other['pid']} on {other['host']}" if other else "Another process"
    return Stop(
        f"{who} works on {manifest.folder} already. Wait for it, stop it with Ctrl-C, or give another --out; "
        "'studio.py batch status' shows what it does."
    )


def beat(manifest: Manifest) -> None:
    """Tell that the driver lives. Raises ``Stop`` where another machine took over while this one slept."""
    found = manifest.get("driver")
    if not _is_mine(found):
        raise _busy(manifest, found)
    manifest.set("driver", {**found, "beat": time.time()})


def drives(manifest: Manifest) -> bool:
    """Whether no other process has taken over the batch."""
    found = manifest.get("driver")
    return found is None or _is_mine(found)


def _is_mine(driver: dict[str, Any] | None) -> bool:
    return driver is not None and (driver["host"], driver["pid"]) == (socket.gethostname(), os.getpid())


def find_driver(manifest: Manifest) -> dict[str, Any] | None:
    """The process that works on the batch now, or None."""
    found = manifest.get("driver")
    return found if found and (_runs_here(found) or _beats(found)) else None


def _beats(driver: dict[str, Any]) -> bool:
    """Whether it was heard of lately; a beat that is to come is one of before a clock was set back."""
    return abs(time.time() - driver["beat"]) < BEAT_SECONDS and not _ended_here(driver)


def _runs_here(driver: dict[str, Any]) -> bool:
    return driver["host"] == socket.gethostname() and os.name != "nt" and not _ended_here(driver)


def _ended_here(driver: dict[str, Any]) -> bool:
    """Whether it was a process of this machine that is no more."""
    if driver["host"] != socket.gethostname() or os.name == "nt":
        return False
    try:
        os.kill(driver["pid"], 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        pass
    return False
