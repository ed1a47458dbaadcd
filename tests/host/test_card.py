"""The card in a saved picture: it tells that picture alone, and it alone makes the picture again, bit for bit."""

from __future__ import annotations

import hashlib
import json
import re
from typing import Any

import numpy as np
import pytest
import torch
from graphs import FILES, Graph
from PIL import Image
from world import FP32

SEED = 2**64 - 2
PROMPT, NEGATIVE = "a (red:1.3) house, by the sea: 16:9", "a dog"
SIDE = 128


def build(host, batch: int = 3, chosen: str = "", **core: Any) -> tuple[Graph, Any, Any]:
    """A prompt with everything that a card tells, from files alone; with ``chosen`` a draft board is in between."""
    graph = Graph(host)
    load = graph.add("CascadeStudio_Load", **FILES, **FP32)
    lora = graph.add(
        "CascadeStudio_LoadLora", lora="official.safetensors", prior=load[0], strength_model=0.7, strength_clip=0.4
    )
    prompts = [graph.add("CascadeStudio_EncodePrompt", clip=load[2], text=text) for text in (PROMPT, NEGATIVE)]
    picture = graph.add("EmptyImage", width=SIDE, height=SIDE, batch_size=1, color=0xFF8800)
    hint = graph.add("CascadeStudio_CannyHint", image=picture[0])
    net = graph.add("CascadeStudio_LoadControlNet", controlnet="canny.safetensors")
    applied = graph.add(
        "CascadeStudio_ApplyControl",
        positive=prompts[0][0],
        negative=prompts[1][0],
        control_net=net[0],
        image=hint[0],
        strength=0.6,
        end_percent=0.8,
    )
    canvas = graph.add("CascadeStudio_Canvas", width=SIDE, height=SIDE, batch_size=batch)
    given = {"positive": applied[0], "negative": applied[1], "seed": SEED, "steps": 2}
    prior = graph.add("CascadeStudio_SamplePrior", model=lora[0], latent=canvas[0], cfg=3.0, rescale=0.5, **given)
    drafts = graph.add("CascadeStudio_DraftBoard", prior=prior[0], vae=load[5], chosen=chosen) if chosen else prior
    latent = graph.add("CascadeStudio_SampleDecoder", model=load[1], prior=drafts[0], **given)
    image = graph.add("CascadeStudio_DecodeStageA", latent=latent[0], vae=load[4])
    saved = graph.add(
        "CascadeStudio_SaveImage", images=image[0], report=image[1], filename_prefix="cards/whole", **core
    )
    return graph, saved, image


def save(host, **options: Any) -> tuple[list[Image.Image], torch.Tensor]:
    graph, saved, image = build(host, **options)
    result = graph.execute(image[0])
    assert result.success, result.error
    folder = host.base / "output"
    files = [Image.open(folder / told["subfolder"] / told["filename"]) for told in result.ui[saved.name]["images"]]
    return files, result.values[(image.name, 0)]


def card_of(file: Image.Image) -> dict[str, Any]:
    return json.loads(file.text["cascade_studio"])


@pytest.fixture(scope="module")
def batch(host, family) -> tuple[list[Image.Image], torch.Tensor]:
    return save(host)


def digest(family, folder: str, name: str) -> str:
    return hashlib.sha256((family / folder / name).read_bytes()).hexdigest()


def test_every_file_is_told_its_own_seed_and_place(batch):
    """Seeds go round at 2^64."""
    files, _ = batch
    for index, file in enumerate(files):
        told = card_of(file)
        assert told["picture"] == {"pictures": 3, "width": SIDE, "height": SIDE, "number": index + 1}
        for stage in told["stages"][:2]:
            assert stage["seed"] == (SEED + index) % 2**64 and stage["places"] == [index] and stage["pictures"] == 1
        assert f"Seed: {(SEED + index) % 2**64}," in file.text["parameters"]


def test_the_card_knows_what_made_the_picture(batch, family):
    told = card_of(batch[0][0])
    assert told["prompt"] == [PROMPT] and told["negative_prompt"] == [NEGATIVE]
    (lora,), (net,) = told["loras"], told["controlnets"]
    assert lora == {
        "name": "official.safetensors",
        "sha256": digest(family, "loras", "official.safetensors"),
        "strength_model": 0.7,
        "strength_clip": 0.4,
    }
    stage = told["stages"][0]
    assert (stage["cfg"], stage["rescale"], stage["steps"], stage["shift"]) == (3.0, 0.5, 2, 2.0)
    assert (net["name"], net["strength"], net["end_percent"]) == ("canny.safetensors", 0.6, 0.8)
    assert net["sha256"] == digest(family, "controlnet", "canny.safetensors")
    assert {FILES[role] for role in ("prior", "decoder", "text_encoder", "stage_a", "image_encoder", "previewer")} <= {
        model["name"] for model in told["models"]
    }
    assert all(re.fullmatch("[0-9a-f]{64}", model["sha256"]) for model in told["models"])
    assert str(family) not in batch[0][0].text["cascade_studio"]


