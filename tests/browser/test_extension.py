"""The panels that the extension draws in nodes, in both of the host's renderers and both kinds of theme."""

from __future__ import annotations

import json
import random
import re

import pytest
from browser.page import QUEUE, Page, Small
from harness import REPOSITORY

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


@pytest.mark.parametrize("modern", [False, True], ids=["canvas", "vue"])
def test_panels_show_in_both_renderers(page, pictures, modern):
    page.setting("Comfy.VueNodes.Enabled", modern)
    try:
        page.add("CascadeStudio_Canvas", (120, 100))
        page.add("CascadeStudio_SamplePrior", (500, 100))
        page.add("CascadeStudio_Compare", (860, 100))
        for kind in ("canvas svg", "stages", "compare"):
            left, top, width, height = page.browser.box(f".cascade-studio-{kind}")
            assert width > 150 and height > 15 and left > 0 and top > 0, kind
        (pictures / f"panels-{'vue' if modern else 'canvas'}.png").write_bytes(page.browser.picture())
    finally:
        page.clear()
        page.setting("Comfy.VueNodes.Enabled", False)


def luminance(colour: str) -> float:
    """Relative luminance (WCAG 2) of "rgb(r, g, b)"."""
    parts = [float(part) / 255 for part in colour[colour.index("(") + 1 : -1].split(",")[:3]]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("palette", ["dark", "light"])
def test_panels_can_be_read_in_every_theme(page, pictures, palette):
    """Letters of buttons, stages and texts against their own ground: the ratio that WCAG 2 asks for."""
    page.setting("Comfy.ColorPalette", palette)
    try:
        page.browser.wait(
            "document.documentElement.classList.contains('dark-theme') === arguments[0]", palette == "dark"
        )
        text = page.add("CascadeStudio_Canvas", (120, 100))
        page.add("CascadeStudio_Compare", (500, 100))
        page.add("CascadeStudio_SamplePrior", (960, 100))
        page.executed(text, {"text": ["212 of 212 keys"]})
        parts = [
            f"{CANVAS} button",
            f"{CANVAS} select",
            ".cascade-studio-compare button",
            ".cascade-studio-text pre",
            ".cascade-studio-stages .stage",
        ]
        for part in parts:
            page.browser.box(part)
        (pictures / f"theme-{palette}.png").write_bytes(page.browser.picture())
        for part in parts:
            ink, field = page.browser.run(
                "const style = getComputedStyle(document.querySelector(arguments[0]));"
                "return [style.color, style.backgroundColor]",
                part,
            )
            light, dark = sorted((luminance(ink), luminance(field)), reverse=True)
            assert (light + 0.05) / (dark + 0.05) >= 4.5, (part, ink, field)
    finally:
        page.setting("Comfy.ColorPalette", "dark")


def test_file_names_are_filled_in_when_queued(page):
    """In what is sent alone: the workflow keeps the text as it was typed."""
    page.add("CascadeStudio_Canvas", (100, 100), width=1000)
    typed = "%date:yyyy%/%CascadeStudio_Canvas.width%_x"
    saving = [
        page.add(f"CascadeStudio_{kind}", (500, 100 + 300 * place), filename_prefix=typed)
        for place, kind in enumerate(("SaveImage", "SaveModel"))
    ]
    sent, year = page.prompt(), page.browser.run("return new Date().getFullYear()")
    kept = {str(node["id"]): node["widgets_values"] for node in page.graph()["nodes"]}
    for node in saving:
        assert sent[str(node)]["inputs"]["filename_prefix"] == f"{year}/1000_x"
        assert page.value(node, "filename_prefix") == typed and typed in kept[str(node)]


def run(page: Page) -> None:
    page.watch("execution_success", "execution_error", "execution_interrupted")
    page.browser.click(QUEUE)
    page.wait_done()


