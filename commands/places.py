"""Where things lie on this computer: the ComfyUI that holds the pack, its models folder, our cache, a free port."""

from __future__ import annotations

import os
import socket
import sys
from pathlib import Path

from .messages import Stop

PACK = Path(__file__).resolve().parent.parent


def cache_root() -> Path:
    """The cache folder of the current user; ``CASCADE_STUDIO_CACHE`` chooses another one."""
    chosen = os.environ.get("CASCADE_STUDIO_CACHE")
    if chosen:
        return Path(chosen).expanduser().resolve()
    home = Path.home()
    if sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA") or home / "AppData" / "Local")
    elif sys.platform == "darwin":
        base = home / "Library" / "Caches"
    else:
        base = Path(os.environ.get("XDG_CACHE_HOME") or home / ".cache")
    return base / "cascade-studio"


def find_free_port() -> int:
    """A loopback port that nothing listens on."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def find_comfyui(*, models: bool = True, pack: Path = PACK) -> Path | None:
    """The root of the ComfyUI to work with: that of COMFYUI_PATH, or the one whose custom_nodes hold this pack.

    Without ``models``, where its code alone counts, that of dev.py comes first.
    """
    for name in ("COMFYUI_PATH",) if models else ("CASCADE_STUDIO_HOST_PATH", "COMFYUI_PATH"):
        if os.environ.get(name):
            return Path(os.environ[name]).expanduser().resolve()
    root = pack.parent.parent
    return root if pack.parent.name == "custom_nodes" and (root / "main.py").is_file() else None


def models_folder(given: str | None) -> Path:
    """The models folder that ``--to`` means: a folder, the ``models`` of a ComfyUI, or that of :func:`find_comfyui`."""
    folder = Path(given).expanduser().resolve() if given else find_comfyui()
    if folder is None:
        raise Stop("Say where the models are: --to DIR, a ComfyUI models folder, or set COMFYUI_PATH.")
    return folder / "models" if (folder / "models").is_dir() and (folder / "main.py").is_file() else folder
