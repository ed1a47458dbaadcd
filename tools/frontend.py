"""The frontend that a pinned host was made with: every host runs in one environment, which has the newest host's."""

from __future__ import annotations

import re
import tempfile
import zipfile
from importlib import metadata
from pathlib import Path, PurePosixPath

from cascade_studio.commands.messages import Stop, say
from cascade_studio.commands.places import cache_root

from .cache import is_complete, locked, mark_complete, remove
from .env import Setup
from .hosts import Host
from .pip import pip, python_with_pip

PACKAGE = "comfyui-frontend-package"
INSIDE = "comfyui_frontend_package/static/"


def read_frontend_pin(host: Host) -> str | None:
    """The version of the frontend that a host's requirements name; None where they leave it open."""
    found = re.search(rf"(?m)^{PACKAGE}==([\w.]+)\s*$", host.requirements.read_text(encoding="utf-8"))
    return found.group(1) if found else None


def unpack_frontend(wheel: Path, target: Path) -> None:
    """Write the web pages in a wheel of the frontend below ``target``."""
    with zipfile.ZipFile(wheel) as opened:
        for info in opened.infolist():
            parts = PurePosixPath(info.filename[len(INSIDE) :]).parts
            if info.is_dir() or not info.filename.startswith(INSIDE) or ".." in parts:
                continue
            path = target.joinpath(*parts)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(opened.read(info))
    if not (target / "index.html").is_file():
        raise Stop(f"{wheel} holds no {INSIDE}index.html; a wheel of {PACKAGE} is needed.")


def fetch_frontend(version: str) -> Path:
    """The folder with the web pages of this version, from the package index on first use."""
    home = cache_root() / "frontends" / version
    if not is_complete(home):
        with locked(home):
            if not is_complete(home):
                remove(home)
                say(f"Downloading {PACKAGE} {version} ...")
                with tempfile.TemporaryDirectory() as scratch:
                    arguments = ["download", "--no-deps", "--dest", scratch, f"{PACKAGE}=={version}"]
                    pip(python_with_pip(), arguments, f"download ComfyUI's frontend {version}")
                    (wheel,) = Path(scratch).glob("*.whl")
                    unpack_frontend(wheel, home / "static")
                mark_complete(home, version + "\n")
    return home / "static"


def frontend_flags(setup: Setup) -> list[str]:
    """The flags that make a pinned host show its own frontend; none where the environment has that one.

    An installation of the user's shows what is installed with it.
    """
    if cache_root() / "hosts" not in setup.host.root.parents:
        return []
    wanted = read_frontend_pin(setup.host)
    if wanted in (None, metadata.version(PACKAGE)):
        return []
    return ["--front-end-root", str(fetch_frontend(wanted))]