def test_two_pictures_are_compared(page, pictures):
    node = page.add("CascadeStudio_Compare", (500, 120))
    page.browser.run(
        "['before', 'after'].forEach((name, slot) => { const source = LiteGraph.createNode('EmptyImage');"
        "source.pos = [100, 120 + 250 * slot]; app.rootGraph.add(source);"
        "const set = (key, value) => { source.widgets.find((w) => w.name === key).value = value; };"
        "set('width', 96); set('height', 64); set('batch_size', 2); set('color', slot ? 0xff0000 : 0x0000ff);"
        "source.connect(0, app.rootGraph.getNodeById(arguments[0]), slot); })",
        node,
    )
    run(page)
    page.browser.wait(
        "[...document.querySelectorAll('.cascade-studio-compare img')].every((image) => image.naturalWidth === 96)"
    )
    left, top, width, height = page.browser.box(".cascade-studio-compare .pair")
    page.browser.click_at(left + 0.25 * width, top + height / 2)
    share = "document.querySelector('.cascade-studio-compare .pair').style.getPropertyValue('--share')"
    assert abs(float(page.browser.run(f"return {share}").rstrip("%")) - 25) < 1
    (pictures / "compare.png").write_bytes(page.browser.picture())
    assert page.browser.run("return document.querySelector('.cascade-studio-compare .row').innerText").count("1 of 2")
    page.browser.click(".cascade-studio-compare .row button:last-child")
    assert page.browser.run("return document.querySelector('.cascade-studio-compare .row').innerText").count("2 of 2")
    page.browser.click(".cascade-studio-compare .row button:first-child")
    boxes = page.browser.run(
        "return [...document.querySelectorAll('.cascade-studio-compare .pair img')]"
        ".map((image) => image.getBoundingClientRect().left)"
    )
    assert boxes[1] > boxes[0] + 50
    assert page.browser.run("return app.rootGraph.getNodeById(arguments[0]).widgets.length", node) == 1, (
        "the host draws the pictures a second time"
    )


PLAN = {
    "state": "asks",
    "text": "2 files are missing.",
    "plan": {
        "found": [],
        "to_come": 10_280_000_000,
        "spaces": [{"folder": "models", "needed": 1, "free": 5 * 10**11}],
        "missing": [
            {"key": key, "name": f"stage_{key}.safetensors", "bytes": size, "about": f"Stage {key}", "licence": "x"}
            for key, size in (("c", 7_180_000_000), ("b", 3_100_000_000))
        ],
    },
}


def loader(page: Page, small) -> str:
    """The small workflow with its loader, whose missing_files is "ask"."""
    page.load(small.workflow)
    node = small.node("CascadeStudio_Load")
    page.browser.run(
        "const node = app.rootGraph.getNodeById(arguments[0]);"
        "if (!node.widgets.some((w) => w.name === 'missing_files'))"
        " node.addWidget('combo', 'missing_files', 'ask', () => {}, { values: ['download', 'ask', 'never'] });"
        "node.widgets.find((w) => w.name === 'missing_files').value = 'ask'",
        node,
    )
    page.fit()
    return node


def test_the_plan_shows_and_its_button_downloads_and_runs(page, small, pictures):
    node = loader(page, small)
    page.send("cascade_studio.plan", {"node": node, **PLAN})
    panel = ".cascade-studio-download"
    text = page.browser.wait(f"document.querySelector('{panel}')?.innerText")
    assert all(word in text for word in ("2 files", "10.3 GB", "stage_c.safetensors", "7.2 GB", "500 GB")), text
    (pictures / "plan.png").write_bytes(page.browser.picture())
    page.watch("execution_success", "execution_error", "execution_interrupted")
    page.browser.click(f"{panel} [data-action=start]")
    page.wait_done()
    assert page.value(int(node), "missing_files") == "download"
    page.browser.wait(f"document.querySelector('{panel} .head').textContent === 'All files are here'")


