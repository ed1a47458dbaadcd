"""Bytes by the words of people: memory counts in powers of two, disks and shops in powers of ten."""

from __future__ import annotations

MIB, GIB = 2**20, 2**30
GB = 10**9

CARD_SLACK = 1.05
"""What an allocator of a card holds by what is asked of it: counted, as it keeps its blocks whole."""
