"""What the system's allocator gives back while a run trains."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

from cascade_studio.stages.training import heap

TRIAL = """
import runpy, sys, torch
heap, block, count = runpy.run_path(sys.argv[1]), 1 << 21, 48

def held():
    return int(open("/proc/self/statm").read().split()[1]) * 4096

before = held()
with heap["return_memory"]():
    blocks = [torch.ones(block // 4) for _ in range(count)]
    between, kept = held() - before, torch.ones(block // 4)
    blocks.clear()
    after = held() - before
assert between >= 0.9 * block * count and after <= 0.2 * block * count, (between, after)
assert kept.sum() == block // 4
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc has the setting")
def test_freed_tensors_go_back_to_the_system():
    """Also where one that was made after them lives on, which would keep glibc's heap as long as it is. In a process of
    its own, since one that freed much before has it at hand.
    """
    subprocess.run([sys.executable, "-c", TRIAL, heap.__file__], check=True)


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
