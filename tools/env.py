"""The Python environment: made once per set of pins, never taken half-made, found again in a moment."""

from __future__ import annotations

import hashlib
import os
import platform
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from cascade_studio.commands.messages import Stop, say
from cascade_studio.commands.places import cache_root

from .cache import is_complete, locked, mark_complete, remove
from .hosts import DEFAULT_VERSION, PINS, Host, archive_host, installed_host, pinned_host
from .pip import make_venv, pip, python_in

REPOSITORY = Path(__file__).resolve().parent.parent
OLDEST_PYTHON = (3, 10)
TORCH = ("torch==2.11.0", "torchvision==0.26.0", "torchaudio==2.11.0")
TEST_PACKAGES = (
    "pytest>=8,<10",
    "diffusers==0.42.1; python_version >= '3.11'",
    "diffusers==0.39.0; python_version < '3.11'",
)


@dataclass(frozen=True)
class Setup:
    """What a command works with: a host and the Python that runs it."""

    host: Host
    python: Path

    def environment(self) -> dict[str, str]:
        """Environment variables of every process started in this setup: the host's root comes before the pack's."""
        variables = {key: value for key, value in os.environ.items() if key not in ("PYTHONHOME", "PYTHONSTARTUP")}
        variables["PYTHONPATH"] = os.pathsep.join((str(self.host.root), str(REPOSITORY)))
        variables["PYTHONSAFEPATH"] = "1"
        variables["PYTHONUNBUFFERED"] = "1"
        variables["CASCADE_STUDIO_HOST_PATH"] = str(self.host.root)
        variables["CASCADE_STUDIO_HOST_PYTHON"] = str(self.python)
        return variables

    def command(self, *arguments: str) -> list[str]:
        """The command line that runs Python with ``arguments`` (script, ``-c`` or ``-m``) inside this setup."""
        return [str(self.python), str(REPOSITORY / "tools" / "launch.py"), str(self.host.root), *arguments]

    def run(self, *arguments: str, extra: dict[str, str] | None = None) -> int:
        """Run :meth:`command` from the repository root and return its exit code."""
        variables = {**self.environment(), **(extra or {})}
        process = subprocess.Popen(self.command(*arguments), cwd=REPOSITORY, env=variables)
        try:
            while True:
                try:
                    return process.wait()
                except KeyboardInterrupt:
                    continue
        finally:
            if process.poll() is None:
                process.terminate()
                process.wait()


def _key(requirements: str) -> str:
    pins = "\n".join((sys.version.split()[0], platform.machine(), sys.platform, *TORCH, *TEST_PACKAGES, requirements))
    return hashlib.sha256(pins.encode()).hexdigest()[:12]


def _build(folder: Path, requirements: Path) -> None:
    started = time.monotonic()
    say(f"Setting up the environment in {folder} (torch and ComfyUI's packages, about 7 GB; once) ...")
    remove(folder)
    make_venv(folder)
    packages = [*TORCH, "-r", str(requirements), *TEST_PACKAGES]
    pip(python_in(folder), ["install", *packages], "install torch and ComfyUI's packages", folder / "pip.log")
    mark_complete(folder, "\n".join((*TORCH, *TEST_PACKAGES)) + "\n")
    say(f"The environment is ready after {time.monotonic() - started:.0f} s.")


def environment_python(requirements: Path) -> Path:
    """The Python of the environment for these requirements, built on first use."""
    if sys.version_info < OLDEST_PYTHON:
        raise Stop(
            f"Python {platform.python_version()} is too old: 3.10 or newer is needed. Run dev.py with such a "
            "Python; it makes its own environment."
        )
    version = "".join(map(str, sys.version_info[:2]))
    folder = cache_root() / f"env-py{version}-{_key(requirements.read_text(encoding='utf-8'))}"
    python = python_in(folder)
    if not (is_complete(folder) and python.exists()):
        with locked(folder):
            if not (is_complete(folder) and python.exists()):
                _build(folder, requirements)
    return python


def set_up(version: str | None = None, archive: str | None = None, digest: str | None = None) -> Setup:
    """The host and its Python: ``COMFYUI_PATH`` first, then an archive, then a pinned version (0.30.0)."""
    installed = os.environ.get("COMFYUI_PATH")
    if installed and not (version or archive):
        host = installed_host(Path(installed).expanduser())
        return Setup(host, host.python)
    if archive:
        host = archive_host(Path(archive).expanduser().resolve(), digest)
        return Setup(host, environment_python(host.requirements))
    host = pinned_host(version or DEFAULT_VERSION)
    # Every pinned host runs in the environment of the newest: one download of torch serves all four.
    return Setup(host, environment_python(pinned_host(DEFAULT_VERSION).requirements))


def other_versions(setup: Setup) -> list[str]:
    """The pinned versions beside the one in use; none when an installation or an archive of the user's is tested."""
    if setup.host.python is not None or setup.host.version not in PINS:
        return []
    return [version for version in PINS if version != setup.host.version]
