"""Bringing the missing bytes of one file from one address: several connections, stalls, retries, changed files.

Workers fetch one piece each and end; the thread that called :meth:`Transfer.run` only watches, so that it can report
and be interrupted at any moment whatever the network does.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from .addresses import origin, redact_url
from .catalogue import Entry
from .disk import in_words
from .errors import Changed, Retry, SourceFailed
from .http import RangeClient, Reply, is_strong
from .partial import Partial
from .settings import FetchSettings

log = logging.getLogger(__name__)

TICK = 0.1
LARGEST = 64 << 30
"""The most bytes of a file about whose size nobody says anything."""

CHANGES = 2
"""How often a file may change while it is fetched before its address is given up."""


@dataclass
class Piece:
    """What one worker fetches: the bytes from ``position`` to before ``end`` (None: to the last one)."""

    position: int
    end: int | None
    generation: int
    alive: bool = True
    reply: Reply | None = None
    mark: int = 0
    marked_at: float = field(default_factory=time.monotonic)

    def abandon(self) -> None:
        """Stop it; its worker wakes up now or when its connection times out, and writes nothing more."""
        self.alive = False
        if self.reply:
            self.reply.shut()


class Transfer:
    """Fills ``partial`` from ``url``. note: what it waits for, or ""."""

    def __init__(self, entry: Entry, url: str, partial: Partial, client: RangeClient) -> None:
        self.entry, self.url, self.partial, self.client = entry, url, partial, client
        self.settings: FetchSettings = client.settings
        self.note = ""
        self._lock, self._wake = threading.RLock(), threading.Event()
        self._pieces: list[Piece] = []
        self._opened: Reply | None = None
        self._error: BaseException | None = None
        self._failures = self._changes = 0
        self._reason = ""
        self._at_failure = 0
        self._not_before = 0.0

    def run(self, tick: Callable[[], None]) -> None:
        """Return when the file is complete. ``tick`` is called ten times a second and may raise to stop.

        Raises :class:`SourceFailed` when this address is of no use, :class:`DiskFull` when the disk is not.
        """
        try:
            while not self.partial.complete:
                tick()
                with self._lock:
                    if self._error:
                        raise self._error
                    self._watch()
                    self._staff()
                self._wake.wait(TICK)
                self._wake.clear()
        finally:
            self._stop()

    def _stop(self) -> None:
        with self._lock:
            for piece in self._pieces:
                piece.abandon()
            self._pieces.clear()

    # Who works on what

    def _staff(self) -> None:
        """Start workers, as many as are useful now."""
        now = time.monotonic()
        if self._failures and self.partial.received - self._at_failure >= self._enough():
            self._failures = 0
        if now < self._not_before:
            self.note = f"{self._reason}; trying again in {self._not_before - now:.0f} s"
            return
        self.note = ""
        while len(self._pieces) < self._useful() and (piece := self._claim()):
            self._pieces.append(piece)
            threading.Thread(target=self._work, args=(piece,), daemon=True, name=f"fetch {self.entry.name}").start()

    def _enough(self) -> int:
        """Bytes that make up for a failure."""
        return max(1, min(256 << 10, (self.partial.size or 0) // 100))

    def _useful(self) -> int:
        several = self._opened is not None and self._opened.ranged and not self._failures
        return self.settings.connections if several and (self.partial.size or 0) >= self.settings.parallel_from else 1

    def _claim(self) -> Piece | None:
        """The next piece that nobody fetches; the first is small enough for the others to find work."""
        size, generation = self.partial.size, self.partial.generation
        expected = size if size is not None else self.entry.size
        if expected is None or expected >= self.settings.parallel_from and self.settings.connections > 1:
            limit = self.settings.piece or min(max((expected or 0) // 64, 16 << 20), 256 << 20)
        else:
            limit = None
        if size is None:
            # A part of a file whose size is not known yet is asked for by a size that it surely has.
            return Piece(0, min(limit, self.entry.bytes or limit) if limit else None, generation)
        taken = [(piece.position, piece.end if piece.end is not None else size) for piece in self._pieces]
        for start, end in self.partial.missing():
            for busy_start, busy_end in sorted(taken):
                if busy_start <= start < busy_end:
                    start = busy_end
                elif start < busy_start < end:
                    end = busy_start
            if start < end:
                return Piece(start, end if limit is None else min(end, start + limit), generation)
        return None

    def _watch(self) -> None:
        """Give up pieces that get no answer, or hardly any bytes."""
        now = time.monotonic()
        for piece in list(self._pieces):
            allowed = self.settings.stall if piece.reply else self.settings.stall + self.settings.connect
            if now - piece.marked_at < allowed:
                continue
            if self.partial.waiting or piece.position - piece.mark >= self.settings.slowest * allowed:
                piece.mark, piece.marked_at = piece.position, now
                continue
            self._pieces.remove(piece)
            piece.abandon()
            self._count_failure(Retry(f"{origin(self.url)[1]} sends hardly anything"))

    # What a worker does

    def _work(self, piece: Piece) -> None:
        try:
            self._fetch(piece)
            error = None
        except BaseException as caught:  # noqa: BLE001 - every fault is judged below, in one place
            error = caught
        finally:
            if piece.reply:
                piece.reply.close()
        with self._lock:
            if not piece.alive:
                return
            self._pieces.remove(piece)
            if isinstance(error, Retry):
                self._count_failure(error)
            elif isinstance(error, Changed):
                self._count_change(error)
            elif error is not None:
                self._error = self._error or error
        self._wake.set()

    def _fetch(self, piece: Piece) -> None:
        same = self.partial.source == redact_url(self.url) and is_strong(self.partial.validator)
        condition = self.partial.validator if same else ""
        reply = self.client.get(self.url, piece.position, piece.end, condition, self._buffer())
        with self._lock:
            if not piece.alive:
                return reply.close()
            piece.reply = reply
            if self._opened is None:
                self._open(piece, reply)
            elif reply.start != piece.position or not self._opened.is_followed_by(reply):
                raise Changed("the file was replaced while it was fetched")
            piece.mark, piece.marked_at = piece.position, time.monotonic()
        self._pour(piece, reply)

    def _buffer(self) -> int:
        """What the system may hold for a connection: with small files that is most of what a kill costs."""
        share = (self.partial.size or self.entry.size or 0) // (200 * max(1, self.settings.connections))
        return 0 if share >= 1 << 20 else max(share, 128 << 10)

    def _pour(self, piece: Piece, reply: Reply) -> None:
        chunk = min(max((self.partial.size or 0) // 640, 16 << 10), 256 << 10)
        while piece.end is None or piece.position < piece.end:
            data = reply.read(chunk if piece.end is None else min(chunk, piece.end - piece.position))
            if not piece.alive:
                return
            if not data:
                break
            if piece.position + len(data) > self._limit():
                self.partial.reset()  # none of it can be of the right file
                raise SourceFailed(
                    f"{origin(self.url)[1]} sends more than {in_words(self._limit())}, which is all that this file can "
                    "have. It is not fetched."
                )
            self.partial.write(piece.generation, piece.position, data)
            piece.position += len(data)
        if piece.end is None:
            self.partial.belongs_to(self.partial.source, self.partial.validator, piece.position, None)
        elif piece.position < piece.end:
            if reply.end is not None and piece.position == reply.end:
                return  # The server gives less at a time than it was asked for.
            raise Retry("the connection was cut")

    def _limit(self) -> int:
        """The most bytes that the file can have, by what the server said, else by the catalogue."""
        if self.partial.size is not None or self.entry.bytes is not None:
            return self.partial.size if self.partial.size is not None else self.entry.bytes
        return LARGEST if self.entry.about is None else self.entry.about * 11 // 10

    def _open(self, piece: Piece, reply: Reply) -> None:
        """The first answer tells what the file is, and whether what is here belongs to it."""
        partial, wanted = self.partial, piece.position
        if reply.size is None and reply.end is not None:  # a part of a whole whose length it keeps to itself
            if self.entry.bytes is None:
                raise SourceFailed(
                    f"{origin(self.url)[1]} gives the file in parts without saying how long it is. It is not fetched."
                )
            reply.size = self.entry.bytes
        self._judge(reply)
        if partial.present and not (self._continues(reply) and reply.ranged and reply.start == wanted):
            log.info(
                "%s: what is here belongs to another file, or the server cannot go on from it; fetching it from "
                "the beginning.",
                self.entry.name,
            )
            partial.reset()
            piece.generation = partial.generation
        partial.belongs_to(redact_url(self.url), reply.validator, reply.size, reply.official_hash)
        if reply.start != 0 and not partial.present:
            raise Changed("the file was replaced since it was begun")
        self._opened = reply
        piece.position = reply.start
        if reply.start != wanted or not reply.ranged or piece.end is None:
            piece.end = reply.size
        elif reply.size is not None:
            piece.end = min(piece.end, reply.size)

    def _continues(self, reply: Reply) -> bool:
        """Whether what is here is of the file that the server has now."""
        partial = self.partial
        if partial.size is None or partial.size != reply.size:
            return False
        if partial.source == redact_url(self.url) and reply.validator:
            return partial.validator == reply.validator
        # Another server, or one that gives its files no mark: the hash will tell.
        return bool(self.entry.sha256 or reply.official_hash)

    def _judge(self, reply: Reply) -> None:
        """Raise SourceFailed if the server has another file than the catalogue describes."""
        told, known = reply.official_hash, self.entry.sha256
        host, copied = origin(self.url)[1], self.entry.provenance in (None, "copy")
        if told and known and told != known and not copied:
            raise SourceFailed(
                f"{host} has replaced the file: its SHA-256 is now {told}, the catalogue has {known}. "
                "It is not fetched. Update Cascade Studio, or look on the model's page what changed."
            )
        expected, size = self.entry.bytes, reply.size
        if expected is not None and size is not None and size != expected and not (told and copied):
            raise SourceFailed(
                f"{host} has a file of {in_words(size)} ({size:,} bytes) where {in_words(expected)} "
                f"({expected:,} bytes) belong. It is not fetched."
            )

    # What faults lead to

    def _count_failure(self, fault: Retry) -> None:
        settings = self.settings
        if self.partial.received - self._at_failure >= self._enough():
            self._failures = 0
        self._failures += 1
        self._at_failure, self._reason = self.partial.received, fault.reason
        if self._opened is not None and not self._opened.ranged:
            # Without ranges what was begun cannot be continued.
            self._restart()
        if self._failures >= settings.tries:
            self._error = self._error or SourceFailed(
                f"{redact_url(self.url)}: {fault.reason}, {self._failures} times in a row."
            )
            return
        delay = fault.delay
        if delay is None:
            delay = min(settings.longest_wait, settings.backoff * 2 ** (self._failures - 1)) * random.uniform(0.8, 1.2)
        self._not_before = max(self._not_before, time.monotonic() + delay)
        log.info("%s: %s; trying again in %.1f s.", self.entry.name, fault.reason, delay)

    def _count_change(self, change: Changed) -> None:
        self._changes += 1
        if self._changes > CHANGES:
            self._error = self._error or SourceFailed(
                f"{redact_url(self.url)} changes while it is fetched ({change}). Try later."
            )
        else:
            log.info("%s: %s; fetching it from the beginning.", self.entry.name, change)
            self._restart()

    def _restart(self) -> None:
        for piece in self._pieces:
            piece.abandon()
        self._pieces.clear()
        self.partial.reset()
        self._opened = None
