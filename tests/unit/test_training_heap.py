"""What the system's allocator gives back while a run trains."""

from __future__ import annotations

import platform
from pathlib import Path

import pytest
import torch

from cascade_studio.stages.training import heap

BLOCK, COUNT = 1 << 21, 48


def held_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc has the setting")
def test_freed_tensors_go_back_to_the_system():
    """Also where one that was made after them lives on, which would keep glibc's heap as long as it is."""
    before = held_bytes()
    with heap.return_memory():
        blocks = [torch.ones(BLOCK // 4) for _ in range(COUNT)]
        between, kept = held_bytes() - before, torch.ones(BLOCK // 4)
        blocks.clear()
        after = held_bytes() - before
    assert between >= 0.9 * BLOCK * COUNT and after <= 0.2 * BLOCK * COUNT and kept.sum() == BLOCK // 4


def test_the_setting_is_put_back(monkeypatch):
    asked: list[int] = []
    monkeypatch.setattr(heap, "set_threshold", asked.append)
    with pytest.raises(RuntimeError), heap.return_memory():
        raise RuntimeError
    assert asked == [heap.MAPPED, heap.MOST]


def test_other_c_libraries_are_left_alone(monkeypatch):
    def refuse(name: None) -> object:
        raise OSError

    monkeypatch.setattr(heap.ctypes, "CDLL", refuse)
    assert heap.set_threshold(heap.MAPPED) is False
    monkeypatch.setattr(heap.ctypes, "CDLL", lambda name: object())
    assert heap.set_threshold(heap.MAPPED) is False
