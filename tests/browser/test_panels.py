"""The panels that the extension draws in nodes, in both of the host's renderers and both kinds of theme."""

from __future__ import annotations

import re

import pytest
from browser.page import Small
from harness import REPOSITORY

CANVAS = ".cascade-studio-canvas"


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


STORE = "document.querySelector('#vue-app').__vue_app__.config.globalProperties.$pinia._s.get('nodeOutput')"
HAS_PREVIEW = [f"Boolean({place}.nodePreviewImages[arguments[0]]?.length)" for place in ("app", STORE)]


def test_a_live_preview_makes_room_for_what_the_node_shows_at_last(page):
    """It goes from both of the host's lists: the second is that of Nodes 2.0."""
    node = page.add("CascadeStudio_TrainLora", (300, 100))
    page.show_previews([node])
    for there in HAS_PREVIEW:
        page.browser.wait(there, node)
    done = "app.api.dispatchCustomEvent('executed', { node: `${arguments[0]}`, output: arguments[1] })"
    page.browser.run(done, node, {"text": ["no picture yet"]})
    page.browser.run("await new Promise((waited) => setTimeout(waited, 1000))")  # longer than the host takes to drop it
    assert all(page.browser.run(f"return {there}", node) for there in HAS_PREVIEW)
    page.browser.run(done, node, {"images": [{"filename": "plot.png", "subfolder": "", "type": "temp"}]})
    for there in HAS_PREVIEW:
        page.browser.wait(f"!({there})", node)


def test_the_words_about_a_preview_go_when_there_is_one(page):
    node = page.add("CascadeStudio_SamplePrior", (300, 100))
    words = "document.querySelector('.cascade-studio-stages .room span')"
    assert not page.browser.run(f"return {words}.hidden")
    page.browser.run(
        "const nodes = { [arguments[0]]: { state: 'running', value: 1, max: 20 } };"
        "app.api.dispatchCustomEvent('progress_state', { prompt_id: 'here', nodes })",
        node,
    )
    page.browser.wait(f"{words}.hidden")


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
    page.run()
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
    page.run()
    node = stack.node("CascadeStudio_ApplyLoraStack")
    report = page.browser.run("return [app.nodeOutputs[arguments[0]].text].flat().join('')", node).strip()
    keys = re.findall(r"\d+ of \d+ keys used", report)
    assert len(keys) == 2, report
    page.browser.wait("arguments[0].every((words) => document.body.innerText.includes(words))", keys)
    (pictures / "lora.png").write_bytes(page.browser.picture())


def test_what_can_be_pressed_or_seen_has_a_name(page):
    """For readers of screens: buttons, choices, drawings and bars, by their words or a label."""
    for place, kind in enumerate(("Canvas", "Compare", "SamplePrior", "Load", "DraftBoard", "ReportCard")):
        page.add(f"CascadeStudio_{kind}", (100 + 450 * (place % 3), 100 + 500 * (place // 3)))
    (compare,) = page.browser.run(
        "return app.rootGraph.nodes.filter((n) => n.type === 'CascadeStudio_Compare').map((n) => n.id)"
    )
    images = [{"filename": f"none_{n}.png", "subfolder": "", "type": "temp"} for n in range(3)]
    page.executed(compare, {"before": images, "after": images})
    nameless = page.browser.run(
        "return [...document.querySelectorAll('.cascade-studio :is(button, select, svg, img, [role=progressbar])')]"
        ".filter((part) => !(part.textContent.trim().length > 1 && part.tagName !== 'SELECT')"
        " && !part.getAttribute('aria-label')?.trim() && part.getAttribute('alt') === null)"
        ".map((part) => part.outerHTML.slice(0, 120))"
    )
    assert not nameless, nameless
    labels = page.browser.run(
        "return [...document.querySelectorAll('.cascade-studio-compare button[aria-label]')].map((b) => b.ariaLabel)"
    )
    assert labels == ["3 of 3", "2 of 3"]
