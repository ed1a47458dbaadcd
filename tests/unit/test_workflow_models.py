"""Workflows and catalogue agree: whatever file a bundled workflow names is embedded as the catalogue has it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import harness
from table import each

from cascade_studio.nodes.checkpoints.catalogue import load

WORKFLOWS = sorted(Path(harness.REPOSITORY, "workflows").glob("*.json"))
PUBLISHED = {entry.name: entry.for_workflow for entry in load().entries.values() if entry.url}


def nodes_of(path: Path) -> Iterator[dict[str, Any]]:
    """Every node of a workflow, those inside its subgraphs included."""
    workflow = json.loads(path.read_text(encoding="utf-8"))
    for graph in (workflow, *workflow.get("definitions", {}).get("subgraphs", ())):
        yield from graph["nodes"]


def texts(values: Any) -> list[str]:
    """The widget values that are texts, whether they are kept by position or by name."""
    kept = values.values() if isinstance(values, dict) else values or ()
    return [value for value in kept if isinstance(value, str)]


@each(WORKFLOWS, lambda path: path.stem)
def test_files_are_embedded_as_the_catalogue_has_them(path):
    for node in nodes_of(path):
        embedded = node.get("properties", {}).get("models", [])
        assert embedded == [PUBLISHED.get(item["name"]) for item in embedded], (
            f"{node['type']} differs from the catalogue"
        )
        named = {value for value in texts(node.get("widgets_values")) if value in PUBLISHED}
        assert {item["name"] for item in embedded} == named, f"{node['type']} does not embed what its widgets name"


def test_there_is_something_to_compare():
    assert {"Stable Cascade - text to image", "Stable Cascade - text to image with core loaders"} <= {
        path.stem for path in WORKFLOWS
    }
    items = [
        item for path in WORKFLOWS for node in nodes_of(path) for item in node.get("properties", {}).get("models", [])
    ]
    assert len(items) >= 4 and all(set(item) >= {"name", "url", "directory"} for item in items)


def test_presets_of_loaders_exist():
    titles = {"files below", "automatic", *(preset.title for preset in load().presets.values())}
    for path in WORKFLOWS:
        for node in nodes_of(path):
            if node["type"] == "CascadeStudio_Load":
                assert titles & set(texts(node["widgets_values"])), f"{path.stem} names no preset that exists"
