"""SHA-256 of large files, remembered by path, size and time of change so that each is read once."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
from collections.abc import Callable
from functools import cached_property
from pathlib import Path

from ...stages.files.durable import CHUNK, hash_file
from ...stages.files.json_text import BadJson, parse_object
from . import disk

log = logging.getLogger(__name__)

LIMIT = 4000
"""The most files that are remembered; the oldest are forgotten first."""


def no_tick() -> None:
    """Does nothing: the tick of somebody who never interrupts."""


class HashCache:
    """Hashes by file, kept in a small JSON file at ``place`` (None keeps them for this run only).

    An entry counts as long as size and time of change are those of the file. A cache that cannot be read or written
    only costs time; it is read when a hash is first asked for. What lies at ``older``, where an earlier version kept
    it, is taken over and removed.
    """

    def __init__(self, place: str | Path | None = None, older: Path | None = None) -> None:
        self.place, self._older = Path(place) if place else None, older

    @cached_property
    def _known(self) -> dict[str, list]:
        known = self._read(self.place)
        if self._older is None or not self._older.is_file():
            return known
        return self._take_over(self._older, known)

    def sha256(self, path: str | Path, tick: Callable[[], None] = no_tick) -> str:
        """The hash of the file at ``path``; raises OSError if it cannot be read."""
        key = os.path.abspath(path)
        before = self._stamp(key)
        found = self._known.get(key)
        if found and found[:2] == before:
            return found[2]
        digest = hash_file(disk.system_path(path), tick)
        if self._stamp(key) == before:
            self._remember(key, [*before, digest])
        return digest

    def remember(self, path: str | Path, digest: str) -> None:
        """Note the hash of a file that was just made and checked."""
        key = os.path.abspath(path)
        self._remember(key, [*self._stamp(key), digest])

    @staticmethod
    def _stamp(path: str) -> list[int]:
        status = os.stat(disk.system_path(path))
        return [status.st_size, status.st_mtime_ns]

    @staticmethod
    def _read(place: Path | None) -> dict[str, list]:
        try:
            known = parse_object(place.read_bytes()) if place else {}
        except FileNotFoundError:
            return {}
        except (OSError, BadJson):
            log.info("The list of known hashes %s could not be read; files are hashed again.", place)
            return {}
        return {key: value for key, value in known.items() if _is_entry(value)}

    def _take_over(self, older: Path, known: dict[str, list]) -> dict[str, list]:
        both = {**self._read(older), **known}
        if self._write(both):
            disk.remove(older)
            with contextlib.suppress(OSError):  # the folder holds more than that
                older.parent.rmdir()
        return both

    def _remember(self, key: str, value: list) -> None:
        self._known = {**self._read(self.place), **self._known}
        self._known.pop(key, None)
        self._known[key] = value
        self._write(self._known)

    def _write(self, known: dict[str, list]) -> bool:
        """Whether ``known`` could be written; what is too much is forgotten first."""
        while len(known) > LIMIT:
            del known[next(iter(known))]
        if self.place is None:
            return False
        try:
            disk.write(self.place, json.dumps(known, indent=0))
        except OSError as error:
            log.info("The list of known hashes %s could not be written (%s).", self.place, error.strerror)
            return False
        return True


def _is_entry(value: object) -> bool:
    """Whether ``value`` is size, time of change and hash of a file."""
    return isinstance(value, list) and [type(part) for part in value] == [int, int, str]


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
