"""The workers of a batch: servers that were named, servers of our own, and the pools that let them join and leave."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from ..messages import Stop, say
from .address import Refused, Unreachable
from .local import Comfy, LocalServer
from .records import Claim, Held
from .server import Job, Lost, Painted, Server

MOST_STARTS = 3
"""Starts without a picture between them after which a server of our own counts as broken."""
MOST_MISSES = 8
"""Rows that a worker loses without a picture between them, from which on it is not hoped for."""
REREAD_SECONDS = 5.0


class Painter(Protocol):
    """What paints for a worker. ``slots``: rows that it may hold at once, so that it never waits for the next one."""

    name: str
    slots: int

    def connect(self, stop: threading.Event) -> None:
        """Be ready to paint. Raises :class:`Unreachable` for one that may come back, ``Stop`` for one that will not."""

    def describe_nodes(self) -> dict[str, Any]:
        """The node definitions of its ComfyUI, as /object_info gives them."""

    def lacks(self, classes: Iterable[str]) -> list[str]:
        """Those of ``classes`` that are no node of its ComfyUI."""

    def memory(self) -> int | None:
        """Bytes of its card; None where that is not known."""

    def paint(self, job: Job, stop: threading.Event, alive: Callable[[], None]) -> Painted:
        """The files of one row; see :meth:`.server.Server.paint`."""

    def excuse(self) -> None:
        """Its last end was the doing of the row that it painted, and does not count against it."""

    def close(self) -> None:
        """End what was started for it."""


@dataclass
class Worker:
    """A painter and what it does now.

    taken_up: rows that it was given by a driver that is gone; alone: its row is a suspect, so that it gets no other;
    misses: rows that it lost since its last picture; loss: how it lost the last of them.
    """

    painter: Painter
    state: str = "starting"
    doing: dict[str, tuple[str, float]] = field(default_factory=dict)
    pictures: int = 0
    held: Held | None = None
    memory: int | None = None
    error: str = ""
    taken_up: list[Claim] = field(default_factory=list)
    leaving: bool = False
    alone: bool = False
    misses: int = 0
    loss: str = ""
    lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def name(self) -> str:
        """The painter's."""
        return self.painter.name

    @property
    def useful(self) -> bool:
        """Whether it is there, and does not lose one row after the other."""
        return self.misses < MOST_MISSES and (self.state == "ready" or bool(self.doing))

    def describe(self) -> tuple[str, str, str, float, int]:
        """Name, state, what it paints, since when, and how many pictures it has painted."""
        doing = sorted(self.doing.values(), key=lambda item: item[1])
        text, since = doing[0] if doing else (self.error, time.time())
        return self.name, self.state, text, since, self.pictures


class ServerPainter:
    """What a painter asks its server; rows that it may hold at once: one is painted, the next one waits there."""

    slots = 2
    server: Server | None

    def describe_nodes(self) -> dict[str, Any]:
        return self.server.describe_nodes()

    def lacks(self, classes: Iterable[str]) -> list[str]:
        return self.server.lacks(classes)

    def memory(self) -> int | None:
        return self.server.memory()


class NamedPainter(ServerPainter):
    """A server that was running before and goes on after the batch."""

    def __init__(self, url: str) -> None:
        self.server = Server(url)
        self.name = self.server.name
        self.ready = False

    def connect(self, stop: threading.Event) -> None:
        if not self.ready:
            try:
                self.server.ask("/system_stats")
            except Refused as refusal:
                raise Unreachable(str(refusal)) from None
            self.ready = True

    def paint(self, job: Job, stop: threading.Event, alive: Callable[[], None]) -> Painted:
        try:
            return self.server.paint(job, stop, alive)
        except Exception:
            self.ready = False
            raise

    def excuse(self) -> None:
        """Nobody counts its ends."""

    def close(self) -> None:
        """The server is not ours to stop."""


