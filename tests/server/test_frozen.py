"""A workflow saved with any released version opens and runs today: every value still reaches the input it was set for.

``tests/frozen/<version>`` holds what was frozen at each release (``tools/authoring/freeze.py``); it is never changed.
"""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from small_runs import check_pictures, prepared

from cascade_studio.commands.workflow.api_prompt import convert
from cascade_studio.commands.workflow.widgets import specs
from tools.authoring.freeze import FROZEN, RECORD, WORKFLOW, choices, kinds_of, switch_on, widget_names
from tools.authoring.write import pack_version
from tools.locales import own

VERSIONS = sorted(path.name for path in FROZEN.iterdir())
FOR_OTHERS = {"CascadeStudio_IdentityHint"}
"""It needs what other packs give, and has no wires."""

every_version = pytest.mark.parametrize("version", VERSIONS)


def read(version: str, name: str) -> dict[str, Any]:
    return json.loads(Path(FROZEN, version, name).read_text(encoding="utf-8"))


def defaults(definition: dict[str, Any]) -> dict[str, Any]:
    """What an input has in a file that is older than the input."""
    return {
        name: options["default"]
        for name, _, options in specs(definition["input"], definition["input_order"])
        if "default" in options
    }


def unlike(recorded: dict[str, Any], found: dict[str, Any], definitions: dict[str, Any]) -> list[str]:
    """Where today's reading of a file differs from what its values meant, apart from new inputs at their defaults."""
    problems = []
    for key, node in recorded.items():
        kind, now = node["class_type"], found[key]["inputs"]
        usual = defaults(definitions[kind])
        problems += [
            f"node {key}, {kind}.{name}: {value!r} became {now.get(name)!r}"
            for name, value in node["inputs"].items()
            if name not in now or now[name] != value
        ]
        problems += [
            f"node {key}, {kind}.{name} is new and has no default"
            for name in set(now) - set(node["inputs"])
            if now[name] != usual.get(name)
        ]
    return problems


def moved(kind: str, recorded: dict[str, Any], definition: dict[str, Any]) -> list[str]:
    """Widgets and outputs that do not keep their place, as files know both by position, and choices that are gone."""
    problems, widgets = [], widget_names(definition)
    if widgets[: len(recorded["widgets"])] != recorded["widgets"]:
        problems.append(f"{kind}: its widgets were {recorded['widgets']} and are {widgets}; append new ones at the end")
    now = choices(definition)
    problems += [
        f"{kind}.{name} no longer offers {option!r}"
        for name, options in recorded["choices"].items()
        for option in options
        if option not in now.get(name, ())
    ]
    names, types = definition["output_name"], definition["output"]
    for slot, (name, output) in enumerate(recorded["outputs"]):
        if slot >= len(types) or types[slot] != output or (name in names and names[slot] != name):
            problems.append(f"{kind}: output {slot} was {name} ({output}); append new ones at the end")
    return problems


def test_the_version_of_today_is_frozen():
    """``python3 dev.py run -m tools.authoring.freeze`` belongs to raising the version in pyproject.toml."""
    assert pack_version() in VERSIONS


@every_version
def test_nodes_are_here_or_have_a_replacement(server, version):
    info = server.client.get("/object_info")
    gone = set(read(version, RECORD)["kinds"]) - set(info)
    replaced = server.client.get("/node_replacements") if gone else {}  # which the oldest hosts do not know
    assert not [kind for kind in gone if not any(entry["new_node_id"] in info for entry in replaced.get(kind, []))]


@every_version
def test_widgets_outputs_and_choices_are_kept(server, version):
    info = server.client.get("/object_info")
    kinds = read(version, RECORD)["kinds"]
    assert set(kinds) == kinds_of(read(version, WORKFLOW))
    assert [
        problem for kind, entry in kinds.items() if kind in info for problem in moved(kind, entry, info[kind])
    ] == []


