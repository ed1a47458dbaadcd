"""Freezing a release: few workflows with every node, merged into one file whose wires still fit; never twice."""

from __future__ import annotations

import json

import pytest
from harness import REPOSITORY
from sources import node_names

from cascade_studio.commands.messages import Stop
from tools.authoring import freeze

BUNDLED = [json.loads(path.read_text(encoding="utf-8")) for path in sorted((REPOSITORY / "workflows").glob("*.json"))]


def test_few_workflows_have_every_node():
    chosen = freeze.fewest(BUNDLED)
    assert set().union(*map(freeze.kinds_of, chosen)) == set(node_names()) and len(chosen) < len(BUNDLED)


def test_merged_workflows_keep_their_wires():
    parts = freeze.fewest(BUNDLED)
    whole = freeze.merge_workflows(parts, "1.2.3")
    nodes = {node["id"]: node for node in whole["nodes"]}
    links = {link[0]: link for link in whole["links"]}
    assert (
        len(nodes)
        == len(whole["nodes"])
        == sum(node["type"] != "MarkdownNote" for part in parts for node in part["nodes"])
    )
    assert len(links) == len(whole["links"]) == sum(len(part["links"]) for part in parts)
    for number, origin, slot, target, entry, _ in links.values():
        assert number in nodes[origin]["outputs"][slot]["links"] and nodes[target]["inputs"][entry]["link"] == number
    wires = [sorted((nodes[link[1]]["type"], link[2], nodes[link[3]]["type"], link[4]) for link in links.values())]
    for part in parts:
        kinds = {node["id"]: node["type"] for node in part["nodes"]}
        wires.append([(kinds[link[1]], link[2], kinds[link[3]], link[4]) for link in part["links"]])
    assert wires[0] == sorted(wire for part in wires[1:] for wire in part)
    assert len({group["id"] for group in whole["groups"]}) == len(whole["groups"])


def test_inputs_are_left_as_they_were():
    before = json.dumps(BUNDLED[0])
    freeze.merge_workflows(BUNDLED[:2], "1.2.3")
    assert freeze.switch_on(BUNDLED[0]) is not BUNDLED[0] and json.dumps(BUNDLED[0]) == before


def test_what_is_frozen_is_never_written_again(tmp_path, monkeypatch):
    monkeypatch.setattr(freeze, "REPOSITORY", tmp_path)
    monkeypatch.setattr(freeze, "FROZEN", tmp_path / "tests" / "frozen")
    (tmp_path / "tests" / "frozen" / "1.2.3").mkdir(parents=True)
    with pytest.raises(Stop, match="what is frozen stays as it is"):
        freeze.render_version({}, "1.2.3")


def test_a_node_that_no_workflow_shows_is_named():
    with pytest.raises(Stop, match="No bundled workflow has CascadeStudio_Unseen"):
        freeze.render_version({"CascadeStudio_Unseen": {}}, "0.0.0")


def test_choices_of_files_are_not_recorded():
    definition = {
        "input": {
            "required": {
                "a": ["COMBO", {"options": ["x", "y"]}],
                "b": [["f.safetensors", "none"], {}],
                "c": ["COMBO", {"options": []}],
                "n": ["INT", {"default": 1}],
            }
        },
        "input_order": {"required": ["a", "b", "c", "n"]},
    }
    assert freeze.choices(definition) == {"a": ["x", "y"]}
