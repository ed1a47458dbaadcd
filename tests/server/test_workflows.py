"""Every bundled workflow and blueprint fits the nodes it is made of, down to each widget value, and runs."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy
import pytest
from harness import REPOSITORY
from small_runs import check_pictures, prepared, saved_pictures

from cascade_studio.commands.workflow import widgets
from cascade_studio.commands.workflow.api_prompt import convert
from cascade_studio.commands.workflow.graph import NEVER
from cascade_studio.commands.workflow.inputs import MODEL_FILES
from tools.authoring.__main__ import render_files
from tools.authoring.flow import Feature, Output
from tools.authoring.recipes import RECIPES
from tools.hosts import DEFAULT_VERSION, as_numbers

FOLDER = REPOSITORY / "workflows"
WORKFLOWS = sorted(path.stem for path in FOLDER.glob("*.json"))
BLOCKS = sorted((REPOSITORY / "subgraphs").glob("*.json"))
NOTES = {"MarkdownNote", "Note"}

every_workflow = pytest.mark.parametrize("name", WORKFLOWS)


def read(name: str) -> dict[str, Any]:
    return json.loads(Path(FOLDER, f"{name}.json").read_text(encoding="utf-8"))


def nodes_of(name: str) -> list[dict[str, Any]]:
    """Every node that works, those inside blocks in place of the blocks."""
    workflow = read(name)
    blocks = {block["id"]: block["nodes"] for block in workflow.get("definitions", {}).get("subgraphs", ())}
    nodes = [inner for node in workflow["nodes"] for inner in blocks.get(node["type"], [node])]
    return [node for node in nodes if node["type"] not in NOTES]


def test_the_files_are_what_the_recipes_give(server):
    """Run ``python3 dev.py run -m tools.authoring`` after a change of a recipe or a schema."""
    if server.setup.host.version != DEFAULT_VERSION:
        pytest.skip(f"The files have the inputs of core's nodes as ComfyUI {DEFAULT_VERSION} has them.")
    for path, content in render_files(server.client.get("/object_info")).items():
        assert json.loads(path.read_text(encoding="utf-8")) == content, path.name


@every_workflow
def test_widget_values_are_those_of_the_schema(server, name):
    info = server.client.get("/object_info")
    for node in nodes_of(name):
        definition = info[node["type"]]
        inputs = widgets.specs(definition["input"], definition["input_order"])
        values = widgets._Values(node["widgets_values"])
        found = list(widgets._walk(inputs, values))
        assert values.position == len(node["widgets_values"]), f"{node['type']} has other widgets"
        for widget in found:
            check_value(f"{node['type']}.{widget.name}", widget)


def check_value(where: str, widget: widgets.Widget) -> None:
    """A value of the right kind, within the limits, among the options or a file."""
    value, options = widget.box.value, widget.options
    kinds = {"INT": int, "FLOAT": (int, float), "BOOLEAN": bool, "STRING": str, "COMBO": (str, int, float, bool)}
    assert isinstance(value, kinds[widget.kind]) and (widget.kind == "BOOLEAN" or not isinstance(value, bool)), where
    if widget.kind in ("INT", "FLOAT"):
        assert options.get("min", value) <= value <= options.get("max", value), where
    if widget.kind == "COMBO":
        assert value in options["options"] or str(value).endswith((*MODEL_FILES, ".png", ".webp")), (
            f"{where} has no choice {value}"
        )


@every_workflow
def test_sockets_are_those_of_the_schema(server, name):
    """An older host's core nodes may lack the last outputs, as SaveImage and PreviewImage do; those are not wired."""
    older = as_numbers(server.setup.host.version) < as_numbers(DEFAULT_VERSION)
    info = server.client.get("/object_info")
    for node in nodes_of(name):
        definition = info[node["type"]]
        inputs = {**definition["input"].get("required", {}), **definition["input"].get("optional", {})}
        sockets = {key for key, spec in inputs.items() if not widgets.is_widget((key, *widgets.parse_spec(spec)))}
        required = sockets & set(definition["input"].get("required", {})) if node["mode"] != NEVER else set()
        assert required <= {entry["name"] for entry in node["inputs"] if entry["link"] is not None}, node["type"]
        outputs = list(zip(definition["output"], definition["output_name"]))
        found = [(entry["type"], entry["name"]) for entry in node["outputs"]]
        added = node["outputs"][len(outputs) :] if older and not node["type"].startswith("CascadeStudio_") else []
        assert found[: len(found) - len(added)] == outputs and not any(entry["links"] for entry in added), node["type"]


# Running them


