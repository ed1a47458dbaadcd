"""Prompts for tests: built node by node, every input that is left out at its default, objects handed in as they are."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import torch

GIVE = "CascadeStudioTestGive"
FILES = {
    "prior": "stage_c.safetensors",
    "decoder": "stage_b.safetensors",
    "text_encoder": "clip_g.safetensors",
    "stage_a": "stage_a.safetensors",
    "image_encoder": "effnet_encoder.safetensors",
    "previewer": "previewer.safetensors",
    "clip_vision": "clip_l_vision.safetensors",
}
"""The family's own file for every file input of Load Stable Cascade."""


class _Any(str):
    """A type that the host lets into every input."""

    def __ne__(self, other: object) -> bool:
        return False


class Give:
    """A node that hands out an object of the test."""

    objects: dict[str, Any] = {}
    RETURN_TYPES = (_Any("*"),)
    FUNCTION = "give"
    CATEGORY = "testing"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"key": ("STRING", {})}}

    def give(self, key: str) -> tuple[Any]:
        return (self.objects[key],)


class Node:
    """A node of a prompt; ``node[slot]`` is one of its outputs."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __getitem__(self, slot: int) -> list[Any]:
        return [self.name, slot]


class Graph:
    """An API prompt for the host in this process. Values are node outputs, widget values, or objects to hand in."""

    def __init__(self, host: Any) -> None:
        self.host = host
        self.prompt: dict[str, Any] = {}
        host.nodes.NODE_CLASS_MAPPINGS[GIVE] = Give

    def add(self, kind: str, **inputs: Any) -> Node:
        """Add a node. Inputs with a default may be left out."""
        given = {name: self._sent(value) for name, value in inputs.items()}
        if kind == "CascadeStudio_Load" and FILES.keys() & inputs.keys():
            given.setdefault("preset", "files below")
        types = self.host.nodes.NODE_CLASS_MAPPINGS[kind].INPUT_TYPES()
        for name, spec in {**types.get("required", {}), **types.get("optional", {})}.items():
            options = spec[1] if len(spec) > 1 else {}
            if name not in given and "default" in options:
                given[name] = options["default"]
        return self._put(kind, given)

    def _put(self, kind: str, inputs: dict[str, Any]) -> Node:
        node = Node(str(len(self.prompt) + 1))
        self.prompt[node.name] = {"class_type": kind, "inputs": inputs}
        return node

    def _sent(self, value: Any) -> Any:
        link = isinstance(value, list) and len(value) == 2 and isinstance(value[0], str)
        if link or isinstance(value, (str, int, float, bool)):
            return value
        return self.give(value)

    def give(self, value: Any) -> list[Any]:
        """Any object as a node's output; a number too, which the host then does not check itself."""
        key = str(len(Give.objects))
        Give.objects[key] = value
        return self._put(GIVE, {"key": key})[0]

    def execute(self, *wanted: list[Any], **options: Any) -> Any:
        """The :class:`inprocess.Result` of executing this, with the ``wanted`` outputs captured."""
        return self.host.execute(self.prompt, *map(tuple, wanted), **options)

    def run(self, *wanted: list[Any], **options: Any) -> Any:
        """The wanted values, one alone or a list; raises :class:`inprocess.PromptError`."""
        return self.host.run(self.prompt, *map(tuple, wanted), **options)

    def error(self, *wanted: list[Any], **options: Any) -> str:
        """What a user reads when this fails; AssertionError if it does not."""
        return self.host.error(self.prompt, *map(tuple, wanted), **options)


_NOT_FOR_USERS = re.compile(
    r"Error\b|Exception|Traceback|mat1|NoneType|object has no attribute|size mismatch|torch\.Size|<class|tensor\("
)


def check_sentence(text: str, *words: str) -> None:
    """``text`` reads as sentences without Python in them, and says each of ``words``."""
    assert text.endswith(".") and text[:1] == text[:1].strip() and text.count(" ") >= 7, text
    assert not _NOT_FOR_USERS.search(text), text
    missing = [word for word in words if word.lower() not in text.lower()]
    assert not missing, f"{missing} not in: {text}"


@dataclass(frozen=True)
class Parts:
    """The tiny family, loaded once: what Load Stable Cascade gives, and a prompt with its negative."""

    prior: Any
    decoder: Any
    clip: Any
    clip_vision: Any
    stage_a: Any
    stage_c_vae: Any
    positive: Any
    negative: Any

    @property
    def prompts(self) -> dict[str, Any]:
        """The conditioning inputs of a sampler."""
        return {"positive": self.positive, "negative": self.negative}


_loaded: dict[int, Parts] = {}


def load_parts(host: Any) -> Parts:
    """The family of ``host``, whose files must be written already."""
    if id(host) not in _loaded:
        graph = Graph(host)
        load = graph.add("CascadeStudio_Load", **FILES)
        prompts = [graph.add("CLIPTextEncode", clip=load[2], text=text)[0] for text in ("a red apple", "")]
        _loaded[id(host)] = Parts(*graph.run(*(load[slot] for slot in range(6)), *prompts))
    return _loaded[id(host)]


_pictures: dict[int, Any] = {}


def check_works(host: Any) -> None:
    """A small picture comes out, and is the same every time: nothing that went wrong before has left a trace."""
    parts = load_parts(host)
    graph = Graph(host)
    canvas = graph.add("CascadeStudio_Canvas", width=64, height=64)
    prior = graph.add("CascadeStudio_SamplePrior", model=parts.prior, latent=canvas[0], steps=2, **parts.prompts)
    latent = graph.add("CascadeStudio_SampleDecoder", model=parts.decoder, prior=prior[0], steps=1, **parts.prompts)
    picture = graph.run(graph.add("CascadeStudio_DecodeStageA", latent=latent[0], vae=parts.stage_a)[0])
    assert picture.shape == (1, 64, 64, 3) and picture.std() > 0.01
    expected = _pictures.setdefault(id(host), picture)
    assert torch.equal(picture, expected)
