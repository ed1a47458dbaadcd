"""Whether the checkpoints in a folder are what the catalogue says: by their hashes, read anew."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ...stages.errors import WrongFile
from . import disk
from .catalogue import Catalogue, Entry
from .find import layout_fits, size_fits, walk
from .hashes import HashCache

GOOD, WRONG, UNVERIFIED, UNKNOWN = "good", "wrong", "unverified", "unknown"


@dataclass(frozen=True)
class Verdict:
    """What a file is found to be. state: one of the four above; key: the entry's, or None; text: why, in words."""

    path: Path
    state: str
    text: str
    key: str | None = None


def check_folder(folder: str | Path, catalogue: Catalogue, hashes: HashCache) -> Iterator[Verdict]:
    """A verdict on every safetensors file below ``folder``."""
    for path, size in walk(folder):
        if path.suffix.lower() == ".safetensors":
            yield _check(path, size, catalogue, hashes)


def _check(path: Path, size: int, catalogue: Catalogue, hashes: HashCache) -> Verdict:
    entries = list(catalogue.entries.values())
    named = [entry for entry in entries if path.name.lower() in (entry.name.lower(), entry.own_name.lower())]
    name = path.name.lower()
    possible = [e for e in entries if e in named or size_fits(e, size) and (e.bytes or name in e.known_names)]
    try:
        digest = hashes.sha256(path) if possible else ""
    except OSError as error:
        return Verdict(path, WRONG, f"it cannot be read ({error.strerror or error})")
    for entry in possible:
        if entry.sha256 == digest:
            return Verdict(path, GOOD, f"SHA-256 as in the catalogue ({entry.provenance})", entry.key)
    if problem := _damage(path):
        return Verdict(path, WRONG, problem, named[0].key if named else None)
    for entry in possible:
        if not entry.sha256 and size_fits(entry, size) and layout_fits(entry, path):
            text = f"size and layout fit; nobody has published its hash ({digest})"
            return Verdict(path, UNVERIFIED, text, entry.key)
    if named:
        return Verdict(path, WRONG, _difference(named[0], size, digest), named[0].key)
    return Verdict(path, UNKNOWN, "not in the catalogue; it can be read")


def _damage(path: Path) -> str:
    from ...stages.files.header import read_header

    try:
        read_header(disk.system_path(path))
        return ""
    except WrongFile as error:
        return str(error)


def _difference(entry: Entry, size: int, digest: str) -> str:
    if not size_fits(entry, size):
        return f"it has {size:,} bytes, the published file has {'' if entry.bytes else 'about '}{entry.size:,}"
    return f"its SHA-256 is {digest}, the published file has {entry.sha256 or 'another layout'}"
