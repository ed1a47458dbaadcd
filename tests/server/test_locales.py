"""The translations are complete, differ from English where they should, and reach the page."""

from __future__ import annotations

import json
from typing import Any

import pytest
from table import each

from tools import help_pages, locales, translate

OTHERS = locales.LANGUAGES[1:]
every_language = each(OTHERS)


@pytest.fixture(scope="session")
def definitions(server) -> dict[str, Any]:
    return server.client.get("/object_info")


def read(language: str, name: str) -> dict[str, Any]:
    return json.loads((locales.LOCALES / language / f"{name}.json").read_text(encoding="utf-8"))


def leaves(texts: dict[str, Any], path: tuple[str, ...] = ()) -> dict[tuple[str, ...], str]:
    found: dict[tuple[str, ...], str] = {}
    for key, value in texts.items():
        found.update(leaves(value, (*path, key)) if isinstance(value, dict) else {(*path, key): value})
    return found


def test_the_files_are_what_the_schemas_and_word_lists_give(definitions):
    """Run ``python3 dev.py run -m tools.authoring`` after a change of either."""
    for path, content in locales.render_locales(definitions).items():
        assert json.loads(path.read_text(encoding="utf-8")) == content, path
    pages = set(locales.PAGES.glob("*/*.md"))
    assert pages == set(help_pages.render_help())
    assert not [path for path, page in help_pages.render_help().items() if path.read_text(encoding="utf-8") != page]


def test_english_says_everything(definitions):
    found = leaves(read("en", "nodeDefs"))
    assert set(locales.own(definitions)) == set(read("en", "nodeDefs")) and all(found.values())


@every_language
def test_nothing_is_missing(language):
    """Names, tooltips, help pages, menus, panels, notes, titles, messages; ``tools.translate missing`` lists them."""
    assert translate.find_missing(language) == {kind: {} for kind in locales.KINDS}


@every_language
def test_no_word_list_has_what_is_no_longer_there(language):
    given, english = locales.words(language), translate.find_english()
    assert {kind: sorted(set(given[kind]) - set(english[kind])) for kind in english} == {kind: [] for kind in english}


@every_language
def test_translations_keep_what_is_no_word(language):
    """Code, addresses, places, marks of headings and columns; and none is the English text."""
    given, english = locales.words(language), translate.find_english()
    faults = {
        key: fault
        for kind in english
        for key, text in given[kind].items()
        if (fault := translate.find_fault(english[kind].get(key, key), text))
    }
    assert not faults


def test_the_host_serves_them(server):
    served = server.client.get("/i18n")
    for language in locales.LANGUAGES:
        name = f"{locales.PREFIX}Canvas"
        assert served[language]["nodeDefs"][name] == read(language, "nodeDefs")[name]
