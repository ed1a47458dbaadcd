"""Every node as it is dropped: widgets as the frontend fills them, wires from what naturally stands before it.

Nothing lies in the models folder, so that a fresh Load Stable Cascade takes Cascade Mini.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from family import write_guide
from graphs import Graph, check_sentence
from node_inputs import make_inputs
from sources import node_classes
from table import each
from world import Parts

from cascade_studio.nodes.checkpoints.presets import Machine
from cascade_studio.nodes.host import machine
from cascade_studio.nodes.host.files import names
from cascade_studio.nodes.host.files.names import share_examples

LENGTH = {"CascadeStudio_TrainLora": {"steps": 1}, "CascadeStudio_Train": {"steps": 1}}
"""What would only take long at its default."""

SAYS = {
    "CascadeStudio_LoadImageEncoder": ("Neither an image encoder nor a previewer", "Choose at least one"),
    "CascadeStudio_TrainingSet": ("2 pictures were given with 0 captions", "Write one line for each picture"),
}
"""Nodes that lack something as they are dropped, and the words that say what."""


def drop(graph: Graph, kind: str, **wires: Any) -> Any:
    """A node of ``kind`` with every widget as the frontend fills it: its default, else the first choice or nothing."""
    declared = graph.host.nodes.NODE_CLASS_MAPPINGS[kind].INPUT_TYPES()
    given = {}
    for name, (kind_of, *options) in {**declared.get("required", {}), **declared.get("optional", {})}.items():
        choices = kind_of if isinstance(kind_of, list) else (options or [{}])[0].get("options", [])
        plain = {"STRING": "", "INT": 0, "FLOAT": 0.0, "BOOLEAN": False}.get(str(kind_of), next(iter(choices), None))
        if plain is not None:
            given[name] = (options or [{}])[0].get("default", plain)
    return graph.add(kind, **{**given, **wires})


def is_wire(value: Any) -> bool:
    return not isinstance(value, (str, int, float, bool))


@pytest.fixture(scope="module")
def empty(host, tmp_path_factory) -> Iterator[Any]:
    """The host without a file in its folders for models, but for a guide, which Cascade Mini has none of."""
    folder, before = tmp_path_factory.mktemp("models"), dict(host.folder_paths.folder_names_and_paths)
    for key, (_, suffixes) in before.items():
        host.folder_paths.folder_names_and_paths[key] = ([str(folder / key)], suffixes)
    write_guide(folder)
    share_examples()
    host.folder_paths.filename_list_cache.clear()
    yield host
    host.folder_paths.folder_names_and_paths.update(before)
    host.folder_paths.filename_list_cache.clear()


@pytest.fixture(scope="module")
def chain(empty) -> dict[str, Any]:
    """A fresh loader, canvas, both samplers and Stage A, wired as anybody would; what comes out of each."""
    graph = Graph(empty)
    load, canvas = drop(graph, "CascadeStudio_Load"), drop(graph, "CascadeStudio_Canvas")
    positive, negative = (graph.add("CLIPTextEncode", clip=load[2], text=text)[0] for text in ("a red apple", ""))
    prompts = {"positive": positive, "negative": negative}
    prior = drop(graph, "CascadeStudio_SamplePrior", model=load[0], latent=canvas[0], **prompts)
    latent = drop(graph, "CascadeStudio_SampleDecoder", model=load[1], prior=prior[0], **prompts)
    picture = drop(graph, "CascadeStudio_DecodeStageA", latent=latent[0], vae=load[4])
    control, tuned = drop(graph, "CascadeStudio_LoadControlNet"), drop(graph, "CascadeStudio_LoadLora", prior=load[0])
    last = {"canvas": canvas, "prior": prior, "latent": latent, "picture": picture, "control": control, "tuned": tuned}
    wanted = [*(load[slot] for slot in range(6)), positive, negative, *(node[0] for node in last.values())]
    result = graph.execute(*wanted)
    assert result.success, result.error
    values = [result.values[tuple(output)] for output in wanted]
    parts, made = Parts(*values[:8]), dict(zip(last, values[8:]))
    lora = {"CascadeStudio_LoadLora": {"prior": parts.prior}, "CascadeStudio_LoadHookLora": {"model": parts.prior}}
    return {"parts": parts, "inputs": {**make_inputs(parts, made["control"]), **lora}, "ui": result.ui, **made}


def test_a_fresh_canvas_beside_a_fresh_loader_paints_a_picture_of_the_models_size(chain):
    side = chain["parts"].prior.model.diffusion_model.config.native_side
    assert chain["picture"].shape == (1, side, side, 3) and chain["picture"].std() > 0.05
    told = [line for shown in chain["ui"].values() for line in shown.get("text", [])]
    assert not [line for line in told if "trained on pictures of about" in line]


def natural(chain: dict[str, Any], kind: str, name: str, value: Any) -> Any:
    """What stands before an input of ``kind`` in a workflow; ``value`` is what other tests give it."""
    if isinstance(value, dict) and "samples" in value:
        if (kind, name) == ("CascadeStudio_SamplePrior", "latent"):
            return chain["canvas"]
        return chain["prior" if value["samples"].shape[1] == 16 else "latent"]
    return {**chain["parts"].prompts, "tuned": chain["tuned"]}.get(name, value)


@each(sorted(node_classes()))
def test_every_node_as_it_is_dropped(kind, empty, chain):
    usual = chain["inputs"].get(kind, {})
    wires = {name: natural(chain, kind, name, value) for name, value in usual.items() if is_wire(value)}
    graph = Graph(empty)
    node = drop(graph, kind, **{**wires, **LENGTH.get(kind, {})})
    outputs = empty.nodes.NODE_CLASS_MAPPINGS[kind].RETURN_TYPES
    result = graph.execute(*([node[0]] if outputs else []))
    if kind in SAYS:
        assert not result.success, "it says nothing any more"
        check_sentence(result.error, *SAYS[kind])
    else:
        assert result.success, result.error


def read_defaults(host: Any) -> dict[tuple[str, str], dict[str, Any]]:
    """What the host says of every input of the pack that has a default, by node and name."""
    found = {}
    for kind in node_classes():
        declared = host.nodes.NODE_CLASS_MAPPINGS[kind].INPUT_TYPES()
        for name, (_, *options) in {**declared.get("required", {}), **declared.get("optional", {})}.items():
            if options and "default" in options[0]:
                found[kind, name] = options[0]
    return found


def test_what_follows_the_machine_names_the_default_of_files_that_are_handed_on(host, family, monkeypatch):
    """Else workflows and blocks that are written on a machine with other models would have other values."""
    before = read_defaults(host)
    path = str(family / "diffusion_models" / "stage_c.safetensors")
    monkeypatch.setattr(names.Library, "find_known", lambda *_: path)
    monkeypatch.setattr(machine, "describe_machine", lambda: Machine("cuda", "a card", True, True, True, 10**11))
    after = read_defaults(host)
    following = {place for place, options in before.items() if options["default"] != after[place]["default"]}
    assert following, "the canvas of that machine begins with the size of its own model"
    assert {place for place, options in before.items() if "authored" in options} == following
    for place in following:
        assert before[place]["authored"] == after[place]["authored"] == before[place]["default"], place
