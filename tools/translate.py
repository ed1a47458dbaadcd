"""What a language still lacks, and taking it in: ``python3 dev.py run -m tools.translate missing|take|counts``.

``missing LANGUAGE`` prints the texts that have no translation as JSON, ``{id: English}``, an id being short for kind
and English text. ``take LANGUAGE FILE`` checks a file ``{id: translation}`` and adds it to
``tools/words/LANGUAGE.json``, messages (``tools/messages.py``) to the file of that name in ``tools/words/messages``;
what breaks a rule of :func:`find_fault` is named and left out. Texts that nothing uses any more are taken out of the
list. ``counts`` says how much each language lacks. Afterwards ``python3 dev.py run -m tools.authoring`` writes the
files.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import sys
from functools import cache
from pathlib import Path

from cascade_studio.commands.messages import say, speak_plainly

from . import locales, messages, quotes
from .blocks import ASIDE, join_lines

PLACES = re.compile(r"\{\w+\}")

Table = dict[str, dict[str, str]]


def id_of(kind: str, key: str) -> str:
    """The short name of a text for one round of translation."""
    return hashlib.sha256(f"{kind}\n{key}".encode()).hexdigest()[:8]


@cache
def find_english() -> Table:
    """By kind, what every language has to say: ``{key: English}``, the key being the English text or an id."""
    definitions = locales.read_english_nodes()
    return {
        "names": {name: name for name in sorted(locales.collect_names(definitions))},
        "categories": {name: name for name in locales.read_english_categories()},
        "extension": locales.english_extension(),
        "texts": {text: text for text in locales.collect_texts(definitions)},
        "messages": {template: template for template in messages.collect_messages()},
    }


def find_missing(language: str) -> Table:
    """What the word list of a language lacks, as :func:`find_english` gives it."""
    given = locales.words(language)
    return {
        kind: {key: text for key, text in table.items() if key not in given.get(kind, {})}
        for kind, table in find_english().items()
    }


def find_fault(english: str, translation: str) -> str | None:
    """Why ``translation`` cannot stand for ``english``, or None: code, addresses, places and heading marks are kept."""
    if not translation.strip() or translation != translation.rstrip():
        return "it is empty or ends in a blank"
    if translation == english and not locales.may_be_equal(english):
        return "it is the English text"
    if "\n" in translation:
        return "it has a line break"
    for what, pattern in (("code, picture or address", ASIDE), ("place", PLACES)):
        if sorted(pattern.findall(english)) != sorted(pattern.findall(translation)):
            return f"a {what} differs: {pattern.findall(english)} and {pattern.findall(translation)}"
    if lost := [quote for quote in quotes.find_quotes(english) if quote not in translation]:
        return f"messages are quoted in English, and said in the language by tools.authoring: {lost}"
    mark = re.compile(r"^ *(#+ |[-*] |\d+\. |\|)?")
    if mark.match(english).group() != mark.match(translation).group() or english.count("|") != translation.count("|"):
        return "the mark at its beginning or the columns of the table differ"
    if english.count("**") != translation.count("**"):
        return "bold words differ in number"
    return None


def take(language: str, found: dict[str, str]) -> list[str]:
    """Add translations by id to the word list of a language; gives the faults of those that were left out."""
    path = locales.WORDS / f"{language}.json"
    given = locales.words(language)
    faults, english = [], find_english()
    known = {id_of(kind, key): (kind, key, text) for kind, table in english.items() for key, text in table.items()}
    kept = {kind: {key: text for key, text in given.get(kind, {}).items() if key in english[kind]} for kind in english}
    for name, translation in found.items():
        if name not in known:
            faults.append(f"{name}: no text has this id any more")
            continue
        kind, key, text = known[name]
        fault = find_fault(text, join_lines(translation))
        if fault:
            faults.append(f"{name}: {fault}: {translation[:80]}")
        else:
            kept[kind][key] = join_lines(translation)
    ordered = {kind: dict(sorted(kept[kind].items())) for kind in locales.KINDS}
    beside = locales.WORDS / "messages" / path.name
    beside.parent.mkdir(exist_ok=True)
    for file, content in ((beside, ordered.pop("messages")), (path, ordered)):
        file.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return faults


def main(arguments: list[str] | None = None) -> int:
    """Run one of the commands; returns the exit code."""
    parser = argparse.ArgumentParser(prog="translate", description=__doc__.split("\n\n")[0])
    parser.add_argument("command", choices=("missing", "take", "counts"))
    parser.add_argument("language", nargs="?", choices=[name for name in locales.LANGUAGES if name != "en"])
    parser.add_argument("file", nargs="?", type=Path)
    options = parser.parse_args(arguments)
    if options.command == "counts":
        for language in locales.LANGUAGES[1:]:
            missing = find_missing(language)
            number = sum(map(len, missing.values()))
            print(f"{language:6} {number:5} texts are missing, {len(missing['messages'])} of them messages")
        return 0
    if options.language is None or (options.command == "take" and options.file is None):
        parser.error("a language is needed, and for 'take' a file")
    if options.command == "missing":
        missing = find_missing(options.language)
        found = {id_of(kind, key): text for kind, table in missing.items() for key, text in table.items()}
        print(json.dumps(found, indent=0, ensure_ascii=False))
        return 0
    faults = take(options.language, json.loads(options.file.read_text(encoding="utf-8")))
    for fault in faults:
        say(fault)
    return 1 if faults else 0


if __name__ == "__main__":
    speak_plainly()
    sys.exit(main())
