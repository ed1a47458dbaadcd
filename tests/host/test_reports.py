"""Reports: what the stages took, with which files, in the node and in the saved picture."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from datetime import datetime
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from graphs import FILES
from PIL import Image
from world import Studio

SEED = 4
KEY = "cascade_studio_report"


@pytest.fixture(scope="module")
def made(studio) -> dict[str, Any]:
    """All three stages once: the latents, the picture, the report, and what the nodes told the interface."""
    graph = studio.graph()
    prior = graph.add(
        "CascadeStudio_SamplePrior",
        model=studio.parts.prior,
        latent=studio.canvas(batch=2)[0],
        steps=2,
        seed=SEED,
        **studio.prompts,
    )
    latent = graph.add(
        "CascadeStudio_SampleDecoder", model=studio.parts.decoder, prior=prior[0], steps=3, seed=SEED, **studio.prompts
    )
    image = graph.add("CascadeStudio_DecodeStageA", latent=latent[0], vae=studio.parts.stage_a)
    result = graph.execute(prior[0], latent[0], image[0], image[1])
    assert result.success, result.error
    names = (prior.name, 0), (latent.name, 0), (image.name, 0), (image.name, 1)
    found = dict(zip(("prior", "latent", "image", "report"), (result.values[name] for name in names)))
    return {**found, "ui": [result.ui[node.name][KEY] for node in (prior, latent, image)]}


def test_reports_travel_with_the_latent(made):
    assert [each.stage for each in made["prior"][KEY]] == ["Stage C"]
    assert [each.stage for each in made["latent"][KEY]] == ["Stage C", "Stage B"]
    assert [each.stage for each in made["report"]] == ["Stage C", "Stage B", "Stage A"]
    sizes = [(each.width, each.height, each.unit, each.pictures) for each in made["report"]]
    assert sizes == [(6, 6, "cells", 2), (64, 64, "latents", 2), (256, 256, "px", 2)]
    assert [each.setting("steps") for each in made["report"]] == [2, 3, None]
    assert made["report"][0].setting("shift") == 2.0 and made["report"][1].setting("cfg") == 1.1


def test_time_and_memory_are_measured(made):
    for each in made["report"]:
        assert 0 < each.seconds < 600 and 0 <= each.peak_memory < 2 * 1024**3
    assert not [thread for thread in threading.enumerate() if "memory" in thread.name and "cascade" in thread.name]


def test_nodes_tell_the_interface(made):
    """Small plain values, one entry a node."""
    for told, each in zip(made["ui"], made["report"]):
        assert json.loads(json.dumps(told)) == [each.as_dict()]
        assert told[0]["seconds"] > 0 and told[0]["model"] in FILES.values()


def test_measuring_sees_memory_that_is_given_back(monkeypatch):
    from cascade_studio.nodes.host.report.measure import measure_work

    look, looks = psutil.Process.memory_info, []

    def count_looks(process):
        found = look(process)
        looks.append(found.rss)
        return found

    monkeypatch.setattr(psutil.Process, "memory_info", count_looks)
    with measure_work(torch.device("cpu")) as small:
        pass
    with measure_work(torch.device("cpu")) as large:
        block = torch.ones(64 * 1024**2)
        block.sum()
        threading.Event().wait(0.1)
        seen = len(looks)
        while len(looks) < seen + 2:  # however late the machine lets the watcher look
            threading.Event().wait(0.01)
        del block
    assert large.peak_memory - small.peak_memory > 200 * 1024**2 and large.seconds >= 0.1


def test_a_failure_ends_the_measuring():
    from cascade_studio.nodes.host.report.measure import measure_work

    before = threading.active_count()
    with pytest.raises(ValueError), measure_work(torch.device("cpu")):
        raise ValueError
    assert threading.active_count() == before


def card(studio: Studio, **inputs: Any) -> tuple[str, Any]:
    graph = studio.graph()
    node = graph.add("CascadeStudio_ReportCard", **inputs)
    result = graph.execute(node[0])
    assert result.success, result.error
    return result.values[(node.name, 0)], result.ui[node.name]


def digest(studio: Studio, folder: str, role: str) -> str:
    return hashlib.sha256((studio.models / folder / FILES[role]).read_bytes()).hexdigest()


def test_the_card_tells_everything(studio, made):
    text, shown = card(studio, report=made["report"], image=made["image"])
    assert list(shown["text"]) == [text]
    assert "2 of 256 × 256 px" in text and "6 × 6 cells" in text and f"seed {SEED}" in text
    assert len(re.findall(r"\d+\.\d\d s", text)) == 4 and len(re.findall(r"peak memory \d+\.\d\d GiB", text)) == 3
    for folder, role in (("diffusion_models", "prior"), ("diffusion_models", "decoder"), ("vae", "stage_a")):
        assert FILES[role] in text and digest(studio, folder, role) in text
    assert text.count("Licence: ") == 3 and "unknown" in text, "the tests' own files have no licence"


def test_the_card_without_hashes_and_from_a_latent(studio, made):
    text, _ = card(studio, latent=made["latent"], hashes=False)
    assert "SHA-256" not in text and "Stage B" in text and "Stage A" not in text
    assert text.count("\n") == 4


def test_a_card_without_a_report_says_how_to_get_one(studio):
    for inputs in ({}, {"latent": {"samples": torch.zeros(1, 4, 8, 8)}}):
        text, _ = card(studio, **inputs)
        assert "Decode Stage A" in text and text.endswith(".")


def test_loras_are_told(studio, made):
    graph = studio.graph()
    model = graph.run(
        graph.add(
            "LoraLoader",
            model=studio.parts.prior,
            clip=studio.parts.clip,
            lora_name="kohya.safetensors",
            strength_model=1.0,
            strength_clip=1.0,
        )[0]
    )
    latent = studio.sample_prior(studio.canvas()[0], model=model, steps=1)
    assert latent[KEY][0].patched > 0 and made["report"][0].patched == 0
    assert "changed by LoRAs" in card(studio, latent=latent, hashes=False)[0]


def test_hashes_are_remembered(studio, made, monkeypatch):
    from cascade_studio.nodes.checkpoints import hashes

    card(studio, report=made["report"])
    read = []
    monkeypatch.setattr(hashes, "hash_file", lambda path, tick=None: read.append(path) or "0" * 64)
    text, _ = card(studio, report=made["report"])
    assert not read and "0" * 64 not in text


def test_hashing_can_be_cancelled(studio, tmp_path):
    from comfy.model_management import InterruptProcessingException

    from cascade_studio.nodes.host.report.card import hash_files

    file = tmp_path / "large.safetensors"
    file.write_bytes(b"x" * 100)
    studio.host.interrupt()
    with pytest.raises(InterruptProcessingException):
        hash_files([str(file)])
    assert hash_files([str(file)]) == {str(file): hashlib.sha256(b"x" * 100).hexdigest()}


def test_starting_from_a_picture_is_told(studio):
    latent = {**studio.canvas()[0], "samples": torch.randn(1, 16, 6, 6)}
    text, _ = card(
        studio,
        latent=studio.sample_prior(
            latent, steps=2, denoise=0.5, official_noise=True, variation_seed=8, variation_strength=0.2
        ),
        hashes=False,
    )
    for words in ("denoise 0.5", "official noise on", "variation seed 8", "variation strength 0.2", "sampler ddpm"):
        assert words in text


def test_licences(studio, tmp_path):
    """By hash before by what the file says, and that before its name."""
    from safetensors.torch import save_file

    from cascade_studio.nodes.checkpoints import catalogue
    from cascade_studio.nodes.host.report.card import find_licence

    known = catalogue.load()
    entry = known.find_named("prior", "stage_c_bf16.safetensors")
    path = tmp_path / entry.name
    save_file({"x": torch.zeros(1)}, path, metadata={"modelspec.license": "CC0"})
    assert find_licence(str(path), None, known) == "CC0"
    assert find_licence(str(path), entry.sha256, known) == entry.licence.describe()
    other = tmp_path / "other.safetensors"
    save_file({"x": torch.zeros(1)}, other)
    assert "unknown" in find_licence(str(other), "0" * 64, known)


def test_what_the_loaders_know_of_files_is_known_here(tmp_path, monkeypatch):
    """The hash that was taken while a file came is not taken again, and the user's own catalogue tells its licence."""
    from cascade_studio.nodes.checkpoints import hashes
    from cascade_studio.nodes.host.files import names as files
    from cascade_studio.nodes.host.report import card as report

    path, digest, own = tmp_path / "mine.safetensors", "ab" * 32, tmp_path / "own.json"
    path.write_bytes(b"not a model")
    files.hashes().remember(path, digest)
    own.write_text(
        json.dumps(
            {
                "files": [
                    {
                        "key": "mine",
                        "role": "prior",
                        "name": "other.safetensors",
                        "url": "https://example.org/other.safetensors",
                        "folder": "diffusion_models",
                        "licence": "mine alone",
                        "sha256": digest,
                    }
                ]
            }
        ),
        encoding="utf-8",
    )
    monkeypatch.setenv(files.CATALOGUE, str(own))
    monkeypatch.setattr(hashes, "hash_file", lambda path, tick=None: "0" * 64)
    stage = report.StageReport("Stage C", 6, 6, 1, weights=str(path))
    (file,) = report.list_model_files([stage], hashes=True).values()
    assert file.sha256 == digest and "mine alone" in file.licence


