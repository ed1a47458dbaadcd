"""ComfyUI in this process.

Fixtures: ``host`` (:class:`inprocess.Host`), ``pack``, ``family``, ``studio``, ``parts``.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import inprocess
import pytest
import torch
from world import FP32, Parts, Studio

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


@pytest.fixture(scope="session")
def studio(host: inprocess.Host, family: Path) -> Studio:
    """The family in float32, and what samples with it."""
    return Studio.of(host, family, **FP32)


@pytest.fixture(scope="module")
def parts(host: inprocess.Host, family: Path) -> Iterator[Parts]:
    """The family in its default formats, on one thread, as its layers are so small that several wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield Studio.plain(host, family).parts
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def free_memory(request: pytest.FixtureRequest) -> Iterator[None]:
    """Unload every model after a test, so that no test sees the models of another."""
    yield
    if "comfy.model_management" in sys.modules:
        sys.modules["comfy.model_management"].unload_all_models()
        sys.modules["comfy.model_management"].soft_empty_cache()
