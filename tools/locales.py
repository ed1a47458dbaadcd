"""Writes ``locales/<language>/{main,nodeDefs}.json``, messages and notes: English in the words of ``tools/words``.

English comes from the schemas, from ``web/js/text.js``, the pages in ``web/docs`` and the workflows' notes alone. A
word list has

- ``names``: the names of inputs and outputs, by their English name (the same name is the same word everywhere, but for
  what :data:`SENSES` tells apart; numbers at the end follow by themselves),
- ``categories``: the last part of each menu entry, and ``extension``: the words of ``web/js/text.js`` by id,
- ``texts``: everything else by its English text: names of nodes, descriptions, tooltips, blocks of the help pages, and
  notes and titles in workflows. A text that changed has no translation any more, so that none is stale.

Beside it, in ``tools/words/messages``, are the templates of ``tools/messages.py``, which become ``web/messages``:
``<clip>`` and ``<Sample Stage B>`` in a translation are an input and a node, named as they are in that language.

``python3 dev.py run -m tools.authoring`` writes the files, together with the workflows; ``tools.translate`` says what a
language lacks.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from cascade_studio.commands.workflow.widgets import specs
from cascade_studio.nodes import PREFIX

from . import blocks
from .env import REPOSITORY

LANGUAGES = ("en", "zh", "zh-TW", "ru", "ja", "ko", "fr", "es", "ar", "tr", "pt-BR", "fa", "he", "it", "de")
"""The frontend's own codes; it and de are ready for the day it offers them."""
LOCALES, WORDS = REPOSITORY / "locales", REPOSITORY / "tools" / "words"
TEXTS = REPOSITORY / "web" / "js" / "text.js"
KEY = "cascadeStudio"
KINDS = ("names", "categories", "extension", "texts", "messages")
PAGES, NOTES = REPOSITORY / "web" / "docs", REPOSITORY / "web" / "notes"
MESSAGES = REPOSITORY / "web" / "messages"
NAMED, ASIDE = re.compile(r"<([^<>/]+)>"), re.compile(r" ?[(（][^()（）]*[)）]$")
SAME = set(
    "base batch cfg clip clip_vision control controlnet decoder denoise format guider image images latent lora mask "
    "model name notes preset previewer prior report sampler seed sigmas text vae".split()
)
"""Words that a language may share with English."""
PROPER = set(
    "Canny Cascade ComfyUI ControlNet CFG CLIP DoRA Lite LoHa LoKr LoRA Mini Model Stable Stage VAE ID fp8 px".split()
)
"""Names that are names in every language."""

SENSES = {
    f"{PREFIX}PerturbedAttention": {"scale": "scale (how strongly)", "blocks": "blocks (where it acts)"},
    f"{PREFIX}SelfAttentionGuidance": {"scale": "scale (how strongly)"},
}
"""Names that mean something else in these nodes than in all others: by node, the key of the word that is theirs."""

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


def read_english_nodes() -> Texts:
    """locales/en/nodeDefs.json, as the schemas were when it was written."""
    return json.loads(Path(LOCALES, "en", "nodeDefs.json").read_text(encoding="utf-8"))


def read_english_categories() -> list[str]:
    """The menu entries that locales/en/main.json names."""
    return sorted(json.loads(Path(LOCALES, "en", "main.json").read_text(encoding="utf-8"))["nodeCategories"])


def may_be_equal(text: str) -> bool:
    """Whether a language may say this as English does: words of the field, names and numbers."""
    rest = [word for word in re.findall(r"[A-Za-z_]{2,}", text) if word.lower() not in SAME and word not in PROPER]
    return not rest


def strip_number(name: str) -> str:
    """``image_2`` is said as ``image`` and the number."""
    counted = re.fullmatch(r"(.+?)_?(\d+)", name)
    return counted.group(1) if counted else name


def sense_of(node: str, name: str) -> str:
    """The key of the word for ``name`` in the node with the id ``node``."""
    return SENSES.get(node, {}).get(name, name)


def collect_names(english: Texts) -> set[str]:
    """The names of all inputs and outputs, without numbers at their ends."""
    return {
        strip_number(sense_of(node, text["name"]))
        for node, texts in english.items()
        for group in ("inputs", "outputs")
        for text in texts[group].values()
    }


def collect_schema_texts(english: Texts) -> list[str]:
    """Names of nodes, descriptions and tooltips."""
    found: list[str] = []
    for texts in english.values():
        found += [texts["display_name"], texts["description"]]
        found += [text["tooltip"] for group in ("inputs", "outputs") for text in texts[group].values()]
    return found


