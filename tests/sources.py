"""The pack's nodes as a scan of the source finds them, without running anything."""

from __future__ import annotations

import ast
from pathlib import Path

from harness import REPOSITORY


def node_classes() -> dict[str, str]:
    """Class name by node id: direct children of the host's class with one literal ``node_id``."""
    found = {}
    for path in Path(REPOSITORY, "nodes").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            bases = {ast.unparse(base) for base in node.bases} if isinstance(node, ast.ClassDef) else set()
            if bases & {"io.ComfyNode", "ComfyNode"}:
                assert node.name not in found.values(), f"two classes are called {node.name}"
                given = [
                    keyword.value.value
                    for call in ast.walk(node)
                    if isinstance(call, ast.Call)
                    for keyword in call.keywords
                    if keyword.arg == "node_id" and isinstance(keyword.value, ast.Constant)
                ]
                assert len(given) == 1, f"{node.name} has {len(given)} literal node ids"
                assert given[0] not in found, f"two nodes have the id {given[0]}"
                found[given[0]] = node.name
    return found


def node_names() -> dict[str, str]:
    """Shown name by node id."""
    found = {}
    for path in Path(REPOSITORY, "nodes").glob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        named = {}
        for node in ast.walk(tree):
            if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
                named[node.targets[0].id] = node.value
            elif isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Tuple):
                if isinstance(node.value, ast.Tuple):
                    named.update(
                        (name.id, value)
                        for name, value in zip(node.targets[0].elts, node.value.elts)
                        if isinstance(name, ast.Name)
                    )
        for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
            given = {keyword.arg: keyword.value for keyword in call.keywords}
            if "node_id" in given and "display_name" in given:
                shown = given["display_name"]
                shown = named.get(shown.id, shown) if isinstance(shown, ast.Name) else shown
                found[given["node_id"].value] = shown.value
    return found
