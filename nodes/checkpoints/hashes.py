"""SHA-256 of large files, remembered by path, size and time of change so that each is read once."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Callable
from pathlib import Path

from . import disk

log = logging.getLogger(__name__)

CHUNK = 4 << 20
LIMIT = 4000
"""The most files that are remembered; the oldest are forgotten first."""


def no_tick() -> None:
    """Does nothing: the tick of somebody who never interrupts."""


def sha256_of(path: str | Path, tick: Callable[[], None] = no_tick) -> str:
    """The SHA-256 of a file in hexadecimal digits; ``tick`` is called often and may raise to stop."""
    digest = hashlib.sha256()
    with open(disk.system_path(path), "rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
            tick()
    return digest.hexdigest()


class HashCache:
    """Hashes by file, kept in a small JSON file at ``place`` (None keeps them for this run only).

    An entry counts as long as size and time of change are those of the file. A cache that cannot be read or written
    only costs time.
    """

    def __init__(self, place: str | Path | None = None) -> None:
        self.place = Path(place) if place else None
        self._known = self._read()

    def sha256(self, path: str | Path, tick: Callable[[], None] = no_tick) -> str:
        """The hash of the file at ``path``; raises OSError if it cannot be read."""
        key = os.path.abspath(path)
        before = self._stamp(key)
        found = self._known.get(key)
        if found and found[:2] == before:
            return found[2]
        digest = sha256_of(path, tick)
        if self._stamp(key) == before:
            self._remember(key, [*before, digest])
        return digest

    def put(self, path: str | Path, digest: str) -> None:
        """Note the hash of a file that was just made and checked."""
        key = os.path.abspath(path)
        self._remember(key, [*self._stamp(key), digest])

    @staticmethod
    def _stamp(path: str) -> list[int]:
        status = os.stat(disk.system_path(path))
        return [status.st_size, status.st_mtime_ns]

    def _read(self) -> dict[str, list]:
        try:
            known = json.loads(self.place.read_text(encoding="utf-8")) if self.place else {}
            return {key: value for key, value in known.items() if len(value) == 3 and isinstance(value[2], str)}
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, TypeError, AttributeError):
            log.info("The list of known hashes %s could not be read; files are hashed again.", self.place)
            return {}

    def _remember(self, key: str, value: list) -> None:
        self._known = {**self._read(), **self._known}
        self._known.pop(key, None)
        self._known[key] = value
        while len(self._known) > LIMIT:
            del self._known[next(iter(self._known))]
        if self.place is None:
            return
        scratch = self.place.with_name(f"{self.place.name}.{os.getpid()}.tmp")
        try:
            self.place.parent.mkdir(parents=True, exist_ok=True)
            scratch.write_text(json.dumps(self._known, indent=0), encoding="utf-8")
            disk.replace(scratch, self.place)
        except OSError as error:
            disk.remove(scratch)
            log.info("The list of known hashes %s could not be written (%s).", self.place, error.strerror)


class InOrderHash:
    """The SHA-256 of a growing file, taken in order as its beginning becomes complete."""

    def __init__(self, path: str | Path) -> None:
        self.path = path
        self.restart()

    def restart(self) -> None:
        """Begin anew: the file was emptied."""
        self._digest, self.position = hashlib.sha256(), 0

    def advance(self, end: int, most: int = 64 << 20) -> bool:
        """Take in what lies before ``end``, at most ``most`` bytes of it; True when all of it is in."""
        stop = min(end, self.position + most)
        if self.position < stop:
            with open(disk.system_path(self.path), "rb") as file:
                file.seek(self.position)
                while self.position < stop and (chunk := file.read(min(CHUNK, stop - self.position))):
                    self._digest.update(chunk)
                    self.position += len(chunk)
        return self.position >= end

    def hexdigest(self) -> str:
        """The hash of all bytes up to :attr:`position`."""
        return self._digest.hexdigest()
