"""What the registry ships: the archive as its tool builds it, and every command that its texts name, run from it."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import harness
import pytest

from cascade_studio.commands import COMMANDS

tomllib = pytest.importorskip("tomllib" if sys.version_info >= (3, 11) else "tomli")

TEXTS = (".md", ".py", ".js", ".json")
STARTS = re.compile(r"studio\.py ((?:" + "|".join(COMMANDS) + r")\b(?: (?:[^\s`'\"*{(]+|\"[^\"\n]+\"))*)")
"""A command in a text: words, some of them quoted, with a blank between; up to a bracket or what is said beside it."""
GIVEN = {"DIR": "models", "URL": "https://mirror.example", "FILE": "config.json", "COMMAND": "models"}
PROJECT = tomllib.loads((harness.REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def pack(tmp_path_factory) -> Path:
    """The unpacked archive, in the custom_nodes of a ComfyUI of which only the outline is there."""
    from comfy_cli.file_utils import zip_files

    comfyui = tmp_path_factory.mktemp("ComfyUI")
    (comfyui / "main.py").write_text("")
    (comfyui / "models").mkdir()
    before = os.getcwd()
    os.chdir(harness.REPOSITORY)
    try:
        zip_files(str(comfyui / "node.zip"))
    finally:
        os.chdir(before)
    folder = comfyui / "custom_nodes" / "any-name 1"
    with zipfile.ZipFile(comfyui / "node.zip") as archive:
        archive.extractall(folder)
    (folder / "own.json").write_text(json.dumps({"presets": {"mine": {"inputs": {}}}}))
    return folder


def texts(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.suffix in TEXTS]


def named_commands(folder: Path) -> list[list[str]]:
    """The arguments of ``studio.py`` in every text, with something real for the words in capitals.

    One or two words are a command's name, which a sentence speaks of: its help has to be there.
    """
    found = {match for path in texts(folder) for match in STARTS.findall(path.read_text(encoding="utf-8"))}
    return [
        [GIVEN.get(word, word) for word in shlex.split(command if command.count(" ") > 1 else f"{command} --help")]
        for command in sorted(found)
    ]


def test_the_archive_holds_what_runs_and_not_how_it_is_made(pack):
    names = {path.relative_to(pack).parts[0] for path in pack.rglob("*") if path.is_file()} - {"own.json"}
    assert {"__init__.py", "studio.py", "commands", "stages", "nodes", "mini", "web", "workflows"} <= names
    assert not names & {"dev.py", "tools", "tests", "training", "CONTRIBUTING.md", ".ci", ".github"}


def run(pack: Path, arguments: list[str]) -> subprocess.CompletedProcess[str]:
    """``studio.py`` with ComfyUI's own Python, without the network and without anything of ours."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("CASCADE_", "PYTHON", "HF_"))}
    python = os.environ.get("CASCADE_STUDIO_HOST_PYTHON", sys.executable)
    return subprocess.run(
        [python, "studio.py", *arguments],
        cwd=pack,
        env={**kept, "CASCADE_STUDIO_OFFLINE": "1", "CASCADE_STUDIO_CACHE": str(pack.parents[1] / "cache")},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        encoding="utf-8",
        timeout=300,
    )


@pytest.mark.slow
def test_every_command_that_a_text_names_runs_from_the_archive(pack):
    """It does its work, or ends with a sentence: no network, no such file. Never wrong usage, never a traceback."""
    commands = named_commands(pack)
    assert len(commands) >= 8
    wrong = []
    for arguments in commands:
        done = run(pack, arguments)
        if done.returncode not in (0, 1, 3) or "Traceback" in done.stderr or not (done.stdout + done.stderr).strip():
            wrong.append((arguments, done.returncode, done.stderr[-500:]))
    assert not wrong


def test_the_pack_finds_the_comfyui_around_it(pack):
    assert str(pack.parents[1] / "models") in run(pack, ["models", "plan", "lite-bf16"]).stdout


def test_texts_send_nobody_to_what_is_not_shipped(pack):
    """Commands for developers are named beside the word that says where they are."""
    wrong = []
    for path in texts(pack):
        for paragraph in re.split(r"\n\s*\n(?!    )", path.read_text(encoding="utf-8")):
            translated = path.parent.parent == pack / "web" / "docs"  # says what the English page says
            if (
                re.search(r"python3? dev\.py", paragraph)
                and not re.search("repository|clone", paragraph)
                and not translated
            ):
                wrong.append((path.name, paragraph[:200]))
        if path.suffix == ".md":
            links = re.findall(r"\]\(([^)#\s:]+)[^):]*\)", path.read_text(encoding="utf-8"))
            pages = pack / "web" / "docs"  # ComfyUI shows a page's pictures from there, whatever its language
            folder = pages if pages in path.parents else path.parent
            wrong += [(path.name, link) for link in links if not (folder / link).exists()]
    assert not wrong


def test_the_package_lists_every_folder_of_code():
    roots = [harness.REPOSITORY / name for name in ("commands", "nodes", "stages")]
    folders = [path.parent.relative_to(harness.REPOSITORY) for root in roots for path in root.rglob("__init__.py")]
    expected = ["cascade_studio", *sorted(".".join(("cascade_studio", *folder.parts)) for folder in folders)]
    assert PROJECT["tool"]["setuptools"]["packages"] == expected


def test_the_package_installs(tmp_path):
    """As a wheel into an empty folder, without the network; from there it runs."""
    command = [sys.executable, "-m", "pip", "install", "--no-deps", "--no-build-isolation", "--no-index", "--quiet"]
    source = tmp_path / "source"
    source.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE", "__init__.py"):
        shutil.copy(harness.REPOSITORY / name, source)
    for name in ("commands", "nodes", "stages"):
        shutil.copytree(harness.REPOSITORY / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    subprocess.run([*command, "--target", str(tmp_path / "site"), str(source)], check=True, capture_output=True)
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); import cascade_studio.commands as c; "
        "print(c.__file__); sys.exit(c.main(['models', 'list']))"
    )
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", code, str(tmp_path / "site")], capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith(str(tmp_path / "site")) and "lite-bf16" in done.stdout


def test_the_registrys_validator_has_nothing_to_say(tmp_path):
    """``comfy node validate``: the metadata, and no eval or exec anywhere in the repository."""
    command = [sys.executable, "-m", "comfy_cli", "--skip-prompt", "--no-enable-telemetry", "node", "validate"]
    variables = {**os.environ, "HOME": str(tmp_path), "USERPROFILE": str(tmp_path), "COLUMNS": "200"}
    done = subprocess.run(command, cwd=harness.REPOSITORY, env=variables, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0 and "All validation checks passed" in done.stdout + done.stderr, (
        done.stdout + done.stderr
    )
