"""What the tests share: paths, the host on ``sys.path``, and the pack as ``cascade_studio``; ``nodes`` is the host's."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tools.env import Setup

TESTS = Path(__file__).resolve().parent
REPOSITORY = TESTS.parent


def host_root() -> Path | None:
    """The root of the host to test on: from ``dev.py``, else the pinned one if it was fetched before."""
    given = os.environ.get("CASCADE_STUDIO_HOST_PATH")
    if given:
        return Path(given)
    from cascade_studio.commands.places import cache_root
    from tools.cache import is_complete
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
    from studio import load_pack

    load_pack()
