"""What the tests share: paths, the host on ``sys.path``, and the pack under stable names.

``import nodes`` is the host's. ``stages`` is the pack's package. ``cascade_studio`` is the pack as a package without
its ``__init__`` run (``from cascade_studio.nodes.canvas import ...``); once the host has loaded the pack, both names
and the host's own module name lead to the same module objects.
"""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import os
import sys
import types
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tools.env import Setup

TESTS = Path(__file__).resolve().parent
REPOSITORY = TESTS.parent
PACKAGE = "cascade_studio"


def host_root() -> Path | None:
    """The root of the host to test on: from ``dev.py``, else the pinned one if it was fetched before."""
    given = os.environ.get("CASCADE_STUDIO_HOST_PATH")
    if given:
        return Path(given)
    from tools.cache import cache_root, is_complete
    from tools.hosts import DEFAULT_VERSION, PINS

    home = cache_root() / "hosts" / f"{DEFAULT_VERSION}-{PINS[DEFAULT_VERSION].sha256[:12]}"
    return home / "ComfyUI" if is_complete(home) else None


def main_setup() -> Setup:
    """The host under test with this Python."""
    from tools.env import Setup
    from tools.hosts import Host, version_of

    root = host_root()
    if root is None:
        raise RuntimeError("No ComfyUI host is set up. Run the tests with 'python3 dev.py test', which fetches one.")
    return Setup(Host(version_of(root), root), Path(sys.executable))


def arrange_path() -> None:
    """Put the host's root first, the pack's second and the folders of test helpers last on ``sys.path``."""
    own = {"", str(REPOSITORY), str(TESTS), str(TESTS / "unit")}
    sys.path[:] = [str(REPOSITORY), *(entry for entry in sys.path if entry not in own)]
    host = host_root()
    if host is not None:
        sys.path[:] = [str(host), *(entry for entry in sys.path if entry != str(host))]
    sys.path += [str(TESTS), str(TESTS / "unit")]


class Alias(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Lets ``name`` and everything below it be the very modules that are known under ``target``."""

    def __init__(self, name: str, target: str) -> None:
        self.name, self.target = name, target

    def find_spec(self, name: str, path: object = None, module: object = None) -> importlib.machinery.ModuleSpec | None:
        if name == self.name or name.startswith(self.name + "."):
            return importlib.machinery.ModuleSpec(name, self)
        return None

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> None:
        return None

    def exec_module(self, module: types.ModuleType) -> None:
        name = module.__name__
        sys.modules[name] = importlib.import_module(self.target + name[len(self.name) :])


def name_pack() -> None:
    """Make ``cascade_studio`` importable: the repository root as a package, ``cascade_studio.stages`` as ``stages``."""
    if PACKAGE in sys.modules:
        return
    package = types.ModuleType(PACKAGE)
    package.__path__ = [str(REPOSITORY)]
    package.__package__ = PACKAGE
    package.__spec__ = importlib.machinery.ModuleSpec(PACKAGE, None, is_package=True)
    sys.modules[PACKAGE] = package
    sys.meta_path.insert(0, Alias(f"{PACKAGE}.stages", "stages"))


def name_loaded_pack(module_name: str) -> None:
    """Make the modules below the host's name for the pack the same objects as those below ``cascade_studio``."""
    name_pack()
    sys.meta_path.insert(0, Alias(module_name, PACKAGE))
