"""Stamps: what a node is stamped with changes whenever a file that it uses does, so that the host runs it again."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from ...checkpoints.entries import Entry

_fetched: dict[str, str] = {}
"""The stamps of files that loaders have fetched since the host was started, and what stood for each until then."""


def digest(*facts: object) -> str:
    """A hash of ``facts``: the host writes what a node is stamped with into every picture that it saves."""
    return hashlib.sha256("\n".join(map(str, facts)).encode(errors="surrogatepass")).hexdigest()


def stamp_absent(name: str | None) -> str:
    """The stamp of a file that is not here."""
    return digest(name, "absent")


def stamp_file(path: str | Path) -> str:
    """The stamp of the file at ``path``."""
    found = _stamp(path)
    return _fetched.get(found, found)


def note_fetched(entry: Entry, path: Path) -> None:
    """Let a file that a loader has just fetched keep the stamp it was asked for with: it is loaded already."""
    _fetched[_stamp(path)] = stamp_absent(entry.name)


def _stamp(path: str | Path) -> str:
    status = os.stat(path)
    return digest(os.path.realpath(path), status.st_size, status.st_mtime_ns)
