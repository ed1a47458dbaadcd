"""The pack under another name in another folder: a link where the system makes one, else a copy."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
from pathlib import Path

from cascade_studio.commands.messages import Stop

COPY_MARK = ".copied-by-dev-py"


def link_pack(custom_nodes: Path, pack: Path, name: str) -> Path:
    """Make ``custom_nodes/name`` lead to the pack: a link, else (Windows without rights) a junction, else a copy."""
    custom_nodes.mkdir(parents=True, exist_ok=True)
    target = custom_nodes / name
    if target.exists() or target.is_symlink():
        raise Stop(f"{target} is there already and was not made by dev.py. Move it away, or choose another folder.")
    try:
        target.symlink_to(pack, target_is_directory=True)
        return target
    except OSError:
        pass
    if os.name == "nt":
        made = subprocess.run(
            ["cmd", "/c", "mklink", "/J", str(target), str(pack)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        if made.returncode == 0:
            return target
    shutil.copytree(pack, target, ignore=shutil.ignore_patterns(".git", "__pycache__", "tests", ".pytest_cache"))
    (target / COPY_MARK).write_text("A copy made by dev.py, which removes it again.\n", encoding="utf-8")
    return target


def unlink_pack(target: Path) -> None:
    """Undo :func:`link_pack`: the link, junction or copy goes, the pack behind it and folders of others stay."""
    if target.is_symlink():
        target.unlink()
    elif (target / COPY_MARK).is_file():
        shutil.rmtree(target)
    elif _is_junction(target):
        os.rmdir(target)


def identify_link(target: Path) -> tuple[int, int] | None:
    """What tells a link, junction or copy from a later one of the same name; None where there is none."""
    copied = not target.is_symlink() and (target / COPY_MARK).is_file()
    try:
        status = os.lstat(target / COPY_MARK if copied else target)
    except OSError:
        return None
    return status.st_ino, status.st_ctime_ns


def _is_junction(path: Path) -> bool:
    if os.name != "nt" or not path.exists():
        return False
    return bool(os.lstat(path).st_file_attributes & stat.FILE_ATTRIBUTE_REPARSE_POINT)
