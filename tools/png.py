"""The text chunks of a PNG file, where ComfyUI keeps prompt and workflow."""

from __future__ import annotations

import zlib

from cascade_studio.commands.png import SIGNATURE, walk_chunks


def text_chunks(data: bytes) -> dict[str, str]:
    """The texts of a PNG by keyword. Raises ``ValueError`` if the data is no PNG or is cut off."""
    if not data.startswith(SIGNATURE):
        raise ValueError("not a PNG file")
    texts = {}
    for kind, start, end in walk_chunks(data):
        body = data[start:end]
        if kind == b"tEXt":
            keyword, text = body.split(b"\0", 1)
            texts[keyword.decode("latin-1")] = text.decode("latin-1")
        elif kind == b"zTXt":
            keyword, text = body.split(b"\0", 1)
            texts[keyword.decode("latin-1")] = zlib.decompress(text[1:]).decode("latin-1")
        elif kind == b"iTXt":
            keyword, rest = body.split(b"\0", 1)
            packed, text = rest[0], rest[2:].split(b"\0", 2)[2]
            texts[keyword.decode("latin-1")] = (zlib.decompress(text) if packed else text).decode("utf-8")
        elif kind == b"IEND":
            return texts
    raise ValueError("the PNG file is cut off")
