"""The Dockerfile of a worker: what a linter says of it, and that it takes the versions that are tested here."""

from __future__ import annotations

import re
import shutil
import subprocess

from harness import REPOSITORY

from tools.env import TORCH, current_setup
from tools.hosts import DEFAULT_VERSION

FILE = REPOSITORY / "docker" / "Dockerfile"


def argument(name: str) -> str:
    return re.search(rf'^ARG {name}="?([^"\n]*)"?$', FILE.read_text(encoding="utf-8"), re.MULTILINE)[1]


def test_the_linter_has_nothing_to_say():
    found = shutil.which("hadolint", path=str(current_setup().host_python.parent)) or shutil.which("hadolint")
    assert found, "hadolint is among the test packages (tools/env.py)"
    done = subprocess.run([found, str(FILE)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and not done.stdout.strip(), done.stdout + done.stderr


def test_it_takes_the_tested_versions():
    assert argument("COMFYUI") == f"v{DEFAULT_VERSION}" and tuple(argument("TORCH").split()) == TORCH


def test_nothing_of_its_context_is_left_out_that_the_pack_needs():
    ignored = FILE.with_name("Dockerfile.dockerignore").read_text(encoding="utf-8").split()
    assert not {"commands", "nodes", "stages", "mini", "web", "locales", "workflows", "studio.py", "__init__.py"} & set(
        ignored
    )
