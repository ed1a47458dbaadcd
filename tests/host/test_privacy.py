"""What the host writes into saved pictures and its history says nothing of the folders on this computer."""

from __future__ import annotations

import json
import re

import pytest
import torch
from graphs import FILES, Graph
from PIL import Image
from sources import node_classes

from cascade_studio.nodes.checkpoints.catalogue import FROM_CHECKPOINT, NONE

HASH = re.compile(r"(?:[0-9a-f]{64})+")


def stamped(host) -> list[str]:
    """The pack's nodes that say when the host has to run them again."""
    from comfy_api.latest import io

    kinds = host.nodes.NODE_CLASS_MAPPINGS
    own = io.ComfyNode.fingerprint_inputs.__func__
    return [kind for kind in sorted(node_classes()) if kinds[kind].fingerprint_inputs.__func__ is not own]


def test_every_fingerprint_is_a_hash(host, family):
    """Of every node that has one, for files that are here, that are not, for none, and for folders."""
    found = stamped(host)
    assert len(found) >= 10
    folder = host.base / "input" / "stamped"
    folder.mkdir(exist_ok=True)
    Image.new("RGB", (64, 64)).save(folder / "holiday.png")
    for kind in found:
        node = host.nodes.NODE_CLASS_MAPPINGS[kind]
        declared = node.INPUT_TYPES()
        every = {**declared.get("required", {}), **declared.get("optional", {})}
        choices = {name: spec[1].get("options") or [] for name, spec in every.items() if len(spec) > 1}
        given = [
            {name: options[0] for name, options in choices.items() if options},
            {name: FILES[name] for name in choices if name in FILES},
            {name: "absent.safetensors" for name, options in choices.items() if options},
            *({name: word for name in choices if name in FILES} for word in (NONE, FROM_CHECKPOINT, "", None)),
            *({"folder": name} for name in ("stamped", "absent", "") if "folder" in choices),
            *({**FILES, "preset": preset} for preset in choices.get("preset", [])),
        ]
        for inputs in given:
            told = node.fingerprint_inputs(**{name: value for name, value in inputs.items() if name in every})
            assert HASH.fullmatch(told), f"{kind} with {inputs} tells {told}"


@pytest.mark.parametrize("save", ["SaveImage", "CascadeStudio_SaveImage"])
def test_saved_pictures_hold_no_path(host, family, save):
    graph = Graph(host)
    vae = graph.add("CascadeStudio_LoadStageA", stage_a=FILES["stage_a"])
    latent = graph.add("CascadeStudio_EncodeStageA", image=torch.rand(1, 64, 64, 3), vae=vae[0])
    image = graph.add("CascadeStudio_DecodeStageA", latent=latent[0], vae=vae[0])
    told = {"report": image[1]} if save.startswith("Cascade") else {}
    saved = graph.add(save, images=image[0], filename_prefix="private", **told)
    result = graph.execute()
    assert result.success, result.error
    place = result.ui[saved.name]["images"][0]
    with Image.open(host.base / "output" / place["subfolder"] / place["filename"]) as picture:
        texts = dict(picture.text)
    assert "is_changed" in texts["prompt"], "the host no longer writes fingerprints: this test sees nothing"
    written = json.dumps(texts)
    assert str(host.base) not in written and str(family) not in written and FILES["stage_a"] + ":" not in written
