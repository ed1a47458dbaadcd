"""What the system's allocator keeps of a processor's memory although it was freed."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager

MAPPED, MOST = 1 << 20, 1 << 25
"""Bytes from which a block is mapped on its own while a run goes on, and otherwise: the most that glibc takes, which it
comes to by itself once blocks of that size were freed."""
M_MMAP_THRESHOLD = -3
"""The parameter's number in glibc's malloc.h."""


@contextmanager
def return_memory() -> Iterator[None]:
    """Large blocks go back to the system as soon as they are freed, where its C library is glibc.

    Tensors are aligned, and a freed block of glibc's heap is too small for the next tensor of its size once that is
    aligned: a training step on a processor then holds two to four times what lives at any time. Blocks that are mapped
    on their own leave no such gaps. Elsewhere this does nothing.
    """
    set_threshold(MAPPED)
    try:
        yield
    finally:
        set_threshold(MOST)


def set_threshold(size: int) -> bool:
    """Let glibc map blocks of ``size`` bytes and more on their own; False where there is no such setting."""
    try:
        change = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # other C libraries; TypeError on Windows
        return False
    return bool(change(M_MMAP_THRESHOLD, size))
