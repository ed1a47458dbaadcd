"""The workflow of a batch, and the prompt that it becomes for each row.

What a picture is, is its whole prompt: its hash is the row's key. A value of a row goes into the prompt and, where the
file was a saved workflow, into the workflow that travels in the picture.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...nodes.checkpoints import catalogue, disk
from ..messages import Stop
from ..workflow.api_prompt import Converted
from ..workflow.inputs import MODEL_FILES, Place, Prompt, convert_value, find_meant, find_places, is_link
from . import stagewise
from .records import Asked
from .rows import Row

SAVES = ("SaveImage", "CascadeStudio_SaveImage")
DECODERS = ("CascadeStudio_DecodeStageA",)
PREFIX = "cascade_studio_batch"
NAME, REMARK = "name", "#"
"""The column that names the file, and the start of columns that set nothing."""
PRIORS = "#priors"
"""The Stage C latents that a row of the stages B and A begins with: (file, SHA-256) of each."""
LONGEST_NAME, MOST_FOLDERS = 60, 8


@dataclass(frozen=True)
class Filled:
    """A row's prompt, ready to be sent, and the JSON of the workflow for the picture's file (None: there is none)."""

    prompt: Prompt
    workflow: str | None
    saves: tuple[str, ...]


class Template:
    """One workflow for many rows. ``with_card``: the pack's nodes are there, so pictures get their report card."""

    def __init__(
        self, converted: Converted, workflow: dict[str, Any] | None, stages: str = "", with_card: bool = True
    ) -> None:
        self.stages, self.workflow = stages, workflow
        self._whole = converted
        self.prompt: Prompt = stagewise.cut(converted.prompt, stages) if stages else converted.prompt
        self.saves = self._prepare_saves(with_card)
        self._places: dict[str, list[Place]] = {}
        self._touched: dict[Place, Any] = {}
        self._lock = threading.Lock()
        self._sizes = _model_sizes()
        self._usual: tuple[str, int] | None = None
        self._loaders = {
            node for node, entry in self.prompt.items() if any(map(self._is_model, entry["inputs"].values()))
        }

    @property
    def classes(self) -> list[str]:
        """The kinds of nodes that are sent."""
        return sorted({entry["class_type"] for entry in self.prompt.values()})

    @property
    def first_seed(self) -> int:
        """The seed that the workflow has now; 0 where it has none."""
        places = find_meant(self._whole.prompt, "seed")
        return int(self._whole.prompt[places[0][0]]["inputs"][places[0][1]]) if places else 0

    def ask(self, row: Row) -> Asked:
        """What the manifest has to know of ``row``. Raises ``ValueError`` in a sentence for values that do not fit."""
        with self._lock:
            self._set(row.values)
            text = json.dumps(self.prompt, sort_keys=True, ensure_ascii=False)
            models, need = self._models()
            told = [place + (self._whole.prompt[place[0]]["inputs"][place[1]],) for place in self._touched]
        texts = [place for place in told if isinstance(place[2], str) and not self._is_model(place[2])]
        text += "".join(digest for _, digest in row.values.get(PRIORS, ()))
        key = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:32]
        given = str(row.values.get(NAME, "")).strip()
        name = safe_name(given) if given else self._describe(row.values)
        return Asked(key, row.line, row.values, models, _short(sorted(texts)), need, name, plain=bool(given))

    def fill(self, values: Mapping[str, Any], key: str, priors: tuple[str, ...] = ()) -> Filled:
        """The prompt of a row; ``priors`` are the names of uploaded Stage C latents, for the stages B and A."""
        with self._lock:
            self._set(values)
            prompt = {node: {**entry, "inputs": dict(entry["inputs"])} for node, entry in self.prompt.items()}
            workflow = json.dumps(self.workflow) if self.workflow and self.stages != "c" else None
        for node in self.saves:
            prompt[node]["inputs"]["filename_prefix"] = f"{PREFIX}/{key}"
        for number, name in enumerate(priors, 1):
            prompt[stagewise.node_of(number)]["inputs"]["latent"] = name
        return Filled(prompt, workflow, self.saves)

    def _set(self, values: Mapping[str, Any]) -> None:
        """The workflow's own values, then those of the row."""
        for place, value in self._touched.items():
            self._put(place, value)
        self._touched.clear()
        for column, value in values.items():
            if column == NAME or column.startswith(REMARK):
                continue
            if column not in self._places:
                self._places[column] = find_places(self._whole.prompt, column)
            for place in self._places[column]:
                present = self._whole.prompt[place[0]]["inputs"][place[1]]
                self._touched.setdefault(place, present)
                self._put(place, convert_value(column, value, present))

    def _put(self, place: Place, value: Any) -> None:
        """Set a value in the whole workflow, and in the stages of it that are painted here, as far as they have it."""
        node, name = place
        self._whole.set(node, name, value)
        if name in self.prompt.get(node, {"inputs": {}})["inputs"]:
            self.prompt[node]["inputs"][name] = value

    def _describe(self, values: Mapping[str, Any]) -> str:
        text = str(values.get("prompt", "")) or "picture"
        seed = values.get("seed")
        words = re.sub(r"[^\w]+", "-", text.lower()).strip("-_")[:LONGEST_NAME].strip("-_") or "picture"
        return words if seed is None else f"{words}_s{seed}"

    def _models(self) -> tuple[str, int]:
        """A short name for the models and their settings, and the bytes of the largest published file among them."""
        changed = any(
            node in self._loaders or self._is_model(self._whole.prompt[node]["inputs"][name])
            for node, name in self._touched
        )
        if changed or self._usual is None:
            found = self._find_models()
            if changed:
                return found
            self._usual = found
        return self._usual

    def _find_models(self) -> tuple[str, int]:
        parts, need = [], 0
        for node, entry in self.prompt.items():
            own = {name: value for name, value in entry["inputs"].items() if not is_link(value)}
            named = [value for value in own.values() if self._is_model(value)]
            if named:
                parts.append([node, entry["class_type"], sorted(own.items())])
                need = max(need, *(self._sizes.get(Path(value.replace("\\", "/")).name, 0) for value in named))
        return _short(parts), need

    def _is_model(self, value: Any) -> bool:
        return isinstance(value, str) and (value.lower().endswith(MODEL_FILES) or value in self._sizes)

    def _prepare_saves(self, with_card: bool) -> tuple[str, ...]:
        if self.stages == "c":
            return tuple(stagewise.saves(self.prompt))
        found = [node for node, entry in self.prompt.items() if entry["class_type"] in SAVES]
        found = found or [node for node, entry in self.prompt.items() if entry["class_type"] == "PreviewImage"]
        if not found:
            raise Stop("The workflow saves no picture. It needs a Save Image or Save Cascade Image node at its end.")
        for node in found:
            entry = self.prompt[node]
            decoder = _decoder_behind(self.prompt, node) if with_card else None
            if decoder and entry["class_type"] != "CascadeStudio_SaveImage":
                entry["inputs"] = {"images": entry["inputs"]["images"], "report": [decoder, 1], "hashes": True}
                entry["class_type"] = "CascadeStudio_SaveImage"
            elif entry["class_type"] == "PreviewImage":
                entry["class_type"] = "SaveImage"
            entry["inputs"]["filename_prefix"] = ""
        return tuple(found)


