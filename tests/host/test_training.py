"""Training in the real host: what is learned reaches the sampler and core's LoRA loader, and interrupts cost
nothing.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from forward import noise
from graphs import FILES, Graph, check_sentence
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file
from world import Parts, changed, check_works

from cascade_studio.nodes.checkpoints.catalogue import NONE
from cascade_studio.stages.training import cache
from cascade_studio.stages.training.export import SETTINGS
from cascade_studio.stages.training.objectives import StageCObjective
from cascade_studio.stages.training.trainer import Trainer

FAST = {"steps": 10, "batch_size": 2, "learning_rate": 3e-3, "sample_every": 5, "save_every": 5}
FOLDER = "set"


@pytest.fixture(scope="module")
def folder(host) -> str:
    """Four small pictures with captions; two shapes, one of them with transparency."""
    place = Path(host.folder_paths.get_input_directory(), FOLDER)
    place.mkdir()
    for number in range(4):
        size, mode = ((96, 96), "RGB") if number % 2 else ((140, 90), "RGBA")
        noise = torch.randint(256, (size[1], size[0], len(mode)), generator=torch.Generator().manual_seed(number))
        Image.fromarray(noise.byte().numpy(), mode).save(place / f"{number}.png")
        (place / f"{number}.txt").write_text(f"a [thing] (number {number})")
    return FOLDER


def training(
    host: Any, parts: Parts, folder: str, settings: dict[str, Any] | None = None, **inputs: Any
) -> tuple[Graph, Any]:
    """A graph with the training nodes, and the training node."""
    graph = Graph(host)
    data = graph.add("CascadeStudio_TrainingSet", folder=folder, resolution=64)
    if settings is not None:
        inputs["settings"] = graph.add("CascadeStudio_TrainingSettings", **settings)[0]
    return graph, graph.add(
        "CascadeStudio_TrainLora",
        model=inputs.pop("model", parts.prior),
        clip=parts.clip,
        vae=inputs.pop("vae", parts.stage_c_vae),
        training_set=data[0],
        **{**FAST, **inputs},
    )


def sampled(graph: Graph, parts: Parts, model: Any) -> list[Any]:
    latent = {"samples": torch.zeros(1, 16, 3, 3)}
    return graph.add("CascadeStudio_SamplePrior", model=model, latent=latent, steps=2, **parts.prompts)[0]


def run_folder(host: Any, name: str) -> Path:
    runs = list(Path(host.folder_paths.get_output_directory(), "cascade_studio_training", name).iterdir())
    assert len(runs) == 1
    return runs[0]


def test_what_is_learned_is_used_in_the_same_graph_and_by_the_loader_of_core(host, parts, folder):
    graph, node = training(host, parts, folder, name="style")
    plain = sampled(graph, parts, parts.prior)
    taught = sampled(graph, parts, node[0])
    result = graph.execute(plain, taught, node[1], node[2])
    assert result.success, result.error
    before, after, name, plot = (result.values[(node_id, slot)] for node_id, slot in (plain, taught, node[1], node[2]))
    assert changed(after["samples"], before["samples"]), "ten steps are seen"
    assert name == "style.safetensors" and plot.shape == (1, 384, 768, 3)
    assert 0.5 < plot.mean() < 1 and plot.std() > 0.02
    assert [value for node_id, value, total in result.progress if node_id == node.name][-1] == 10
    assert result.ui[node.name]["images"]

    graph = Graph(host)
    loaded = graph.add(
        "LoraLoader", model=parts.prior, clip=parts.clip, lora_name=name, strength_model=1.0, strength_clip=1.0
    )
    assert torch.equal(graph.run(sampled(graph, parts, loaded[0]))["samples"], after["samples"])

    path = Path(host.models, "loras", name)
    tensors = load_file(path)
    assert len(tensors) == 3 * 16 and all(key.startswith("lora_prior_unet_") for key in tensors)
    assert any(value.abs().max() > 0 for key, value in tensors.items() if "lora_up" in key)
    with safe_open(path, "pt") as file:
        assert json.loads(file.metadata()[SETTINGS])["steps"] == 10
    run = run_folder(host, "style")
    assert {p.name for p in (run / "samples").iterdir()} == {f"step0000{step:02}.png" for step in (0, 5, 10)}
    assert {p.name for p in (run / "checkpoints").iterdir()} == {
        "style-step000005.safetensors",
        "style-step000010.safetensors",
    }
    assert Image.open(run / "samples" / "step000005.png").size == (16, 16), "the square of the resolution"
    last = load_file(run / "checkpoints" / "style-step000010.safetensors")
    assert all(torch.equal(value, tensors[key]) for key, value in last.items())
    check_works(host)


def interrupt_after(host: Any, monkeypatch: pytest.MonkeyPatch, steps: int) -> list[float]:
    """Press Cancel after an update; returns the losses of all updates that will have been made."""
    made: list[float] = []
    real = Trainer.update

    def update(trainer: Any) -> float:
        loss = real(trainer)
        made.append(loss)
        if len(made) == steps:
            host.interrupt()
        return loss

    monkeypatch.setattr(Trainer, "update", update)
    return made


def test_an_interrupted_run_goes_on(host, parts, folder, monkeypatch):
    """Cancel, queue again: nothing is encoded or trained twice, and the file is that of a run without a break."""
    asked = []
    real = cache.load_or_make
    monkeypatch.setattr(
        cache, "load_or_make", lambda folder, key, make: real(folder, key, lambda: asked.append(key) or make())
    )
    made = interrupt_after(host, monkeypatch, 4)
    graph, node = training(host, parts, folder, name="broken", seed=1)
    result = graph.execute(node[0])
    assert result.interrupted and len(made) == 4
    assert not Path(host.models, "loras", "broken.safetensors").exists()
    check_works(host)
    asked.clear()
    graph.run(node[0])
    assert len(made) == 10 and not asked
    made.append(-1)
    whole, node = training(host, parts, folder, name="whole", seed=1)
    whole.run(node[0])
    assert made[11:] == made[:10]
    files = [load_file(Path(host.models, "loras", f"{name}.safetensors")) for name in ("broken", "whole")]
    assert all(torch.equal(value, files[1][key]) for key, value in files[0].items())
    count = len(made)
    again, node = training(host, parts, folder, name="whole", seed=1)
    again.run(node[0])
    assert len(made) == count, "it is finished: queueing again trains nothing"


def test_a_run_that_diverges_keeps_its_last_good_state(host, parts, folder, monkeypatch):
    real = StageCObjective.losses

    def losses(objective: Any, rows: Any, generators: Any) -> Any:
        found = real(objective, rows, generators)
        seen.append(1)
        return found._replace(raw=found.raw * (float("nan") if len(seen) > 28 else 1.0))

    seen: list[int] = []
    monkeypatch.setattr(StageCObjective, "losses", losses)
    graph, node = training(host, parts, folder, name="nan", steps=30, save_every=2)
    check_sentence(graph.error(node[0]), "Training stopped", "not a number", "last good", "learning rate")
    assert Path(host.models, "loras", "nan.safetensors").exists()
    monkeypatch.undo()
    check_works(host)


def test_advanced_settings_and_a_learned_word(host, parts, folder, studio):
    """The word is trained through the text encoder, and core finds it as an embedding."""
    given = {
        "words": "[thing] = small dog",
        "base": "fp8",
        "ema": 0.5,
        "loss_weight": "adaptive",
        "accumulation": 2,
        "blocks": ".attn, .kv_mapper",
    }
    graph, node = training(host, parts, folder, given, name="word", steps=4, learning_rate=0.05, sample_every=4)
    graph.run(node[0])
    embedding = Path(host.folder_paths.get_folder_paths("embeddings")[0], "word_thing.safetensors")
    assert load_file(embedding)["clip_g"].shape == (1, 64)
    table = parts.clip.cond_stage_model.clip_g.transformer.text_model.embeddings.token_embedding.weight
    ids = parts.clip.tokenizer.clip_g.tokenizer("small dog")["input_ids"][1:-1]
    start = table[ids].float().mean(0)
    moved = load_file(embedding)["clip_g"][0] - start
    assert 0 < moved.abs().max() < 1
    graph = Graph(host)
    said = [
        graph.run(graph.add("CLIPTextEncode", clip=parts.clip, text=text)[0])[0][0]
        for text in ("a embedding:word_thing", "a")
    ]
    assert changed(*said)
    tensors = load_file(Path(host.models, "loras", "word.safetensors"))
    assert len(tensors) == 3 * 20 + 1
    assert torch.allclose(
        tensors["bundle_emb.[thing].clip_g"].float(), load_file(embedding)["clip_g"], rtol=1e-3, atol=1e-4
    )


@pytest.mark.parametrize("layer", [None, -2])
def test_the_frozen_text_tower_is_the_hosts(host, parts, studio, layer):
    """Also with CLIP skip."""
    from cascade_studio.nodes.host.training import weights
    from cascade_studio.stages.training import words as text

    clip = parts.clip
    if layer is not None:
        clip = studio.call("CLIPSetLastLayer", clip=clip, stop_at_clip_layer=layer)
    tokenizer = clip.tokenizer.clip_g.tokenizer
    config, tensors = weights.text_weights(clip)
    words = text.find_words([("[x]", "a dog")], tokenizer, config.vocab_size)
    vocabulary = tokenizer.get_vocab()
    assert words[0].start == tuple(
        sorted(index for name, index in vocabulary.items() if re.search(words[0].pattern, name))
    )
    with torch.inference_mode(False):
        tower = text.text_tower(config, tensors, text.Words(words, tensors[text.TABLE]), layer=layer or -1, base="fp32")
    caption = "two small dogs, (running)"
    hidden, pooled = tower(text.token_ids(caption, words, tokenizer)[None])
    wanted, wanted_pooled = weights.encoders(clip, parts.stage_c_vae).text(caption)
    assert (hidden[0] - wanted).abs().max() <= 2e-3 * wanted.std() and (pooled[0] - wanted_pooled).abs().max() <= 2e-3


def test_the_official_layout_and_loras_on_the_wire(host, parts, folder, studio):
    """A LoRA on the model is part of what is trained on; the file holds the new one alone."""
    model = studio.call("LoraLoaderModelOnly", model=parts.prior, lora_name="kohya.safetensors", strength_model=1.0)
    graph, node = training(host, parts, folder, {"layout": "official"}, name="official_one", model=model, steps=2)
    latent, base = sampled(graph, parts, node[0]), sampled(graph, parts, model)
    after, before = graph.run(latent, base)
    assert changed(after["samples"], before["samples"])
    tensors = load_file(Path(host.models, "loras", "official_one.safetensors"))
    assert set(tensors) == {f"weights.{i}.lora_{end}" for i in range(8) for end in ("up", "down")}
    from cascade_studio.nodes.host.training import weights

    plain, patched = (weights.prior_weights(one)[1] for one in (parts.prior, model))
    moved = [key for key in plain if not torch.equal(plain[key].float(), patched[key].float())]
    assert len(moved) == 16 and all(".attention.attn." in key for key in moved)


@pytest.mark.parametrize("file", ["stage_c_fp8_scaled.safetensors", "stage_c_diffusers_fp16.safetensors"])
def test_weights_of_other_formats(parts, studio, file):
    from cascade_studio.nodes.host.training import weights

    model = studio.load("prior", file, "auto")
    config, tensors = weights.prior_weights(model)
    wanted = weights.prior_weights(parts.prior)[1]
    assert config.c_hidden == (128, 128) and tensors.keys() == wanted.keys()
    for key, value in tensors.items():
        assert (value.float() - wanted[key].float()).abs().max() <= 0.1 * wanted[key].float().abs().max() + 1e-6, key


def test_a_lora_on_quantised_weights(parts, studio):
    """Its change is that on plain weights, also while the host has put it into the quantised ones."""
    from cascade_studio.nodes.host.training import weights

    changes = []
    for model in (parts.prior, studio.load("prior", "stage_c_fp8_scaled.safetensors", "auto")):
        styled = studio.call("LoraLoaderModelOnly", model=model, lora_name="kohya.safetensors", strength_model=1.0)
        plain, after = (weights.prior_weights(one)[1] for one in (model, styled))
        studio.sample_prior(studio.canvas()[0], model=styled, steps=1)
        loaded, untouched = (weights.prior_weights(one)[1] for one in (styled, model))
        assert all(torch.equal(loaded[key], after[key]) and torch.equal(untouched[key], plain[key]) for key in plain)
        changes.append({key: after[key].float() - plain[key].float() for key in plain})
    assert any(change.abs().max() > 0 for change in changes[0].values())
    for key, change in changes[0].items():
        assert torch.allclose(changes[1][key], change, atol=1e-5), key


# What tells one encoder from another


def marks(clip: Any, vae: Any) -> tuple[str, str]:
    from cascade_studio.nodes.host.training import weights

    ways = weights.encoders(clip, vae)
    return ways.picture_mark, ways.text_mark


def test_an_encoder_is_the_same_loaded_or_not(parts):
    """Hosts that stream weights cast buffers while a model is loaded, and keep what they were."""
    import comfy.utils

    patcher = parts.stage_c_vae.patcher
    before = marks(parts.clip, parts.stage_c_vae)
    key, buffer = next((key, value) for key, value in patcher.model.named_buffers() if key.endswith("running_mean"))
    assert key.startswith("encoder.")
    comfy.utils.set_attr_buffer(patcher.model, key, buffer + 1)
    try:
        assert marks(parts.clip, parts.stage_c_vae) != before, "another encoder"
        patcher.backup_buffers[key] = buffer
        assert marks(parts.clip, parts.stage_c_vae) == before
    finally:
        patcher.backup_buffers.clear()
        comfy.utils.set_attr_buffer(patcher.model, key, buffer)


def test_a_text_encoder_is_told_by_what_is_on_its_wire(parts, studio):
    """The same LoRA is the same after a restart, and another clone's does not count."""
    layer = "lora_prior_te_text_model_encoder_layers_1_mlp_fc1"
    layers = studio.write(
        "loras/t_mark", {f"{layer}.lora_up.weight": noise(256, 2), f"{layer}.lora_down.weight": noise(2, 64)}
    )
    moved = studio.write(
        "loras/t_mark_moved", {"embeddings.embeddings": noise(1, 64), "embeddings.indices": torch.tensor([320])}
    )

    def mark(lora: str = "", strength: float = 1.0) -> str:
        clip = (
            parts.clip
            if not lora
            else studio.call("CascadeStudio_LoadLora", 2, lora=lora, clip=parts.clip, strength_clip=strength)
        )
        found = marks(clip, parts.stage_c_vae)[1]
        studio.text("a cat", clip)
        assert marks(clip, parts.stage_c_vae)[1] == found, "it is loaded now, with its LoRA in the weights"
        return found

    plain, first = mark(), mark(layers)
    assert marks(parts.clip, parts.stage_c_vae)[1] == plain, "the clone with the LoRA is the one that is loaded"
    assert mark(layers) == first
    assert len({plain, first, mark(layers, 0.5), mark(moved), mark(moved, 0.5)}) == 5


