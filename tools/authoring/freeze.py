"""``python3 dev.py run -m tools.authoring.freeze``: freezes this version's nodes, one step of every release.

Writes ``tests/frozen/<version>/everything.json``, one workflow as a user of this version saves it with every node of
the pack in it, and ``record.json``: what each of its values meant. Neither is ever written again; the tests open and
run the files of all versions with the nodes of today.
"""

from __future__ import annotations

import copy
import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from cascade_studio.commands.messages import Stop, say, speak_plainly
from cascade_studio.commands.workflow.api_prompt import convert
from cascade_studio.commands.workflow.inputs import MODEL_FILES
from cascade_studio.commands.workflow.widgets import is_widget, specs

from ..env import REPOSITORY
from ..locales import PREFIX, own
from ..server import Base, HostServer
from .__main__ import WORKFLOWS, as_text, current_setup
from .write import identity, pack_version

FROZEN = REPOSITORY / "tests" / "frozen"
WORKFLOW, RECORD = "everything.json", "record.json"
GAP = 200
Content = dict[str, Any]


def kinds_of(workflow: Content) -> set[str]:
    """The pack's nodes that are in a workflow, switched off or not."""
    return {node["type"] for node in workflow["nodes"] if node["type"].startswith(PREFIX)}


def fewest(workflows: Iterable[Content]) -> list[Content]:
    """A few of the workflows that have every node of all of them; the one with most that is new comes first."""
    left, chosen = list(workflows), []
    missing = set().union(*map(kinds_of, left))
    while missing:
        best = max(left, key=lambda workflow: len(kinds_of(workflow) & missing))
        chosen.append(best)
        missing -= kinds_of(best)
    return chosen


def merge_workflows(workflows: Iterable[Content], version: str) -> Content:
    """All of them in one file, one below the other, without their notes."""
    whole: Content = {
        "id": identity(f"frozen {version}"),
        "revision": 0,
        "last_node_id": 0,
        "last_link_id": 0,
        "nodes": [],
        "links": [],
        "groups": [],
        "config": {},
        "extra": {},
        "version": 0.4,
    }
    down = 0
    for part in map(copy.deepcopy, workflows):
        part["nodes"] = [node for node in part["nodes"] if node["type"] != "MarkdownNote"]
        node_shift, link_shift = whole["last_node_id"], whole["last_link_id"]
        for node in part["nodes"]:
            node["id"] += node_shift
            node["pos"][1] += down
            for entry in node["inputs"]:
                entry["link"] = None if entry["link"] is None else entry["link"] + link_shift
            for entry in node["outputs"]:
                entry["links"] = [link + link_shift for link in entry["links"]] if entry["links"] else None
        for link in part["links"]:
            link[:4] = [link[0] + link_shift, link[1] + node_shift, link[2], link[3] + node_shift]
        for group in part["groups"]:
            group["id"] += len(whole["groups"])
            group["bounding"][1] += down
        for key in ("nodes", "links", "groups"):
            whole[key] += part[key]
        whole["last_node_id"] += part["last_node_id"]
        whole["last_link_id"] += part["last_link_id"]
        down = GAP + max(node["pos"][1] + node["size"][1] for node in part["nodes"])
    return whole


def switch_on(workflow: Content) -> Content:
    """A copy with every node on, so that the values of all can be read."""
    copied = copy.deepcopy(workflow)
    for node in copied["nodes"]:
        node["mode"] = 0
    return copied


def widget_names(definition: Content) -> list[str]:
    """The widgets of a node in the order in which files keep their values."""
    return [spec[0] for spec in specs(definition["input"], definition["input_order"]) if is_widget(spec)]


def choices(definition: Content) -> dict[str, list[Any]]:
    """The options of each list that names no files."""
    found = {
        name: options.get("options") or []
        for name, kind, options in specs(definition["input"], definition["input_order"])
        if kind == "COMBO"
    }
    return {
        name: options
        for name, options in found.items()
        if options and not any(str(option).endswith(MODEL_FILES) for option in options)
    }


def record(workflow: Content, definitions: Content) -> Content:
    """What the file means: the value of every input by name; each node's widgets and outputs in order; its choices."""
    kinds = {
        kind: {
            "widgets": widget_names(definition),
            "choices": choices(definition),
            "outputs": [list(pair) for pair in zip(definition["output_name"], definition["output"])],
        }
        for kind, definition in own(definitions).items()
        if kind in kinds_of(workflow)
    }
    prompt = convert(switch_on(workflow), definitions).prompt
    return {
        "kinds": kinds,
        "prompt": {key: {"class_type": node["class_type"], "inputs": node["inputs"]} for key, node in prompt.items()},
    }


def render_version(definitions: Content, version: str) -> dict[Path, Content]:
    """The content of both files. Raises ``Stop`` if they are there, or if no workflow shows some node."""
    folder = FROZEN / version
    if folder.exists():
        raise Stop(
            f"{folder.relative_to(REPOSITORY)} is there: what is frozen stays as it is. Raise the version in "
            "pyproject.toml first; while this version is unpublished, its folder may be deleted by hand."
        )
    bundled = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(WORKFLOWS.glob("*.json"))]
    whole = merge_workflows(fewest(bundled), version)
    missing = set(own(definitions)) - kinds_of(whole)
    if missing:
        raise Stop(f"No bundled workflow has {', '.join(sorted(missing))}: add a recipe with it first.")
    return {folder / WORKFLOW: whole, folder / RECORD: record(whole, definitions)}


def main() -> int:
    """Freeze the version in pyproject.toml; returns the exit code."""
    base = Base()
    try:
        with HostServer(current_setup(), base, cpu=True) as server:
            found = render_version(server.client.get("/object_info"), pack_version())
    except Stop as stop:
        say(str(stop))
        return 1
    finally:
        base.close()
    for path, content in found.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(as_text(content), encoding="utf-8")
        say(f"Written: {path.relative_to(REPOSITORY)}")
    return 0


if __name__ == "__main__":
    speak_plainly()
    sys.exit(main())
