"""The documents name what exists: every workflow, every node, and no dead link."""

from __future__ import annotations

import re

from harness import REPOSITORY
from sources import node_names
from table import each

DOCUMENTS = [*sorted((REPOSITORY / "docs").glob("*.md")), REPOSITORY / "CONTRIBUTING.md", REPOSITORY / "CHANGELOG.md"]
FEATURES = (REPOSITORY / "docs" / "features.md").read_text(encoding="utf-8")
WORKFLOWS = {path.stem for path in (REPOSITORY / "workflows").glob("*.json")}


def test_features_name_every_workflow_and_no_other():
    named = {
        word
        for line in FEATURES.splitlines()
        if line.startswith("|")
        for word in re.findall(r"`(Stable Cascade - [^`]+)`", line.rpartition("|")[0].rpartition("|")[2])
    }
    assert named == WORKFLOWS


def test_features_name_every_node():
    """By its whole name, or by its words where several nodes share a line."""
    words = re.sub(r"[(),;|]", " ", FEATURES)
    for node, name in node_names().items():
        plain = re.sub(r" \((prior|decoder|KSampler)\)", "", name)
        assert all(word in words.split() for word in plain.split()), f"{node}: {name}"


@each(DOCUMENTS, lambda path: path.name)
def test_links_lead_somewhere(path):
    for target in re.findall(r"\]\(([^)#]+)\)", path.read_text(encoding="utf-8")):
        assert target.startswith("https://") or (path.parent / target).exists(), target


@each(DOCUMENTS, lambda path: path.name)
def test_workflows_in_the_text_exist(path):
    for name in re.findall(r"(?:`|\*)(Stable Cascade - [^`*\n]+)", path.read_text(encoding="utf-8")):
        assert name in WORKFLOWS, name


def test_the_map_leads_somewhere():
    """Every path in CONTRIBUTING.md is there, and every name beside one is defined in it."""
    text = (REPOSITORY / "CONTRIBUTING.md").read_text(encoding="utf-8")
    paths = re.findall(r"`((?:stages|nodes|commands|tools|tests|training|docs|web)/[a-z_/]+\.(?:py|json|md))`", text)
    assert len(paths) > 30
    assert [path for path in paths if not (REPOSITORY / path).exists()] == []
    for path, name in re.findall(r"`([a-z_/]+\.py)` \(`([A-Za-z_.]+)`", text):
        for part in name.split("."):
            assert re.search(rf"^ *(?:def|class) {part}\b", (REPOSITORY / path).read_text("utf-8"), re.MULTILINE), name


def test_the_three_long_walks_are_short():
    """Half the files that the same walks took before: 10, 24 and 11."""
    text = (REPOSITORY / "CONTRIBUTING.md").read_text(encoding="utf-8")
    for start, most in (("**A file**", 5), ("**A training run**", 12), ("**A prior through", 5)):
        walk = text[text.index(start) :].split("\n\n")[0]
        assert 1 < len(set(re.findall(r"`[a-z_/]+\.py`", walk))) <= most, start
