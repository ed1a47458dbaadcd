"""Every input of the pack that takes a picture or a mask: grey and transparent ones work, the rest gets a sentence."""

from __future__ import annotations

import pytest
import torch
from graphs import Graph, check_sentence
from node_inputs import make_inputs
from sources import node_classes
from world import Parts

NAN = float("nan")
PICTURES = {
    "no picture": lambda image: image[:0],
    "no pixel": lambda image: image[:, :0],
    "two channels": lambda image: image[..., :2],
    "a latent hint": lambda image: image[..., :1].repeat(1, 1, 1, 16),
    "identity hint": lambda image: image[..., :1].repeat(1, 1, 1, 512),
    "NaN": lambda image: torch.full_like(image, NAN),
}
MASKS = {
    "no mask": lambda mask: mask[:0],
    "no pixel": lambda mask: mask[:, :0],
    "NaN": lambda mask: torch.full_like(mask, NAN),
    "negative": lambda mask: mask - 0.5,
}
HINTS = {("CascadeStudio_ApplyControl", "image")}
"""What takes hints of any number of channels; those have a check of their own."""


def inputs_of(host, kind: str, *types: str) -> list[str]:
    declared = host.nodes.NODE_CLASS_MAPPINGS[kind].INPUT_TYPES()
    every = {**declared.get("required", {}), **declared.get("optional", {})}
    return [name for name, spec in every.items() if spec[0] in types and (kind, name) not in HINTS]


def execute(host, parts: Parts, kind: str, **changed):
    graph = Graph(host)
    node = graph.add(kind, **{**make_inputs(parts)[kind], **changed})
    return graph.execute(*([node[0]] if host.nodes.NODE_CLASS_MAPPINGS[kind].RETURN_TYPES else []))


def walk(host, parts, kind: str, of: str):
    """The inputs of type ``of`` that the test world fills."""
    return [
        (name, make_inputs(parts)[kind][name]) for name in inputs_of(host, kind, of) if name in make_inputs(parts)[kind]
    ]


@pytest.mark.parametrize("kind", sorted(node_classes()))
def test_wrong_pictures_get_a_sentence(host, parts, kind):
    if kind not in make_inputs(parts):
        assert not inputs_of(host, kind, "IMAGE", "MASK")
        return
    for of, wrong in (("IMAGE", PICTURES), ("MASK", MASKS)):
        for name, value in walk(host, parts, kind, of):
            for case, spoil in wrong.items():
                result = execute(host, parts, kind, **{name: spoil(value)})
                assert not result.success, f"{kind} takes {case} on {name}"
                check_sentence(result.error, name)


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("kind", sorted(node_classes()))
def test_grey_and_transparent_pictures_work(host, parts, kind, channels):
    for name, value in walk(host, parts, kind, "IMAGE") if kind in make_inputs(parts) else []:
        image = torch.cat([value[..., :1], value, value], -1)[..., :channels]
        result = execute(host, parts, kind, **{name: image})
        assert result.success, result.error
