"""Help pages in other languages: ``web/docs/<NodeId>/<language>.md`` of the English ones and the word lists."""

from __future__ import annotations

from pathlib import Path

from cascade_studio.nodes import PREFIX

from . import blocks, locales
from .phrases import Phrases
from .quotes import fill_quotes


def translate_block(block: str, texts: dict[str, str]) -> str:
    """A block of a help page, or itself where ``texts`` lacks it; the heading of a page is the name of its node."""
    title = block.removeprefix("# ")
    if block not in texts and title in texts:
        return f"# {texts[title]}"
    return texts.get(block, block)


def render_help() -> dict[Path, str]:
    """The help page of every node in every language; a block that has no translation stays English.

    Where most of a page would be English there is none, and the frontend takes the English one.
    """
    found: dict[Path, str] = {}
    for language in locales.LANGUAGES[1:]:
        given = locales.words(language)
        texts, phrases = given["texts"], Phrases(locales.render_messages(given))

        def say(block: str, texts: dict[str, str] = texts, phrases: Phrases = phrases) -> str:
            return fill_quotes(block, translate_block(block, texts), phrases)

        for page in sorted(locales.PAGES.glob(f"{PREFIX}*.md")):
            english = page.read_text(encoding="utf-8")
            wanted = blocks.cut(english)
            if sum(translate_block(block, texts) != block for block in wanted) * 2 >= len(wanted):
                found[locales.PAGES / page.stem / f"{language}.md"] = blocks.replace_blocks(english, say)
    return found
