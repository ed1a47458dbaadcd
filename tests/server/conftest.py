"""Real ComfyUI servers over HTTP. Fixture ``server``: the main host; every pinned host for tests marked ``smoke``."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy
import pytest
from PIL import Image
from small_extras import write_controlnets, write_tuned_prior

from cascade_studio.commands.workflow.api_prompt import convert
from tools.authoring.recipes.parts import APPLE, HILLS, HOLE
from tools.client import PromptRun
from tools.env import current_setup, set_up
from tools.hosts import supported
from tools.server import Base, HostServer

MAIN = "main"
os.environ.setdefault("OMP_NUM_THREADS", "1")  # the small family's layers mostly wait for each other on more


def _smoke_hosts() -> list[str]:
    """The other pinned hosts that the pack supports."""
    given = os.environ.get("CASCADE_STUDIO_SMOKE_HOSTS", "").split(",")
    return [version for version in given if version and supported(version)]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "server" in metafunc.fixturenames:
        smoke = metafunc.definition.get_closest_marker("smoke") is not None
        metafunc.parametrize("server", [*(_smoke_hosts() if smoke else []), MAIN], indirect=True, scope="session")


class TestServer(HostServer):
    """A running server with the tiny checkpoint family in its models folder."""

    __test__ = False

    def run(self, prompt: dict, workflow: dict | None = None, **options: object) -> PromptRun:
        """Queue an API prompt and follow it to its end (see :meth:`tools.client.Client.run`)."""
        return self.client.run(prompt, workflow, alive=lambda: self.process.poll() is None, **options)

    def run_workflow(self, workflow: dict, **options: object) -> PromptRun:
        """Queue a workflow as the frontend saves it."""
        return self.run(convert(workflow, self.client.get("/object_info")).prompt, workflow, **options)


@pytest.fixture(scope="session")
def family_models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A models folder with the tiny checkpoint family."""
    from family import write_family

    folder = tmp_path_factory.mktemp("models")
    write_family(folder)
    return folder


@pytest.fixture(scope="session")
def server(request: pytest.FixtureRequest, family_models: Path) -> Iterator[TestServer]:
    """A running server; its log is in ``server.log``, its client in ``server.client``."""
    base = Base()
    try:
        shutil.copytree(family_models, base.models, dirs_exist_ok=True)
        setup = current_setup() if request.param == MAIN else set_up(request.param)
        with TestServer(setup, base, cpu=True) as running:
            yield running
    finally:
        base.close()


@pytest.fixture(scope="session")
def with_picture(server):
    """The server with small, partly see-through pictures in place of the pack's, and more models."""
    write_controlnets(server.base.models)
    write_tuned_prior(server.base.models)
    across = numpy.linspace(0, 255, 256)
    pixels = numpy.zeros((256, 256, 4), numpy.uint8)
    pixels[..., 0], pixels[..., 1], pixels[..., 2] = across, across[:, None], 128
    pixels[32:128, 128:224, :3] = 255 - pixels[32:128, 128:224, :3]  # edges
    pixels[..., 3] = 255
    pixels[96:192, 64:160, 3] = 0
    folder = server.base.path / "input"
    assert all((folder / name).is_file() for name in (HILLS, HOLE, APPLE)), "the pack has put its pictures there"
    # The second names are those in workflows that were frozen before the pack had pictures of its own.
    for name in (HILLS, HOLE, "example.png"):
        Image.fromarray(pixels).save(folder / name, lossless=True, exact=True)
    for name in (APPLE, "another.png"):
        Image.fromarray(pixels.transpose(1, 0, 2)[:, ::-1]).save(folder / name, lossless=True, exact=True)
    return server
