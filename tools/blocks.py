"""Texts in Markdown as blocks: what is translated piece by piece, so that a changed sentence makes one piece stale.

``web/js/notes.js`` cuts the notes of workflows in the same way.
"""

from __future__ import annotations

import re
from collections.abc import Callable

CUT = re.compile(r"(```.*?```|\n{2,}|\n(?= *(?:[-*] |\d+\. )|#|\|))", re.DOTALL)
"""What stands between two blocks, code in fences with it: each paragraph, heading, item and table row is a block."""
ASIDE = re.compile(r"`[^`]*`|!\[[^]]*\]\([^)]*\)|\]\([^)]*\)|https?://\S+")
WORD = re.compile(r"[A-Za-z]{2,}")
FILE = re.compile(r"^- \[[^]]+\]\([^)]+\)( \([^)]+\))? in `[^`]+`\.?$")
"""A file, where it comes from and its folder: left as it is in every language."""
PICTURE = re.compile(r"^!\[[^]]*\]\([^)]*\)$")


def join_lines(block: str) -> str:
    """A block without the places where its lines were broken."""
    return re.sub(r"\n[ ]*", " ", block.rstrip("\n"))


def has_words(block: str) -> bool:
    """Whether a language has anything to say in other words: not in code, addresses and pictures."""
    return not FILE.match(block) and WORD.search(ASIDE.sub("", block)) is not None


def cut(text: str) -> list[str]:
    """The blocks of ``text`` that have words, in order."""
    return [found for found in map(join_lines, CUT.split(text)[::2]) if has_words(found)]


def replace_blocks(text: str, translate: Callable[[str], str]) -> str:
    """``text`` with each block that has words replaced by what ``translate`` gives for it; the rest stays."""
    parts = CUT.split(text)
    for index in range(0, len(parts), 2):
        block = join_lines(parts[index])
        if has_words(block):
            parts[index] = translate(block) + parts[index][len(parts[index].rstrip("\n")) :]
    return "".join(parts)
