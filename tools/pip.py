"""pip and virtual environments, with their failures told in a sentence."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from cascade_studio.commands.messages import Stop
from cascade_studio.commands.places import cache_root

from .cache import is_complete, locked, mark_complete, remove

OFFLINE_SIGNS = (
    "Temporary failure in name resolution",
    "Failed to establish a new connection",
    "Name or service not known",
    "getaddrinfo failed",
    "nodename nor servname",
    "Network is unreachable",
    "Connection refused",
    "ProxyError",
    "Read timed out",
    "ConnectTimeoutError",
    "No route to host",
)


def explain(output: str, purpose: str) -> str:
    """The sentence for a pip run that failed while it was to ``purpose``, from what it wrote."""
    lines = [line for line in output.splitlines() if line.startswith("ERROR:")]
    if any(sign in output for sign in OFFLINE_SIGNS):
        return (
            f"Could not {purpose}: the Python package index cannot be reached. Connect this machine to the "
            "network (or set pip's index-url or proxy) and run the same command again."
        )
    if "No space left on device" in output or "Errno 28" in output:
        return (
            f"Could not {purpose}: the disk is full. About 7 GB are needed; free some space or set "
            "CASCADE_STUDIO_CACHE to a folder on a larger disk, and run the same command again."
        )
    if "(from versions: none)" in output:
        return (
            f"Could not {purpose}: the Python package index cannot be reached, or it does not have what is needed. "
            f"Check the network and pip's index-url, and run the same command again. pip said: {lines[0]}"
        )
    reason = " ".join(lines[:2]) or (output.strip().splitlines() or ["pip gave no reason"])[-1]
    return f"Could not {purpose}: {reason} (Python 3.10 to 3.13 are supported.)"


def pip(python: Path | str, arguments: Sequence[str], purpose: str, log: Path | None = None) -> None:
    """Run pip of ``python``; its output goes to ``log`` if given. Raises ``Stop`` with the reason on failure."""
    command = [str(python), "-m", "pip", *arguments, "--disable-pip-version-check", "--no-input"]
    environment = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "PYTHONHOME")}
    result = subprocess.run(
        command,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        errors="replace",
    )
    if log is not None:
        log.write_text(result.stdout, encoding="utf-8")
    if result.returncode:
        raise Stop(explain(result.stdout, purpose) + (f" The whole output is in {log}." if log else ""))


def python_in(folder: Path) -> Path:
    """The Python of a virtual environment."""
    return folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def site_folders(python: Path) -> list[Path]:
    """The folders of packages of a Python."""
    code = (
        "import site; print(*site.getsitepackages(), "
        "*([site.getusersitepackages()] * bool(site.ENABLE_USER_SITE)), sep='\\n')"
    )
    told = subprocess.run(
        [str(python), "-c", code], stdout=subprocess.PIPE, check=True, encoding="utf-8", cwd=python.parent
    )
    return [Path(line) for line in told.stdout.splitlines()]


def make_venv(folder: Path, python: Path | str = sys.executable, *, with_pip: bool = True) -> None:
    """Make a virtual environment of ``python`` in ``folder``."""
    try:
        result = subprocess.run(
            [str(python), "-m", "venv", "--clear", *([] if with_pip else ["--without-pip"]), str(folder)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
            errors="replace",
        )
        problem = result.stdout if result.returncode else ""
    except OSError as error:
        problem = str(error)
    if problem:
        hint = "Install the package python3-venv and run the same command again." if "ensurepip" in problem else ""
        reason = hint or problem.strip()
        raise Stop(f"Python {python} could not make a virtual environment in {folder}. {reason}")


def python_with_pip() -> Path:
    """The running Python if it has pip, else that of a small environment made for it."""
    if importlib.util.find_spec("pip") is not None:
        return Path(sys.executable)
    folder = cache_root() / f"pip-py{sys.version_info[0]}{sys.version_info[1]}"
    if not (is_complete(folder) and python_in(folder).exists()):
        with locked(folder):
            if not (is_complete(folder) and python_in(folder).exists()):
                remove(folder)
                make_venv(folder)
                mark_complete(folder, sys.version + "\n")
    return python_in(folder)
