"""LoRA files: from any key layout to ComfyUI's names, for the networks that are there, with a report of every key.

``weights.N`` (the official trainer; UltraPixel's has bare numbers), ``lora_prior_unet_*`` and ``lora_prior_te_*``
(kohya, OneTrainer), the names of diffusers and PEFT, and ``diffusion_model.*`` (ComfyUI) all become
``diffusion_model.<module>.<part>`` and ``text_encoders.clip_g.transformer.<module>.<part>``; what is fused there (q, k
and v in one) is cut in three. The mathematics of the adapters stay the host's.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..errors import WrongFile
from . import names
from .names import Shape
from .parts import cut_rows, find_alpha, find_delta_shape, find_method, find_rank, fits
from .report import Mismatch, Report, list_training_facts

UNET_PREFIX, TEXT_PREFIX = "diffusion_model.", "text_encoders.clip_g.transformer."
STAGES = ("stage_c", "stage_b")
OFFSETS, INDICES, BUNDLED = "embeddings.embeddings", "embeddings.indices", "bundle_emb."
TOKEN_TABLE = "text_model.embeddings.token_embedding"
TOKENS = 49408
"""Rows of the token table of CLIP-bigG: ids from here on are tokens that a trainer added."""

TOKENS_KEY = "cascade_studio.tokens"
"""Metadata entry with the words of added tokens and the pattern of the words they start from, as JSON."""


@dataclass(frozen=True)
class FileAdapter:
    """One adapter of a file: its name and keys there, the modules it changes and its parts for each of them."""

    name: str
    keys: tuple[str, ...]
    modules: tuple[str, ...]
    parts: tuple[Mapping[str, Tensor], ...]


@dataclass(frozen=True)
class MatchedLora:
    """A file matched to the networks that it is for.

    stage: "stage_c", "stage_b" or "" where no diffusion model is touched. unet, text: adapters by module.
    offsets: what is added to rows of the token table, by id; bundled: embeddings (n, width) by the word for them.
    words: words of added tokens with the pattern of the words they start from, if the file says.
    """

    report: Report
    stage: str = ""
    unet: Mapping[str, Mapping[str, Tensor]] = field(default_factory=dict)
    text: Mapping[str, Mapping[str, Tensor]] = field(default_factory=dict)
    offsets: Mapping[int, Tensor] = field(default_factory=dict)
    bundled: Mapping[str, Tensor] = field(default_factory=dict)
    words: Mapping[str, str] = field(default_factory=dict)

    def unet_tensors(self) -> dict[str, Tensor]:
        """The changes to the diffusion model under ComfyUI's names."""
        return name_tensors(UNET_PREFIX, self.unet)

    def text_tensors(self) -> dict[str, Tensor]:
        """The changes to the text encoder under ComfyUI's names."""
        return name_tensors(TEXT_PREFIX, self.text)

    @property
    def new_tokens(self) -> list[int]:
        """Ids that the tokenizer does not have yet."""
        return sorted(index for index in self.offsets if index >= TOKENS)