def test_clip_skip_and_taught_words_make_another_text_encoder(parts, studio):
    """They change what a caption says, so that captions encoded without them are not taken for theirs."""
    word = {
        seed: studio.write(
            f"loras/t_mark_word_{seed}",
            {"embeddings.embeddings": noise(1, 64, seed=seed), "embeddings.indices": torch.tensor([49408])},
        )
        for seed in (1, 2)
    }

    def taught(clip: Any, seed: int, name: str = "[it]") -> Any:
        return studio.call("CascadeStudio_LoadLora", 2, lora=word[seed], clip=clip, tokens=name)

    def skipped() -> Any:
        return studio.call("CLIPSetLastLayer", clip=parts.clip, stop_at_clip_layer=-2)

    first = taught(parts.clip, 1)
    clips = [
        skipped(),
        first,
        taught(parts.clip, 2),
        taught(parts.clip, 1, "[that]"),
        taught(first, 2, "[that]"),
        parts.clip,
    ]
    found = [marks(clip, parts.stage_c_vae)[1] for clip in clips]
    assert len(set(found)) == len(found)
    assert found[:2] == [marks(clip, parts.stage_c_vae)[1] for clip in (skipped(), taught(parts.clip, 1))]


# What is refused


def test_faults_are_told_before_training(host, parts, folder):
    place = Path(host.folder_paths.get_input_directory(), "faulty")
    place.mkdir()
    for name in ("torn.png", "silent.png"):
        Image.new("RGB", (40, 40)).save(place / name)
    (place / "torn.png").write_bytes((place / "torn.png").read_bytes()[:60])
    (place / "torn.txt").write_text("a caption")
    graph, node = training(host, parts, "faulty")
    check_sentence(graph.error(node[0]), "torn.png", "silent.png", "Broken", "caption")
    (place / "torn.png").unlink()
    graph = Graph(host)
    data = graph.add("CascadeStudio_TrainingSet", folder="faulty", captions="a thing", resolution=64)
    assert "1 pictures with captions" in graph.run(data[1])
    (place / "silent.png").unlink()
    for name, words in (
        ("faulty", "holds no pictures"),
        ("nowhere", "no folder 'nowhere'"),
        ("", "No folder is named"),
        ("../models", "input folder"),
        (str(host.models), "input folder"),
    ):
        graph = Graph(host)
        check_sentence(graph.error(graph.add("CascadeStudio_TrainingSet", folder=name)[0]), words)


