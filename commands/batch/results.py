"""Puts finished pictures into the output folder: whole or not at all, under the row's name, and proves it later.

A picture's card tells how long each stage took on that machine. That is taken out of the file and kept in the manifest,
so that the same row gives the same bytes wherever it was painted.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import queue
import re
import shutil
import sqlite3
import struct
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...nodes import CARD
from ...nodes.checkpoints import disk
from ..messages import Stop
from ..png import walk_chunks
from .database import FILE
from .manifest import ASKED, DONE, RUNNING, Manifest
from .records import Claim, FileRecord

SQLITE_FULL, LEAST_ROOM = 13, 1 << 20
"""SQLite's number for a full disk, and the bytes below which a disk counts as full where it tells none."""
PARTIAL = ".partial"
"""Folder, inside the output folder, of files that are still being written."""
MEASURED = ("seconds", "peak_memory")
TABLE = "results.csv"
OURS = (FILE, f"{FILE}-wal", f"{FILE}-shm", TABLE)
SYSTEMS = ("Thumbs.db", "desktop.ini")
NEVER = (".csv", ".sqlite")
"""Endings of the batch's own files: a server's file does not get them."""
SHEET = "sheet_"
MOST_FOLDERS = 4096
"""Sub-folders that are remembered as lying inside; more are looked at again."""


class OutputFull(Stop):
    """There is no room for the next picture; what is written stays."""


def as_stop(manifest: Manifest, error: sqlite3.Error) -> Stop:
    """The sentence for a manifest that cannot be written."""
    # Python 3.10 tells no number: there, the disk is asked.
    number = getattr(error, "sqlite_errorcode", None)
    full = number == SQLITE_FULL if number is not None else disk.free_bytes(manifest.folder) < LEAST_ROOM
    return (OutputFull if full else Stop)(
        f"The manifest {manifest.path} cannot be written ({error}). Every finished picture is kept; "
        f"{'make room' if full else 'put that right'} and give the same command again."
    )


@dataclass(frozen=True)
class PaintedFile:
    """A file as the server gave it: its name there (for its ending) and its bytes."""

    name: str
    data: bytes


def file_names(stem: str, given: Sequence[str]) -> list[str]:
    """The names of a row's files: the row's own name, and from the second of a kind on with a number."""
    names: list[str] = []
    for name in given:
        found = re.search(r"\.[a-z0-9]{1,10}$", name.lower())
        ending = found[0] if found and found[0] not in NEVER else ".bin"
        before = sum(other.endswith(ending) for other in names)
        names.append(f"{stem}@{before + 1}{ending}" if before else stem + ending)
    return names


def split_card(data: bytes) -> tuple[bytes, Any]:
    """A PNG without what was measured in its card, and that; any other file as it is, and None."""
    name = CARD.encode() + b"\0"
    for kind, start, end in walk_chunks(data):
        if kind == b"tEXt" and data.startswith(name, start):
            try:
                card = json.loads(data[start + len(name) : end].decode("latin-1"))
                measured = _take_measured(card)
            except (ValueError, TypeError, AttributeError):
                break  # a card that is not ours stays as it is
            chunk = _chunk(kind, name + json.dumps(card).encode("latin-1"))
            return data[: start - 8] + chunk + data[end + 4 :], measured
    return data, None


def _take_measured(card: dict[str, Any]) -> dict[str, Any]:
    """Remove what differs from run to run from the card; returns it."""
    stages = [
        {"stage": stage.get("stage"), **{name: stage.pop(name, None) for name in MEASURED}}
        for stage in card.get("stages", ())
    ]
    return {"seconds": card.pop("seconds", None), "stages": stages}


def _chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


