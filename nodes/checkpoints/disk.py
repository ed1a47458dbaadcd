"""What differs between systems when files must be durable: syncing folders, replacing files, long paths, free space."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

from ...stages.files import durable
from ...stages.files.durable import WINDOWS, is_full

__all__ = ["WINDOWS", "is_full"]


def system_path(path: str | Path) -> str:
    """``path`` as the system takes it; on Windows long ones need a prefix to pass 260 characters."""
    path = str(path)
    if not WINDOWS or len(path) < 240 or path.startswith("\\\\?\\"):
        return path
    path = os.path.abspath(path)
    return "\\\\?\\UNC\\" + path[2:] if path.startswith("\\\\") else "\\\\?\\" + path


def for_all_systems(prefix: str) -> str:
    """The start of a file's path with "-" for what Windows allows in no name."""
    drive, rest = os.path.splitdrive(prefix)
    return drive + re.sub(r'[<>:"|?*]', "-", rest)


def replace(source: str | Path, target: str | Path) -> None:
    """Move ``source`` over ``target`` in one step; see :func:`stages.files.durable.replace_file`."""
    durable.replace_file(system_path(source), system_path(target))


def write(path: Path, text: str) -> None:
    """Write a small text file as a whole or not at all; see :func:`stages.files.durable.write_atomically`."""
    durable.write_atomically(system_path(path), text)


def remove(path: str | Path) -> None:
    """Remove a file if it is there and can be removed."""
    durable.remove_file(system_path(path))


def sweep_drafts(path: Path) -> None:
    """Remove drafts of ``path`` that a kill left behind, for whoever holds the lock under which it is written."""
    durable.sweep_drafts(Path(system_path(path)), age=0)


def sync_folder(folder: str | Path) -> None:
    """Make a rename in ``folder`` durable, where the system offers a way."""
    if WINDOWS:
        return
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(handle)
    except OSError:
        pass
    finally:
        os.close(handle)


def existing(path: str | Path) -> Path:
    """The nearest folder at or above ``path`` that exists."""
    path = Path(os.path.abspath(path))
    while not path.is_dir() and path != path.parent:
        path = path.parent
    return path


def free_bytes(path: str | Path) -> int:
    """Bytes that can still be written at ``path``, which need not exist yet."""
    return shutil.disk_usage(existing(path)).free


def device(path: str | Path) -> int:
    """A number that files on the same disk share."""
    return os.stat(existing(path)).st_dev


def in_words(count: float) -> str:
    """A number of bytes for people, in powers of ten as shops and web pages count: "7.18 GB", "73.7 MB"."""
    for unit, name in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if count >= unit * 0.9995:
            value = count / unit
            return f"{value:.{0 if value >= 99.95 else 1 if value >= 9.995 else 2}f} {name}"
    return f"{count:.0f} bytes"