def test_images_from_the_graph(host, parts):
    graph = Graph(host)
    images = torch.rand(2, 64, 64, 3, generator=torch.Generator().manual_seed(0))
    data = graph.add("CascadeStudio_TrainingSet", images=images, captions="one\ntwo", resolution=64)
    assert "2 pictures" in graph.run(data[1])
    graph = Graph(host)
    data = graph.add("CascadeStudio_TrainingSet", images=images, captions="one\ntwo\nthree")
    check_sentence(graph.error(data[0]), "2 pictures", "3 captions")


def test_wrong_wires_and_settings(host, parts, folder, studio):
    blind = studio.call("CascadeStudio_LoadImageEncoder", image_encoder=NONE, previewer=FILES["previewer"])
    graph, node = training(host, parts, folder, vae=blind)
    check_sentence(graph.error(node[0]), "Previewer only", "effnet_encoder")
    for inputs, words in (({"model": parts.decoder}, "Stage C model"), ({"name": "a/b"}, "letters")):
        graph, node = training(host, parts, folder, **inputs)
        check_sentence(graph.error(node[0]), words)
    graph, node = training(host, parts, folder, {"blocks": ".nothing"})
    check_sentence(graph.error(node[0]), "nothing to train", ".attn")
    graph = Graph(host)
    check_sentence(
        graph.error(graph.add("CascadeStudio_TrainingSettings", layout="official", blocks=".clf")[0]), "attention"
    )


def test_a_run_that_cannot_fit_is_refused(host, parts, folder, monkeypatch):
    import comfy.model_management

    monkeypatch.setattr(comfy.model_management, "get_total_memory", lambda *args, **kwargs: 10**8)
    graph, node = training(host, parts, folder, name="huge")
    check_sentence(graph.error(node[0]), "needs about", "Memory plan", "accumulation")


def test_the_training_set_follows_the_folder(host, folder):
    kind = host.nodes.NODE_CLASS_MAPPINGS["CascadeStudio_TrainingSet"]
    before = kind.fingerprint_inputs(folder=folder)
    path = Path(host.folder_paths.get_input_directory(), folder, "0.txt")
    old = path.read_text()
    path.write_text("something longer than before")
    assert kind.fingerprint_inputs(folder=folder) != before
    path.write_text(old)
    nowhere = kind.fingerprint_inputs(folder="nowhere")
    assert nowhere == kind.fingerprint_inputs(folder="nowhere") != before
