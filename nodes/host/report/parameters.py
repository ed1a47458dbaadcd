"""The text ``parameters`` that AUTOMATIC1111's web UI writes into pictures, and that galleries and viewers read.

Its form, as readers take it apart: the prompt, a line "Negative prompt: ...", and a last line of "Name: value" pairs
with commas between them, in quotes where a value holds a comma or a colon. Hashes are the first ten digits of a file's
SHA-256.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import Any

from .card import ModelFile, Reports, format_setting
from .facts import Facts

DIGITS = 10
NAMES = {"steps": "Steps", "sampler": "Sampler", "cfg": "CFG scale"}


def write_parameters(
    reports: Reports, size: tuple[int, int, int], facts: Facts, files: Mapping[str, ModelFile], index: int
) -> str:
    """The text for picture ``index`` of a batch; sampling settings are those of Stage C, where the picture is made."""
    first = next((report for report in reports if report.stage == "Stage C"), reports[0])
    pairs: dict[str, Any] = {
        name: format_setting(first.setting(key)) for key, name in NAMES.items() if first.setting(key) is not None
    }
    seed = first.seed(index)
    if seed is not None:
        pairs["Seed"] = seed
    pairs["Size"] = f"{size[1]}x{size[2]}"
    pairs.update(name_model(files.get(first.weights or "")))
    if first.setting("denoise") is not None:
        pairs["Denoising strength"] = format_setting(first.setting("denoise"))
    pairs.update(list_hashes(first.weights, facts, files))
    settings = ", ".join(f"{name}: {quote(value)}" for name, value in pairs.items())
    negative = "\n".join(facts.negative)
    lines = ["\n".join(facts.positive), *([f"Negative prompt: {negative}"] if negative.strip() else []), settings]
    return "\n".join(lines)


def name_model(file: ModelFile | None) -> dict[str, Any]:
    """Name and hash of the Stage C file."""
    if file is None:
        return {}
    told = {"Model": os.path.splitext(file.name)[0]}
    return {"Model hash": file.sha256[:DIGITS], **told} if file.sha256 else told


def list_hashes(model: str | None, facts: Facts, files: Mapping[str, ModelFile]) -> dict[str, str]:
    """ "Lora hashes", and "Hashes" as JSON of every file: by "model", "lora:name" and the loader's input."""
    loras = {each.path for each in facts.loras}
    found: dict[str, str] = {}
    for path, file in files.items():
        stem = os.path.splitext(file.name)[0]
        key = "model" if path == model else f"lora:{stem}" if path in loras else f"{file.role}:{stem}"
        if file.sha256:
            found[key] = file.sha256[:DIGITS]
    told = {"Hashes": json.dumps(found)} if found else {}
    named = [f"{key.removeprefix('lora:')}: {digest}" for key, digest in found.items() if key.startswith("lora:")]
    return {"Lora hashes": ", ".join(named), **told} if named else told


def quote(value: Any) -> str:
    """``value`` for the last line: as JSON where it holds what separates; a JSON object stays, as readers want it."""
    text = str(value)
    if text.startswith("{") or not set(text) & {",", ":", "\n", '"'}:
        return text
    return json.dumps(text, ensure_ascii=False)
