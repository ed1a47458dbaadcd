"""One real ComfyUI with the pack and the tiny family, one browser, and a page with a bundled workflow on it."""
from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from browser.driver import Browser, find_chromium
from browser.page import SETTINGS, Page, Small
from harness import REPOSITORY, main_setup
from tools.server import Base, Server

os.environ.setdefault("OMP_NUM_THREADS", "1")  # the small family's layers mostly wait for each other on more


@pytest.fixture(scope="session")
def chromium() -> str:
    """The browser's path; the tests are skipped where there is none."""
    found = find_chromium()
    if found is None:
        pytest.skip("No Chromium is installed: the tests in a real browser need one (apt-get install chromium).")
    return found


@pytest.fixture(scope="session")
def server(chromium: str) -> Iterator[Server]:
    """A running server whose user has been here before: no welcome dialogs."""
    from family import write_family
    base = Base()
    try:
        write_family(base.models)
        with Server(main_setup(), base, cpu=True) as running:
            running.client.fetch("/settings", SETTINGS)
            yield running
    finally:
        base.close()


@pytest.fixture(scope="session")
def opened(server: Server, chromium: str) -> Iterator[Page]:
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
def object_info(server: Server) -> dict[str, Any]:
    return server.client.get("/object_info")


@pytest.fixture
def small(object_info: dict[str, Any]) -> Small:
    return Small(REPOSITORY / "workflows" / "text_to_image.json", object_info)


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where screenshots go: CASCADE_STUDIO_SCREENSHOTS, else a temporary folder."""
    given = os.environ.get("CASCADE_STUDIO_SCREENSHOTS")
    folder = Path(given) if given else tmp_path_factory.mktemp("screenshots")
    folder.mkdir(parents=True, exist_ok=True)
    return folder