class Results:
    """The files of a batch. ``store`` is where they go: the output folder, or an object store by fsspec."""

    def __init__(self, manifest: Manifest, store: OutputFolder | None = None) -> None:
        self.manifest, self.folder = manifest, manifest.folder
        self.store = store or OutputFolder(self.folder)

    def save(self, claim: Claim, pictures: Sequence[PaintedFile], worker: str, seconds: float | None) -> None:
        """Write the files of a row, then tell the manifest. Raises :class:`OutputFull`; a row that is done stays so."""
        split = [split_card(picture.data) for picture in pictures]
        names = file_names(claim.name, [picture.name for picture in pictures])
        records = [
            FileRecord(name, hashlib.sha256(data).hexdigest(), len(data))
            for name, (data, _) in zip(names, split, strict=True)
        ]
        if not self.manifest.note_files(claim.key, records):
            return
        try:
            for record, (data, _) in zip(records, split, strict=True):
                self.store.write(record.name, data)
        except OSError as error:
            if disk.is_full(error):
                raise OutputFull(
                    f"The disk of {self.store.name} is full. Every finished picture is kept; make room and give the "
                    "same command again."
                ) from error
            raise Stop(
                f"{error.filename or self.store.name} cannot be written ({error.strerror or error}). Every finished "
                "picture is kept; put that right and give the same command again."
            ) from error
        measured = next((taken for _, taken in split if taken), None)
        self.manifest.finish(claim.key, worker, seconds, measured, self.store.sync)

    def recover(self) -> tuple[int, int]:
        """After a driver that ended anywhere: rows whose files are all there are done, done rows whose files are gone
        are asked again. Returns how many of each."""
        self.store.tidy()
        written = []
        begun = "SELECT DISTINCT key FROM files JOIN rows USING(key) WHERE state IN (?, ?)"
        for (key,) in self.manifest.read(begun, ASKED, RUNNING):
            if all(self.store.sha256(file.name) == file.sha256 for file in self.manifest.files(key)):
                written.append(key)
        for key in written:
            self.manifest.finish(key, "", None, sync=self.store.sync)
        differing = self.manifest.find_differing(self.store.list_files)
        # A disk may list a name in other words than it is asked for by: what differs is looked at once more.
        gone = {key for key, name, size in differing if self.store.size(name) != size}
        self.manifest.ask_again(gone)
        return len(written), len(gone)

    def check(self) -> Iterator[str]:
        """What is wrong with the batch, in sentences; none where every row is there and as the manifest says."""
        known = set()
        for line, state, key, name, digest in self.manifest.iterate(
            "SELECT line, state, rows.key, files.name, sha256 FROM rows LEFT JOIN files USING(key) ORDER BY position"
        ):
            if state != DONE:
                yield f"line {line} is {state}."
            elif name is None:
                yield f"line {line} is done but has no file (row {key})."
            else:
                known.add(name)
                found = self.store.sha256(name)
                if found != digest:
                    yield f"{name} (line {line}) is {'gone' if found is None else 'not what was painted'}."
        for line, reason in self.manifest.read("SELECT line, reason FROM bad ORDER BY line"):
            yield f"line {line} is bad: {reason}"
        for name, _ in self.store.list_files():
            if name not in known and not name.startswith(SHEET) and not _is_ours_or_systems(name):
                yield f"{name} is not of this batch."


def _is_ours_or_systems(name: str) -> bool:
    """Whether a file is the batch's own or one that a file manager leaves; no row has a hidden one."""
    last = name.rpartition("/")[2]
    return name in OURS or last in SYSTEMS or last.startswith(".")


def _in_folder(folder: str | Path, step: Callable[[], Any]) -> Any:
    """Do ``step``, with its folder made where it is not there yet."""
    try:
        return step()
    except FileNotFoundError:
        os.makedirs(folder, exist_ok=True)
        return step()


