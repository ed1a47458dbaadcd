"""What a person sees of a batch: one line while it runs, and ``status`` from another terminal."""

from __future__ import annotations

import shutil
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable

from ...nodes.checkpoints.progress import describe_duration
from .lock import find_driver
from .manifest import ASIDE, ASKED, DONE, RUNNING, Manifest

BAR, LONGEST = 20, 150
WINDOW = 600.0
"""Seconds over which pictures a minute are counted."""
EVERY = 10.0
"""Seconds between lines where the output is no terminal."""
SHARE = 0.01
"""Of the time may go into counting the rows, which takes longer the more there are."""


def count_line(counts: dict[str, int], a_minute: float) -> str:
    """Done of all, pictures a minute, time left, and what went wrong."""
    left = counts[ASKED] + counts[RUNNING]
    everything = left + counts[DONE] + counts[ASIDE]
    part = counts[DONE] / everything if everything else 1.0
    done = int(BAR * part)
    parts = [f"[{'#' * done}{'-' * (BAR - done)}] {counts[DONE]}/{everything}"]
    if left and a_minute:
        parts += [f"{a_minute:.1f} pictures/min", f"{describe_duration(left / a_minute * 60)} left"]
    parts += [f"{counts[ASIDE]} set aside"] if counts[ASIDE] else []
    parts += [f"{counts['bad']} bad lines"] if counts["bad"] else []
    return ", ".join(parts)


def worker_line(workers: Iterable[tuple[str, str, str, float, int]]) -> str:
    """What each worker does, in few words."""
    told = []
    for name, state, doing, since, _ in workers:
        busy = state == "ready" and doing
        told.append(f"{name}: {doing[:24]} {time.time() - since:.0f} s" if busy else f"{name}: {state}")
    return "; ".join(told)


class ProgressLine:
    """The one line on stderr; where that is no terminal, a line every ten seconds."""

    def __init__(self, manifest: Manifest) -> None:
        self.manifest = manifest
        self.live = sys.stderr.isatty()
        self._marks: deque[tuple[float, int]] = deque()
        self._shown = self._cost = self._width = 0.0

    def show(self, describe: Callable[[], Iterable[tuple[str, str, str, float, int]]]) -> None:
        """Write the line anew, if it is time; ``describe`` is :meth:`.workers.Worker.describe` of each worker."""
        now = time.monotonic()
        if now - self._shown < max(0.5 if self.live else EVERY, self._cost / SHARE):
            return
        counts = self.manifest.counts()
        self._shown, self._cost = now, time.monotonic() - now
        self._marks.append((now, counts[DONE]))
        while now - self._marks[0][0] > WINDOW:
            self._marks.popleft()
        seconds, pictures = now - self._marks[0][0], counts[DONE] - self._marks[0][1]
        text = f"{count_line(counts, pictures / seconds * 60 if seconds else 0.0)} | {worker_line(describe())}"
        most = min(LONGEST, shutil.get_terminal_size().columns - 1) if self.live else LONGEST
        text = text if len(text) <= most else text[: most - 1] + "…"
        sys.stderr.write("\r" + text.ljust(int(self._width)) if self.live else text + "\n")
        sys.stderr.flush()
        self._width = len(text)

    def end(self) -> None:
        """Leave the line as it is."""
        if self.live and self._width:
            sys.stderr.write("\n")


def describe_status(manifest: Manifest) -> str:
    """The whole state of a batch, for another terminal."""
    counts, driver = manifest.counts(), find_driver(manifest)
    first = manifest.read("SELECT COUNT(*), MIN(finished) FROM rows WHERE finished>?", time.time() - WINDOW)[0]
    a_minute = 0.0
    if driver and first[0]:
        a_minute = first[0] / max(time.time() - max(first[1], driver["since"]), 1.0) * 60
    lines = [count_line(counts, a_minute)]
    if driver is None:
        lines.append(
            "Nobody works on it now." + (" The same command goes on." if counts[ASKED] + counts[RUNNING] else "")
        )
    else:
        lines.append(f"Process {driver['pid']} on {driver['host']} works on it.")
        for name, state, doing, since, pictures in manifest.read("SELECT * FROM workers ORDER BY name"):
            what = (
                f"{doing}, for {describe_duration(time.time() - since)}"
                if state == "ready" and doing
                else f"{state} {doing}"
            )
            lines.append(f"  {name}: {pictures} pictures; {what.strip()}")
    for line, error in manifest.read("SELECT line, error FROM rows WHERE state=? ORDER BY line LIMIT 20", ASIDE):
        lines.append(f"  line {line} is set aside: {error}")
    for line, reason in manifest.read("SELECT line, reason FROM bad ORDER BY line LIMIT 20"):
        lines.append(f"  line {line} is bad: {reason}")
    return "\n".join(lines)
