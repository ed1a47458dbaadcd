"""What a batch costs: ``dev.py run tests/benchmarks/bench_batch.py simulate`` and ``... throughput``.

``simulate`` has workers that only sleep: many rows, many workers, and how much memory and time the driver takes.
``throughput`` paints with Cascade Mini on one server of our own and then on two, with one thread each.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import batches
import fake_comfyui

from cascade_studio.commands.batch import Batch, run_batch
from cascade_studio.commands.batch.manifest import FILE, Manifest
from cascade_studio.commands.batch.results import Picture
from cascade_studio.commands.batch.server import Job, Painted
from cascade_studio.commands.batch.workers import Painter
from tools.env import REPOSITORY, current_setup
from tools.server import Base


class Sleeper:
    """A worker that sleeps for each picture, one at a time, and hands over a tiny PNG."""

    slots = 2

    def __init__(self, number: int, seconds: float) -> None:
        self.name, self.seconds = f"sleeper {number}", seconds
        self.asleep = 0.0
        self._card = threading.Lock()
        self._picture = fake_comfyui.png({}, None)

    def connect(self, stopped: Callable[[], bool]) -> None:
        """It is always ready."""

    def describe_nodes(self) -> dict[str, Any]:
        return {}

    def memory(self) -> int | None:
        return None

    def paint(self, job: Job, stopped: Callable[[], bool], alive: Callable[[], None]) -> Painted:
        with self._card:
            start = time.monotonic()
            time.sleep(self.seconds)
            self.asleep += time.monotonic() - start
        return Painted([Picture("a.png", self._picture)], self.seconds)

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


def simulate(options: argparse.Namespace) -> None:
    """Rows over sleeping workers; tells the driver's share of the time and its memory."""
    with tempfile.TemporaryDirectory(prefix="cascade-bench-", dir=options.folder) as folder:
        desk = batches.Desk(Path(folder))
        rows = desk.rows("\n".join(f"picture number {number}" for number in range(options.rows)))
        pool = Dormitory(options.workers, options.seconds)
        start, before = time.monotonic(), time.process_time()
        outcome = run_batch(Batch(rows=rows, out=desk.folder / "out", workflow=desk.workflow, sheet=0), pool)
        wall, processor = time.monotonic() - start, time.process_time() - before
        asleep = sum(painter.asleep for painter in pool.painters)
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


def throughput(options: argparse.Namespace) -> None:
    """Pictures a minute of one server and of two, each with one thread; starting is left out."""
    os.environ["OMP_NUM_THREADS"] = "1"
    host, base = current_setup().host.root, Base()
    rates = []
    try:
        for workers in (1, 2):
            with tempfile.TemporaryDirectory(prefix="cascade-bench-") as folder:
                out = Path(folder) / "out"
                rows = Path(folder) / "rows.txt"
                rows.write_text("\n".join(f"robot number {number}" for number in range(options.rows)), encoding="utf-8")
                flags = ("--cpu", "--base-directory", str(base.path))
                workflow = REPOSITORY / "workflows" / "Stable Cascade - first picture.json"
                run_batch(Batch(rows, out, workflow, workers=workers, comfyui=str(host), comfyui_flags=flags, sheet=0))
                rates.append(_rate(out, options.rows, workers))
    finally:
        base.close()
    one, two = rates
    told = {"one server, pictures/min": one, "two servers": two, "times": round(two / one, 2), "cores": os.cpu_count()}
    sys.stdout.write(json.dumps({**told, "load now": os.getloadavg()}, indent=1) + "\n")


def _rate(out: Path, rows: int, workers: int) -> float:
    """Pictures a minute from when every server has painted one until the first runs dry."""
    manifest = Manifest(out, read_only=True)
    times = sorted(value for (value,) in manifest.read("SELECT finished FROM rows WHERE finished IS NOT NULL"))
    manifest.close()
    warm = times[2 * workers : rows - workers]
    return round((len(warm) - 1) / (warm[-1] - warm[0]) * 60, 2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    asleep = commands.add_parser("simulate")
    asleep.add_argument("--rows", type=int, default=100_000)
    asleep.add_argument("--workers", type=int, default=64)
    asleep.add_argument("--seconds", type=float, default=1.0, help="of each picture")
    asleep.add_argument("--folder", help="where the pictures of the simulation go")
    asleep.set_defaults(run=simulate)
    faster = commands.add_parser("throughput")
    faster.add_argument("--rows", type=int, default=24)
    faster.set_defaults(run=throughput)
    options = parser.parse_args()
    options.run(options)


if __name__ == "__main__":
    main()
