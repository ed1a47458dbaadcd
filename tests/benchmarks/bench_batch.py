"""What a batch costs: ``dev.py run tests/benchmarks/bench_batch.py simulate`` and ``... throughput``.

``simulate`` has workers that only sleep: many rows, many workers, and how much memory and time the driver takes.
``throughput`` paints with Cascade Mini on one server of our own and then on two, with one thread each.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import multiprocessing
import os
import resource
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import batches
import fake_comfyui

from cascade_studio.commands.batch import Batch, run_batch
from cascade_studio.commands.batch.database import FILE
from cascade_studio.commands.batch.manifest import Manifest
from cascade_studio.commands.batch.results import PaintedFile
from cascade_studio.commands.batch.server import Job, Painted
from cascade_studio.commands.batch.workers import NamedPool, Painter
from tools.env import REPOSITORY, current_setup
from tools.server import Base


class Sleeper:
    """A worker that sleeps for each picture, one at a time, and hands over a tiny PNG."""

    slots = 2

    def __init__(self, number: int, seconds: float) -> None:
        self.name, self.seconds = f"sleeper {number}", seconds
        self._card = threading.Lock()
        self._picture = fake_comfyui.png({}, None)

    def connect(self, stop: threading.Event) -> None:
        """It is always ready."""

    def describe_nodes(self) -> dict[str, Any]:
        return {}

    def lacks(self, classes: Iterable[str]) -> list[str]:
        return []

    def memory(self) -> int | None:
        return None

    def paint(self, job: Job, stop: threading.Event, alive: Callable[[], None]) -> Painted:
        with self._card:
            time.sleep(self.seconds)
        return Painted([PaintedFile("a.png", self._picture)], self.seconds)

    def excuse(self) -> None:
        """It never ends."""

    def close(self) -> None:
        """Nothing is open."""


class Dormitory:
    """A pool of sleepers."""

    def __init__(self, count: int, seconds: float) -> None:
        self.painters = [Sleeper(number, seconds) for number in range(count)]

    def refresh(self) -> Iterable[Painter]:
        return self.painters

    def close(self) -> None:
        """Nothing is open."""


@contextlib.contextmanager
def open_dormitory(count: int, seconds: float, http: bool) -> Iterator[Dormitory | NamedPool]:
    """The sleepers of this process, or servers that sleep in another one and are spoken to as ComfyUI is."""
    if not http:
        yield Dormitory(count, seconds)
        return
    mine, theirs = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(target=_sleep_as_servers, args=(count, seconds, theirs))
    process.start()
    try:
        yield NamedPool(",".join(f"http://127.0.0.1:{port}" for port in mine.recv()))
    finally:
        process.kill()


def _sleep_as_servers(count: int, seconds: float, told: Any) -> None:
    told.send([fake_comfyui.serve(seconds=seconds)[0].server_port for _ in range(count)])
    threading.Event().wait()


def simulate(options: argparse.Namespace) -> None:
    """Rows over sleeping workers; tells the driver's share of the time and its memory."""
    with open_dormitory(options.workers, options.seconds, options.http) as pool:
        _simulate(options, pool)


def _simulate(options: argparse.Namespace, pool: Dormitory | NamedPool) -> None:
    with tempfile.TemporaryDirectory(prefix="cascade-bench-", dir=options.folder) as folder:
        desk = batches.Desk(Path(folder))
        rows = desk.rows("\n".join(f"picture number {number}" for number in range(options.rows)))
        start, before = time.monotonic(), time.process_time()
        outcome = run_batch(Batch(rows=rows, out=desk.folder / "out", workflow=desk.workflow, sheet=0), pool)
        wall, processor = time.monotonic() - start, time.process_time() - before
        asleep = options.seconds * options.rows
        told = {
            "rows": options.rows,
            "workers": options.workers,
            "seconds a picture": options.seconds,
            "done": outcome.counts["done"],
            "wall seconds": round(wall, 1),
            "driver's processor seconds": round(processor, 1),
            "driver's share of the time, %": round(100 * processor / wall, 2),
            "processor milliseconds a picture": round(1000 * processor / options.rows, 3),
            "workers at work, % of the time": round(100 * asleep / (wall * options.workers), 1),
            "driver's memory at most, MB": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
            "manifest, bytes a row": round((desk.folder / "out" / FILE).stat().st_size / options.rows),
        }
        sys.stdout.write(json.dumps(told, indent=1) + "\n")
        sys.stdout.flush()


