"""A file in the place of another, while somebody else holds it for a moment as virus scanners on Windows do."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from cascade_studio.stages.files import durable
from cascade_studio.stages.files.durable import replace_file, write_atomically


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Windows; what was slept, without the sleep."""
    slept: list[float] = []
    monkeypatch.setattr(durable, "WINDOWS", True)
    monkeypatch.setattr(durable.time, "sleep", slept.append)
    return slept


def hold(monkeypatch: pytest.MonkeyPatch, times: int) -> None:
    """The next ``times`` files cannot be replaced."""
    real, held = os.replace, iter(range(times))

    def replace(source: Any, target: Any) -> None:
        if next(held, None) is not None:
            raise PermissionError(13, "held")
        real(source, target)

    monkeypatch.setattr(os, "replace", replace)


def written(path: Path) -> None:
    write_atomically(path, lambda draft: draft.write_bytes(b"new"))


def test_a_file_that_is_held_for_a_moment_is_waited_for(tmp_path, monkeypatch, waits):
    """In training as in downloads."""
    path, other = tmp_path / "state.pt", tmp_path / "model.safetensors"
    path.write_bytes(b"old")
    hold(monkeypatch, 2)
    written(path)
    assert path.read_bytes() == b"new" and waits == [0.1, 0.2]
    hold(monkeypatch, 1)
    replace_file(path, other)
    assert other.read_bytes() == b"new" and not path.exists() and len(waits) == 3


def test_one_that_stays_held_is_an_error(tmp_path, monkeypatch, waits):
    path = tmp_path / "state.pt"
    path.write_bytes(b"old")
    hold(monkeypatch, 100)
    with pytest.raises(PermissionError):
        written(path)
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path] and len(waits) == durable.TRIES - 1


def test_elsewhere_there_is_nothing_to_wait_for(tmp_path, monkeypatch, waits):
    monkeypatch.setattr(durable, "WINDOWS", False)
    hold(monkeypatch, 1)
    with pytest.raises(PermissionError):
        written(tmp_path / "state.pt")
    assert not waits


def test_a_draft_that_cannot_be_removed_does_not_hide_what_went_wrong(tmp_path, monkeypatch):
    def full(draft: Path) -> None:
        draft.write_bytes(b"ne")
        raise OSError(28, "disk full")

    def held(path: Any) -> None:
        raise PermissionError(13, "held")

    monkeypatch.setattr(os, "remove", held)
    with pytest.raises(OSError, match="disk full"):
        write_atomically(tmp_path / "state.pt", full)
