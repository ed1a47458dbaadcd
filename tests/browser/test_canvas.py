"""The canvas on the page: its sizes, its memory, and that it follows its widgets."""

from __future__ import annotations

import random

from cascade_studio.stages.inputs.canvas import plan_canvas
from cascade_studio.stages.nets import memory
from cascade_studio.stages.nets.stage_a import StageA, StageAConfig
from cascade_studio.stages.nets.stage_b import StageBConfig
from cascade_studio.stages.nets.stage_c import StageCConfig
from tools.server import PACK

SIZES = 1500
CANVAS = ".cascade-studio-canvas"


def module(name: str) -> str:
    return f"/extensions/{PACK}/js/{name}.js"


def sizes() -> list[list[float | None]]:
    """Random sizes and compressions, and the corners of what is allowed."""
    draw = random.Random(7)
    found: list[list[float | None]] = [
        [64, 64, None],
        [8192, 8192, None],
        [64, 8192, None],
        [1024, 1024, 32.0],
        [1000, 648, None],
        [100, 100, 64.0],
        [63, 100, None],
        [100, 8193, None],
    ]
    for _ in range(SIZES):
        top = draw.choice((300, 1100, 2100, 8192))
        asked = draw.choice((None, None, round(draw.uniform(32, 64), 2)))
        found.append([draw.randint(64, top), draw.randint(64, top), asked])
    return found


def planned(width: int, height: int, compression: float | None) -> list[float] | None:
    try:
        canvas = plan_canvas(width, height, compression)
    except ValueError:
        return None
    left, top, _, _ = canvas.crop
    return [
        canvas.padded_width,
        canvas.padded_height,
        canvas.prior_width,
        canvas.prior_height,
        canvas.decoder_width,
        canvas.decoder_height,
        left,
        top,
    ]


def test_the_page_plans_sizes_as_the_server_does(page):
    asked = sizes()
    found = page.browser.run(
        "const { plan } = await import(arguments[0]); return arguments[1].map((size) => { const c = plan(...size);"
        "return c && [c.paddedWidth, c.paddedHeight, c.priorWidth, c.priorHeight, c.decoderWidth, c.decoderHeight,"
        " c.left, c.top]; })",
        module("geometry"),
        asked,
    )
    wrong = [(size, one, other) for size, one in zip(asked, found) if one != (other := planned(*size))]
    assert not wrong, wrong[:5]


def test_the_page_estimates_memory_as_the_server_does(page):
    draw = random.Random(8)
    asked = [
        [draw.randint(64, 4096), draw.randint(64, 4096), draw.randint(1, 8), draw.choice((2, 4))] for _ in range(200)
    ]
    found = page.browser.run(
        "const { plan } = await import(arguments[0]); const { workingMemory } = await import(arguments[1]);"
        "return arguments[2].map(([w, h, batch, bytes]) => { const m = workingMemory(plan(w, h), batch, bytes);"
        "return [m.C, m.B, m.A]; })",
        module("geometry"),
        module("memory"),
        asked,
    )
    net = StageA(StageAConfig(), device="meta")
    for (width, height, batch, size), given in zip(asked, found):
        canvas = plan_canvas(width, height)
        stage_c = memory.activation_memory(StageCConfig(), 2 * batch, *canvas.prior_shape()[2:], size, (1, 1))
        stage_b = memory.activation_memory(StageBConfig(), 2 * batch, *canvas.decoder_shape()[2:], size, (1, 2, 4, 8))
        assert given == [stage_c, stage_b, net.decode_memory(canvas.decoder_shape(batch), size)], (width, height, batch)


def test_snap_and_aspect_give_sizes_without_padding_and_with_the_aspect(page):
    draw = random.Random(9)
    asked = [[draw.randint(512, 2048), draw.randint(512, 2048)] for _ in range(40)]
    snapped, wide = page.browser.run(
        "const { snapped, withAspect } = await import(arguments[0]);"
        "return [arguments[1].map((size) => snapped(...size)), arguments[1].map((size) => withAspect(...size, 16, 9))]",
        module("geometry"),
        asked,
    )
    for (width, height), (across, down), (long, short) in zip(asked, snapped, wide):
        assert plan_canvas(across, down).padding == 0 and abs(across - width) <= 72 and abs(down - height) <= 72
        assert abs(long / short / (16 / 9) - 1) < 0.02 and abs(long * short / (width * height) - 1) < 0.03


def test_the_canvas_follows_its_widgets(page, pictures):
    node = page.add("CascadeStudio_Canvas", (500, 150), width=1000, height=648)
    text = page.browser.wait(f"document.querySelector('{CANVAS} .facts')?.innerText")
    canvas = plan_canvas(1000, 648)
    assert f"{canvas.prior_width} x {canvas.prior_height}" in text and "1008 x 648" in text, text
    page.browser.run(
        "document.querySelector(arguments[0]).value = '16:9';"
        "document.querySelector(arguments[0]).dispatchEvent(new Event('change'))",
        f"{CANVAS} select",
    )
    across, down = page.value(node, "width"), page.value(node, "height")
    assert across > down and abs(across / down - 16 / 9) < 0.03
    page.browser.click(f"{CANVAS} button:nth-of-type(1)")
    assert [page.value(node, "width"), page.value(node, "height")] == [down, across]
    page.browser.click(f"{CANVAS} button:nth-of-type(2)")
    assert plan_canvas(page.value(node, "width"), page.value(node, "height")).padding == 0
    cells = page.browser.run(f"return document.querySelector('{CANVAS} .cells').getAttribute('d')").count("v")
    assert cells == plan_canvas(page.value(node, "width"), page.value(node, "height")).prior_width - 1
    page.set(node, "width", 20)
    page.browser.wait(f"!!document.querySelector('{CANVAS} .warning')")
    (pictures / "canvas.png").write_bytes(page.browser.picture())


def test_the_canvas_follows_values_that_came_otherwise(page):
    """Set without a hand, as undo and other extensions do."""
    node = page.add("CascadeStudio_Canvas", (500, 150))
    page.set(node, "width", 2048, quietly=True)
    canvas = plan_canvas(2048, page.value(node, "height"))
    page.browser.wait(
        f"document.querySelector('{CANVAS} .facts').innerText.includes(arguments[0])",
        f"{canvas.prior_width} x {canvas.prior_height} Stage C",
    )
