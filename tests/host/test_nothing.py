"""An output that has nothing blocks with a sentence: no node of the pack hands None on, and core's nodes tell why."""

from __future__ import annotations

from itertools import combinations
from typing import Any

import pytest
from graphs import FILES, Graph, check_sentence
from inprocess import PromptError
from node_inputs import make_inputs
from sources import node_classes

OBJECTS = {"MODEL", "CLIP", "VAE", "CLIP_VISION", "LATENT", "IMAGE", "MASK", "CONDITIONING", "CONTROL_NET", "HOOKS"}
LORA = {"lora": "kohya.safetensors"}
BLOCKED = "Execution Blocked: "
NO_OBJECTS = {"CascadeStudio_Canvas", "CascadeStudio_Sampler", "CascadeStudio_TrainingSettings"}
TAKERS = {name for name in node_classes() if not name.startswith("CascadeStudio_Load")} - NO_OBJECTS
TAKERS |= {"CascadeStudio_LoadLora"}


@pytest.fixture
def outputs(host, monkeypatch) -> list[tuple[Any, ...]]:
    """What nodes of the pack handed to the host."""
    from comfy_api.latest import io

    seen: list[tuple[Any, ...]] = []
    real = io.NodeOutput.__init__

    def record(self: Any, *values: Any, **more: Any) -> None:
        seen.append(values)
        real(self, *values, **more)

    monkeypatch.setattr(io.NodeOutput, "__init__", record)
    return seen


def optional_objects(host: Any, kind: str) -> list[str]:
    types = host.nodes.NODE_CLASS_MAPPINGS[kind].INPUT_TYPES().get("optional", {})
    return [name for name, spec in types.items() if spec[0] in OBJECTS]


@pytest.mark.parametrize("kind", sorted(TAKERS))
def test_no_output_is_none(host, parts, outputs, kind):
    """With each optional wire left out alone, two by two and all at once: values, blocks, or a sentence."""
    if kind == "CascadeStudio_LoadLora":
        whole = {**LORA, "prior": parts.prior, "decoder": parts.decoder, "clip": parts.clip}
    else:
        whole = make_inputs(parts)[kind]
    names = [name for name in optional_objects(host, kind) if name in whole]
    for count in sorted({0, 1, 2, len(names)}):
        for left_out in combinations(names, count):
            graph = Graph(host)
            node = graph.add(kind, **{name: value for name, value in whole.items() if name not in left_out})
            outputs.clear()
            try:
                graph.run(node[0]) if host.nodes.NODE_CLASS_MAPPINGS[kind].RETURN_TYPES else graph.run()
            except PromptError as error:
                check_sentence(str(error).removeprefix(BLOCKED))
            assert not any(value is None for values in outputs for value in values), (kind, left_out)


BARE = {**FILES, "image_encoder": "none", "previewer": "none", "clip_vision": "none"}


@pytest.mark.parametrize(
    "kind, name, slot, more",
    [
        ("VAEDecode", "vae", 5, {"samples": "latent"}),
        ("VAEEncode", "vae", 5, {"pixels": "image"}),
        ("CLIPVisionEncode", "clip_vision", 3, {"image": "image", "crop": "center"}),
        ("CascadeStudio_DecodePreview", "vae", 5, {"prior": "latent"}),
        ("CascadeStudio_ImagePrompts", "clip_vision", 3, {"image_1": "image", "positive": "text", "negative": "text"}),
    ],
)
def test_the_loader_says_what_was_not_chosen(studio, kind, name, slot, more):
    import torch

    values = {"latent": studio.prior_latent, "image": torch.rand(1, 64, 64, 3), "text": studio.positive}
    graph = studio.graph()
    load = graph.add("CascadeStudio_Load", **BARE)
    node = graph.add(kind, **{name: load[slot]}, **{key: values.get(value, value) for key, value in more.items()})
    text = graph.error(node[0])
    assert text.startswith(BLOCKED)
    check_sentence(text.removeprefix(BLOCKED), "Load Stable Cascade", "no file is chosen", "Choose")


@pytest.mark.parametrize("kind", ["KSampler", "CascadeStudio_SampleDecoder"])
def test_a_lora_node_says_what_it_was_not_given(studio, kind):
    graph = studio.graph()
    lora = graph.add("CascadeStudio_LoadLora", **LORA, prior=studio.parts.prior)
    latent = studio.canvas()[1]
    more = (
        {"latent_image": latent, "sampler_name": "euler", "scheduler": "simple"}
        if kind == "KSampler"
        else {"prior": studio.prior_latent}
    )
    text = graph.error(graph.add(kind, model=lora[1], **studio.prompts, **more)[0])
    check_sentence(text.removeprefix(BLOCKED), "Load Cascade LoRA", "was given no decoder", "'decoder'")