class LocalPainter(ServerPainter):
    """A server of our own on this machine, started anew when it ends."""

    def __init__(self, local: LocalServer, name: str) -> None:
        self.local, self.name = local, name
        self.server: Server | None = None
        self.starts, self.doubted = 0, False

    def connect(self, stop: threading.Event) -> None:
        if self.local.process is not None and self.local.process.poll() is None and self._answers():
            return
        self.starts += 1
        if self.starts > MOST_STARTS:
            raise Stop(f"its ComfyUI ended {MOST_STARTS} times without a picture.")
        self.local.stop()
        self.server = self.local.start(stop)

    def _answers(self) -> bool:
        """Whether it still speaks, where a row was lost to its silence: one that hangs is started anew."""
        if self.doubted:
            try:
                self.server.ask("/system_stats")
            except (Unreachable, Refused):
                return False
            finally:
                self.doubted = False
        return True

    def paint(self, job: Job, stop: threading.Event, alive: Callable[[], None]) -> Painted:
        try:
            painted = self.server.paint(job, stop, alive)
        except Lost:
            self.doubted = True
            raise
        self.starts = 0
        self.local.prune()
        return painted

    def excuse(self) -> None:
        self.starts = max(0, self.starts - 1)

    def close(self) -> None:
        self.local.stop()


class Pool(Protocol):
    """Where workers come from."""

    def refresh(self) -> Iterable[Painter]:
        """The painters that should be at work now; called now and then."""

    def close(self) -> None:
        """End every worker that is the pool's own."""


class NamedPool:
    """Servers by address: ``URL,URL``, or ``@FILE`` with one address a line, read again while the batch runs."""

    def __init__(self, servers: str) -> None:
        self.file = Path(servers[1:]).expanduser() if servers.startswith("@") else None
        self._known: dict[str, NamedPainter] = {}
        self._wrong: set[str] = set()
        self._text, self._read = "" if self.file else servers.replace(",", "\n"), 0.0

    def refresh(self) -> Iterable[Painter]:
        if self.file is not None and time.monotonic() - self._read > REREAD_SECONDS:
            try:
                self._text = self.file.read_text(encoding="utf-8-sig")
            except (OSError, UnicodeDecodeError) as error:
                if not self._known:
                    why = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
                    raise Stop(f"The list of servers {self.file} cannot be read ({why}).") from None
            self._read = time.monotonic()
        lines = [line.strip() for line in self._text.splitlines()]
        addresses = [line for line in lines if line and not line.startswith("#")]
        if not addresses and not self.file:
            raise Stop("--servers names no server. Write --servers http://HOST:PORT,http://HOST:PORT.")
        known = {address: self._known.get(address) or self._make(address) for address in addresses}
        self._known = {address: painter for address, painter in known.items() if painter}
        return list({painter.name: painter for painter in self._known.values()}.values())

    def _make(self, address: str) -> NamedPainter | None:
        """The painter at ``address``; of a list that is edited while the batch runs, one that is none is left out."""
        try:
            return NamedPainter(address)
        except Stop as wrong:
            if self.file is None or not self._known:
                raise
            say(f"{self.file.name}: {wrong}") if address not in self._wrong else None
            self._wrong.add(address)
            return None

    def close(self) -> None:
        """They go on."""


class LocalPool:
    """Servers of our own: one a card, or ``count`` of them."""

    def __init__(self, comfy: Comfy, home: Path, count: int | None = None) -> None:
        home.mkdir(parents=True, exist_ok=True)
        cards, accelerated = (0, False) if "--cpu" in comfy.flags else comfy.count_devices()
        count = count or max(1, cards)
        threads = None if accelerated or count == 1 else max(1, (cores() or count) // count)
        self.painters = [
            LocalPainter(
                LocalServer(comfy, _device_flags(number, cards, accelerated, comfy.flags), threads, home),
                f"here {number + 1}",
            )
            for number in range(count)
        ]

    def refresh(self) -> Iterable[Painter]:
        return self.painters

    def close(self) -> None:
        for painter in self.painters:
            painter.close()


def cores() -> int | None:
    """The processor cores that this process may use."""
    import os

    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def _device_flags(number: int, cards: int, accelerated: bool, given: Iterable[str]) -> list[str]:
    flags = ["--cuda-device", str(number % cards)] if cards > 1 else []
    return flags + ([] if accelerated or "--cpu" in given else ["--cpu"])
