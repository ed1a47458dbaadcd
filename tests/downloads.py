"""Files to serve, and short ways to fetch them from a faulty server."""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy
from faulty_server import FaultyServer, File

from cascade_studio import stages  # noqa: F401 - importing torch takes seconds that no measured time should hold
from cascade_studio.nodes.checkpoints.catalogue import Entry
from cascade_studio.nodes.checkpoints.fetch import Result, fetch_plan
from cascade_studio.nodes.checkpoints.find import Finder, models_roots
from cascade_studio.nodes.checkpoints.plan import DownloadPlan, make_plan
from cascade_studio.nodes.checkpoints.settings import FetchSettings

QUICK = FetchSettings(backoff=0.02, longest_wait=0.1, stall=20.0, connect=20.0, spare=0, connections=1)
"""Settings with short waits and one connection, so that faults can be told apart; a busy machine is no fault."""


def safetensors(size: int, seed: int = 0) -> bytes:
    """A safetensors file of exactly ``size`` bytes with random contents."""
    header = json.dumps({"a": {"dtype": "U8", "shape": [size - 256], "data_offsets": [0, size - 256]}}).encode()
    header += b" " * (248 - len(header))
    return struct.pack("<Q", 248) + header + numpy.random.default_rng(seed).bytes(size - 256)


@dataclass
class Place:
    """A server with one file, and a models folder to fetch it into."""

    server: FaultyServer
    models: Path
    data: bytes
    entry: Entry
    settings: FetchSettings = QUICK

    @property
    def target(self) -> Path:
        return self.models / "vae" / self.entry.name

    def serve(self, data: bytes, **marks) -> None:
        """Serve ``data`` from now on, and have the entry expect it."""
        self.data = data
        self.server.files["x"] = File(data, **marks)
        self.entry = replace(self.entry, bytes=len(data), sha256=hashlib.sha256(data).hexdigest())

    def plan(self) -> DownloadPlan:
        return make_plan([self.entry], Finder(models_roots(self.models)))

    def fetch(
        self, cancelled: Callable[[], bool] | None = None, progress: Callable | None = None, **changes
    ) -> list[Result]:
        return fetch_plan(self.plan(), replace(self.settings, **changes), progress, cancelled)

    def assert_exact(self) -> None:
        """The file is complete, and nothing is left of its download."""
        assert self.target.read_bytes() == self.data
        names = [path.name for path in self.target.parent.iterdir()]
        left = [name for name in names if not name.endswith(".bad")]
        assert left == [self.target.name], left

    def assert_absent(self) -> None:
        assert not self.target.exists()
