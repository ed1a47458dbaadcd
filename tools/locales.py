"""Writes ``locales/<language>/{main,nodeDefs}.json`` from the node definitions and the word lists in ``tools/words``.

English comes from the schemas and from ``web/js/text.js`` alone. A word list has

- ``names``: the names of inputs and outputs, by their English name (the same name is the same word everywhere; numbers
  at the end follow by themselves),
- ``nodes``: ``[name, description]`` by node id without the prefix,
- ``tooltips``: by ``Node.input``,
- ``categories``: the last part of each menu entry, and ``extension``: the words of ``web/js/text.js`` by id.

``python3 dev.py run -m tools.authoring`` writes the files, together with the workflows.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from cascade_studio.commands.workflow.widgets import specs

from .env import REPOSITORY

LANGUAGES = ("en", "it", "zh", "ja", "ko", "de", "fr", "es", "pt-BR", "ru")
"""The frontend's own codes; it and de are ready for the day it offers them."""
LOCALES, WORDS = REPOSITORY / "locales", REPOSITORY / "tools" / "words"
TEXTS = REPOSITORY / "web" / "js" / "text.js"
PREFIX = "CascadeStudio_"
KEY = "cascadeStudio"
MAIN_NODES = ("Load", "Canvas", "SamplePrior", "SampleDecoder", "DecodeStageA")
"""The nodes whose tooltips are translated too."""

Texts = dict[str, Any]


def own(definitions: dict[str, Any]) -> dict[str, Any]:
    """The pack's nodes by id, in order."""
    return {name: definitions[name] for name in sorted(definitions) if name.startswith(PREFIX)}


def english_nodes(definitions: dict[str, Any]) -> Texts:
    """nodeDefs.json as the schemas have it."""
    found: Texts = {}
    for node, definition in own(definitions).items():
        inputs = {
            name: {"name": options.get("display_name") or name, "tooltip": options.get("tooltip", "")}
            for name, _, options in specs(definition["input"], definition.get("input_order"))
        }
        tips = definition.get("output_tooltips") or []
        outputs = {
            str(slot): {"name": name, "tooltip": tip}
            for slot, (name, tip) in enumerate(zip(definition["output_name"], tips))
        }
        found[node] = {
            "display_name": definition["display_name"],
            "description": definition["description"],
            "inputs": inputs,
            "outputs": outputs,
        }
    return found


def english_extension() -> dict[str, str]:
    """The words of the web extension; none where it is not there."""
    if not TEXTS.is_file():
        return {}
    found = re.search(r"ENGLISH = (\{.*?\n\});", TEXTS.read_text(encoding="utf-8"), re.DOTALL)
    return json.loads(found.group(1)) if found else {}


def english_categories(definitions: dict[str, Any]) -> list[str]:
    """The parts of the menu below the pack's own name."""
    return sorted({part for node in own(definitions).values() for part in node["category"].split("/")[1:]})


def words(language: str) -> Texts:
    """The word list of a language."""
    return json.loads(Path(WORDS, f"{language}.json").read_text(encoding="utf-8"))


def name_in(names: dict[str, str], name: str) -> str | None:
    """The word for a name; ``image_2`` is the word for ``image`` and the number."""
    counted = re.fullmatch(r"(.+?)_?(\d+)", name)
    if name not in names and counted and counted.group(1) in names:
        return f"{names[counted.group(1)]} {counted.group(2)}"
    return names.get(name)


def translate_nodes(english: Texts, given: Texts) -> Texts:
    """nodeDefs.json of a language; what its list lacks is left out, so that the frontend shows English."""
    found: Texts = {}
    for node, texts in english.items():
        short = node.removeprefix(PREFIX)
        entry: Texts = dict(zip(("display_name", "description"), given["nodes"].get(short, ())))
        for group in ("inputs", "outputs"):
            entry[group] = {}
            for key, text in texts[group].items():
                tip = given["tooltips"].get(f"{short}.{key}") if group == "inputs" else None
                fields = {"name": name_in(given["names"], text["name"]), "tooltip": tip}
                entry[group][key] = {name: value for name, value in fields.items() if value}
        found[node] = entry
    return found


def nest(flat: dict[str, str]) -> Texts:
    """``{"a.b": text}`` as ``{"a": {"b": text}}``."""
    found: Texts = {}
    for key, text in flat.items():
        *path, last = key.split(".")
        at = found
        for part in path:
            at = at.setdefault(part, {})
        at[last] = text
    return found


def render_locales(definitions: dict[str, Any]) -> dict[Path, Texts]:
    """The content of every file."""
    english = english_nodes(definitions)
    extension, categories = english_extension(), english_categories(definitions)
    found: dict[Path, Texts] = {}
    for language in LANGUAGES:
        if language == "en":
            nodes, texts, menu = english, extension, {}
        else:
            given = words(language)
            nodes = translate_nodes(english, given)
            texts = {key: given["extension"][key] for key in extension if key in given["extension"]}
            menu = {key: given["categories"][key] for key in categories if key in given["categories"]}
        main = {**({KEY: nest(texts)} if texts else {}), **({"nodeCategories": menu} if menu else {})}
        found[LOCALES / language / "nodeDefs.json"] = nodes
        found[LOCALES / language / "main.json"] = main
    return found
