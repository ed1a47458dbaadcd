"""Messages that a help page quotes: in English in the page and in the word lists, filled in by ``tools.authoring``.

A quote is a whole message in double quotes, without the full stop at its end and with "…" for what differs from time to
time. ``tools.translate`` wants it in a translation as it is in English; what stands around it is translated.
"""

from __future__ import annotations

import re
from functools import cache

from . import locales, messages
from .locales import ASIDE
from .phrases import PLACE, Phrases

QUOTED = re.compile(r'"([^"\n]+)"')
CODE = re.compile(r"`[^`]*`")
STOPS = ".。"


@cache
def make_eraser() -> Phrases:
    """A language that says of a message only what stands in its places, and no names."""
    templates = {
        text: " ".join(f"{{{place}}}" for place in PLACE.findall(text)) for text in messages.collect_messages()
    }
    english = locales.read_english_nodes()
    nodes = [name for node in english.values() for name in (node["display_name"], ASIDE.sub("", node["display_name"]))]
    return Phrases({"templates": templates, "names": dict.fromkeys([*nodes, *locales.collect_names(english)], " ")})


@cache
def is_message(text: str) -> bool:
    """Whether nodes say ``text``, with a full stop or without, and nothing else is in it but names and numbers."""
    erase = make_eraser().say
    return any(left is not None and locales.may_be_equal(left) for left in (erase(f"{text}."), erase(text)))


def find_quotes(block: str) -> list[str]:
    """The messages that an English block of a help page quotes."""
    return [text for text in QUOTED.findall(CODE.sub("", block)) if is_message(text)]


def say_quote(quote: str, phrases: Phrases) -> str:
    """A quote in another language, as its nodes say it; itself where that language has no words for it yet."""
    said = phrases.say(f"{quote}.") or phrases.say(quote) or quote
    return said.rstrip(STOPS)


def fill_quotes(english: str, translated: str, phrases: Phrases) -> str:
    """A translated block whose quotes are said in its language."""
    for quote in sorted(find_quotes(english), key=len, reverse=True):
        translated = translated.replace(quote, say_quote(quote, phrases))
    return translated
