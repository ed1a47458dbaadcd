"""A file that is still coming: ``<name>.part`` beside its target, and a sidecar that says which bytes of it are safe.

The sidecar is written only after the bytes that it lists were synced, so that whatever it says survives a crash, a kill
or a power cut. Bytes that came later are fetched again.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import threading
import time
from pathlib import Path
from typing import Any

from ...stages.files.json_text import BadJson, parse_object
from . import disk
from .errors import DiskFull, Retry

log = logging.getLogger(__name__)

PART, SIDECAR, BAD = ".part", ".part.json", ".bad"
VERSION = 1
Range = tuple[int, int]


def merge_ranges(ranges: list[Range]) -> list[Range]:
    """``ranges`` (first byte, byte after the last) sorted and joined where they touch."""
    joined: list[Range] = []
    for start, end in sorted(ranges):
        if joined and start <= joined[-1][1]:
            joined[-1] = (joined[-1][0], max(joined[-1][1], end))
        elif start < end:
            joined.append((start, end))
    return joined


def find_gaps(ranges: list[Range], size: int) -> list[Range]:
    """What of ``size`` bytes is not in the merged ``ranges``."""
    edges = [0, *(edge for piece in ranges for edge in piece), size]
    return [(start, end) for start, end in zip(edges[::2], edges[1::2]) if start < end]


def append_suffix(target: Path, suffix: str) -> Path:
    """``target`` with ``suffix`` appended to its whole name."""
    return target.with_name(target.name + suffix)


def read_sidecar(target: Path) -> dict[str, Any] | None:
    """What the sidecar of ``target`` says, if it fits the part that is here; else None."""
    try:
        state = parse_object(Path(disk.system_path(append_suffix(target, SIDECAR))).read_bytes())
        held = os.stat(disk.system_path(append_suffix(target, PART))).st_size
    except (OSError, BadJson):
        return None
    size, ranges = state.get("size"), state.get("done")
    texts = (state.get("source"), state.get("validator"), state.get("official_hash") or "")
    if state.get("version") != VERSION or not all(isinstance(text, str) for text in texts):
        return None
    if not (size is None or _is_count(size)) or not isinstance(ranges, list) or not all(map(_is_range, ranges)):
        return None
    done = merge_ranges([(start, end) for start, end in ranges])
    whole = done[-1][1] <= min(held, held if size is None else size) if done else True
    return {**state, "done": done} if whole else None


def _is_count(value: Any) -> bool:
    return type(value) is int and value >= 0


def _is_range(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(map(_is_count, value)) and value[0] < value[1]


def bytes_here(target: Path, size: int | None = None) -> int:
    """How many bytes of ``target`` a stopped download left behind."""
    state = read_sidecar(target)
    if state is None or None not in (size, state["size"]) and state["size"] != size:
        return 0
    return sum(end - start for start, end in state["done"])


class Partial:
    """The growing file of ``target``; writes from several threads are safe.

    generation: counts how often the file was emptied; a write that was meant for an earlier one is refused.
    received: bytes written by this object; fetched bytes that were lost again count, too.
    waiting: writers that are held up by the disk.
    official_hash: the SHA-256 that the official host told, if it did.
    most_at_stake: bytes that may be written beyond the last save before writers have to wait for one; None: any.
    """

    def __init__(self, target: Path) -> None:
        self.target, self.path, self.sidecar = target, append_suffix(target, PART), append_suffix(target, SIDECAR)
        self.generation = self.received = self.waiting = 0
        self.most_at_stake: int | None = None
        self._lock, self._saving = threading.Lock(), threading.Lock()
        self._saved = threading.Condition(self._lock)
        state = read_sidecar(target) or {}
        self.source: str = state.get("source", "")
        self.validator: str = state.get("validator", "")
        self.size: int | None = state.get("size")
        self.official_hash: str | None = state.get("official_hash")
        self.done: list[Range] = state.get("done", [])
        self._snapshot = self._safe = 0
        self._saved_at = time.monotonic()
        # "r+b" would refuse a new file and "wb" would empty an old one.
        handle = os.open(disk.system_path(self.path), os.O_RDWR | os.O_CREAT | getattr(os, "O_BINARY", 0), 0o666)
        self._file = os.fdopen(handle, "r+b", buffering=0)
        if not self.done:
            self._file.truncate(0)

    @property
    def present(self) -> int:
        """Bytes of the file that are here."""
        with self._lock:
            return sum(end - start for start, end in self.done)

    @property
    def prefix(self) -> int:
        """How many bytes are here without a gap from the beginning."""
        with self._lock:
            return self.done[0][1] if self.done and self.done[0][0] == 0 else 0

    @property
    def complete(self) -> bool:
        """Whether every byte of a known size is here."""
        with self._lock:
            return self.size is not None and (self.done == [(0, self.size)] or self.size == 0)

    def missing(self) -> list[Range]:
        """The ranges that are still to come; empty while the size is not known."""
        with self._lock:
            return [] if self.size is None else find_gaps(self.done, self.size)

    def belongs_to(self, source: str, validator: str, size: int | None, official_hash: str | None) -> None:
        """Note where the bytes come from, and what the file is there."""
        with self._lock:
            self.source, self.validator, self.size = source, validator, size
            self.official_hash = official_hash or self.official_hash

    def reset(self) -> None:
        """Forget everything that is here."""
        with self._saving, self._lock:
            self.generation += 1
            disk.remove(self.sidecar)
            self.done, self.size, self.validator, self.official_hash = [], None, "", None
            self._file.truncate(0)
            self._saved.notify_all()

    def write(self, generation: int, position: int, data: bytes) -> None:
        """Write ``data`` at ``position``; raises :class:`DiskFull`, or Retry if the file was emptied or closed."""
        with self._lock:
            self.waiting += 1
            while generation == self.generation and self._too_much_at_stake():
                self._saved.wait(0.1)
            self.waiting -= 1
            if generation != self.generation:
                raise Retry("the download was started again")
            try:
                self._file.seek(position)
                view = memoryview(data)
                while view:
                    view = view[self._file.write(view) :]
            except OSError as error:
                raise self._disk_error(error) from None
            self.done = merge_ranges([*self.done, (position, position + len(data))])
            self.received += len(data)

    def _too_much_at_stake(self) -> bool:
        return self.most_at_stake is not None and self.received - self._safe >= self.most_at_stake

    def due(self, most_bytes: int, most_seconds: float) -> bool:
        """Whether more is at stake than a kill should cost."""
        unsaved = self.received - self._snapshot
        return unsaved >= most_bytes or unsaved > 0 and time.monotonic() - self._saved_at >= most_seconds

    def save(self) -> None:
        """Sync what was written and only then list it in the sidecar; raises OSError if the data cannot be synced."""
        with self._saving:
            with self._lock:
                if self._file.closed:
                    return
                state = {
                    "version": VERSION,
                    "source": self.source,
                    "validator": self.validator,
                    "size": self.size,
                    "official_hash": self.official_hash,
                    "done": list(self.done),
                }
                handle, generation, snapshot = os.dup(self._file.fileno()), self.generation, self.received
                self._snapshot = snapshot
            try:
                os.fsync(handle)
            finally:
                os.close(handle)
            if generation == self.generation:
                self._write_sidecar(state)
            with self._lock:
                self._safe, self._saved_at = snapshot, time.monotonic()
                self._saved.notify_all()

    def _write_sidecar(self, state: dict[str, Any]) -> None:
        try:
            disk.write(self.sidecar, json.dumps(state))
        except OSError as error:
            # An older sidecar still tells the truth, only less of it.
            if not disk.is_full(error):
                raise

    def leave(self) -> None:
        """Make everything safe that is here, and close the file; the next download goes on from it. Never raises."""
        try:
            self.save()
        except OSError as error:
            log.info("%s could not be synced (%s).", self.path, error.strerror)
        finally:
            self.close()

    def clear_if_empty(self) -> None:
        """Leave no file behind where nothing has come."""
        if not self.present and append_suffix(self.target, PART).exists():
            disk.remove(self.path)
            disk.remove(self.sidecar)
            disk.sweep_drafts(self.sidecar)

    def close(self) -> None:
        """Close the file; later writes are refused."""
        with self._lock:
            self.generation += 1
            self._file.close()
            self._saved.notify_all()

    def set_aside(self) -> Path:
        """Close the file and keep it as ``<name>.bad``, where nothing uses it; returns that path."""
        self.close()
        bad = append_suffix(self.target, BAD)
        disk.replace(self.path, bad)
        tidy(self.target, BAD)
        return bad

    def publish(self) -> None:
        """Close the complete, checked file and give it its name; whoever looks sees nothing or all of it."""
        self.close()
        disk.replace(self.path, self.target)
        disk.sync_folder(self.target.parent)
        tidy(self.target)

    def _disk_error(self, error: OSError) -> Exception:
        folder = self.target.parent
        if disk.is_full(error):
            free = disk.in_words(disk.free_bytes(folder))
            return DiskFull(
                f"The disk of {folder} is full ({free} free) while {self.target.name} was being fetched. "
                "Make room there and start again; what is here is kept and the download goes on from it."
            )
        if error.errno == errno.EFBIG:
            return DiskFull(
                f"The disk of {folder} cannot hold a file as large as {self.target.name} (FAT32 ends at 4 "
                "GB). Choose a folder on another disk."
            )
        return DiskFull(
            f"{self.path} cannot be written ({error.strerror or error}). Check the disk and the folder's "
            "permissions, then start again; what is here is kept."
        )


def tidy(target: Path, suffix: str = "") -> None:
    """Remove the sidecar of a download that has ended as ``target`` (with ``suffix``), a kill before that included."""
    if append_suffix(target, suffix).exists() and not append_suffix(target, PART).exists():
        disk.remove(append_suffix(target, SIDECAR))
        disk.sweep_drafts(append_suffix(target, SIDECAR))
