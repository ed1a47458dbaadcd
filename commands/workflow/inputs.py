"""Where a person's values go: which inputs of a prompt a name means, and as what type a value arrives there."""

from __future__ import annotations

import json
import math
import re
from typing import Any

Prompt = dict[str, dict[str, Any]]
Place = tuple[str, str]
"""A node of the prompt, and one of its inputs."""

TEXTS = ("text", "prompt", "clip_l", "clip_g")
SEEDS = ("seed", "noise_seed")
LORAS = ("lora", "lora_name", "lora_1")
LARGEST_SEED = 2**64 - 1
MODEL_FILES = (".safetensors", ".sft", ".ckpt", ".pt", ".pth", ".bin", ".gguf")
"""How the names of model files end."""
YES, NO = ("true", "yes", "on", "1"), ("false", "no", "off", "0")


class UnknownInput(ValueError):
    """A name that means no input in this workflow."""


def title_of(prompt: Prompt, node: str) -> str:
    """The name that a person sees on a node."""
    entry = prompt[node]
    return str((entry.get("_meta") or {}).get("title") or entry["class_type"])


def find_places(prompt: Prompt, column: str) -> list[Place]:
    """The inputs that ``column`` sets. Raises :class:`UnknownInput` where that is none, or is not clear."""
    found = _by_node(prompt, column) or find_meant(prompt, column)
    if found:
        return found
    same = [place for place in _constants(prompt) if place[1] == column]
    if len(same) == 1:
        return same
    names = [f"{title_of(prompt, node)}.{name}" for node, name in (same or _constants(prompt))]
    if same:
        raise UnknownInput(f"the column '{column}' could be {' or '.join(names)}. Name it so.")
    raise UnknownInput(
        f"the column '{column}' sets nothing in this workflow. Name prompt, negative, seed, width, height, lora or one "
        f"of: {', '.join(names)}."
    )


def _constants(prompt: Prompt) -> list[Place]:
    """Every input that holds a value of its own rather than a link."""
    return [
        (node, name)
        for node, entry in prompt.items()
        for name, value in entry["inputs"].items()
        if not isinstance(value, (list, dict))
    ]


def _by_node(prompt: Prompt, column: str) -> list[Place]:
    """``node title.input`` or ``node id.input``."""
    return [
        (node, name)
        for node, name in _constants(prompt)
        if column in (f"{node}.{name}", f"{title_of(prompt, node)}.{name}")
    ]


def find_meant(prompt: Prompt, column: str) -> list[Place]:
    """The inputs behind prompt, negative, seed, width, height or lora; none for other words or where there are none."""
    if column in ("prompt", "negative"):
        return _texts_behind(prompt, "positive" if column == "prompt" else "negative")
    if column == "seed":
        return [place for place in _constants(prompt) if place[1] in SEEDS]
    if column in ("width", "height"):
        places = set(_constants(prompt))
        return [(node, column) for node in prompt if {(node, "width"), (node, "height")} <= places]
    if column == "lora":
        found = [place for place in _constants(prompt) if place[1] in LORAS]
        return found if len(found) == 1 else []
    return []


def _texts_behind(prompt: Prompt, name: str) -> list[Place]:
    """The text inputs nearest upstream of every input called ``name``."""
    found: list[Place] = []
    for entry in prompt.values():
        start = entry["inputs"].get(name)
        if isinstance(start, list):
            found += _nearest_texts(prompt, str(start[0]))
    return list(dict.fromkeys(found))


def _nearest_texts(prompt: Prompt, start: str) -> list[Place]:
    waiting, seen = [start], set()
    while waiting:
        node = waiting.pop(0)
        if node in seen or node not in prompt:
            continue
        seen.add(node)
        inputs = prompt[node]["inputs"]
        texts = [(node, text) for text in TEXTS if isinstance(inputs.get(text), str)]
        if texts:
            return texts
        waiting += [str(value[0]) for value in inputs.values() if is_link(value)]
    return []


def is_link(value: Any) -> bool:
    """Whether an input's value is a link to another node's output."""
    return isinstance(value, list) and len(value) == 2 and isinstance(value[1], int)


def convert_value(column: str, value: Any, present: Any) -> Any:
    """``value`` as the type that the workflow holds there now. Raises ``ValueError`` in a sentence."""
    if isinstance(value, (dict, list)):
        raise ValueError(f"{column} is {json.dumps(value)[:60]}. It has to be one value.")
    text = str(value).strip()
    if isinstance(present, bool):
        if text.lower() in (*YES, *NO):
            return text.lower() in YES
        raise ValueError(f"{column} is '{text}'. It is a switch: write true or false.")
    if isinstance(present, (int, float)):
        return _number(column, text, isinstance(present, int), value)
    return value if isinstance(value, str) else text


def _number(column: str, text: str, whole: bool, value: Any) -> int | float:
    try:
        number: int | float = int(text) if whole and re.fullmatch(r"[+-]?\d+", text) else float(text)
    except ValueError:
        number = float("nan")
    fits = isinstance(number, int) or (math.isfinite(number) and not (whole and number % 1))
    if not fits or isinstance(value, bool):
        raise ValueError(f"{column} is '{text}'. It has to be {'a whole number' if whole else 'a number'}.")
    if column.rpartition(".")[2] in SEEDS and not 0 <= number <= LARGEST_SEED:
        raise ValueError(f"{column} is {text}. A seed is a whole number from 0 to 2^64 - 1.")
    return int(number) if whole else float(number)
