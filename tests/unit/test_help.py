"""Every node has a help page with a picture of its wiring, drawn from the workflows as they are now."""

from __future__ import annotations

import re
from xml.etree import ElementTree

import pytest
from harness import REPOSITORY
from sources import node_names
from table import each

from tools.authoring import pictures
from tools.authoring.recipes import RECIPES

PAGES = REPOSITORY / "web" / "docs"
NODES = node_names()
LARGEST = 500_000
"""Bytes of all pictures together."""


@pytest.fixture(scope="module")
def drawn():
    return pictures.of_files(list(RECIPES))


def test_every_node_has_a_page_and_a_picture():
    assert len(NODES) > 50
    assert {path.stem for path in PAGES.glob("CascadeStudio_*.md")} == set(NODES)
    assert {path.stem for path in pictures.PICTURES.iterdir()} == set(NODES)


def test_pictures_are_what_the_workflows_give(drawn):
    """``python3 dev.py run -m tools.authoring`` draws them anew."""
    assert [path.stem for path, text in drawn.items() if path.read_text(encoding="utf-8") != text] == []
    assert sum(len(text.encode()) for text in drawn.values()) < LARGEST


@each(NODES)
def test_the_page_shows_its_picture(node):
    text = (PAGES / f"{node}.md").read_text(encoding="utf-8")
    found = re.findall(r"!\[([^]]+)\]\(([^)]+)\)", text)
    assert (f"Wiring of {NODES[node]}", f"pictures/{node}.svg") in found
    assert all((PAGES / target).is_file() for _, target in found)
    assert (
        text.startswith("# ") and re.search("^## .*[Rr]ecipe", text, re.M) and re.search("^## .*[Ee]rror", text, re.M)
    )


@each(NODES)
def test_the_picture_is_whole(node, drawn):
    """It parses, names the node, and everything in it lies inside."""
    root = ElementTree.fromstring(drawn[pictures.PICTURES / f"{node}.svg"])
    _, _, width, height = map(float, root.attrib["viewBox"].split())
    words = [part.text for part in root.iter() if part.tag.endswith("text")]
    assert NODES[node] in words and re.match("As in the workflow Stable Cascade - ", words[-1])
    for part in root.iter():
        for name, limit in (("x", width), ("cx", width), ("y", height), ("cy", height)):
            assert 0 <= float(part.attrib.get(name, 0)) <= limit
        if part.tag.endswith("rect") and "x" in part.attrib:
            assert float(part.attrib["x"]) + float(part.attrib["width"]) <= width
            assert float(part.attrib["y"]) + float(part.attrib["height"]) <= height


def test_a_node_is_drawn_with_its_neighbours():
    names = {"Ours": {"display_name": "Our node"}}
    nodes = [
        {"id": 1, "type": "LoadImage", "inputs": [], "outputs": [{"name": "IMAGE", "links": [1]}]},
        {
            "id": 2,
            "type": "Ours",
            "inputs": [{"name": "image", "type": "IMAGE", "link": 1}, {"name": "mask", "type": "MASK", "link": None}],
            "outputs": [{"name": "out", "type": "LATENT", "links": [2, 3]}],
        },
        {
            "id": 3,
            "type": "Save",
            "title": "Kept",
            "outputs": [],
            "inputs": [{"name": "a", "link": 2}, {"name": "b", "link": 3}],
        },
    ]
    links = [[1, 1, 0, 2, 0, "IMAGE"], [2, 2, 0, 3, 0, "LATENT"], [3, 2, 0, 3, 1, "LATENT"]]
    found = pictures.drawing({"nodes": nodes, "links": links}, nodes[1], names)
    assert [box.title for box in (*found.before, found.middle, *found.after)] == ["Load Image", "Our node", "Kept"]
    assert [socket.wired for socket in found.middle.inputs] == [True, False]
    assert [socket.name for socket in found.after[0].inputs] == ["a", "b"] and len(found.wires) == 3
    assert pictures.svg(found, "caption").count("<path") == 3
