"""The draft board, for real: a sheet of drafts, clicks on some, and only those are painted."""

from __future__ import annotations

import io
from typing import Any

import numpy
import pytest
from browser.page import QUEUE, Page, Small
from harness import REPOSITORY
from PIL import Image

from tools.server import PACK

SHEET = ".cascade-studio-board .sheet"
DRAFT = SHEET + " button[data-number='%d']"


@pytest.fixture
def drafts(object_info: dict[str, Any]) -> Small:
    return Small(REPOSITORY / "workflows" / "Stable Cascade - many drafts, draft board.json", object_info)


def run(page: Page) -> list[str]:
    """Press the Run button and wait; returns the nodes whose results were kept from before."""
    page.watch("execution_success", "execution_error", "execution_interrupted", "execution_cached")
    page.browser.click(QUEUE)
    page.wait_done()
    return page.seen("execution_cached")[-1]["nodes"]


def saved(page: Page, server: Any, node: str) -> list[numpy.ndarray]:
    """The pictures that the last run saved."""
    images = page.browser.run("return app.nodeOutputs[arguments[0]]?.images ?? []", node)
    return [numpy.asarray(Image.open(io.BytesIO(server.client.view(image))).convert("RGB"), float) for image in images]


def chosen(page: Page) -> list[str]:
    return page.browser.run(
        f"return [...document.querySelectorAll('{SHEET} .chosen')].map((place) => place.dataset.number)"
    )


def test_the_drafts_that_are_clicked_are_painted_and_no_others(page, drafts, server, pictures):
    board, save = int(drafts.node("CascadeStudio_DraftBoard")), drafts.node("CascadeStudio_SaveImage")
    count = drafts.converted.prompt[drafts.node("CascadeStudio_Canvas")]["inputs"]["batch_size"]
    page.load(drafts.workflow)
    page.fit()
    run(page)
    page.browser.wait(
        f"document.querySelectorAll('{SHEET} button').length === arguments[0]"
        f" && document.querySelector('{SHEET} img').naturalWidth > 0",
        count,
    )
    assert count == 8 and saved(page, server, save) == [] and chosen(page) == []

    for number, expected in ((3, "3"), (1, "1,3"), (3, "1"), (1, ""), (3, "3")):
        page.browser.click(DRAFT % number)
        assert page.value(board, "chosen") == expected
    assert drafts.node("CascadeStudio_SamplePrior") in run(page), "Stage C ran again"
    (third,) = saved(page, server, save)

    page.browser.click(DRAFT % 1)
    run(page)
    first, again = saved(page, server, save)
    assert chosen(page) == ["1", "3"] and page.value(board, "chosen") == "1,3"
    assert abs(again - third).mean() < 1, "the chosen draft is another in company"
    assert abs(first - third).mean() > 4, "another draft gave the same picture"
    (pictures / "board.png").write_bytes(page.browser.picture())

    page.browser.click(".cascade-studio-board .row button")
    assert page.value(board, "chosen") == "" and chosen(page) == []


def test_numbers_are_read_as_people_write_them(page):
    numbers = page.browser.run(
        "const { numbersIn } = await import(arguments[0]);"
        "return ['', '1,3', ' 2-4;9', 'x 1', '3 3', '１，３、４'].map((text) => numbersIn(text, 4))",
        f"/extensions/{PACK}/js/board.js",
    )
    assert numbers == [[], [1, 3], [2, 3, 4], [1], [3], [1, 3, 4]]
