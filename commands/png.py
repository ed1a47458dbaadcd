"""PNG files as a row of chunks."""

from __future__ import annotations

import struct
from collections.abc import Iterator

SIGNATURE = b"\x89PNG\r\n\x1a\n"
"""How every PNG file begins."""


def walk_chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Kind, start and end of every chunk's body, as far as the file goes; nothing where it is no PNG."""
    start = len(SIGNATURE) if data.startswith(SIGNATURE) else len(data)
    while start + 12 <= len(data):
        size, kind = struct.unpack_from(">I4s", data, start)
        yield kind, start + 8, start + 8 + size
        start += 12 + size
