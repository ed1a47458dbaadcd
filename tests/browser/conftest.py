"""One real ComfyUI with the pack and the tiny family, one browser, and a page with a bundled workflow on it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from browser.driver import Browser, find_chromium
from browser.page import SETTINGS, Page, Small
from browser.shop import IN_THE_WAY, Shop
from harness import REPOSITORY

from tools.env import current_setup
from tools.frontend import frontend_flags
from tools.server import Base, HostServer

os.environ.setdefault("OMP_NUM_THREADS", "1")  # the small family's layers mostly wait for each other on more


@pytest.fixture(scope="session")
def chromium() -> str:
    """The browser's path; the tests are skipped where there is none."""
    found = find_chromium()
    if found is None:
        pytest.skip("No Chromium is installed: the tests in a real browser need one (apt-get install chromium).")
    return found


@pytest.fixture(scope="session")
def family_models(chromium: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A models folder with the tiny checkpoint family."""
    from family import write_family

    folder = tmp_path_factory.mktemp("models")
    write_family(folder)
    return folder


@pytest.fixture(scope="session")
def shop(family_models: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shop]:
    """A loopback server with the same family under other names, which a user's catalogue leads to."""
    opened = Shop(family_models, tmp_path_factory.mktemp("catalogue"))
    yield opened
    opened.close()


@pytest.fixture(scope="session")
def server(family_models: Path, shop: Shop) -> Iterator[HostServer]:
    """A running server whose user has been here before: no welcome dialogs. What it fetches comes from the shop.

    It shows the frontend that its host was made with, which for an older host is not the environment's.
    """
    base = Base()
    try:
        shutil.copytree(family_models, base.models, dirs_exist_ok=True)
        setup = current_setup()
        running = HostServer(setup, base, cpu=True, flags=frontend_flags(setup))
        with pytest.MonkeyPatch.context() as environment:  # of this one process: other tests stay offline
            for name in IN_THE_WAY:
                environment.delenv(name, raising=False)
            for name, value in shop.environment.items():
                environment.setenv(name, value)
            running.start()
        try:
            running.client.fetch("/settings", SETTINGS)
            yield running
        finally:
            running.stop()
    finally:
        base.close()


@pytest.fixture(scope="session")
def opened(server: HostServer, chromium: str) -> Iterator[Page]:
    """The frontend in the one browser of this session."""
    with Browser() as browser:
        page = Page(browser, server.client.url)
        page.open()
        yield page


@pytest.fixture
def page(opened: Page) -> Iterator[Page]:
    """The frontend with an empty graph; a test fails if the extension complains in the console meanwhile."""
    opened.clear()
    opened.browser.take_errors()
    yield opened
    complaints = opened.complaints()
    assert not complaints, "\n".join(complaints)


@pytest.fixture(scope="session")
def object_info(server: HostServer) -> dict[str, Any]:
    return server.client.get("/object_info")


@pytest.fixture
def small(object_info: dict[str, Any]) -> Small:
    return Small(REPOSITORY / "workflows" / "Stable Cascade - text to image.json", object_info)


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where screenshots go: CASCADE_STUDIO_SCREENSHOTS, else a temporary folder."""
    given = os.environ.get("CASCADE_STUDIO_SCREENSHOTS")
    folder = Path(given) if given else tmp_path_factory.mktemp("screenshots")
    folder.mkdir(parents=True, exist_ok=True)
    return folder
