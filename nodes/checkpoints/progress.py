"""How far a download is: bytes over all files, speed and time left, for a node's bar and the log."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from .disk import in_words

log = logging.getLogger(__name__)

EVERY, LOG_EVERY, WINDOW = 0.25, 10.0, 10.0


@dataclass(frozen=True)
class DownloadMoment:
    """A moment of a download. done, total: bytes over all files (total 0: not known yet); speed: bytes a second.

    file: the name of the one that is being fetched; left: seconds to go or None; note: "" or what is being waited for.
    """

    file: str
    done: int
    total: int
    speed: float
    left: float | None
    note: str = ""

    def describe(self) -> str:
        """One line, such as "stage_c.safetensors: 41 % of 12.4 GB, 34.2 MB/s, 3 min left"."""
        share = f"{100 * self.done // self.total} % of {in_words(self.total)}" if self.total else in_words(self.done)
        words = [share, f"{in_words(self.speed)}/s"]
        words += [f"{describe_duration(self.left)} left"] if self.left is not None else []
        return f"{self.file}: {', '.join(words)}{f' ({self.note})' if self.note else ''}"


def describe_duration(seconds: float) -> str:
    """Seconds for people: "45 s", "3 min", "2 h 10 min", "4 days"."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 90:
        return f"{minutes} min"
    return f"{minutes // 60} h {minutes % 60} min" if minutes < 48 * 60 else f"{minutes / 1440:.0f} days"


class Meter:
    """Adds up the files of one call and tells ``listener`` four times a second, and the log every ten seconds."""

    def __init__(self, sizes: dict[str, int], listener: Callable[[DownloadMoment], None] | None = None) -> None:
        self._sizes, self._done = dict(sizes), dict.fromkeys(sizes, 0)
        self._listener = listener
        self._marks: deque[tuple[float, int]] = deque()
        self._told = self._logged = time.monotonic()
        self.note = ""

    def show(self, key: str, name: str, done: int, size: int | None, received: int, at_once: bool = False) -> None:
        """File ``key`` has ``done`` bytes; ``received`` counts all bytes that came over the network."""
        now = time.monotonic()
        self._done[key] = done
        if size:
            self._sizes[key] = size
        self._marks.append((now, received))
        while len(self._marks) > 2 and now - self._marks[0][0] > WINDOW:
            self._marks.popleft()
        if not at_once and now - self._told < EVERY:
            return
        self._told = now
        moment = self._moment(name)
        if self._listener:
            self._listener(moment)
        if now - self._logged >= LOG_EVERY:
            self._logged = now
            log.info("%s", moment.describe())

    def _moment(self, name: str) -> DownloadMoment:
        (begun, before), (now, after) = self._marks[0], self._marks[-1]
        speed = max(0.0, (after - before) / (now - begun)) if now - begun >= 0.2 else 0.0
        done, known = sum(self._done.values()), all(self._sizes.values())
        total = max(done, sum(self._sizes.values())) if known else 0
        left = (total - done) / speed if speed > 0 and total else None
        return DownloadMoment(name, done, total, speed, left, self.note)
