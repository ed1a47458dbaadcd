"""Putting one file in the place of another in a single step, on every system."""

from __future__ import annotations

import os
import time

WINDOWS = os.name == "nt"
TRIES = 10


def replace(source: str | os.PathLike[str], target: str | os.PathLike[str]) -> None:
    """Move ``source`` over ``target``. On Windows a virus scanner may hold a file for a moment; it is waited for."""
    for attempt in range(1, TRIES + 1):
        try:
            return os.replace(source, target)
        except PermissionError:
            if not WINDOWS or attempt == TRIES:
                raise
            time.sleep(0.1 * attempt)
