"""The workflow files as files: links, layout, colours, notes, and that every node of the pack is shown somewhere."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from harness import REPOSITORY
from sources import node_names
from table import each

from cascade_studio.commands.workflow.inputs import MODEL_FILES
from tools.authoring import flow as colours
from tools.authoring.recipes import BLOCKS, RECIPES

WORKFLOWS = sorted((REPOSITORY / "workflows").glob("*.json"))
SUBGRAPHS = sorted((REPOSITORY / "subgraphs").glob("*.json"))
NOTE = "MarkdownNote"
TITLE = 30

every_workflow = each(WORKFLOWS, lambda path: path.stem)


def read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))


def nodes_of(path: Path) -> list[dict[str, Any]]:
    """Every node that works, those inside blocks in place of the blocks."""
    return [node for _, node in places_of(path) if node["type"] != NOTE]


def places_of(path: Path) -> list[tuple[str, dict[str, Any]]]:
    """Nodes with their ids in a prompt."""
    workflow = read(path)
    blocks = {block["id"]: block for block in workflow.get("definitions", {}).get("subgraphs", ())}
    found = []
    for node in workflow["nodes"]:
        inner = blocks[node["type"]]["nodes"] if node["type"] in blocks else None
        found += [(f"{node['id']}:{one['id']}", one) for one in inner] if inner else [(str(node["id"]), node)]
    return found


def published() -> dict[str, dict[str, Any]]:
    content = read(REPOSITORY / "nodes" / "checkpoints" / "catalogue.json")
    return {file["name"]: file for file in content["files"]}


def test_there_is_a_file_for_every_recipe():
    assert {path.stem for path in WORKFLOWS} == set(RECIPES)
    assert {path.stem for path in SUBGRAPHS} == {block().name for block in BLOCKS}


@each(RECIPES)
def test_every_recipe_says_what_it_shows(name):
    """Inputs that its file has, with values at which the picture is another one (tests/server runs both)."""
    flow = RECIPES[name]()
    nodes = dict(places_of(REPOSITORY / "workflows" / f"{name}.json"))
    assert flow.features
    for feature in flow.features:
        assert nodes[feature.node.key]["type"] == feature.node.kind and not feature.node.muted
        assert feature.node.inputs.get(feature.input) != feature.neutral


def test_every_node_of_the_pack_is_in_a_workflow():
    shown = {node["type"] for path in WORKFLOWS for node in nodes_of(path)}
    assert len(node_names()) > 50 and not set(node_names()) - shown


@every_workflow
def test_links_lead_from_output_to_input(path):
    workflow = read(path)
    nodes = {node["id"]: node for node in workflow["nodes"]}
    links = {link[0]: link for link in workflow["links"]}
    assert len(links) == len(workflow["links"]) and workflow["last_link_id"] == max(links)
    assert workflow["last_node_id"] == max(nodes) and len(nodes) == len(workflow["nodes"])
    for number, origin, origin_slot, target, target_slot, kind in workflow["links"]:
        output, entry = nodes[origin]["outputs"][origin_slot], nodes[target]["inputs"][target_slot]
        assert number in output["links"] and entry["link"] == number
        assert output["type"] == kind and fits(kind, entry["type"])
    named = [number for node in workflow["nodes"] for output in node["outputs"] for number in output["links"] or []]
    assert sorted(named) == sorted(links)


def fits(given: str, taken: str) -> bool:
    return taken == "*" or bool(set(given.split(",")) & set(taken.split(",")))


def box(node: dict[str, Any]) -> tuple[float, float, float, float]:
    (x, y), (width, height) = node["pos"], node["size"]
    return x, y - TITLE, x + width, y + height


def overlap(one: tuple[float, ...], other: tuple[float, ...]) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


@every_workflow
def test_nothing_lies_on_anything_else(path):
    workflow = read(path)
    boxes = [box(node) for node in workflow["nodes"]]
    assert not [pair for i, one in enumerate(boxes) for pair in boxes[i + 1 :] if overlap(one, pair)]
    frames = [
        (x, y, x + width, y + height) for x, y, width, height in (group["bounding"] for group in workflow["groups"])
    ]
    assert not [pair for i, one in enumerate(frames) for pair in frames[i + 1 :] if overlap(one, pair)]
    for node in workflow["nodes"]:
        inside = [frame for frame in frames if overlap(frame, box(node))]
        if node["type"] == NOTE:
            assert not inside, node["title"]
        else:
            (frame,) = inside
            left, top, right, bottom = box(node)
            assert frame[0] <= left and frame[1] <= top and right <= frame[2] and bottom <= frame[3], node["type"]


@every_workflow
def test_it_follows_the_conventions_of_the_official_templates(path):
    workflow = read(path)
    assert workflow["version"] == 0.4 and re.fullmatch(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", workflow["id"])
    titles = [group["title"] for group in workflow["groups"]]
    assert titles
    for number, title in enumerate(titles, 1):
        assert re.fullmatch(rf"Step {number} - [A-Z].*[^.]", title)
    kinds = [node["type"] for node in workflow["nodes"]]
    assert "Reroute" not in kinds
    notes = [node for node in workflow["nodes"] if node["type"] == NOTE]
    fetched = any(node["properties"].get("models") for node in nodes_of(path))
    assert notes and (not fetched or "Model Links" in [note["title"] for note in notes])
    for note in notes:
        assert (note["color"], note["bgcolor"]) == colours.NOTE and note["widgets_values"][0].startswith("## ")
    for node in nodes_of(path):
        if node.get("title") in ("Prompt", "Negative prompt"):
            wanted = colours.POSITIVE if node["title"] == "Prompt" else colours.NEGATIVE
            assert (node["color"], node["bgcolor"]) == wanted


@every_workflow
def test_model_files_are_those_of_the_catalogue(path):
    """What the frontend's download dialog needs, on every node that names a published file, and in the note."""
    known = published()
    note = "\n".join(node["widgets_values"][0] for node in read(path)["nodes"] if node["type"] == NOTE)
    for node in nodes_of(path):
        chosen = {value for value in node["widgets_values"] if str(value).endswith(MODEL_FILES)}
        given = {model["name"]: model for model in node["properties"].get("models", [])}
        assert set(given) == {name for name in chosen if known.get(name, {}).get("url")}, node["type"]
        for name, model in given.items():
            file = known[name]
            assert (model["url"], model["directory"]) == (file["url"], file["folder"])
            assert model.get("hash") == file.get("sha256")
            assert model.get("hash_type") == ("SHA256" if file.get("sha256") else None)
            assert file["url"] in note, f"the note does not link {name}"


