"""The documents name what exists: every workflow, every node, every command with its options, and no dead link."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path

from harness import REPOSITORY
from sources import node_names
from table import each

from cascade_studio.commands import COMMANDS
from cascade_studio.nodes.checkpoints.catalogue import load
from cascade_studio.stages.diffusion.official import list_tasks
from tools.authoring.recipes import RECIPES

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


README = REPOSITORY / "README.md"
PAGES = [README, *DOCUMENTS[:-1], *sorted((REPOSITORY / "web" / "docs").glob("*.md"))]
"""What tells its readers to run something; the change log tells of commands as they were."""
COMMAND = re.compile(r"python3? (dev|studio)\.py ([^`#\n]+)")
OPTION = re.compile(r"(?<!\S)--[a-z][\w-]*")


def find_sources(script: str, words: list[str]) -> list[Path]:
    """The files that read the options of a command; fails where there is no such command."""
    if script == "studio":
        assert words[0] in COMMANDS, words
        return sorted((REPOSITORY / "commands").rglob("*.py"))
    own = REPOSITORY / "dev.py"
    assert re.search(rf"^def {words[0]}\(", own.read_text(encoding="utf-8"), re.MULTILINE), words
    if words[0] == "bench":
        return sorted((REPOSITORY / "tests" / "benchmarks").glob("*.py"))
    if words[0] != "run":
        return [own]
    if words[1] == "-m":
        at = REPOSITORY.joinpath(*words[2].split("."))
        if at.is_dir():
            return sorted(at.glob("*.py"))
        top = words[2].split(".")[0]
        if (REPOSITORY / top).is_dir():
            assert at.with_suffix(".py").is_file(), words
            return [at.with_suffix(".py")]
        assert importlib.util.find_spec(top), words
        return []
    if words[1] == "-c":
        return []
    assert (REPOSITORY / words[1]).is_file(), words
    return [REPOSITORY / words[1]]


def find_wrong_commands(text: str) -> list[str]:
    """Commands that there are not, and options that they do not know."""
    wrong = []
    whole = re.sub(r"(?<!`)`[^`]+`(?!`)", lambda code: re.sub(r"\s+", " ", code[0]), text)
    for script, rest in COMMAND.findall(whole):
        try:
            found = find_sources(script, rest.split())
        except AssertionError:
            wrong.append(rest)
            continue
        code = "".join(path.read_text(encoding="utf-8") for path in found)
        wrong += [f"{option} of {rest}" for option in OPTION.findall(rest) if found and f'"{option}"' not in code]
    return wrong


@each(PAGES, lambda path: path.name)
def test_commands_in_the_text_exist(path):
    assert find_wrong_commands(path.read_text(encoding="utf-8")) == []


def test_wrong_commands_are_seen():
    for command in ("dev.py paint", "studio.py upscale", "dev.py run tests/no_file.py", "dev.py run -m tools.none"):
        assert len(find_wrong_commands(f"python3 {command}")) == 1, command
    assert find_wrong_commands("`python3 dev.py demo --prompt x`, python studio.py models list") == []
    assert len(find_wrong_commands("python3 dev.py demo --no-such-option")) == 1
    assert find_wrong_commands("`python3 dev.py run -m\ntools.icon`, ```\npython3 dev.py host\n```") == []


def test_the_pages_count_the_apps():
    """The page on the first picture says how many workflows open as apps."""
    count = sum(recipe().shown_in_app is not None for recipe in RECIPES.values())
    words = "no one two three four five six seven eight nine ten eleven twelve".split()
    page = (REPOSITORY / "docs" / "first_picture.md").read_text(encoding="utf-8")
    assert f"{words[count].capitalize()} workflows open as apps" in page


def test_the_readme_tells_what_is_fetched():
    """As the catalogue has it: for the files that text to image names, and for the preset beside it."""
    known, readme = load(), README.read_text(encoding="utf-8")
    path = REPOSITORY / "workflows" / "Stable Cascade - text to image.json"
    workflow = json.loads(path.read_text(encoding="utf-8"))
    loader = next(node for node in workflow["nodes"] if node["type"] == "CascadeStudio_Load")
    named = [entry for entry in known.entries.values() if entry.name in loader["widgets_values"]]
    preset = known.presets["lite-bf16"]
    for entries in (named, [known.entries[key] for key in preset.entries]):
        size = sum(entry.size or 0 for entry in entries)
        assert f"{size / 1e9:.1f} GB" in readme, size
    assert preset.title in readme


def test_the_pages_tell_what_settings_fill_in():
    """The page on settings and the help of both samplers, by task."""
    prior, decoder = list_tasks("stage_c"), list_tasks("stage_b")
    page, first, second = (
        (REPOSITORY / path).read_text(encoding="utf-8")
        for path in (
            "docs/settings.md",
            "web/docs/CascadeStudio_SamplePrior.md",
            "web/docs/CascadeStudio_SampleDecoder.md",
        )
    )
    denoise = prior["image to image"]["denoise"]
    for told in (
        f"(*draft*: {prior['draft']['steps']})",
        f"(*fine*: {prior['fine']['steps']} and {decoder['fine']['steps']})",
        f"(*image to image*: {denoise})",
    ):
        assert told in page, told
    for told in (
        f"*draft* ({prior['draft']['steps']} steps)",
        f"*fine* ({prior['fine']['steps']} steps)",
        f"*image to image* (denoise {denoise})",
    ):
        assert told in re.sub(r"\s+", " ", first), told
    for told in (
        f"*draft* ({decoder['draft']['steps']} steps at cfg {decoder['draft']['cfg']:g})",
        f"*fine* ({decoder['fine']['steps']} steps)",
    ):
        assert told in re.sub(r"\s+", " ", second), told