# Saving


EXTRA = {"workflow": {"nodes": [{"id": 1, "name": "Zürich"}]}, "another_pack": {"mine": [1, 2]}}


def saved(studio: Studio, images: torch.Tensor, **inputs: Any) -> tuple[list[Image.Image], Any, dict[str, Any]]:
    graph = studio.graph()
    node = graph.add("CascadeStudio_SaveImage", images=images, **inputs)
    extra = json.loads(json.dumps(EXTRA))
    result = graph.execute(node[0], extra_data={"extra_pnginfo": extra})
    assert result.success, result.error
    assert extra == EXTRA, "nobody else's metadata is changed"
    folder = studio.host.base / "output"
    files = [folder / image["subfolder"] / image["filename"] for image in result.ui[node.name]["images"]]
    return [Image.open(file) for file in files], result, graph.prompt


def test_saved_pictures(studio, made):
    files, result, prompt = saved(studio, made["image"], report=made["report"], filename_prefix="cards/picture")
    assert len(files) == 2
    for file, image in zip(files, made["image"]):
        assert np.array_equal(np.asarray(file), np.clip(255.0 * image.numpy(), 0, 255).astype(np.uint8))
        assert list(file.text) == ["prompt", "workflow", "another_pack", "cascade_studio", "parameters"]
        assert {key: json.loads(file.text[key]) for key in EXTRA} == EXTRA
        kept = json.loads(file.text["prompt"])
        assert {name: node for name, node in kept.items() if not name.startswith("capture")} == prompt
    told = json.loads(files[0].text["cascade_studio"])
    assert told["picture"] == {"pictures": 2, "width": 256, "height": 256, "number": 1}
    assert [stage["stage"] for stage in told["stages"]] == ["Stage C", "Stage B", "Stage A"]
    assert {model["name"]: model["sha256"] for model in told["models"]} == {
        FILES["prior"]: digest(studio, "diffusion_models", "prior"),
        FILES["decoder"]: digest(studio, "diffusion_models", "decoder"),
        FILES["stage_a"]: digest(studio, "vae", "stage_a"),
    }
    assert all({"bytes", "licence"} <= model.keys() for model in told["models"])
    assert str(studio.models) not in files[0].text["cascade_studio"], "no folder of this computer"