@every_workflow
def test_nodes_say_where_they_come_from(path):
    version = re.search(r'version = "(.+)"', (REPOSITORY / "pyproject.toml").read_text(encoding="utf-8")).group(1)
    for node in nodes_of(path):
        properties, ours = node["properties"], node["type"].startswith("CascadeStudio_")
        assert properties["Node name for S&R"] == node["type"]
        assert properties["cnr_id"] == ("cascade-studio" if ours else "comfy-core")
        assert properties["ver"] == version if ours else properties["ver"]


def test_one_folder_alone_holds_templates():
    """ComfyUI serves the first it finds of these names; a second one hides every workflow and its picture."""
    names = {"example_workflows", "example", "examples", "workflow", "workflows"}
    assert {path.name for path in REPOSITORY.iterdir() if path.is_dir()} & names == {"workflows"}


def test_links_of_notes_can_be_read_in_both_themes():
    """WCAG 2's ratio of the browser's own link colours and a note's ground, which the light theme lightens by half."""

    def find_ratio(one: str, other: str) -> float:
        parts = [[int(text[at : at + 2], 16) / 255 for at in (1, 3, 5)] for text in (one, other)]
        linear = [[p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in each] for each in parts]
        dark, light = sorted(0.2126 * red + 0.7152 * green + 0.0722 * blue for red, green, blue in linear)
        return (light + 0.05) / (dark + 0.05)

    _, ground = colours.NOTE
    red, green, blue = (int(ground[at : at + 2], 16) for at in (1, 3, 5))
    assert red == green == blue, "of a grey, the lightness is each part"
    assert (
        find_ratio(ground, "#9e9eff") >= 4.5
        and find_ratio(f"#{red + 128:02x}" + 2 * f"{red + 128:02x}", "#0000ee") >= 4.5
    )