class OutputFolder:
    """A folder of files that are there whole or not at all."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.partial = folder, folder / PARTIAL
        self.name = str(folder)
        self._root = os.path.realpath(folder)
        self._inside: set[str] = set()
        self._renamed: queue.SimpleQueue[str] = queue.SimpleQueue()

    def _path(self, name: str) -> str:
        """Where ``name`` lies, for the system. Raises ``Stop`` for one that would lie outside of the folder."""
        path = os.path.join(self._root, name)
        folder, last = os.path.split(path)
        if folder not in self._inside:
            real = os.path.realpath(folder)
            if real != self._root and not real.startswith(self._root + os.sep):
                raise Stop(f"The name {name} leads out of {self.folder}. Give that row another name.")
            if len(self._inside) >= MOST_FOLDERS:
                self._inside.clear()
            self._inside.add(folder)
        if last in ("", ".", ".."):
            raise Stop(f"The name {name} is that of a folder. Give that row another name.")
        return disk.system_path(path)

    def write(self, name: str, data: bytes) -> None:
        """Write a file beside its place, make it durable, and move it there in one step; see :meth:`sync`."""
        path = self._path(name)
        part = f"{self.partial}{os.sep}{hashlib.sha256(name.encode()).hexdigest()[:24]}-{os.getpid()}"
        try:
            with _in_folder(self.partial, lambda: open(part, "wb")) as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            folder = os.path.dirname(path)
            _in_folder(folder, lambda: disk.replace(part, path))
        except BaseException:
            disk.remove(part)
            raise
        self._renamed.put(folder)

    def sync(self) -> None:
        """Make the names of all that was written durable."""
        folders = set()
        while not self._renamed.empty():
            folders.add(self._renamed.get())
        for folder in folders:
            disk.sync_folder(folder)

    def size(self, name: str) -> int | None:
        """Bytes of a file; None where it is not there."""
        try:
            return os.stat(self._path(name)).st_size
        except OSError:
            return None

    def read(self, name: str) -> bytes:
        """The bytes of a file."""
        with open(self._path(name), "rb") as file:
            return file.read()

    def sha256(self, name: str) -> str | None:
        """The hash of a file; None where it is not there."""
        try:
            return hashlib.sha256(self.read(name)).hexdigest()
        except OSError:
            return None

    def list_files(self) -> Iterator[tuple[str, int]]:
        """Every file, as its path below the folder, and its bytes; hidden folders are left out."""
        waiting = [""]
        while waiting:
            below = waiting.pop()
            try:
                found = list(os.scandir(disk.system_path(os.path.join(self._root, below))))
            except OSError:
                continue  # it went meanwhile
            for each in found:
                if not each.is_dir():
                    with contextlib.suppress(OSError):
                        yield below + each.name, each.stat().st_size
                elif not each.name.startswith(".") and not each.is_symlink():
                    waiting.append(f"{below}{each.name}/")

    def tidy(self) -> None:
        """Remove what was being written when a run ended."""
        shutil.rmtree(self.partial, ignore_errors=True)


class ObjectStore(OutputFolder):
    """The same on any file system that fsspec knows (``s3://bucket/folder``); its puts are whole or not at all."""

    def __init__(self, address: str) -> None:
        try:
            import fsspec
        except ImportError:
            raise Stop("--store needs fsspec: python -m pip install fsspec, and the package of your store.") from None
        self.name = re.sub(r"(?<=//)[^/]*@", "", address.split("?", maxsplit=1)[0])  # without a password
        self.files, self.root = fsspec.core.url_to_fs(address)

    def _key(self, name: str) -> str:
        return f"{self.root.rstrip('/')}/{name}"

    def write(self, name: str, data: bytes) -> None:
        self.files.makedirs(self._key(name).rpartition("/")[0], exist_ok=True)
        self.files.pipe_file(self._key(name), data)

    def size(self, name: str) -> int | None:
        try:
            return int(self.files.size(self._key(name)))
        except OSError:
            return None

    def read(self, name: str) -> bytes:
        return self.files.cat_file(self._key(name))

    def list_files(self) -> Iterator[tuple[str, int]]:
        start = len(self.files._strip_protocol(self.root).rstrip("/")) + 1
        for path, facts in self.files.find(self.root, detail=True).items():
            yield path[start:], int(facts["size"] or 0)

    def sync(self) -> None:
        """A put is durable when it has returned."""

    def tidy(self) -> None:
        """Nothing is left half written."""
