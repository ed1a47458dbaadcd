"""Every number that a node of the pack takes: NaN and infinity, which the host lets pass, get a sentence."""

from __future__ import annotations

import pytest
from graphs import Graph, check_sentence
from node_inputs import make_inputs
from sources import node_classes


@pytest.mark.parametrize("kind", sorted(node_classes()))
def test_no_number_is_nan(host, parts, kind):
    node = host.nodes.NODE_CLASS_MAPPINGS[kind]
    declared = node.INPUT_TYPES()
    every = {**declared.get("required", {}), **declared.get("optional", {})}
    usual = make_inputs(parts).get(kind) or (
        {"lora": "official.safetensors", **({"model": parts.prior} if "model" in every else {})}
        if "lora" in every
        else {}
    )
    for name in [name for name, spec in every.items() if spec[0] == "FLOAT"]:
        for value in (float("nan"), float("inf")):
            graph = Graph(host)
            number = graph.give(value)  # over a wire, where the host checks nothing
            made = graph.add(kind, **{**usual, name: number})
            check_sentence(graph.error(*([made[0]] if node.RETURN_TYPES else [])), name, "number")
