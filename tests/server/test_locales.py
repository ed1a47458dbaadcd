"""The translations are complete, differ from English where they should, and reach the page."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from table import each

from tools import locales

OTHERS = [language for language in locales.LANGUAGES if language != "en"]
every_language = each(OTHERS)

SAME = {
    "cfg",
    "clip",
    "clip_vision",
    "lora",
    "mask",
    "model",
    "prior",
    "seed",
    "vae",
    "image",
    "latent",
    "control",
    "previewer",
    "guider",
    "sampler",
    "sigmas",
    "preset",
    "report",
    "batch",
    "text",
    "name",
    "format",
    "base",
    "decoder",
    "images",
    "notes",
}
"""Words that a language may share with English."""
PLACES = re.compile(r"\{(\w+)\}")


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


def extension_words(language: str) -> dict[tuple[str, ...], str]:
    return leaves(read(language, "main").get(locales.KEY, {}))


def test_the_files_are_what_the_schemas_and_word_lists_give(definitions):
    """Run ``python3 dev.py run -m tools.authoring`` after a change of either."""
    for path, content in locales.render_locales(definitions).items():
        assert json.loads(path.read_text(encoding="utf-8")) == content, path


def test_english_says_everything(definitions):
    found = leaves(read("en", "nodeDefs"))
    assert set(locales.own(definitions)) == set(read("en", "nodeDefs")) and all(found.values())


@every_language
def test_nothing_is_missing(language, definitions):
    """Names of nodes, inputs and outputs and descriptions everywhere, tooltips of the main nodes' inputs."""
    mine = leaves(read(language, "nodeDefs"))
    main = {f"{locales.PREFIX}{name}" for name in locales.MAIN_NODES}
    wanted = {
        path
        for path in leaves(locales.english_nodes(definitions))
        if path[-1] != "tooltip" or (path[0] in main and path[1] == "inputs")
    }
    assert not sorted(wanted - set(mine))
    assert set(extension_words(language)) == set(extension_words("en"))
    assert set(read(language, "main")["nodeCategories"]) == set(locales.english_categories(definitions))


@every_language
def test_no_word_list_has_what_is_no_longer_there(language, definitions):
    given = locales.words(language)
    english = locales.english_nodes(definitions)
    names = {
        text["name"] for node in english.values() for group in ("inputs", "outputs") for text in node[group].values()
    }
    names |= {re.sub(r"_?\d+$", "", name) for name in names}
    inputs = {f"{node.removeprefix(locales.PREFIX)}.{key}" for node in english for key in english[node]["inputs"]}
    assert not set(given["names"]) - names
    assert not set(given["nodes"]) - {node.removeprefix(locales.PREFIX) for node in english}
    assert not set(given["tooltips"]) - inputs
    assert not set(given["extension"]) - set(locales.english_extension())
    assert not set(given["categories"]) - set(locales.english_categories(definitions))


@every_language
def test_it_is_a_translation(language):
    for name in ("nodeDefs", "main"):
        mine, english = leaves(read(language, name)), leaves(read("en", name))
        same = {path: text for path, text in mine.items() if text == english.get(path) and text.lower() not in SAME}
        assert not same


@every_language
def test_placeholders_are_kept(language):
    mine, english = extension_words(language), extension_words("en")
    for path, text in mine.items():
        assert sorted(PLACES.findall(text)) == sorted(PLACES.findall(english[path])), path


def test_the_host_serves_them(server):
    served = server.client.get("/i18n")
    for language in locales.LANGUAGES:
        name = f"{locales.PREFIX}Canvas"
        assert served[language]["nodeDefs"][name] == read(language, "nodeDefs")[name]