@every_version
def test_every_value_reaches_the_input_it_was_set_for(server, version):
    info, recorded = server.client.get("/object_info"), read(version, RECORD)["prompt"]
    here = {key: node for key, node in recorded.items() if node["class_type"] in own(info)}
    found = convert(switch_on(read(version, WORKFLOW)), info).prompt
    assert set(here) <= set(found) and sum(len(node["inputs"]) for node in here.values()) > 500
    assert unlike(here, found, info) == []


@every_version
def test_it_runs(with_picture, version):
    """Nodes that are gone go to the server by their old names, which it replaces as the frontend does."""
    info, recorded = with_picture.client.get("/object_info"), read(version, RECORD)["prompt"]
    workflow = switch_on(read(version, WORKFLOW))
    workflow["nodes"] = [node for node in workflow["nodes"] if node["type"] not in FOR_OTHERS]
    prompt = prepared(with_picture, workflow).prompt
    prompt.update(
        {
            key: {**copy.deepcopy(node), "_meta": {"title": node["class_type"]}}
            for key, node in recorded.items()
            if node["class_type"] not in info
        }
    )
    run = with_picture.run(prompt)
    check_pictures(with_picture, run)
    saved = [node for node in prompt.values() if node["class_type"] in ("SaveImage", "CascadeStudio_SaveImage")]
    assert len([image for image in run.images() if image["type"] == "output"]) >= len(saved) > 10


# The checks themselves


def definition(*names: str, **outputs: str) -> dict[str, Any]:
    return {
        "input": {"required": {name: ["INT", {"default": 0}] for name in names}},
        "input_order": {"required": list(names)},
        "output": list(outputs.values()),
        "output_name": list(outputs),
    }


def with_choice(*options: str) -> dict[str, Any]:
    found = definition("steps", "cfg", model="MODEL", other="MODEL")
    found["input"]["required"]["how"] = ["COMBO", {"options": list(options)}]
    found["input_order"]["required"].append("how")
    return found


OLD = {"widgets": ["steps", "cfg"], "choices": {}, "outputs": [["model", "MODEL"], ["other", "MODEL"]]}


@pytest.mark.parametrize(
    "now, count",
    [
        (definition("steps", "cfg", "new", model="MODEL", other="MODEL", more="CLIP"), 0),
        (definition("steps", "new", "cfg", model="MODEL", other="MODEL"), 1),
        (definition("steps", model="MODEL", other="MODEL"), 1),
        (definition("steps", "cfg", other="MODEL", model="MODEL"), 2),
        (definition("steps", "cfg", model="MODEL"), 1),
        (definition("steps", "cfg", model="MODEL", renamed="MODEL"), 0),
    ],
)
def test_moved_widgets_and_outputs_are_noticed(now, count):
    assert len(moved("Node", OLD, now)) == count


@pytest.mark.parametrize("options, count", [(("a", "b", "c"), 0), (("c", "b", "a"), 0), (("a", "c"), 1)])
def test_choices_that_are_gone_are_noticed(options, count):
    old = {**OLD, "widgets": ["steps", "cfg", "how"], "choices": choices(with_choice("a", "b"))}
    assert len(moved("Node", old, with_choice(*options))) == count


@pytest.mark.parametrize(
    "inputs, count",
    [
        ({"steps": 7, "cfg": 2}, 0),
        ({"steps": 2, "cfg": 7}, 2),
        ({"steps": 7}, 1),
        ({"steps": 7, "cfg": 2, "new": 0}, 0),
        ({"steps": 7, "cfg": 2, "new": 1}, 1),
    ],
)
def test_values_at_other_inputs_are_noticed(inputs, count):
    recorded = {"1": {"class_type": "Node", "inputs": {"steps": 7, "cfg": 2}}}
    found = {"1": {"class_type": "Node", "inputs": inputs}}
    assert len(unlike(recorded, found, {"Node": definition("steps", "cfg", "new")})) == count
