"""For all tests: no network, the repository's root is no test package, and long tests wait to be asked for."""

from __future__ import annotations

import os
from pathlib import Path

import harness
import pytest

os.environ.setdefault("CASCADE_STUDIO_OFFLINE", "1")  # no test asks for a file of the real catalogue


class PlainRoot:
    """Keeps pytest from importing the repository's ``__init__.py``, which is for ComfyUI, as a test package."""

    @pytest.hookimpl(tryfirst=True)
    def pytest_collect_directory(self, path: Path, parent: pytest.Collector) -> pytest.Collector | None:
        return pytest.Dir.from_parent(parent, path=path) if path == harness.REPOSITORY else None


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(PlainRoot(), "plain-root")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The long tests run when they are asked for."""
    if not os.environ.get("CASCADE_STUDIO_SOAK"):
        for item in items:
            if item.get_closest_marker("soak"):
                item.add_marker(pytest.mark.skip(reason="takes long; 'dev.py test --soak' runs it"))
