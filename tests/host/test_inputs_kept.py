"""No node changes what it is given: the host keeps it for other nodes and for the next run."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from graphs import Graph
from node_inputs import GUIDANCE, make_inputs
from sources import node_classes
from torch import Tensor


def snapshot(value: Any) -> Any:
    """A deep copy of tensors and containers; of a model, what another node could change in it."""
    if isinstance(value, Tensor):
        return value.clone()
    if isinstance(value, dict):
        return {key: snapshot(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(snapshot(each) for each in value)
    if hasattr(value, "model_options"):
        return snapshot(
            {
                "options": value.model_options,
                "objects": value.object_patches,
                "patches": value.patches,
                "weights": value.model.state_dict(),
                "wrappers": value.wrappers,
                "callbacks": value.callbacks,
            }
        )
    if hasattr(value, "patcher"):
        return snapshot(value.patcher)
    return value


def same(first: Any, second: Any) -> bool:
    if isinstance(first, Tensor):
        return first.dtype == second.dtype and first.shape == second.shape and torch.equal(first, second)
    if isinstance(first, dict):
        return list(first) == list(second) and all(same(first[key], second[key]) for key in first)
    if isinstance(first, (list, tuple)):
        return len(first) == len(second) and all(map(same, first, second))
    return first is second or first == second


NEW_EACH_TIME = {
    "CascadeStudio_" + name
    for name in (
        "Guider",
        "ApplyLoraStack",
        "ConvertLora",
        "ExtractLora",
        "MergeModels",
        "AddDifference",
        "SaveModel",
        "ApplyControl",
        "ImagePrompts",
        "TileDecoder",
        "OneModel",
        "GuideStageC",
        "RegionalPrompt",
        "TrainingSet",
        "Train",
        "TrainLora",
        *GUIDANCE,
    )
}
"""Nodes whose result is an object of its own, or a file of its own."""


NO_OBJECTS = {"CascadeStudio_Canvas", "CascadeStudio_Sampler", "CascadeStudio_TrainingSettings"}


TAKERS = {name for name in node_classes() if not name.startswith("CascadeStudio_Load")} - NO_OBJECTS
"""The pack's nodes that take more than widgets; each needs an entry in ``given``."""


def test_every_node_is_here(host, parts):
    assert TAKERS == set(make_inputs(parts))


@pytest.mark.parametrize("kind", sorted(TAKERS))
def test_inputs_are_kept(host, parts, kind):
    inputs = make_inputs(parts)[kind]
    slots = range(1 if host.nodes.NODE_CLASS_MAPPINGS[kind].RETURN_TYPES else 0)  # Compare only shows something
    before = {name: snapshot(value) for name, value in inputs.items()}
    graph = Graph(host)
    node = graph.add(kind, **inputs)
    first = graph.run(*(node[slot] for slot in slots))
    changed = [name for name, value in inputs.items() if not same(before[name], snapshot(value))]
    assert not changed
    if kind not in NEW_EACH_TIME:
        kept = snapshot(first)
        graph = Graph(host)
        node = graph.add(kind, **inputs)
        second = graph.run(*(node[slot] for slot in slots))
        assert same(kept, second), "the same inputs gave something else"
        assert same(kept, first), "the second run changed the result of the first"


@pytest.mark.parametrize("stage", ["C", "B"])
def test_core_sampling_with_our_nodes_keeps_inputs(host, parts, stage):
    inputs = make_inputs(parts)["CascadeStudio_SamplePrior" if stage == "C" else "CascadeStudio_SampleDecoder"]
    model, latent = inputs["model"], inputs["latent"]
    prompts = {name: inputs[name] for name in ("positive", "negative")}
    before = snapshot([model, latent, prompts])
    graph = Graph(host)
    node = graph.add(
        "SamplerCustomAdvanced",
        latent_image=latent,
        noise=graph.add("RandomNoise", noise_seed=0)[0],
        guider=graph.add("CascadeStudio_Guider", model=model, **prompts)[0],
        sampler=graph.add("CascadeStudio_Sampler", sampler="lcm")[0],
        sigmas=graph.add("CascadeStudio_Schedule", model=model, steps=2)[0],
    )
    graph.run(node[0])
    assert same(before, snapshot([model, latent, prompts]))