@every_workflow
def test_it_runs_and_shows_its_feature(with_picture, name):
    """No picture is flat, and one is another without each thing that the workflow is there to show."""
    converted = prepared(with_picture, read(name))
    run = with_picture.run(converted.prompt)
    check_pictures(with_picture, run)
    pictures = saved_pictures(with_picture, run)
    for feature in RECIPES[name]().features:
        without = copy.deepcopy(converted.prompt)
        without[feature.node.key]["inputs"][feature.input] = neutral(with_picture, feature)
        others = saved_pictures(with_picture, with_picture.run(without))
        where = f"{feature.node.kind}.{feature.input}"
        assert len(others) == len(pictures), where
        assert any(are_different(*pair) for pair in zip(pictures, others)), f"{where} changes nothing"


def are_different(one: numpy.ndarray, other: numpy.ndarray) -> bool:
    """Whether two pictures differ by more than a rounding."""
    return one.shape != other.shape or numpy.abs(one - other).max() > 2


def neutral(server: Any, feature: Feature) -> Any:
    """What the input gets when the feature is off: a value, or a wire to another output."""
    if not isinstance(feature.neutral, Output):
        return feature.neutral
    node, key = feature.neutral.node, feature.neutral.key
    names = server.client.get(f"/object_info/{node.kind}")[node.kind]["output_name"]
    return [node.key, key if isinstance(key, int) else names.index(key)]


FOR_OTHERS = {"CascadeStudio_IdentityHint"}
"""Switched off for good: it needs what other packs give."""


@pytest.mark.parametrize("name", [name for name in WORKFLOWS if any(node["mode"] == NEVER for node in nodes_of(name))])
def test_what_is_switched_off_runs_too(with_picture, name):
    workflow = read(name)
    for node in workflow["nodes"]:
        node["mode"] = node["mode"] if node["type"] in FOR_OTHERS else 0
    with_picture.run(prepared(with_picture, workflow).prompt)


# Blueprints


def listed(server: Any) -> dict[str, str]:
    """The pack's blueprints as the host lists them: id by name."""
    entries = server.client.get("/global_subgraphs")
    return {
        entry["name"]: key for key, entry in entries.items() if entry["info"]["node_pack"].endswith("cascade-studio")
    }


def test_the_host_lists_the_blueprints(server):
    found = listed(server)
    assert set(found) == {path.stem for path in BLOCKS}
    for path in BLOCKS:
        entry = server.client.get(f"/global_subgraphs/{found[path.stem]}")
        assert json.loads(entry["data"]) == json.loads(path.read_text(encoding="utf-8"))


def test_the_text_to_image_block_runs_as_one_node(server):
    """Placed in a workflow with Save Image behind it; what is typed on the block reaches the nodes inside."""
    block = json.loads((REPOSITORY / "subgraphs" / "Stable Cascade text to image.json").read_text(encoding="utf-8"))
    instance = block["nodes"][0]
    instance["outputs"][0]["links"] = [1]
    save = {
        "id": 999,
        "type": "SaveImage",
        "mode": 0,
        "widgets_values": ["block"],
        "outputs": [],
        "inputs": [{"name": "images", "type": "IMAGE", "link": 1}],
    }
    workflow = {**block, "nodes": [instance, save], "links": [[1, instance["id"], 0, 999, 0, "IMAGE"]]}
    inner = block["definitions"]["subgraphs"][0]
    prompt = next(node for node in inner["nodes"] if node.get("title") == "Prompt")
    prompt["widgets_values"][0] = "a red apple"
    converted = prepared(server, workflow)
    kinds = {node["class_type"]: node["inputs"] for node in converted.prompt.values()}
    assert kinds["CascadeStudio_SamplePrior"]["seed"] == kinds["CascadeStudio_SampleDecoder"]["seed"]
    texts = [node["inputs"]["text"] for node in converted.prompt.values() if node["class_type"] == "CLIPTextEncode"]
    assert sorted(texts) == ["", "a red apple"]
    check_pictures(server, server.run(converted.prompt))


def test_the_decoder_block_opens_to_its_two_nodes(server):
    """Its seven inputs lead to Stage B and Stage A; without wires it cannot run, which the server says."""
    block = json.loads((REPOSITORY / "subgraphs" / "Stable Cascade decoder.json").read_text(encoding="utf-8"))
    converted = convert(block, server.client.get("/object_info"))
    assert sorted(node["class_type"] for node in converted.prompt.values()) == [
        "CascadeStudio_DecodeStageA",
        "CascadeStudio_SampleDecoder",
    ]
    (sampler,) = [node["inputs"] for node in converted.prompt.values() if "steps" in node["inputs"]]
    assert sampler["steps"] == 10 and sampler["cfg"] == 1.1
