"""The report on a LoRA: what of its file is used, what is not and why, and what the file says about its training."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from ..files.kinds import KINDS

SHOWN = 8
"""Keys of one kind that a report names before it only counts them."""

_TRAINED = (
    ("base model", ("ss_base_model_version", "modelspec.architecture", "base_model")),
    ("checkpoint", ("ss_sd_model_name", "base_model_name_or_path", "cascade_studio.base")),
    ("title", ("modelspec.title", "ss_output_name", "name")),
    ("author", ("modelspec.author",)),
    ("trigger words", ("modelspec.trigger_phrase", "trigger_words", "activation text")),
    ("trained rank and alpha", ("ss_network_dim",)),
    ("steps", ("ss_steps", "ss_max_train_steps", "cascade_studio.steps")),
    ("images", ("ss_num_train_images",)),
    ("resolution", ("ss_resolution", "modelspec.resolution")),
    ("date", ("modelspec.date",)),
)
"""What metadata may say about the training, and the entries of the trainers that say it."""


class Mismatch(NamedTuple):
    """A key whose tensor does not fit: the shape of the change that it makes (None: not told), and the weight's."""

    key: str
    given: tuple[int | None, ...] | None
    needed: tuple[int, ...]
    mixes: bool = False

    def __str__(self) -> str:
        if self.mixes:
            return f"{self.key}: made for query, key and value in one weight, and it cannot be cut in three"
        return f"{self.key}: {_size(self.given)} given, {_size(self.needed)} needed"


@dataclass(frozen=True)
class Report:
    """What a LoRA file does; all keys are those of the file.

    matched, unmatched, mismatched: keys that are used, that mean nothing here, and that have another shape than the
    layer. idle_unet, idle_text: keys for a part that is not wired. stage: "stage_c", "stage_b" or "".
    """

    name: str
    layout: str
    stage: str
    matched: tuple[str, ...] = ()
    unmatched: tuple[str, ...] = ()
    mismatched: tuple[Mismatch, ...] = ()
    idle_unet: tuple[str, ...] = ()
    idle_text: tuple[str, ...] = ()
    unet_layers: int = 0
    text_layers: int = 0
    methods: tuple[str, ...] = ()
    ranks: tuple[int, ...] = ()
    alphas: tuple[float, ...] = ()
    new_tokens: int = 0
    moved_tokens: int = 0
    bundled: tuple[str, ...] = ()
    trained_on: tuple[str, ...] = ()

    @property
    def total(self) -> int:
        """Keys of the file."""
        return sum(map(len, (self.matched, self.unmatched, self.mismatched, self.idle_unet, self.idle_text)))

    def text(self, notes: Sequence[str] = ()) -> str:
        """The report as people read it; ``notes`` are lines to add."""
        lines = [
            f"{self.name}: {'/'.join(self.methods) or 'embeddings'} in {self.layout} layout, "
            f"{len(self.matched)} of {self.total} keys used"
        ]
        changed = [
            f"{count} {'layer' if count == 1 else 'layers'} of {what}"
            for count, what in (
                (self.unet_layers, KINDS[self.stage].stage if self.stage else ""),
                (self.text_layers, "the text encoder"),
            )
            if count
        ]
        if changed:
            lines.append(f"Changes {' and '.join(changed)}")
        if self.ranks:
            lines.append(
                f"Rank {_span(self.ranks)}"
                + (f", alpha {_span(self.alphas)}" if self.alphas else ", no alpha (full strength)")
            )
        lines += self._tokens()
        lines += _list_some("Not used, because no model is wired", self.idle_unet)
        lines += _list_some("Not used, because no CLIP is wired", self.idle_text)
        lines += _list_some("Wrong shape, left out", [str(each) for each in self.mismatched])
        lines += _list_some("Unknown here, left out", self.unmatched)
        lines += [f"Trained: {line}" for line in self.trained_on]
        if not self.trained_on:
            lines.append("The file does not say what it was trained on")
        return "\n".join([*lines, *notes])

    def _tokens(self) -> list[str]:
        lines = [
            f"{what} {count} {'token' if count == 1 else 'tokens'}{where}"
            for count, what, where in (
                (self.new_tokens, "Adds", " to the prompt"),
                (self.moved_tokens, "Moves", " that the prompt knew before"),
            )
            if count
        ]
        return lines + [f"Brings the embedding {word}" for word in self.bundled]

    def nothing_fits(self) -> str:
        """The sentence for a file of which no key is used."""
        start = f"No key of the LoRA {self.name} fits the models that are wired"
        if self.mismatched:
            return (
                f"{start}: all {len(self.mismatched)} known keys have another shape (for example "
                f"{self.mismatched[0]}). It was trained for another size of Stable Cascade: choose the full or "
                "lite model that it belongs to."
            )
        if self.idle_unet or self.idle_text:
            missing = " and ".join(
                what
                for what, keys in (("a Stage C or Stage B model", self.idle_unet), ("the CLIP", self.idle_text))
                if keys
            )
            return f"{start}: it changes {missing}, which is not wired here. Wire it into this node."
        if self.layout == "official" and self.unmatched:
            return (
                f"{start}: it counts {len(self.unmatched) // 2} attention layers by their position, and this model "
                "has another number of them. Choose the full or lite Stage C that it was trained for."
            )
        example = f" (for example {self.unmatched[0]})" if self.unmatched else ""
        return (
            f"{start}: its {len(self.unmatched)} keys{example} belong to another model. "
            "Choose a LoRA that was trained for Stable Cascade."
        )


def list_training_facts(metadata: Mapping[str, str]) -> tuple[str, ...]:
    """What the metadata of kohya, OneTrainer and the model specification say about the training, a line each."""
    lines = []
    for label, entries in _TRAINED:
        value = next((metadata[entry] for entry in entries if _said(metadata.get(entry))), None)
        if value is None:
            continue
        if label.startswith("trained rank"):
            value = f"{value} and {metadata.get('ss_network_alpha', 'unknown')}"
        lines.append(f"{label} {_short(str(value))}")
    if tags := _tags(metadata.get("ss_tag_frequency", "")):
        lines.append(f"most frequent tags {tags}")
    return tuple(lines)


def _said(value: str | None) -> bool:
    return value not in (None, "", "None", "null")


def _tags(text: str) -> str:
    """The five tags that a kohya file was trained with most."""
    counts: dict[str, int] = {}
    try:
        for folder in json.loads(text).values():
            for tag, count in folder.items():
                counts[tag.strip()] = counts.get(tag.strip(), 0) + int(count)
    except (ValueError, AttributeError, TypeError):
        return ""
    return ", ".join(sorted(counts, key=lambda tag: -counts[tag])[:5])


def _short(text: str, most: int = 120) -> str:
    text = " ".join(text.split())
    return text if len(text) <= most else text[: most - 1] + "…"


def _list_some(title: str, keys: Sequence[str]) -> list[str]:
    if not keys:
        return []
    more = [f"  and {len(keys) - SHOWN} more"] if len(keys) > SHOWN else []
    return [f"{title} ({len(keys)}):", *(f"  {key}" for key in keys[:SHOWN]), *more]


def _span(values: Sequence[float]) -> str:
    low, high = f"{min(values):g}", f"{max(values):g}"
    return low if low == high else f"{low} to {high}"


def _size(shape: Sequence[int | None] | None) -> str:
    return "×".join("any" if n is None else str(n) for n in shape) if shape else "unknown size"
