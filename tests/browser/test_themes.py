"""Letters of every panel in both of the host's themes and both of its renderers, measured on the screen."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator

import numpy
import pytest
from browser.contrast import contrast, measure_letters
from browser.page import Page
from browser.test_plan import PLAN, PROGRESS
from PIL import Image

READABLE = 4.5
"""The ratio that WCAG 2 asks for in letters of this size."""

BROWN, RED = ("#432", "#653"), ("#322", "#533")
"""The host's own colours of nodes: the pack's workflows use the first one."""

NODES = ("Load", "Canvas", "Canvas", "SamplePrior", "ReportCard", "DraftBoard", "Compare")
PANELS = ("canvas", "download", "stages", "text", "board", "compare", "repair")


@pytest.fixture(params=["dark", "light"])
def palette(opened: Page, request: pytest.FixtureRequest) -> Iterator[str]:
    opened.setting("Comfy.ColorPalette", request.param)
    opened.browser.wait("(document.querySelector('.dark-theme') !== null) === arguments[0]", request.param == "dark")
    yield request.param
    opened.clear()
    opened.setting("Comfy.ColorPalette", "dark")


@pytest.fixture(params=[False, True], ids=["litegraph", "nodes-2"])
def modern(opened: Page, request: pytest.FixtureRequest) -> Iterator[bool]:
    opened.setting("Comfy.VueNodes.Enabled", request.param)
    yield request.param
    opened.clear()
    opened.setting("Comfy.VueNodes.Enabled", False)


def colour(page: Page, node: int, colours: tuple[str, str]) -> None:
    page.browser.run(
        "const node = app.rootGraph.getNodeById(arguments[0]); [node.color, node.bgcolor] = arguments[1];"
        "node.setDirtyCanvas(true, true)",
        node,
        colours,
    )


def data_url(colour: tuple[int, int, int]) -> str:
    made = io.BytesIO()
    Image.new("RGB", (64, 64), colour).save(made, "PNG")
    return f"data:image/png;base64,{base64.b64encode(made.getvalue()).decode()}"


def show_panels(page: Page) -> None:
    """Every panel with words in it: a plan that goes on, a run, a report, a fault that can be mended, two pictures."""
    load, canvas, told, sample, card, board, compare = (page.add(f"CascadeStudio_{kind}") for kind in NODES)
    places = {load: (0, 0), canvas: (420, 0), told: (420, 560), sample: (860, 0)}
    places |= {card: (1320, 0), board: (1320, 400), compare: (1760, 0)}
    for node, place in places.items():  # added in sight, since the host draws no panel of a node that is out of it
        page.browser.run("app.rootGraph.getNodeById(arguments[0]).pos = arguments[1]", node, place)
    colour(page, canvas, BROWN)
    colour(page, told, RED)
    page.executed(told, {"text": ["212 of 212 keys"]})
    page.browser.run(
        "const [load, sample] = [...arguments].map((id) => app.rootGraph.getNodeById(id));"
        "const slotOf = (slots, name) => slots.findIndex((slot) => slot.name === name);"
        "load.connect(slotOf(load.outputs, 'decoder'), sample, slotOf(sample.inputs, 'model'));"
        "app.api.dispatchCustomEvent('promptQueueing', { requestId: 1, batchCount: 1 })",
        load,
        sample,
    )
    page.browser.wait("!!document.querySelector('.cascade-studio-repair button')?.textContent")
    page.send("cascade_studio.plan", {"node": str(load), **PLAN, "state": "fetches"})
    page.send("cascade_studio.progress", {"node": str(load), "file": "stage_b.safetensors", **PROGRESS})
    half = {"value": 10, "max": 20, "state": "running"}
    page.send("progress_state", {"prompt_id": "themes", "nodes": {str(sample): half}})
    images = [{"filename": f"none_{number}.png", "subfolder": "", "type": "temp"} for number in range(2)]
    page.executed(compare, {"before": images, "after": images})
    page.browser.run(
        "document.querySelectorAll('.cascade-studio-compare img').forEach((image) => { image.src = arguments[0]; })",
        data_url((255, 255, 255)),
    )
    page.fit(0.9)


def test_every_letter_of_our_panels_can_be_read(page, palette, modern, pictures):
    show_panels(page)
    (pictures / f"panels-{palette}-{'nodes-2' if modern else 'litegraph'}.png").write_bytes(page.browser.picture())
    letters = measure_letters(page)
    page.send("execution_success", {"prompt_id": "themes"})
    missing = [name for name in PANELS if not any(one.name.startswith(f"cascade-studio-{name} ") for one in letters)]
    assert not missing and len(letters) > 30, (missing, [one.name for one in letters])
    faint = [f"{one.name} ({one.ratio:.1f})" for one in letters if one.ratio < READABLE]
    assert not faint, "\n".join(faint)


def test_the_measure_sees_what_cannot_be_read(page):
    page.add("CascadeStudio_Canvas", (100, 100))
    good = {one.name: one.ratio for one in measure_letters(page)}
    page.browser.run(
        "document.querySelectorAll('.cascade-studio .facts').forEach((one) => { one.style.opacity = 0.2; })"
    )
    bad = {one.name: one.ratio for one in measure_letters(page)}
    assert good.keys() == bad.keys() and any("cells" in name for name in good)
    for name, ratio in bad.items():
        assert ratio < 2 if " DIV " in name else abs(ratio - good[name]) < 0.2, (name, ratio)


@pytest.mark.parametrize(
    "ink, ground, expected", [((0, 0, 0, 1), 255, 21), ((0, 0, 0, 0), 255, 1), ((119,) * 3 + (1,), 255, 4.48)]
)
def test_the_ratio_is_that_of_the_standard(ink, ground, expected):
    assert contrast(list(ink), numpy.full((4, 4, 3), float(ground))) == pytest.approx(expected, abs=0.01)
