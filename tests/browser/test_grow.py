"""Image prompts grow with what is wired, in both renderers, and nothing changes its place in what is saved."""

from __future__ import annotations

from typing import Any

import pytest
from browser.page import Page

KIND = "CascadeStudio_ImagePrompts"
SHOWN = """
const node = app.rootGraph.getNodeById(arguments[0]);
return [node.inputs.filter(({ name, widget }) => name.startsWith('image_') && !widget).map(({ name }) => name),
  node.widgets.filter(({ name, hidden }) => name.startsWith('weight_') && !hidden).map(({ name }) => name)];"""
WIRE = """
const node = app.rootGraph.getNodeById(arguments[0]);
const source = LiteGraph.createNode('EmptyImage'); source.pos = [60, 120 * arguments[1]]; app.rootGraph.add(source);
source.connect(0, node, node.inputs.findIndex(({ name }) => name === `image_${arguments[1]}`));"""


def wait_for(page: Page, node: int, pictures: int, weights: int) -> None:
    wanted = [[f"image_{n + 1}" for n in range(pictures)], [f"weight_{n + 1}" for n in range(weights)]]
    page.browser.wait(
        f"JSON.stringify((() => {{ {SHOWN} }})()) === JSON.stringify(arguments[1])".replace("arguments[0]", str(node)),
        None,
        wanted,
    )


def read_slots(graph: dict[str, Any]) -> list[tuple[str, bool]]:
    (node,) = [node for node in graph["nodes"] if node["type"] == KIND]
    return [(slot["name"], "widget" in slot) for slot in node["inputs"]]


@pytest.mark.parametrize("modern", [False, True], ids=["canvas", "vue"])
def test_pictures_grow_and_shrink(page: Page, modern: bool):
    page.setting("Comfy.VueNodes.Enabled", modern)
    try:
        node = page.add(KIND, (500, 100))
        wait_for(page, node, 1, 1)
        small = page.browser.run("return app.rootGraph.getNodeById(arguments[0]).size[1]", node)
        page.browser.run(WIRE, node, 1)
        wait_for(page, node, 2, 1)
        page.browser.run(WIRE, node, 2)
        wait_for(page, node, 3, 2)
        if modern:  # what is drawn, not only what is known
            page.browser.wait(
                "[...document.querySelectorAll('[data-node-id]')].some((e) => e.innerText.includes('image_3')"
                " && e.innerText.includes('weight_2') && !e.innerText.includes('weight_3'))"
            )
        page.browser.run(
            "const node = app.rootGraph.getNodeById(arguments[0]);"
            "for (const name of ['image_1', 'image_2'])"
            " node.disconnectInput(node.inputs.findIndex((slot) => slot.name === name))",
            node,
        )
        wait_for(page, node, 1, 1)
        if not modern:
            assert page.browser.run("return app.rootGraph.getNodeById(arguments[0]).size[1]", node) == small
    finally:
        page.clear()
        page.setting("Comfy.VueNodes.Enabled", False)


def test_saved_and_copied_nodes_keep_places_wires_and_height(page: Page, object_info: dict[str, Any]):
    node = page.add(KIND, (500, 100))
    page.browser.run(WIRE, node, 1)
    page.browser.run(WIRE, node, 2)
    wait_for(page, node, 3, 2)
    graph = page.graph()
    every = {**object_info[KIND]["input"]["required"], **object_info[KIND]["input"]["optional"]}
    slots = read_slots(graph)
    assert {name for name, _ in slots} == set(every), "nothing is taken out of the file"
    assert [name for name, is_widget in slots if is_widget and name.startswith("image_")] == []
    page.load(graph)
    wait_for(page, node, 3, 2)
    again = page.graph()
    assert again["links"] == graph["links"] and read_slots(again) == slots
    height = [[n["size"][1] for n in one["nodes"] if n["type"] == KIND] for one in (graph, again)]
    assert height[0] == height[1]
    page.browser.run(
        "app.canvas.selectItems(app.rootGraph.nodes); app.canvas.copyToClipboard(); app.canvas.pasteFromClipboard()"
    )
    copied = page.browser.run(
        "return Math.max(...app.rootGraph.nodes.filter((n) => n.type === arguments[0]).map((n) => n.id))", KIND
    )
    assert copied != node
    wait_for(page, copied, 3, 2)