class Meter(threading.Thread):
    """Notes now and then how much processor time this process, and all that it started, have used.

    A machine that others use as well makes pictures late, but not dear: seconds of a processor can be compared there.
    """

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.marks: list[tuple[float, float, float]] = []
        self.over = threading.Event()

    def run(self) -> None:
        import psutil

        mine, started, looks = psutil.Process(), [], 0
        while not self.over.wait(0.5):
            if looks % 10 == 0:
                started = mine.children(recursive=True)
            looks, servers = looks + 1, 0.0
            for process in started:
                with contextlib.suppress(psutil.Error):
                    servers += sum(process.cpu_times()[:2])
            self.marks.append((time.time(), servers, sum(mine.cpu_times()[:2]) - time.thread_time()))

    def between(self, start: float, end: float) -> tuple[float, float]:
        """Processor seconds of the servers and of this process between two times of the clock."""
        first, last = (min(self.marks, key=lambda mark, at=at: abs(mark[0] - at)) for at in (start, end))
        return last[1] - first[1], last[2] - first[2]


def throughput(options: argparse.Namespace) -> None:
    """Pictures a minute of one server and of two, each with one thread; starting is left out."""
    os.environ["OMP_NUM_THREADS"] = "1"
    host, base = current_setup().host.root, Base()
    told: dict[str, Any] = {}
    try:
        for workers in (1, 2):
            with tempfile.TemporaryDirectory(prefix="cascade-bench-") as folder:
                out = Path(folder) / "out"
                rows = Path(folder) / "rows.txt"
                rows.write_text("\n".join(f"robot number {number}" for number in range(options.rows)), encoding="utf-8")
                flags = ("--cpu", "--base-directory", str(base.path))
                workflow = REPOSITORY / "workflows" / "Stable Cascade - first picture.json"
                meter = Meter()
                meter.start()
                run_batch(Batch(rows, out, workflow, workers=workers, comfyui=str(host), comfyui_flags=flags, sheet=0))
                meter.over.set()
                told[f"{workers} of them"] = _rate(out, options.rows, workers, meter)
    finally:
        base.close()
    one, two = told.values()
    told["times the pictures"] = round(two["pictures/min"] / one["pictures/min"], 2)
    dear = two["processor seconds a picture, servers"] + two["processor seconds a picture, driver"]
    told["times on two free cores, predicted"] = round(2 * one["processor seconds a picture, servers"] / dear, 2)
    sys.stdout.write(json.dumps({**told, "cores": os.cpu_count(), "load now": os.getloadavg()}, indent=1) + "\n")


def _rate(out: Path, rows: int, workers: int, meter: Meter) -> dict[str, float]:
    """From when every server has painted two pictures until the first runs dry."""
    manifest = Manifest(out, read_only=True)
    times = sorted(value for (value,) in manifest.read("SELECT finished FROM rows WHERE finished IS NOT NULL"))
    manifest.close()
    warm = times[2 * workers : rows - workers]
    count, (servers, driver) = len(warm) - 1, meter.between(warm[0], warm[-1])
    return {
        "pictures/min": round(count / (warm[-1] - warm[0]) * 60, 2),
        "processor seconds a picture, servers": round(servers / count, 3),
        "processor seconds a picture, driver": round(driver / count, 4),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    asleep = commands.add_parser("simulate")
    asleep.add_argument("--rows", type=int, default=100_000)
    asleep.add_argument("--workers", type=int, default=64)
    asleep.add_argument("--seconds", type=float, default=1.0, help="of each picture")
    asleep.add_argument("--http", action="store_true", help="have the workers be servers in another process")
    asleep.add_argument("--folder", help="where the pictures of the simulation go")
    asleep.set_defaults(run=simulate)
    faster = commands.add_parser("throughput")
    faster.add_argument("--rows", type=int, default=24)
    faster.set_defaults(run=throughput)
    options = parser.parse_args()
    options.run(options)


if __name__ == "__main__":
    main()