def collect_texts(english: Texts) -> list[str]:
    """All other texts of nodes, help pages and workflows, each once, in the order in which one meets them."""
    found: list[str] = []
    for node, texts in english.items():
        found += collect_schema_texts({node: texts})
        page = blocks.cut(Path(PAGES, f"{node}.md").read_text(encoding="utf-8"))
        found += [block for block in page if block != f"# {texts['display_name']}"]
    return list(dict.fromkeys([*found, *collect_workflow_texts()]))


def collect_workflow_texts() -> list[str]:
    """Blocks of notes and the titles of nodes, groups and blocks in the bundled workflows."""
    found: list[str] = []
    for path in sorted((REPOSITORY / "workflows").glob("*.json")):
        content = json.loads(path.read_text(encoding="utf-8"))
        for graph in [content, *content.get("definitions", {}).get("subgraphs", [])]:
            for node in graph["nodes"]:
                found += [node["title"]] if node.get("title") else []
                if node["type"] in ("MarkdownNote", "Note"):
                    found += blocks.cut(node["widgets_values"][0])
            found += [group["title"] for group in graph["groups"]] + ([graph["name"]] if graph.get("name") else [])
    return list(dict.fromkeys(found))


def words(language: str) -> Texts:
    """The word list of a language; an empty one where there is none yet."""
    found: Texts = {kind: {} for kind in KINDS}
    for kind, path in (("", WORDS / f"{language}.json"), ("messages", WORDS / "messages" / f"{language}.json")):
        content = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        found.update({kind: content} if kind else content)
    return found


def collect_node_names(given: Texts) -> dict[str, str]:
    """The names of the nodes in a language, by the English one with and without what stands in brackets after it."""
    found: dict[str, str] = {}
    for node in read_english_nodes().values():
        name = node["display_name"]
        if name in given["texts"]:
            found[ASIDE.sub("", name)] = ASIDE.sub("", given["texts"][name])
            found[name] = given["texts"][name]
    return found


def render_messages(given: Texts) -> Texts:
    """The messages of a language, nodes and inputs in them by their names, and these names for the places."""
    names = {**given["names"], **collect_node_names(given)}

    def name(found: re.Match[str]) -> str:
        return names.get(found[1]) or name_in(given["names"], found[1]) or found[0]

    templates = {english: NAMED.sub(name, text) for english, text in sorted(given["messages"].items())}
    return {"templates": templates, "names": dict(sorted(names.items()))}


def name_in(names: dict[str, str], name: str) -> str | None:
    """The word for a name; ``image_2`` is the word for ``image`` and the number."""
    plain = strip_number(name)
    if name not in names and plain in names:
        return f"{names[plain]} {name.removeprefix(plain).lstrip('_')}"
    return names.get(name)


def translate_nodes(english: Texts, given: Texts) -> Texts:
    """nodeDefs.json of a language; what its list lacks is left out, so that the frontend shows English."""
    texts, found = given["texts"], {}
    for node, own_texts in english.items():
        entry: Texts = {
            key: texts[own_texts[key]] for key in ("display_name", "description") if own_texts[key] in texts
        }
        for group in ("inputs", "outputs"):
            entry[group] = {}
            for key, text in own_texts[group].items():
                name = name_in(given["names"], sense_of(node, text["name"]))
                fields = {"name": name, "tooltip": texts.get(text["tooltip"])}
                entry[group][key] = {field: value for field, value in fields.items() if value}
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
    """The content of every JSON file."""
    english = english_nodes(definitions)
    extension, categories = english_extension(), english_categories(definitions)
    found: dict[Path, Texts] = {}
    for language in LANGUAGES:
        given = words(language)
        if language == "en":
            nodes, texts, menu = english, extension, {name: name for name in categories}
        else:
            nodes = translate_nodes(english, given)
            texts = {key: given["extension"][key] for key in extension if key in given["extension"]}
            menu = {key: given["categories"][key] for key in categories if key in given["categories"]}
            notes = {text: given["texts"][text] for text in collect_workflow_texts() if text in given["texts"]}
            found[NOTES / f"{language}.json"] = notes
            found[MESSAGES / f"{language}.json"] = render_messages(given)
        main = {**({KEY: nest(texts)} if texts else {}), **({"nodeCategories": menu} if menu else {})}
        found[LOCALES / language / "nodeDefs.json"] = nodes
        found[LOCALES / language / "main.json"] = main
    return found