def _short(values: Any) -> str:
    """A short name for plain values."""
    text = json.dumps(values, sort_keys=True, ensure_ascii=False, default=str)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:12]


def _decoder_behind(prompt: Prompt, node: str) -> str | None:
    """The Stage A decoder that a picture comes from, if it is only one."""
    found = {other for other in stagewise.upstream(prompt, [node]) if prompt[other]["class_type"] in DECODERS}
    return found.pop() if len(found) == 1 else None


def _model_sizes() -> dict[str, int]:
    """Bytes of the published files by name, and of the largest file of each preset by its title."""
    known = catalogue.load()
    sizes = {entry.name: entry.size or 0 for entry in known.entries.values()}
    for preset in known.presets.values():
        sizes[preset.title] = max((known.entries[key].size or 0 for key in preset.entries), default=0)
    return sizes


def safe_name(text: str) -> str:
    """A path below the output folder that every system takes; it cannot lead out of it."""
    parts = []
    text = unicodedata.normalize("NFC", text.replace("\\", "/"))
    for part in disk.for_all_systems(text).split("/"):
        part = re.sub(r"[\x00-\x1f:@\u200e\u200f\u202a-\u202e\u2066-\u2069]", "-", part)
        part = _bare(_bare(part).encode("utf-8", "replace")[:120].decode("utf-8", "ignore"))
        parts.append(re.sub(r"(?i)^(con|prn|aux|nul|com\d|lpt\d)(?=\s*(?:\.|$))", r"\1-", part))
    return "/".join([part for part in parts if part][-MOST_FOLDERS:]) or "picture"


def _bare(part: str) -> str:
    """A part of a name without the endings of files, and without dots and spaces around it."""
    return re.sub(r"(?i)(\.(png|jpe?g|webp|latent|csv|sqlite)|[\s.])+$", "", part.lstrip().lstrip(". "))
