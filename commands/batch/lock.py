"""One driver at a time: which process works on a batch, told by a beat in its manifest."""

from __future__ import annotations

import json
import os
import socket
import time
from typing import Any

from ..messages import Stop
from .manifest import Manifest

BEAT_SECONDS = 20.0
"""Age of the last beat at which a driver counts as gone, on whatever machine it was."""


def lock_driver(manifest: Manifest) -> None:
    """Become the one driver; raises ``Stop`` while another one works there."""
    now = time.time()
    mine = {"host": socket.gethostname(), "pid": os.getpid(), "beat": now, "since": now}
    with manifest.writing() as db:
        found = db.execute("SELECT value FROM meta WHERE name='driver'").fetchone()
        other = json.loads(found[0]) if found else None
        if other and _is_alive(other):
            raise Stop(
                f"Process {other['pid']} on {other['host']} works on {manifest.folder} already. Wait for it, stop it "
                "with Ctrl-C, or give another --out; 'studio.py batch status' shows what it does."
            )
        db.execute("INSERT OR REPLACE INTO meta VALUES('driver', ?)", (json.dumps(mine),))


def beat(manifest: Manifest) -> None:
    """Tell that the driver lives."""
    manifest.set("driver", {**manifest.get("driver"), "beat": time.time()})


def unlock_driver(manifest: Manifest) -> None:
    """Let the next driver in."""
    with manifest.writing() as db:
        db.execute("DELETE FROM meta WHERE name='driver'")
        db.execute("DELETE FROM workers")


def find_driver(manifest: Manifest) -> dict[str, Any] | None:
    """The process that works on the batch now, or None."""
    found = manifest.get("driver")
    return found if found and (_is_alive(found) or found["pid"] == os.getpid()) else None


def _is_alive(driver: dict[str, Any]) -> bool:
    """Whether another process works there; one with our own number on our host was before us."""
    if time.time() - driver["beat"] > BEAT_SECONDS:
        return False
    if driver["host"] != socket.gethostname():
        return True
    if driver["pid"] == os.getpid() or os.name == "nt":
        return driver["pid"] != os.getpid()
    try:
        os.kill(driver["pid"], 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True
