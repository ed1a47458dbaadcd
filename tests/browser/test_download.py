"""The download button, for real: a loopback server has what is missing, and clicks do the rest."""

from __future__ import annotations

import pytest
from browser.page import QUEUE
from browser.shop import FILES

PANEL = ".cascade-studio-download"
SLOW = 40_000
"""Bytes a second: the family would take minutes, which nobody waits for who presses Cancel."""


@pytest.fixture
def slow_shop(shop):
    """The shop on a thin line; as fast as ever after the test."""
    shop.rate = SLOW
    yield shop
    shop.rate = None


def test_clicks_fetch_what_is_missing_stop_go_on_and_run(page, small, server, slow_shop, pictures):
    shop, names = slow_shop, [f"small_{role}.safetensors" for role in FILES]
    page.load(small.workflow)
    load = small.node("CascadeStudio_Load")
    page.set(load, "preset", shop.PRESET)
    page.set(load, "missing_files", "ask")
    page.fit()
    page.watch("execution_error", "execution_success")
    page.browser.click(QUEUE)
    page.browser.wait("window.seen.some(([name]) => name === 'execution_error')")
    text = page.browser.wait(f"document.querySelector('{PANEL}')?.innerText")
    assert all(name in text for name in names), text
    assert not shop.requests, "asking fetches nothing"
    page.dismiss()
    (pictures / "download.png").write_bytes(page.browser.picture())

    page.watch("execution_error", "execution_interrupted", "execution_success", "cascade_studio.progress")
    page.browser.click(f"{PANEL} [data-action=start]")
    words = page.browser.wait(
        f"/ of .* left$/.test(document.querySelector('{PANEL} .words').textContent)"
        f" && document.querySelector('{PANEL} .words').textContent"
    )
    assert any(words.startswith(name) for name in names), words
    assert page.value(load, "missing_files") == "download"
    page.browser.click(f"{PANEL} [data-action=cancel]")
    page.browser.wait("window.seen.some(([name]) => name === 'execution_interrupted')")
    page.browser.wait(f"document.querySelector('{PANEL} .words').textContent.includes('Stopped')")
    fetched = {path.name for path in server.base.models.rglob("small_*.safetensors")}
    assert not set(names) <= fetched, "it was stopped too late to be stopped"

    shop.rate = None
    page.watch("execution_error", "execution_interrupted", "execution_success", "cascade_studio.progress")
    page.browser.click(f"{PANEL} [data-action=start]")
    page.wait_done()
    progress = page.seen("cascade_studio.progress")
    assert progress and progress[-1]["finished"]
    for role, name in zip(FILES, names):
        (file,) = server.base.models.rglob(name)
        assert file.read_bytes() == shop.files[role].data
    page.browser.wait(f"document.querySelector('{PANEL} .head').textContent === 'All files are here'")
    assert "left" not in page.browser.run(f"return document.querySelector('{PANEL} .words').textContent")

    asked = len(shop.requests)
    page.watch("execution_error", "execution_interrupted", "execution_success", "cascade_studio.plan")
    page.set(small.node("CascadeStudio_SamplePrior"), "seed", 77)
    page.browser.click(QUEUE)
    page.wait_done()
    assert not page.seen("cascade_studio.plan") and len(shop.requests) == asked, "what is here is not fetched again"
