"""What a prompt of the host says of a picture: words, LoRAs, ControlNets and files, and the nodes that repeat it."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import folder_paths

from ....stages.errors import CascadeError
from ....stages.files.open import OpenedModels
from ...checkpoints.catalogue import FROM_CHECKPOINT, NONE, Entry
from ..conditioning import embeddings
from ..files import fetch, names

Prompt = Mapping[str, Mapping[str, Any]]
"""A prompt as the host runs it: node id → ``class_type`` and ``inputs``, a link being [id, slot]."""

CORE_FILES = {
    "unet_name": ("diffusion_models",),
    "ckpt_name": ("checkpoints",),
    "clip_name": ("text_encoders", "clip_vision"),
    "vae_name": ("vae", "vae_approx"),
    "lora_name": ("loras",),
    "control_net_name": ("controlnet",),
}
"""Inputs of core's loaders, and the folders that their names are looked up in."""

LORAS, CONTROLNETS = ("lora", "lora_name"), ("controlnet", "control_net_name")
TEXTS = ("text", "text_g", "prompt", "value", "string")
SETTINGS = ("strength", "start_percent", "end_percent", "early", "late", "block_weights")


@dataclass(frozen=True)
class Addition:
    """A LoRA or a ControlNet: its file, and the settings that it has in the node."""

    path: str
    settings: tuple[tuple[str, Any], ...]


@dataclass(frozen=True)
class Facts:
    """What stands behind a picture. files: path → input of the loader; nodes: the part of the prompt that makes it."""

    positive: tuple[str, ...] = ()
    negative: tuple[str, ...] = ()
    loras: tuple[Addition, ...] = ()
    controlnets: tuple[Addition, ...] = ()
    files: Mapping[str, str] = field(default_factory=dict)
    nodes: Prompt = field(default_factory=dict)
    picture: tuple[str, int] | None = None


NO_FACTS = Facts()


def gather_facts(prompt: Prompt | None, node: str | None, wires: tuple[str, ...] = ("report", "latent")) -> Facts:
    """The facts behind the first of ``wires`` of ``node`` that is wired; none where the prompt does not tell them."""
    inputs = (prompt or {}).get(str(node), {}).get("inputs", {})
    link = next((inputs[wire] for wire in wires if is_wire(inputs.get(wire), prompt)), None)
    if link is None:
        return NO_FACTS
    chain = list(walk_back(prompt, link[0]))
    samplers = [name for name in chain if is_sampler(prompt[name]["inputs"])]
    words = prompt[samplers[-1]]["inputs"] if samplers else {}
    texts = {side: tuple(read_texts(prompt, words.get(side))) for side in ("positive", "negative")}
    files = {path: role for name in chain for role, path in list_files(prompt[name])}
    files.update((path, "embedding") for side in texts.values() for path in find_embeddings(side))
    whole = {name: {key: prompt[name][key] for key in ("class_type", "inputs")} for name in chain}
    painted = prompt[link[0]]["class_type"] == "CascadeStudio_DecodeStageA"
    return Facts(
        **texts,
        loras=tuple(find_additions(prompt, chain, LORAS)),
        controlnets=tuple(find_additions(prompt, chain, CONTROLNETS)),
        files=files,
        nodes=whole,
        picture=(link[0], 0) if painted else None,
    )


def is_wire(value: Any, prompt: Prompt | None) -> bool:
    """Whether an input's value is a wire from a node of ``prompt``."""
    return isinstance(value, (list, tuple)) and len(value) == 2 and value[0] in (prompt or {})


def is_sampler(inputs: Mapping[str, Any]) -> bool:
    """Whether a node with ``inputs`` samples by prompts, or guides a sampler by them."""
    return "positive" in inputs and "model" in inputs


def walk_back(prompt: Prompt, start: str) -> Iterator[str]:
    """``start`` and every node whose output it needs, the nearest first."""
    found = {start: None}
    for name in (queue := [start]):
        yield name
        for value in prompt[name]["inputs"].values():
            if is_wire(value, prompt) and value[0] not in found:
                found[value[0]] = None
                queue.append(value[0])


