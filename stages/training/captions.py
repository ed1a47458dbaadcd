"""Captions: which file beside a picture holds one, and its letters, whatever program wrote them."""

from __future__ import annotations

import codecs
import random
import re
from collections.abc import Mapping
from pathlib import Path

SUFFIXES = (".txt", ".caption")
MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
"""First bytes that name an encoding, longer ones first where one begins another."""
_COMMON_HAN = re.compile(rb"(?:[\xa1-\xa3\xb0-\xd7][\xa1-\xfe]|[\x00-\x7f])*")
"""GB2312's punctuation and the 3,755 characters of its first level, which common words are written with."""


class UnknownLetters(ValueError):
    """A text in an encoding that cannot be told."""


def decode_text(data: bytes) -> tuple[str, str]:
    """The text in ``data`` and its encoding: "" for UTF-8, or what it was found to be.

    A mark at the beginning decides; without one UTF-8, UTF-16 by its zero bytes, common Chinese in GBK, and Western
    text in cp1252. Raises :class:`UnknownLetters` where none of these is plausible: a wrong guess would be trained on.
    """
    for mark, encoding in MARKS:
        if data.startswith(mark):
            return _decode(data, encoding), "" if encoding == "utf-8-sig" else encoding
    if b"\0" in data:
        zeros = [data[place::2].count(0) / max(1, len(data) // 2) for place in (0, 1)]
        if max(zeros) < 0.3:
            raise UnknownLetters
        encoding = "utf-16-be" if zeros[0] > zeros[1] else "utf-16-le"
        return _decode(data, encoding), encoding
    try:
        return data.decode("utf-8"), ""
    except UnicodeDecodeError:
        pass
    if _COMMON_HAN.fullmatch(data) and not re.search(
        r"[A-Za-z][\u4e00-\u9fff]|[\u4e00-\u9fff][a-z]", data.decode("gbk")
    ):
        return data.decode("gbk"), "gbk"
    western = _decode(data, "cp1252")
    words = [word for word in re.findall(r"[^\W\d_]+", western) if not word.isascii()]
    strange = re.findall(r"[^\x00-\x7f\w‘’“”–—…•€£§°«»¿¡®©™\xa0]", western)
    if strange or any(sum(letter.isascii() for letter in word) * 2 < len(word) for word in words if len(word) > 1):
        raise UnknownLetters
    return western, "cp1252"


def _decode(data: bytes, encoding: str) -> str:
    try:
        return data.decode(encoding)
    except UnicodeDecodeError as error:
        raise UnknownLetters from error


def find_caption(picture: Path, names: Mapping[str, Path]) -> Path | None:
    """The caption's file of ``picture``: NAME.txt, NAME.caption or NAME.png.txt; ``names`` are those of its folder in
    lower case."""
    for suffix in SUFFIXES:
        for stem in (picture.stem, picture.name):
            found = names.get(f"{stem}{suffix}".lower())
            if found is not None:
                return found
    return None


def read_captions(path: Path, kind: str = "one") -> tuple[tuple[str, ...], str]:
    """The captions in the file ``path`` and its encoding; :class:`UnknownLetters` where that cannot be told.

    kind: "one" joins all lines, "lines" takes each as a caption of its own, "tags" is one caption of tags.
    """
    text, encoding = decode_text(path.read_bytes())
    lines = [" ".join(line.split()) for line in text.splitlines()] if kind == "lines" else [" ".join(text.split())]
    return tuple(line for line in lines if line), encoding


def shuffle_tags(caption: str, kept: int, count: int, seed: str) -> tuple[str, ...]:
    """``count`` orders of the comma-separated tags of ``caption``, the first ``kept`` of which stay in front."""
    tags = [tag.strip() for tag in caption.split(",") if tag.strip()]
    made, chance = [], random.Random(seed)
    for _ in range(count):
        rest = tags[kept:]
        chance.shuffle(rest)
        made.append(", ".join([*tags[:kept], *rest]))
    return tuple(dict.fromkeys(made)) or (caption,)


def make_plain(caption: str) -> str:
    """A caption as words: ``\\(`` and ``\\)``, which some tools write for the host's prompts, are brackets here."""
    return re.sub(r"\\([()])", r"\1", caption)
