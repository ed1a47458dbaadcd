"""Puts a person's choices (prompt, seed, size, files) into a converted workflow, wherever it keeps them."""

from __future__ import annotations

import difflib
import json
import re
from functools import lru_cache
from typing import Any

from cascade_studio.commands.messages import Stop
from cascade_studio.commands.workflow.api_prompt import Converted
from cascade_studio.commands.workflow.inputs import MODEL_FILES, find_meant

from .env import REPOSITORY

CATALOGUE = REPOSITORY / "nodes" / "checkpoints" / "catalogue.json"


@lru_cache(maxsize=1)
def _list_bundled() -> frozenset[str]:
    """Names of the files that come with the pack: they fit each other, and no file of another model."""
    files = json.loads(CATALOGUE.read_text(encoding="utf-8"))["files"]
    return frozenset(file["name"] for file in files if file.get("bundled"))


def set_seed(converted: Converted, seed: int) -> None:
    """Give every sampler the same seed, as the official pipelines do."""
    _set(converted, "seed", seed, "the workflow has no input called seed or noise_seed.", "--seed")


def _set(converted: Converted, name: str, value: Any, lack: str, option: str) -> None:
    places = find_meant(converted.prompt, name)
    if not places:
        raise Stop(f"{option} has no effect: {lack}")
    for node, own in places:
        converted.set(node, own, value)


def parse_size(text: str) -> tuple[int, int]:
    """``1024x768`` as numbers."""
    found = re.fullmatch(r"\s*(\d+)\s*[xX×*]\s*(\d+)\s*", text)
    if not found:
        raise Stop(f"--size {text} is not a size. Write width and height in pixels, for example --size 1024x768.")
    return int(found.group(1)), int(found.group(2))


def set_size(converted: Converted, width: int, height: int) -> None:
    """Set width and height wherever a node keeps both."""
    for name, value in (("width", width), ("height", height)):
        _set(converted, name, value, "no node of the workflow has a width and a height.", "--size")


def set_prompt(converted: Converted, text: str) -> None:
    """Set the texts that reach an input called ``positive``."""
    _set(converted, "prompt", text, "no text of the workflow leads to an input called positive.", "--prompt")


def _options(definition: dict[str, Any], name: str) -> list[Any] | None:
    """The choices of an input that are here; those that a loader would fetch (``published``) are left out."""
    for group in ("required", "optional"):
        spec = (definition.get("input") or {}).get(group, {}).get(name)
        if spec:
            more = spec[1] if len(spec) > 1 else {}
            options = spec[0] if isinstance(spec[0], list) else more.get("options")
            fetched = more.get("published", ())
            return [one for one in options if one not in fetched] if isinstance(options, list) else None
    return None


def _likeness(first: str, second: str) -> tuple[int, float]:
    """How much two file names have in common: whole words first, then letters."""
    words = [set(re.split(r"[^a-z0-9]+", name.lower())) for name in (first, second)]
    return len(words[0] & words[1]), difflib.SequenceMatcher(None, first, second).ratio()


def fit_files(converted: Converted, object_info: dict[str, Any]) -> list[str]:
    """Where the workflow names a model file that the server does not have, take the one with the nearest name.

    Returns one line per replacement; raises ``Stop`` where the server has no file at all for an input.
    """
    lines = []
    for node, entry in converted.prompt.items():
        definition = object_info.get(entry["class_type"]) or {}
        for name, value in list(entry["inputs"].items()):
            options = _options(definition, name)
            if options is None or value in options or not str(value).lower().endswith(MODEL_FILES):
                continue
            files = [
                option
                for option in options
                if str(option).lower().endswith(MODEL_FILES) and option not in _list_bundled()
            ]
            if not files:
                raise Stop(
                    f"The workflow's node {entry['_meta']['title']} needs the file {value} as {name}, and the "
                    "models folder has none for that input. Put it there, or give another folder with --model."
                )
            nearest = max(files, key=lambda file: _likeness(str(file), str(value)))
            converted.set(node, name, nearest)
            lines.append(f"{entry['_meta']['title']}: {name} = {nearest} (instead of {value})")
    return lines