def name_tensors(prefix: str, adapters: Mapping[str, Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Tensors of adapters by module, under the names of a file."""
    return {f"{prefix}{module}.{part}": tensor for module, parts in adapters.items() for part, tensor in parts.items()}


def match_lora(
    tensors: Mapping[str, Tensor],
    nets: Mapping[str, Mapping[str, Shape]],
    metadata: Mapping[str, str] | None = None,
    name: str = "This LoRA",
) -> MatchedLora:
    """What a LoRA file does to ``nets``.

    nets: shapes of parameters by canonical name, for each of "stage_c", "stage_b" and "text_encoder" that is there.
    A file for one stage is given to the one that it fits. Raises :class:`WrongFile` where nothing fits at all; keys
    that fit nothing, or have the wrong shape, are in the report.
    """
    metadata, tensors = metadata or {}, names.name_officially(tensors)
    groups, strangers = group_keys(tensors, metadata)
    tokens = Tokens.read(tensors, nets, metadata)
    strangers = [key for key in strangers if key not in tokens.keys]
    text = {module: parts for module, parts in groups.items() if names.is_text(module)}
    unet = {module: parts for module, parts in groups.items() if module not in text}
    found = [(stage, place_groups(unet, nets[stage])) for stage in STAGES if stage in nets]
    stage, placed = max(found, key=lambda each: len(each[1].adapters), default=("", Placed(unknown=list(unet))))
    words = place_groups(text, nets.get("text_encoder", {}))
    report = Report(
        name=name,
        layout=names.layout_of(tensors),
        stage=stage if placed.adapters else "",
        matched=tuple(key for adapter in placed.adapters + words.adapters for key in adapter.keys) + tokens.used,
        unmatched=tuple(strangers)
        + keys_of(unet, placed.unknown if found else [])
        + keys_of(text, words.unknown if "text_encoder" in nets else []),
        mismatched=tuple(placed.mismatched + words.mismatched) + tokens.mismatched,
        idle_unet=keys_of(unet, list(unet) if not found else []),
        idle_text=keys_of(text, list(text) if "text_encoder" not in nets else []) + tokens.idle,
        unet_layers=sum(len(adapter.modules) for adapter in placed.adapters),
        text_layers=sum(len(adapter.modules) for adapter in words.adapters),
        methods=distinct(find_method(parts) for parts in groups.values()),
        ranks=distinct(find_rank(parts) for parts in groups.values()),
        alphas=distinct(find_alpha(parts) for parts in groups.values()),
        new_tokens=sum(index >= TOKENS for index in tokens.offsets),
        moved_tokens=sum(index < TOKENS for index in tokens.offsets),
        bundled=tuple(tokens.bundled),
        trained_on=list_training_facts(metadata),
    )
    if not report.matched:
        raise WrongFile(report.nothing_fits())
    return MatchedLora(
        report,
        report.stage,
        by_module(placed.adapters),
        by_module(words.adapters),
        tokens.offsets,
        tokens.bundled,
        tokens.words,
    )


class Group(dict):
    """Parts of one module, and the keys of the file that they came from."""

    def __init__(self) -> None:
        super().__init__()
        self.keys_read: list[str] = []

    def add(self, key: str, part: str, tensor: Tensor) -> None:
        """Take ``tensor``, the file's ``key``, as ``part`` of the adapter."""
        self[part] = tensor
        self.keys_read.append(key)


def group_keys(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> tuple[dict[str, Group], list[str]]:
    """The file's adapters by module as it spells it, and the keys that are no adapter's."""
    groups: dict[str, Group] = {}
    strangers = []
    for key, tensor in tensors.items():
        split = names.split_key(key)
        if split is None:
            strangers.append(key)
            continue
        groups.setdefault(split[0], Group()).add(key, split[1], tensor)
    common = adapter_alpha(metadata)
    for module, parts in groups.items():
        if is_position(module):
            parts.setdefault("alpha", torch.tensor(1.0))  # the official trainer scales by 1 / rank and stores nothing
        elif common is not None and "lora_down.weight" in parts:
            parts.setdefault("alpha", torch.tensor(common))
    return groups, strangers


def adapter_alpha(metadata: Mapping[str, str]) -> float | None:
    """The one alpha that diffusers keeps in the metadata instead of beside each layer."""
    try:
        settings = json.loads(metadata.get("lora_adapter_metadata", "{}"))
        found = {float(value) for key, value in settings.items() if key.endswith("lora_alpha")}
    except (ValueError, TypeError, AttributeError):
        return None
    return found.pop() if len(found) == 1 else None


@dataclass
class Placed:
    """Where the groups of a file went in one network."""

    adapters: list[FileAdapter] = field(default_factory=list)
    mismatched: list[Mismatch] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)


def place_groups(groups: Mapping[str, Group], net: Mapping[str, Shape]) -> Placed:
    """Find the modules that ``groups`` mean in the network of these parameter shapes, and see whether they fit.

    A second adapter for a module that has one already is left out: the host keeps one of a file.
    """
    shapes = names.modules_of(net)
    table, placed = names.table(shapes), Placed()
    numbered, order = [name for name in groups if is_position(name)], names.positions(shapes)
    if len(numbered) == len(order):  # another number of them counts the layers of another network
        table.update({f"weights_{index}": modules for index, modules in enumerate(order)})
    taken: set[str] = set()
    for name, parts in groups.items():
        modules = table.get(names.bare(name), ())
        if not modules or not find_method(parts) or taken.intersection(modules):
            placed.unknown.append(name)
            continue
        first = shapes[modules[0]]
        needed = (first[0] * len(modules), *first[1:])
        bands = [dict(parts)] if len(modules) == 1 else cut_rows(parts, len(modules))
        bias = net.get(f"{modules[0]}.bias")
        if not fits(parts, needed, bias[0] * len(modules) if bias else None) or bands is None:
            placed.mismatched.extend(
                Mismatch(key, find_delta_shape(parts), needed, bands is None) for key in parts.keys_read
            )
            continue
        taken.update(modules)
        placed.adapters.append(FileAdapter(name, tuple(parts.keys_read), modules, tuple(bands)))
    return placed


def is_position(module: str) -> bool:
    """Whether a module's name is an index of the official trainer."""
    return module.startswith("weights.")


def by_module(adapters: Sequence[FileAdapter]) -> dict[str, Mapping[str, Tensor]]:
    """What changes each module."""
    return {module: parts for adapter in adapters for module, parts in zip(adapter.modules, adapter.parts)}


def keys_of(groups: Mapping[str, Group], modules: Sequence[str]) -> tuple[str, ...]:
    """The file's keys that belong to ``modules``."""
    return tuple(key for module in modules for key in groups[module].keys_read)


def distinct(values: Any) -> tuple[Any, ...]:
    """What differs among ``values``, sorted, without None and ""."""
    return tuple(sorted({value for value in values if value is not None and value != ""}))


@dataclass(frozen=True)
class Tokens:
    """What a file holds for the token table: keys read, and those used, idle or of the wrong shape."""

    offsets: Mapping[int, Tensor]
    bundled: Mapping[str, Tensor]
    words: Mapping[str, str]
    keys: tuple[str, ...] = ()
    used: tuple[str, ...] = ()
    idle: tuple[str, ...] = ()
    mismatched: tuple[Mismatch, ...] = ()

    @classmethod
    def read(
        cls, tensors: Mapping[str, Tensor], nets: Mapping[str, Mapping[str, Shape]], metadata: Mapping[str, str]
    ) -> Tokens:
        """Token offsets of the official trainer and embeddings that OneTrainer bundles."""
        keys = [key for key in (OFFSETS, INDICES) if key in tensors]
        rows = {OFFSETS: tensors[OFFSETS]} if len(keys) == 2 else {}
        for key in tensors:
            if key.startswith(BUNDLED) and not key.endswith("_out"):
                rows[key] = tensors[key]
                keys.append(key)
        if "text_encoder" not in nets:
            return cls({}, {}, {}, tuple(keys), idle=tuple(keys))
        width = nets["text_encoder"].get(f"{TOKEN_TABLE}.weight", (TOKENS, 0))[1]
        wrong = [key for key, tensor in rows.items() if tensor.shape[-1] != width]
        right = [key for key in rows if key not in wrong]
        offsets = {}
        if OFFSETS in right:
            offsets = dict(zip(map(int, tensors[INDICES].tolist()), rows[OFFSETS]))
        bundled = {parse_bundled_word(key): rows[key].reshape(-1, width) for key in right if key != OFFSETS}
        used = tuple(right) + ((INDICES,) if OFFSETS in right else ())
        misfits = tuple(Mismatch(key, tuple(rows[key].shape), (len(rows[key]), width)) for key in wrong)
        return cls(offsets, bundled, read_words(metadata), tuple(keys), used, (), misfits)


def parse_bundled_word(key: str) -> str:
    """The word for the embedding in ``bundle_emb.WORD.string_to_param.*`` or ``bundle_emb.WORD.ENCODER``."""
    word, found, _ = key[len(BUNDLED) :].partition(".string_to_param")
    return word if found else word.rpartition(".")[0]


def read_words(metadata: Mapping[str, str]) -> dict[str, str]:
    """Words of added tokens from the file's metadata."""
    try:
        return {str(word): str(start) for word, start in json.loads(metadata.get(TOKENS_KEY, "{}")).items()}
    except (ValueError, AttributeError):
        return {}