def read_texts(prompt: Prompt, link: Any, seen: frozenset[str] = frozenset()) -> Iterator[str]:
    """The texts that were encoded into the conditioning on ``link``, in the order of the wires."""
    if not is_wire(link, prompt) or link[0] in seen:
        return
    name, slot = link
    inputs = prompt[name]["inputs"]
    if "clip" in inputs and "clip_vision" not in inputs:
        text = next((read_string(prompt, inputs[key]) for key in TEXTS if key in inputs), None)
        if text is not None:
            yield text
        return
    paired = {"positive", "negative"} <= inputs.keys()
    wires = [("positive", "negative")[min(slot, 1)]] if paired else [key for key in inputs if is_conditioning(key)]
    for wire in wires:
        yield from read_texts(prompt, inputs[wire], seen | {name})


def is_conditioning(name: str) -> bool:
    """Whether an input called ``name`` takes a prompt, in the pack and in core."""
    return name.startswith("conditioning") or name in ("positive", "negative", "region")


def read_string(prompt: Prompt, value: Any) -> str | None:
    """A text, or the one of the node that it is wired from; None where a node makes it up."""
    if isinstance(value, str):
        return value
    if not is_wire(value, prompt):
        return None
    inputs = prompt[value[0]]["inputs"]
    return next((inputs[key] for key in TEXTS if isinstance(inputs.get(key), str)), None)


def find_additions(prompt: Prompt, chain: list[str], keys: tuple[str, ...]) -> Iterator[Addition]:
    """LoRAs or ControlNets among the nodes of ``chain``: where they are applied, with the file of their loader."""
    for name in chain:
        inputs = prompt[name]["inputs"]
        settings = tuple(
            (key, value)
            for key, value in inputs.items()
            if key.startswith(SETTINGS) and not is_wire(value, prompt) and value != ""
        )
        loader = inputs.get("control_net", [name])[0] if keys == CONTROLNETS else name
        named = [path for role, path in list_files(prompt.get(loader, {"inputs": {}})) if role in keys]
        if settings and any(key.startswith("strength") for key, _ in settings):
            yield from (Addition(path, settings) for path in named)


def list_files(node: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Input and path of each model file that a node names, those of a preset in the place of its own."""
    inputs = node["inputs"]
    chosen = {role: value for role, value in inputs.items() if role in names.FOLDERS and isinstance(value, str)}
    library, models = names.Library(), OpenedModels()
    try:
        values = fetch.apply_preset(inputs.get("preset", fetch.OWN), chosen, models)[0]
    except CascadeError:
        values = {}
    for role, value in values.items():
        path = find_path(library, role, value, models)
        if path:
            yield role, path
    for key, folders in CORE_FILES.items():
        value = inputs.get(key)
        paths = [folder_paths.get_full_path(folder, value) for folder in folders if isinstance(value, str)]
        yield from ((key, path) for path in paths if path)


def find_path(library: names.Library, role: str, value: str | Entry, models: OpenedModels) -> str | None:
    """The file that a loader's input means, if it is here."""
    if value in (NONE, FROM_CHECKPOINT):
        return None
    try:
        entry = value if isinstance(value, Entry) else library.catalogue.find_named(role, value)
        return fetch.find_at_once(library, role, value, entry, models)
    except (CascadeError, OSError):
        return None


def find_embeddings(texts: tuple[str, ...]) -> Iterator[str]:
    """Paths of the embeddings that ``texts`` name."""
    stems = {embeddings.strip_name(name) for text in texts for name in embeddings.list_named(text)}
    for file in folder_paths.get_filename_list(embeddings.FOLDER) if stems else ():
        path = folder_paths.get_full_path(embeddings.FOLDER, file)
        if embeddings.strip_name(file) in stems and path and os.path.isfile(path):
            yield path