def test_a_size_that_is_not_known_to_the_byte_is_about_right(page, small):
    """In a plan, and before it in what the loader would fetch; an error leaves no speed of before."""
    node = loader(page, small)
    (file, _), told = PLAN["plan"]["missing"], {"node": node, **PLAN, "state": "fetches"}
    rounded = {**file, "bytes": None, "about": 1_390_000_000}
    page.send("cascade_studio.plan", {**told, "plan": {**PLAN["plan"], "missing": [rounded], "to_come": 1_390_000_000}})
    panel = ".cascade-studio-download"
    text = page.browser.wait(f"document.querySelector('{panel}').innerText")
    assert text.count("about 1.4 GB") == 2 and "0 B" not in text, text
    page.send(
        "cascade_studio.progress",
        {"node": node, "file": file["name"], "done": 0, "total": 10, "speed": 0, "left": None},
    )
    page.send("execution_error", {"prompt_id": None})
    words = page.browser.wait(f"document.querySelector('{panel} .words').textContent")
    assert words.startswith("Stopped by an error") and "/s" not in words


def test_a_loader_says_what_a_run_would_fetch(page, object_info):
    """From the moment it is opened: names, sizes, folders, licences; and that more than 1 GB is asked for first."""
    workflow = json.loads(
        (REPOSITORY / "workflows" / "Stable Cascade - text to image.json").read_text(encoding="utf-8")
    )
    (load,) = [node for node in workflow["nodes"] if node["type"] == "CascadeStudio_Load"]
    page.load(workflow)
    page.fit()
    text = page.browser.wait("document.querySelector('.cascade-studio-download')?.innerText")
    chosen = [value for value in load["widgets_values"] if str(value).endswith(".safetensors")]
    published = object_info["CascadeStudio_Load"]["input"]["required"]["prior"][1]["published"]
    assert published and all(name in text for name in chosen), text
    assert all(word in text for word in ("Run asks before it fetches", "GB", "models/", "Licence")), text
    page.set(load["id"], "missing_files", "never")
    page.browser.wait("document.querySelector('.cascade-studio-download .head').innerText.includes('missing')")
    page.set(load["id"], "preset", "automatic")
    page.browser.wait("document.querySelector('.cascade-studio-download .head').innerText.includes('best complete')")


def test_progress_shows_and_cancel_interrupts(page, small):
    """Cancel sends the host's own interrupt, which ends what runs."""
    node = loader(page, small)
    page.set(node, "missing_files", "download")
    page.set(small.node("CascadeStudio_SamplePrior"), "steps", 1000)
    for name, value in {"width": 1024, "height": 1024, "batch_size": 16}.items():
        page.set(small.node("CascadeStudio_Canvas"), name, value)  # so much work that it cannot end before the click
    page.watch("execution_interrupted", "execution_success", "execution_error", "progress_state")
    page.browser.click(QUEUE)
    page.browser.wait(
        "window.seen.some(([name, d]) => name === 'progress_state'"
        " && Object.values(d.nodes).some((n) => n.state === 'running' && n.max > 100 && n.value > 2))"
    )
    page.send("cascade_studio.plan", {"node": node, **PLAN, "state": "fetches"})
    page.send(
        "cascade_studio.progress",
        {
            "node": node,
            "file": "stage_b.safetensors",
            "done": 10**9,
            "total": 3_100_000_000,
            "speed": 5e7,
            "left": 42.0,
            "note": "",
            "text": "",
            "finished": False,
        },
    )
    panel = ".cascade-studio-download"
    text = page.browser.wait(f"document.querySelector('{panel} .words')?.textContent")
    assert "1.0 GB of 3.1 GB" in text and "50.0 MB/s" in text and "42 s" in text, text
    page.browser.click(f"{panel} [data-action=cancel]")
    page.browser.wait("window.seen.some(([name]) => name !== 'progress_state')")
    assert page.seen("execution_interrupted"), "it ended otherwise than by the click"
    page.browser.wait(f"document.querySelector('{panel} .words').textContent.includes('Stopped')")
    page.browser.wait(
        "[...document.querySelectorAll('.cascade-studio-stages .stage')]"
        ".some((part) => part.dataset.state === 'stopped')"
    )


