"""ComfyUI in this process. Fixtures: ``host`` (see :class:`inprocess.Host`), ``pack``, ``family``."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import inprocess
import pytest
import torch

BASE = inprocess.prepare()
_booted: list[inprocess.Host] = []


def _boot() -> inprocess.Host:
    if not _booted:
        _booted.append(inprocess.Host(BASE))
        torch.set_num_threads(1)  # the small family's layers mostly wait for each other on more
    return _booted[0]


@pytest.fixture(scope="session")
def host() -> Iterator[inprocess.Host]:
    """The booted host with the pack loaded; the tests fail if the pack cannot be loaded."""
    booted = _boot()
    yield booted
    booted.close()


@pytest.fixture(scope="session")
def pack(host: inprocess.Host) -> ModuleType:
    """The pack's package as the host loaded it."""
    return host.pack


@pytest.fixture(scope="session")
def family(host: inprocess.Host) -> Path:
    """The tiny checkpoint family, inside the host's models folder."""
    from family import write_family

    write_family(host.models)
    for name in list(host.folder_paths.filename_list_cache):
        host.folder_paths.filename_list_cache.pop(name)
    return host.models


@pytest.fixture(autouse=True)
def free_memory(request: pytest.FixtureRequest) -> Iterator[None]:
    """Unload every model after a test, so that no test sees the models of another."""
    yield
    if "comfy.model_management" in sys.modules:
        sys.modules["comfy.model_management"].unload_all_models()
        sys.modules["comfy.model_management"].soft_empty_cache()
