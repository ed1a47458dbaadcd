"""Full disks, taken names, folders that are none: nothing of the user's is touched, and what came is kept."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
from downloads import safetensors

from cascade_studio.nodes.checkpoints import lock
from cascade_studio.nodes.checkpoints.errors import CheckpointError, DiskFull, FetchFailed

SIZE = 1 << 20


@pytest.fixture
def small_disk(tmp_path) -> Iterator[tuple[Path, Callable[[str], None]]]:
    """A disk of 3 MB in memory, and what changes its size."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if mount("-t", "tmpfs", "-o", "size=3m", "tmpfs", str(folder)):
        pytest.skip("a small disk can only be mounted by root on Linux")
    yield folder, lambda size: mount("-o", f"remount,size={size}", str(folder))
    subprocess.run(["umount", str(folder)], check=True)


def mount(*arguments: str) -> int:
    try:
        return subprocess.run(["mount", *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL).returncode
    except OSError:
        return 1


def test_a_file_that_does_not_fit_is_not_begun(place, small_disk):
    place.models = small_disk[0]
    place.serve(safetensors(4 * SIZE))
    with pytest.raises(DiskFull, match=r"has 3\.15 MB free; the files to fetch need 4\.19 MB"):
        place.fetch()
    assert place.server.requests == []
    assert "1.05 MB too little" in place.plan().describe()


def test_a_disk_that_fills_up_keeps_what_came(place, small_disk):
    place.models, resize = small_disk
    place.serve(safetensors(4 * SIZE))
    size, place.entry = place.entry.bytes, replace(place.entry, bytes=None)
    with pytest.raises(DiskFull, match="is full .* while x.safetensors was being fetched. Make room there and start"):
        place.fetch()
    place.assert_absent()
    resize("16m")
    assert place.plan().missing[0].here > 2 * SIZE
    place.fetch()
    place.assert_exact()
    assert place.server.sent <= 1.05 * size + (256 << 10)


def test_a_file_of_the_user_keeps_its_name(place):
    place.target.parent.mkdir(parents=True)
    place.target.write_bytes(b"mine")
    assert "Another file is at" in place.plan().describe()
    [result] = place.fetch()
    assert place.target.read_bytes() == b"mine"
    assert result.path.name == place.entry.own_name and result.path.read_bytes() == place.data
    assert place.fetch() == [] and len(place.server.requests) == 1
    result.path.write_bytes(b"mine too")
    with pytest.raises(CheckpointError, match="Both names for x.safetensors are taken"):
        place.fetch()


def test_a_file_that_appears_meanwhile_stays(place):
    place.server.rate = 2e6
    with pytest.raises(FetchFailed, match="Meanwhile another file is at"):
        place.fetch(progress=lambda moment: place.target.write_bytes(b"mine"))
    assert place.target.read_bytes() == b"mine"
    [result] = place.fetch()
    assert result.path.read_bytes() == place.data and place.target.read_bytes() == b"mine"


def test_a_folder_that_cannot_be_made(place):
    place.models.parent.mkdir(exist_ok=True)
    place.models.write_bytes(b"")
    with pytest.raises(FetchFailed, match="cannot be written .* choose another folder"):
        place.fetch()


def test_what_a_kill_after_the_last_step_left_is_tidied(place):
    place.fetch()
    place.target.with_name("x.safetensors.part.json").write_text("{}")
    place.fetch()
    place.assert_exact()


def test_one_at_a_time_and_nothing_left_of_the_lock(tmp_path, monkeypatch):
    """The lock's file is removed by whoever had it, while others wait for it and yet others come."""
    monkeypatch.setattr(lock, "POLL", 0.001)
    inside, most = [], []

    def work(number: int) -> None:
        with lock.locked(tmp_path / "x.safetensors", lambda: None):
            inside.append(number)
            most.append(len(inside))
            time.sleep(0.0005)
            inside.remove(number)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(400)))
    assert len(most) == 400 and max(most) == 1
    assert list(tmp_path.iterdir()) == []


def test_a_wait_that_is_stopped_leaves_the_lock_to_its_owner(tmp_path):
    def stop() -> None:
        raise KeyboardInterrupt

    target = tmp_path / "x.safetensors"
    with lock.locked(target, stop):
        with pytest.raises(KeyboardInterrupt), lock.locked(target, stop):
            pass
        assert lock.lock_path(target).exists()
    assert list(tmp_path.iterdir()) == []
