"""The documents name what exists: every workflow, every node, and no dead link."""
from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest
from harness import REPOSITORY

DOCUMENTS = [*sorted((REPOSITORY / "docs").glob("*.md")), REPOSITORY / "CONTRIBUTING.md", REPOSITORY / "CHANGELOG.md"]
FEATURES = (REPOSITORY / "docs" / "features.md").read_text(encoding="utf-8")
WORKFLOWS = {path.stem for path in (REPOSITORY / "workflows").glob("*.json")}


def node_names() -> dict[str, str]:
    """Shown name by node id, as the source has them."""
    found = {}
    for path in Path(REPOSITORY, "nodes").glob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        named = {}
        for node in ast.walk(tree):
            if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
                named[node.targets[0].id] = node.value
            elif isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Tuple):
                if isinstance(node.value, ast.Tuple):
                    named.update((name.id, value) for name, value in zip(node.targets[0].elts, node.value.elts)
                                 if isinstance(name, ast.Name))
        for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
            given = {keyword.arg: keyword.value for keyword in call.keywords}
            if "node_id" in given and "display_name" in given:
                shown = given["display_name"]
                shown = named.get(shown.id, shown) if isinstance(shown, ast.Name) else shown
                found[given["node_id"].value] = shown.value
    return found


def test_features_name_every_workflow_and_no_other():
    named = {word for line in FEATURES.splitlines() if line.startswith("|")
             for word in re.findall(r"`([a-z_0-9]+)`", line.rpartition("|")[0].rpartition("|")[2])}
    assert named == WORKFLOWS


def test_features_name_every_node():
    """By its whole name, or by its words where several nodes share a line."""
    words = re.sub(r"[(),;|]", " ", FEATURES)
    for node, name in node_names().items():
        plain = re.sub(r" \((prior|decoder)\)", "", name)
        assert all(word in words.split() for word in plain.split()), f"{node}: {name}"


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(path):
    for target in re.findall(r"\]\(([^)#]+)\)", path.read_text(encoding="utf-8")):
        assert target.startswith("https://") or (path.parent / target).exists(), target


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_workflows_in_the_text_exist(path):
    for name in re.findall(r"`((?:text_to_image|high_resolution|lora|image|draft|first)_[a-z_0-9]+)`",
                           path.read_text(encoding="utf-8")):
        assert name in WORKFLOWS, name