def rebuild(host, told: dict[str, Any]) -> torch.Tensor:
    """The pictures that a card's recipe makes, in a host that has seen nothing else of it."""
    nodes, (name, slot) = told["recipe"]["nodes"], told["recipe"]["picture"]
    return host.run(json.loads(json.dumps(nodes)), (name, slot))


def test_the_card_alone_makes_the_pictures_again(host, batch):
    files, pictures = batch
    again = rebuild(host, card_of(files[1]))
    assert torch.equal(again, pictures)
    for index, file in enumerate(files):
        pixels = np.clip(255.0 * again[index].numpy(), 0, 255).astype(np.uint8)
        assert np.array_equal(np.asarray(file), pixels)


def test_a_chosen_draft_is_told_its_own_seed(host, batch):
    """The seed on its card makes it alone, and the recipe makes it again."""
    (file,), picture = save(host, chosen="3")
    told = card_of(file)
    assert [stage["seed"] for stage in told["stages"][:2]] == [0, 0] and told["stages"][0]["places"] == [2]
    assert torch.equal(rebuild(host, told), picture)
    torch.testing.assert_close(picture[0], batch[1][2], rtol=0, atol=1e-3)
    nodes = told["recipe"]["nodes"]
    for node in nodes.values():
        if node["class_type"] == "CascadeStudio_Canvas":
            node["inputs"]["batch_size"] = 1
        elif "seed" in node["inputs"]:
            node["inputs"]["seed"] = told["stages"][0]["seed"]
        elif node["class_type"] == "CascadeStudio_DraftBoard":
            node["inputs"]["chosen"] = "1"
    torch.testing.assert_close(rebuild(host, told)[0], picture[0], rtol=0, atol=1e-3)


def test_core_s_cut_of_a_batch_is_told_as_well(host, family):
    from cascade_studio.nodes.host.report import card

    report = card.StageReport("Stage C", 3, 3, 4, settings=(("seed", 5),))
    latent = {"samples": torch.zeros(2, 16, 3, 3), "batch_index": [1, 3], card.REPORT: (report,)}
    (cut,) = card.find_reports(latent)
    assert (cut.pictures, cut.places) == (2, (1, 3)) and [cut.seed(0), cut.seed(1)] == [6, 8]
    varied = card.StageReport(
        "Stage C", 3, 3, 2, settings=(("seed", 5), ("variation_seed", 9), ("variation_strength", 0.5))
    )
    shared = card.StageReport("Stage C", 3, 3, 2, settings=(("seed", 5), ("noise", "official")))
    assert [shared.seed(0), shared.seed(1)] == [5, 5]
    assert varied.seed(1) == 10 and dict(varied.for_picture(1).settings)["seed"] == 5


def test_parameters_as_other_tools_read_them(batch, family):
    """Taken apart as their readers do: text, negative prompt, and pairs of names and values."""
    *prompt, negative, line = batch[0][0].text["parameters"].split("\n")
    assert "\n".join(prompt) == PROMPT and negative == f"Negative prompt: {NEGATIVE}"
    pairs = dict(re.findall(r'\s*(\w[\w \-/]+):\s*("(?:\\.|[^\\"])+"|\{[^}]*\}|[^,]*)(?:,|$)', line))
    prior, lora = digest(family, "diffusion_models", FILES["prior"]), digest(family, "loras", "official.safetensors")
    expected = {
        "Steps": "2",
        "Sampler": "ddpm",
        "CFG scale": "3",
        "Size": f"{SIDE}x{SIDE}",
        "Model": FILES["prior"].rsplit(".", 1)[0],
        "Model hash": prior[:10],
        "Lora hashes": f'"official: {lora[:10]}"',
    }
    assert expected.items() <= pairs.items()
    hashes = json.loads(pairs["Hashes"])
    assert hashes["model"] == prior[:10] and hashes["lora:official"] == lora[:10]


def test_the_text_card(host, batch):
    graph, saved, image = build(host, batch=2)
    node = graph.add("CascadeStudio_ReportCard", report=image[1], image=image[0], hashes=False)
    text = graph.run(node[0])
    for words in (
        f"Prompt: {PROMPT}",
        f"Negative prompt: {NEGATIVE}",
        "LoRA: official.safetensors, strength model 0.7",
    ):
        assert words in text
    assert "ControlNet: canny.safetensors, strength 0.6" in text and FILES["text_encoder"] in text
    assert f"seeds of the pictures: {SEED}, {SEED + 1}" in text


@pytest.mark.parametrize("prefix", ["taken/picture", "../outside/picture", "CON/picture", "a\0b/picture", "a" * 300])
def test_saving_checks_its_place_before_any_work(host, family, prefix):
    """A file stands where the folder should be, or the place is not ours: told before the first node runs."""
    (host.base / "output" / "taken").write_bytes(b"in the way") if prefix.startswith("taken") else None
    graph = Graph(host)
    image = graph.add("EmptyImage", width=16, height=16, batch_size=1, color=0)
    graph.add("CascadeStudio_SaveImage", images=image[0], filename_prefix=prefix)
    result = graph.execute()
    assert not result.success and not result.executed
    assert "cannot write" in result.error and "filename_prefix" in result.error
