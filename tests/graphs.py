"""The one way to build a prompt in tests: node by node, every input that is left out at its default.

Workflows as their authors think of them, with steps, places and notes, are written by ``tools.authoring.flow``.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

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
FOLDERS = {
    "prior": "diffusion_models",
    "decoder": "diffusion_models",
    "text_encoder": "text_encoders",
    "stage_a": "vae",
    "image_encoder": "vae",
    "previewer": "vae",
    "clip_vision": "clip_vision",
}
"""Where such a file lies, below the models folder."""


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


Specs = Callable[[str], dict[str, Any]]
"""The input definitions of a node: ``{"required": {name: (type, options)}, "optional": …}``."""


class Prompt:
    """An API prompt of nodes as ``specs`` defines them. Values are node outputs and widget values."""

    def __init__(self, specs: Specs) -> None:
        self.specs = specs
        self.prompt: dict[str, Any] = {}

    def add(self, kind: str, called: str = "", /, **inputs: Any) -> Node:
        """Add a node under a name, or a number. Inputs with a default may be left out."""
        types = self.specs(kind)
        given = dict(inputs)
        for name, spec in {**types.get("required", {}), **types.get("optional", {})}.items():
            options = spec[1] if len(spec) > 1 else {}
            if name not in given and "default" in options:
                given[name] = options["default"]
        node = Node(called or str(len(self.prompt) + 1))
        self.prompt[node.name] = {"class_type": kind, "inputs": given}
        return node


class Graph(Prompt):
    """A prompt for the host in this process, which may hand in objects of the test as well."""

    def __init__(self, host: Any) -> None:
        super().__init__(lambda kind: host.nodes.NODE_CLASS_MAPPINGS[kind].INPUT_TYPES())
        self.host = host
        host.nodes.NODE_CLASS_MAPPINGS[GIVE] = Give

    def add(self, kind: str, called: str = "", /, **inputs: Any) -> Node:
        """As :meth:`Prompt.add`; other values than widgets hold are handed in by :meth:`give`."""
        given = {name: self._sent(value) for name, value in inputs.items()}
        if kind == "CascadeStudio_Load" and FILES.keys() & inputs.keys():
            given.setdefault("preset", "files below")
        return super().add(kind, called, **given)

    def _sent(self, value: Any) -> Any:
        link = isinstance(value, list) and len(value) == 2 and isinstance(value[0], str)
        if link or isinstance(value, (str, int, float, bool)):
            return value
        return self.give(value)

    def give(self, value: Any) -> list[Any]:
        """Any object as a node's output; a number too, which the host then does not check itself."""
        key = str(len(Give.objects))
        Give.objects[key] = value
        return super().add(GIVE, key=key)[0]

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
