"""Messages that help pages quote are messages, and each page quotes them as its language says them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from said import say
from table import each

from tools import blocks, help_pages, locales, quotes
from tools.phrases import Phrases

OTHERS = locales.LANGUAGES[1:]
PAGES = sorted(locales.PAGES.glob(f"{help_pages.PREFIX}*.md"))
ERRORS = re.compile(r"^## [^\n]*[Ee]rrors?\n(.*?)(?=^## |\Z)", re.MULTILINE | re.DOTALL)
LEAST_QUOTED = 100
"""Messages in all pages together: fewer would mean that they are no longer found."""


def read_errors(page: Path) -> list[str]:
    """The blocks of a page's part on errors."""
    found = ERRORS.search(page.read_text(encoding="utf-8"))
    assert found, page
    return blocks.cut(found[1])


def list_quotes() -> list[str]:
    """Every message that a page quotes, once."""
    found = [quote for page in PAGES for block in read_errors(page) for quote in quotes.find_quotes(block)]
    return list(dict.fromkeys(found))


@each(PAGES, lambda page: page.stem)
def test_what_a_page_quotes_is_a_message(page):
    """Among errors double quotes are for messages alone, and no message stands in italics instead."""
    for block in read_errors(page):
        text = quotes.CODE.sub("", block)
        assert quotes.QUOTED.findall(text) == quotes.find_quotes(block), block
        assert not [said for said in re.findall(r"(?<!\*)\*([^*]+)\*(?!\*)", text) if quotes.is_message(said)], block
        assert not block.startswith("- *") or block.startswith("- **"), block


def test_what_is_no_message_is_not_taken_for_one():
    known = "No key of the LoRA … fits the models that are wired"
    assert quotes.is_message(known)
    for text in (
        "a cat, but no dog",
        known.replace("…", "my own"),
        "No key of the LoRA … fits",
        f"{known} today",
        "Stage C got something else",
        "",
    ):
        assert not quotes.is_message(text), text


@pytest.fixture(scope="module")
def quoted():
    found = list_quotes()
    assert len(found) > LEAST_QUOTED
    return found


@each(OTHERS)
def test_quotes_are_said_as_the_page_says_them(language, quoted):
    """In Python as in JavaScript, in whole: nothing of the English is left but names that are the same everywhere."""
    table = locales.render_messages(locales.words(language))
    phrases = Phrases(table)
    told = [quotes.say_quote(quote, phrases) for quote in quoted]
    whole = [end_sentence(quote) for quote in quoted]
    assert told == [said.rstrip(quotes.STOPS) for said in say(whole, table)]
    assert not [quote for quote, said in zip(quoted, told) if quote == said]


def end_sentence(quote: str) -> str:
    """A quote with its full stop where it is a whole sentence."""
    return quote if quotes.make_eraser().say(f"{quote}.") is None else f"{quote}."


@each(OTHERS)
def test_pages_quote_in_their_language(language):
    """Every quote of the English page stands in the translated one as its nodes say it, and none in English."""
    phrases = Phrases(locales.render_messages(locales.words(language)))
    for page in PAGES:
        text = (locales.PAGES / page.stem / f"{language}.md").read_text(encoding="utf-8")
        for block in read_errors(page):
            for quote in quotes.find_quotes(block):
                assert quotes.say_quote(quote, phrases) in text and quote not in text, (page.stem, quote)


def test_quotes_are_filled_between_the_marks_of_the_language():
    phrases = Phrases({"templates": {"{0} has no model to change.": "{0}: nichts zu ändern."}, "names": {}})
    english = '- "… has no model to change": wire one.'
    for before, after in (('"', '"'), ("«", "»")):
        given = f"- {before}… has no model to change{after}: Schließe eins an."
        assert quotes.fill_quotes(english, given, phrases) == f"- {before}…: nichts zu ändern{after}: Schließe eins an."
