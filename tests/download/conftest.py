"""A faulty server, and a place that fetches from it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator

import pytest
from downloads import Place, safetensors
from faulty_server import FaultyServer, File
from safetensors.torch import save

from cascade_studio import stages
from cascade_studio.nodes.checkpoints.catalogue import Entry


@pytest.fixture
def servers() -> Iterator[Callable[[], FaultyServer]]:
    started: list[FaultyServer] = []

    def start() -> FaultyServer:
        started.append(FaultyServer())
        return started[-1]

    yield start
    for server in started:
        server.close()


@pytest.fixture
def place(servers, tmp_path) -> Iterator[Place]:
    """A place; however its download ends, no empty file is left of it."""
    server = servers()
    data = safetensors(1 << 20)
    entry = Entry(
        "x",
        "stage_a",
        "x.safetensors",
        "vae",
        server.url("x"),
        bytes=len(data),
        provenance="official page",
        sha256=hashlib.sha256(data).hexdigest(),
    )
    server.files["x"] = File(data)
    made = Place(server, tmp_path / "models", data, entry)
    yield made
    assert not [path for path in made.models.rglob("*") if path.is_file() and not path.stat().st_size]


@pytest.fixture(scope="session")
def tiny_stage_a() -> bytes:
    """A very small Stage A as a safetensors file."""
    net = stages.StageA(stages.StageAConfig(bottleneck_blocks=1, c_hidden=32, codebook_size=64))
    return save({key: value.contiguous() for key, value in net.state_dict().items()})
