"""Reload in the middle of a download: the panel is there again, with what has arrived and with Cancel."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from browser.page import QUEUE, Page, Small
from browser.shop import Shop

from tools.server import HostServer

PANEL = ".cascade-studio-download"
DRIP = 20_000
"""Bytes a second: far too slow to be over before the page is there again."""


@pytest.fixture
def dripping_shop(shop: Shop, server: HostServer) -> Iterator[Shop]:
    """The shop on a line that drips, and nothing of it on this computer; as fast as ever after the test."""
    for path in server.base.models.rglob("small_*"):
        path.unlink()
    server.client.fetch("/free", {"unload_models": True, "free_memory": True})  # nor kept from an earlier run
    shop.rate = DRIP
    yield shop
    shop.rate = None


def words(page: Page) -> str:
    return page.browser.wait(
        f"/ of .* left$/.test(document.querySelector('{PANEL} .words')?.textContent)"
        f" && document.querySelector('{PANEL} .words').textContent"
    )


def test_a_reload_finds_the_download_and_can_cancel_it(page: Page, small: Small, dripping_shop: Shop):
    page.load(small.workflow, "a-download")
    load = small.node("CascadeStudio_Load")
    page.set(load, "preset", dripping_shop.PRESET)
    page.set(load, "missing_files", "download")
    page.fit()
    page.watch("execution_error", "execution_success", "cascade_studio.progress")
    page.browser.click(QUEUE)
    before = words(page)
    graph = page.graph()

    page.open()
    page.load(graph, "a-download")
    page.fit()
    page.browser.wait(f"!document.querySelector('{PANEL} [data-action=cancel]').hidden")
    assert page.browser.run(f"return document.querySelector('{PANEL} .head').textContent").startswith("Fetching")
    now = words(page)
    assert now.split(":")[0] == before.split(":")[0], "the same file goes on"
    assert not page.browser.run(f"return document.querySelector('{PANEL} .track').hidden")

    page.watch("execution_error", "execution_interrupted", "execution_success")
    page.browser.click(f"{PANEL} [data-action=cancel]")
    page.browser.wait("window.seen.some(([name]) => name === 'execution_interrupted')")
    page.browser.wait(f"document.querySelector('{PANEL} .words').textContent.includes('Stopped')")
    assert page.browser.run(f"return document.querySelector('{PANEL} [data-action=cancel]').hidden")
    page.open()
    page.load(graph, "a-download")
    page.browser.wait(f"document.querySelector('{PANEL} .words').textContent.includes('Stopped')")
