"""What the tests share: where things are. ``nodes`` is the host's; the pack is ``cascade_studio`` (tools/env.py)."""

from __future__ import annotations

import os
from pathlib import Path

TESTS = Path(__file__).resolve().parent
REPOSITORY = TESTS.parent


def host_root() -> Path | None:
    """The root of the host to test on; None where tests are not started by ``dev.py``."""
    given = os.environ.get("CASCADE_STUDIO_HOST_PATH")
    return Path(given) if given else None
