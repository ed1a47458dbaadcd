"""Every bundled workflow fits the nodes it is made of, down to each widget value, and is what its source describes."""
from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from harness import REPOSITORY
from tools import widgets, workflows
from tools.edit import FILES, fit_files
from tools.prompt import convert

FOLDER = REPOSITORY / "workflows"
WORKFLOWS = sorted(path.stem for path in FOLDER.glob("*.json"))
NOTES = {"MarkdownNote", "Note"}
SERVED = ("https://huggingface.co/", "https://civitai.com/")


def read(name: str) -> dict[str, Any]:
    return json.loads(Path(FOLDER, f"{name}.json").read_text(encoding="utf-8"))


def nodes_of(name: str) -> list[dict[str, Any]]:
    return [node for node in read(name)["nodes"] if node["type"] not in NOTES]


def test_there_are_workflows():
    assert "text_to_image" in WORKFLOWS


every_workflow = pytest.mark.parametrize("name", WORKFLOWS)


@every_workflow
def test_the_file_is_what_its_source_describes(name):
    """Run ``python3 dev.py run -m tools.workflows`` after a change of the source."""
    assert read(name) == {**getattr(workflows, name)(), "id": f"cascade-studio-{name}"}


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
    """A value of the right kind, within the limits, among the options or a model file."""
    value, options = widget.box.value, widget.options
    kinds = {"INT": int, "FLOAT": (int, float), "BOOLEAN": bool, "STRING": str, "COMBO": (str, int, float, bool)}
    assert isinstance(value, kinds[widget.kind]) and (widget.kind == "BOOLEAN" or not isinstance(value, bool)), where
    if widget.kind in ("INT", "FLOAT"):
        assert options.get("min", value) <= value <= options.get("max", value), where
    if widget.kind == "COMBO":
        assert value in options["options"] or str(value).endswith(FILES), f"{where} has no choice {value}"


@every_workflow
def test_sockets_are_those_of_the_schema(server, name):
    info = server.client.get("/object_info")
    for node in nodes_of(name):
        definition = info[node["type"]]
        inputs = {**definition["input"].get("required", {}), **definition["input"].get("optional", {})}
        for entry in node["inputs"]:
            assert entry["name"] in inputs, f"{node['type']} has no input {entry['name']}"
            kind = inputs[entry["name"]][0]
            assert entry["type"] == ("COMBO" if isinstance(kind, list) else kind)
        sockets = {key for key, spec in inputs.items() if not widgets.is_widget((key, *widgets._typed(spec)))}
        required = sockets & set(definition["input"].get("required", {}))
        assert required <= {entry["name"] for entry in node["inputs"] if entry["link"] is not None}, node["type"]
        outputs = list(zip(definition["output"], definition["output_name"]))
        if not node["type"].startswith("CascadeStudio_"):
            outputs = outputs[:len(node["outputs"])]  # newer versions of core add some
        assert [(entry["type"], entry["name"]) for entry in node["outputs"]] == outputs, node["type"]


@every_workflow
def test_links_lead_from_output_to_input(name):
    workflow = read(name)
    nodes = {node["id"]: node for node in workflow["nodes"]}
    links = {link[0]: link for link in workflow["links"]}
    assert len(links) == len(workflow["links"]) and workflow["last_link_id"] == max(links)
    assert workflow["last_node_id"] == max(nodes) and len(nodes) == len(workflow["nodes"])
    for number, origin, origin_slot, target, target_slot, kind in workflow["links"]:
        output, entry = nodes[origin]["outputs"][origin_slot], nodes[target]["inputs"][target_slot]
        assert number in output["links"] and entry["link"] == number
        assert output["type"] == entry["type"] == kind
    named = [number for node in workflow["nodes"] for output in node["outputs"] for number in output["links"] or []]
    assert sorted(named) == sorted(links)


@every_workflow
def test_model_files_can_be_found(name):
    """What the frontend's download dialog needs: name, folder, address and hash of every file that a widget names."""
    for node in nodes_of(name):
        given = {model["name"]: model for model in node["properties"].get("models", [])}
        chosen = {value for value in node["widgets_values"] if str(value).endswith(FILES)}
        assert chosen == set(given), node["type"]
        for model in given.values():
            assert model["url"].startswith(SERVED) and model["url"].endswith("/" + model["name"])
            assert model["directory"] and len(model["hash"]) == 64 and model["hash_type"] == "SHA256"


@every_workflow
def test_nodes_say_where_they_come_from(server, name):
    ours = server.pack_nodes()
    for node in nodes_of(name):
        properties = node["properties"]
        assert properties["Node name for S&R"] == node["type"]
        assert properties["cnr_id"] == ("cascade-studio" if node["type"] in ours else "comfy-core")


SINGLE = {("stage_c", 0): ("Prior", "prior"), ("stage_c", 1): ("TextEncoder", "text_encoder"),
          ("stage_b", 0): ("Decoder", "decoder"), ("stage_b", 2): ("StageA", "stage_a")}
"""Our loader, and its file input, for each output of core's loader of an all-in-one checkpoint."""


def with_our_loaders(prompt: dict[str, Any]) -> None:
    """Put ours in the place of core's checkpoint loaders, which cannot load networks as narrow as the family's."""
    loaders = {key: node["inputs"]["ckpt_name"] for key, node in prompt.items()
               if node["class_type"] == "CheckpointLoaderSimple"}
    for node in list(prompt.values()):
        for name, value in node["inputs"].items():
            if not (isinstance(value, list) and value[0] in loaders):
                continue
            file = loaders[value[0]]
            kind, role = SINGLE["stage_c" if "stage_c" in file else "stage_b", value[1]]
            more = {"vae_dtype": "auto", "vae_device": "auto"} if kind == "StageA" else {"dtype": "auto"}
            node["inputs"][name] = [f"{value[0]}-{value[1]}", 0]
            prompt[f"{value[0]}-{value[1]}"] = {"class_type": f"CascadeStudio_Load{kind}", "inputs": {role: file, **more}}
    for key in loaders:
        del prompt[key]


@every_workflow
def test_the_server_accepts_it(server, name):
    info = server.client.get("/object_info")
    converted = convert(read(name), info)
    fit_files(converted, info)
    with_our_loaders(converted.prompt)
    for node in converted.prompt.values():
        for entry, value in node["inputs"].items():
            small = {"steps": 1, "width": 128, "height": 128}.get(entry)
            if small and isinstance(value, (int, float)):
                node["inputs"][entry] = small
    assert server.run(converted.prompt).images()