def test_saved_as_core_saves(studio, made):
    """Without a report the file is the one that core's Save Image writes, apart from the prompt itself."""
    ours, _, _ = saved(studio, made["image"][:1], filename_prefix="plain/ours")
    graph = studio.graph()
    node = graph.add("SaveImage", images=made["image"][:1], filename_prefix="plain/core")
    result = graph.execute(
        node[0] if studio.host.nodes.NODE_CLASS_MAPPINGS["SaveImage"].RETURN_TYPES else graph.give(0),
        extra_data={"extra_pnginfo": EXTRA},
    )
    (image,) = result.ui[node.name]["images"]
    core = Image.open(studio.host.base / "output" / image["subfolder"] / image["filename"])
    assert np.array_equal(np.asarray(ours[0]), np.asarray(core))
    assert list(ours[0].text) == list(core.text) and ours[0].text["workflow"] == core.text["workflow"]
    assert image["filename"].replace("core", "ours") == ours[0].filename.rsplit("/", 1)[-1]


def test_names_are_good_on_every_system(studio, made):
    """Prompts without the page may hold what it would have filled in, and what no system has in names."""
    from cascade_studio.nodes.host.files import write as model_files

    _, result, _ = saved(studio, made["image"][:1], filename_prefix='names/%date:yyyy%_%1:2%_<"a|b?*>')
    ((image,),) = (told["images"] for told in result.ui.values() if "images" in told)
    assert (image["subfolder"], image["filename"]) == ("names", f"{datetime.now():%Y}_%1-2%_--a-b---_00001_.png")
    assert model_files.next_path("names/a:b").name == "a-b_00001_.safetensors"


def test_no_metadata_when_the_host_is_told_so(studio, made, monkeypatch):
    from comfy.cli_args import args

    monkeypatch.setattr(args, "disable_metadata", True)
    files, _, _ = saved(studio, made["image"][:1], report=made["report"], filename_prefix="bare/picture")
    assert not files[0].text