def test_stages_inside_a_subgraph_are_counted(page):
    """The server names such a node "subgraph:node"."""
    page.add("CascadeStudio_DecodeStageA", (500, 100))
    inner = page.add("CascadeStudio_SamplePrior", (500, 400))
    name = page.browser.run(
        "const node = app.rootGraph.getNodeById(arguments[0]);"
        "const { subgraph, node: outer } = app.rootGraph.convertToSubgraph(new Set([node]));"
        "return `${outer.id}:${subgraph.nodes[0].id}`",
        inner,
    )
    strips = ".cascade-studio-stages [data-stage=C]"
    for state, value, width in (("running", 5, "25%"), ("finished", 20, "100%")):
        told = {"value": value, "max": 20, "state": state}
        page.send("progress_state", {"prompt_id": "subgraph", "nodes": {name: told}})
        # The strip of the node that went into the subgraph leaves the page with one of the next frames.
        page.browser.wait(
            f"document.querySelector('{strips}') && [...document.querySelectorAll('{strips}')].every("
            "(part) => part.dataset.state === arguments[0]"
            " && part.querySelector('b').style.width === arguments[1])",
            state,
            width,
        )
    page.send("execution_success", {"prompt_id": "subgraph"})


def test_text_of_a_node_is_shown(page):
    node = page.add("CascadeStudio_Canvas", (500, 150))
    page.executed(node, {"text": ["212 of 212 keys", "matched"]})
    shown = page.browser.wait("document.querySelector('.cascade-studio-text pre')?.innerText")
    assert shown == "212 of 212 keys\nmatched"
    page.executed(node, {})
    page.browser.wait("!document.querySelector('.cascade-studio-text')?.isConnected")


def test_a_lora_tells_in_its_node_what_matched(page, object_info, pictures):
    """For real, in whichever of the two places for text the page has: the host's, or the extension's."""
    stack = Small(REPOSITORY / "workflows" / "Stable Cascade - LoRA stack of two.json", object_info)
    page.load(stack.workflow)
    page.fit()
    run(page)
    node = stack.node("CascadeStudio_ApplyLoraStack")
    report = page.browser.run("return [app.nodeOutputs[arguments[0]].text].flat().join('')", node).strip()
    keys = re.findall(r"\d+ of \d+ keys used", report)
    assert len(keys) == 2, report
    page.browser.wait("arguments[0].every((words) => document.body.innerText.includes(words))", keys)
    (pictures / "lora.png").write_bytes(page.browser.picture())


CONNECT = """
    const node = LiteGraph.createNode(arguments[0]); app.rootGraph.add(node);
    const found = {};
    for (const name of arguments[1]) {
      const slot = node.inputs.findIndex((input) => (input.widget?.name ?? input.name) === name);
      found[name] = ["PrimitiveInt", "PrimitiveString"].map((kind) => {
        const source = LiteGraph.createNode(kind); app.rootGraph.add(source);
        return Boolean(source.connect(0, node, slot));
      });
    }
    return found;"""


def test_a_name_from_another_node_fits_every_input_of_files(page, object_info):
    """Text is taken and numbers are not, as the server has it; and the wires are there after loading."""
    inputs = {}
    for kind, definition in object_info.items():
        every = {**definition["input"].get("required", {}), **definition["input"].get("optional", {})}
        names = [name for name, spec in every.items() if len(spec) > 1 and "file" in spec[1]]
        if names and kind.startswith("CascadeStudio_"):
            inputs[kind] = names
    assert len(inputs) >= 12 and ["lora"] in inputs.values() and ["controlnet"] in inputs.values()
    for kind, names in inputs.items():
        found = page.browser.run(CONNECT, kind, names)
        assert found == dict.fromkeys(names, [False, True]), kind
    links = "return app.rootGraph.links.size ?? Object.keys(app.rootGraph.links).length"
    before = page.browser.run(links)
    page.browser.run("await app.loadGraphData(app.rootGraph.serialize())")
    assert page.browser.run(links) == before == sum(map(len, inputs.values()))
