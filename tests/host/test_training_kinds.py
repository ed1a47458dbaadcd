"""Every kind of training in the real host: what is learned is on the wires, in a file, and read by core's loaders."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from forward import noise
from graphs import Graph, check_sentence
from PIL import Image
from safetensors.torch import load_file
from world import FEW_WORDS, Parts, changed

from cascade_studio.stages.files import load
from cascade_studio.stages.nets.stage_c import StageC
from cascade_studio.stages.training import export
from cascade_studio.stages.training.frozen_net import frozen_net
from cascade_studio.stages.training.lora_layers import ADAPTERS, Lora
from cascade_studio.stages.training.rates import RATES
from cascade_studio.stages.training.settings import SPECS

FOLDER = "kinds"


@pytest.fixture(scope="module")
def folder(host) -> str:
    """Three pictures with captions."""
    place = Path(host.folder_paths.get_input_directory(), FOLDER)
    place.mkdir()
    for number in range(3):
        pixels = torch.randint(256, (96, 96, 3), generator=torch.Generator().manual_seed(number)).byte()
        Image.fromarray(pixels.numpy()).save(place / f"{number}.png")
        (place / f"{number}.txt").write_text(f"[it] is a thing (number {number})")
    return FOLDER


def training(host: Any, parts: Parts, folder: str, what: str, model: Any, **more: Any) -> tuple[Graph, Any]:
    """A graph with Train Cascade, and that node."""
    graph = Graph(host)
    data = graph.add("CascadeStudio_TrainingSet", folder=folder, resolution=64, hints=more.pop("hints", ""))
    settings = {"validate_every": 1, "words": "[it] = thing" if what == "words" else "", **more.pop("settings", {})}
    given = graph.add("CascadeStudio_TrainingSettings", **settings)
    node = graph.add(
        "CascadeStudio_Train",
        what=what,
        preset="none",
        model=model,
        clip=parts.clip,
        vae=parts.stage_c_vae,
        stage_a=parts.stage_a,
        training_set=data[0],
        settings=given[0],
        **{"name": f"kind_{what}", "steps": 3, "learning_rate": 3e-3, **more},
    )
    return graph, node


def sampled(graph: Graph, parts: Parts, model: Any, clip: Any = None) -> Any:
    """Two steps of Stage C."""
    prompts = parts.prompts
    if clip is not None:
        prompts = {**prompts, "positive": graph.add("CLIPTextEncode", clip=clip, text=FEW_WORDS)[0]}
    latent = {"samples": torch.zeros(1, 16, 3, 3)}
    return graph.add("CascadeStudio_SamplePrior", model=model, latent=latent, steps=2, **prompts)[0]


@pytest.mark.parametrize("what", ["stage_c", "text_lora", "lora"])
def test_what_stage_c_learns_is_on_the_wire_and_in_a_file(host, parts, folder, studio, what):
    rate = {"stage_c": 1e-5, "text_lora": 3e-3, "lora": 3e-3}[what]
    graph, node = training(host, parts, folder, what, parts.prior, learning_rate=rate)
    wanted = sampled(graph, parts, node[0], node[1]), sampled(graph, parts, parts.prior, parts.clip)
    after, before, name, report = graph.run(*wanted, node[2], node[4])
    assert changed(after["samples"], before["samples"]), what
    assert "Loss on fixed noise" in report and "3 pictures with captions" in report
    place = Path(host.models, "diffusion_models" if what == "stage_c" else "loras", name)
    assert place.exists()
    graph = Graph(host)
    if what == "stage_c":
        model, clip = studio.load("prior", name, "auto"), None
    else:
        loaded = graph.add(
            "LoraLoader", model=parts.prior, clip=parts.clip, lora_name=name, strength_model=1.0, strength_clip=1.0
        )
        model, clip = loaded[0], loaded[1]
    again = graph.run(sampled(graph, parts, model, clip))["samples"]
    assert (again - after["samples"]).abs().max() <= 0.02 * after["samples"].abs().max(), "a loader reads it so"


@pytest.mark.parametrize("what", ["stage_b", "lora"])
def test_stage_b_learns(host, parts, folder, what):
    graph, node = training(
        host, parts, folder, what, parts.decoder, name=f"b_{what}", learning_rate=1e-5 if what == "stage_b" else 3e-3
    )
    prior = {"samples": noise(1, 16, 2, 2)}

    def decoded(model: Any) -> Any:
        return graph.add("CascadeStudio_SampleDecoder", model=model, prior=prior, steps=2, **parts.prompts)[0]

    taught, plain = graph.run(decoded(node[0]), decoded(parts.decoder))
    assert changed(taught["samples"], plain["samples"])
    kind = "diffusion_models" if what == "stage_b" else "loras"
    tensors = load_file(Path(host.models, kind, f"b_{what}.safetensors"))
    assert all(key.startswith("model.diffusion_model." if what == "stage_b" else "lora_unet_") for key in tensors)


@pytest.mark.parametrize("hint", SPECS["hint"].choices)
def test_a_controlnet_learns_from_every_hint(host, parts, folder, hint):
    graph, node = training(
        host,
        parts,
        folder,
        "controlnet",
        parts.prior,
        name=f"control_{hint}",
        settings={"hint": hint},
        learning_rate=3e-4,
        hints=folder if hint == "pictures" else "",
    )
    name = graph.run(node[2])
    net = load.from_file(Path(host.models, "controlnet", name))
    channels = {"canny": 1, "pictures": 3, "inpaint": 4, "super_resolution": 16}[hint]
    assert net.config.c_in == channels and net.config.c_proj == 128
    maps = net(torch.rand(1, channels, 64, 64) if hint != "super_resolution" else torch.randn(1, 16, 2, 2))
    assert all(value.abs().max() > 0 for value in maps.values()), "three steps are seen"


def test_pictures_without_hints_are_refused(host, parts, folder):
    graph, node = training(host, parts, folder, "controlnet", parts.prior, settings={"hint": "pictures"})
    check_sentence(graph.error(node[2]), "Pictures without a hint of the same name (3)")


def test_words_alone(host, parts, folder):
    graph, node = training(host, parts, folder, "words", parts.prior)
    report = graph.run(node[4])
    assert "Learned word [it]: write embedding:kind_words_it" in report
    assert Path(host.folder_paths.get_folder_paths("embeddings")[0], "kind_words_it.safetensors").exists()


@pytest.mark.parametrize("method", ADAPTERS)
def test_an_adapter_is_what_the_host_makes_of_its_file(parts, method):
    """The network with the adapter in training, and the weights that core's own mathematics makes of the file."""
    import comfy.sd

    from cascade_studio.nodes.host.training import weights

    config, tensors = weights.prior_weights(parts.prior)
    tensors = {key: value.float() for key, value in tensors.items()}
    arguments = noise(1, 16, 4, 4), torch.tensor([0.4]), noise(1, 7, 64), noise(1, 1, 64)
    with torch.inference_mode(False), torch.no_grad():
        net = frozen_net("stage_c", config, tensors, base="fp32", checkpointing=False)
        plain = net(*arguments)
        lora = Lora(net, 4, 2.0, (".attn",), method=method)
        assert torch.allclose(net(*arguments), plain, atol=1e-5), "nothing is changed at first"
        for number, parameter in enumerate(lora.parameters()):
            parameter.add_(0.3 * noise(*parameter.shape, seed=number))
        taught = net(*arguments)
        file = export.comfyui_names(lora, lora.state_dict())
        patched, _ = comfy.sd.load_lora_for_models(parts.prior, None, dict(file), 1.0, 0.0)
        found = StageC(config)
        found.load_state_dict({key: value.float() for key, value in weights.prior_weights(patched)[1].items()})
        difference = (found(*arguments) - taught).abs().max()
        assert difference <= 2e-3 * (taught - plain).abs().max(), method


def test_a_target_that_refuses_is_told_before_the_first_step(host, parts, folder, monkeypatch):
    from cascade_studio.nodes.host.training import train

    monkeypatch.setattr(train, "model_folder", lambda kind: Path("/sys/kernel"))
    graph, node = training(host, parts, folder, "lora", parts.prior, name="refused")
    result = graph.execute(node[2])
    check_sentence(result.error, "Nothing can be written", "/sys/kernel")
    assert not any(node_id == node.name and value for node_id, value, _ in result.progress)


def test_the_pack_has_a_set_of_its_own(host):
    graph = Graph(host)
    report = graph.run(graph.add("CascadeStudio_TrainingSet", folder="chalk", resolution=192)[1])
    assert "chalk: 12 pictures with captions" in report and "192x192: 12" in report


def test_wrong_models_are_told(host, parts, folder):
    for what, model, words in (("stage_b", parts.prior, "Stage B"), ("controlnet", parts.decoder, "Stage C")):
        graph, node = training(host, parts, folder, what, model)
        check_sentence(graph.error(node[2]), words)


def shown(host: Any, parts: Parts, folder: str, name: str, decoder: dict[str, Any]) -> tuple[Graph, Any]:
    """A graph with Train Cascade LoRA that shows and keeps every step, and that node."""
    graph = Graph(host)
    data = graph.add("CascadeStudio_TrainingSet", folder=folder, resolution=64, sizes="96, 64")
    given = graph.add("CascadeStudio_TrainingSettings", list_steps=bool(decoder), held_out=1)
    inputs = {"model": parts.prior, "clip": parts.clip, "vae": parts.stage_c_vae, "training_set": data[0], **decoder}
    often = {"steps": 1, "save_every": 1, "sample_every": 1, "batch_size": 2, "learning_rate": 1e-3}
    return graph, graph.add("CascadeStudio_TrainLora", settings=given[0], name=f"shown_{name}", **inputs, **often)


def test_what_is_shown_on_the_way(host, parts, folder):
    """Samples in full by Stage B where it is wired in, small ones by the Previewer; steps among the loaders' lists."""
    sides = {}
    for name, decoder in (("full", {"decoder": parts.decoder, "stage_a": parts.stage_a}), ("small", {})):
        graph, node = shown(host, parts, folder, name, decoder)
        assert "64x64: 3, 96x96: 3" in graph.run(node[3])
        home = Path(host.folder_paths.get_output_directory(), "cascade_studio_training", f"shown_{name}")
        found = sorted(home.glob("*/samples/*.png"))
        assert [path.name for path in found] == ["step000000.png", "step000001.png"]
        sides[name] = Image.open(found[0]).size[0]
    assert sides["full"] > 3 * sides["small"]
    listed = host.folder_paths.get_filename_list("loras")
    assert str(Path("shown_full", "shown_full-step000001.safetensors")) in listed
    assert not any("shown_small-step" in one for one in listed)
    graph, node = shown(host, parts, folder, "wrong", {"decoder": parts.decoder})
    check_sentence(graph.error(node[1]), "Stage A's VAE into 'stage_a'")


def test_learning_rates_are_tried_and_nothing_is_kept(host, parts, folder):
    graph = Graph(host)
    data = graph.add("CascadeStudio_TrainingSet", folder=folder, resolution=64)
    node = graph.add(
        "CascadeStudio_FindLearningRate",
        what="lora",
        model=parts.prior,
        clip=parts.clip,
        vae=parts.stage_c_vae,
        training_set=data[0],
        **{"steps": 2, "batch_size": 2, "rank": 2, "alpha": 2.0},
    )
    before = set(Path(host.models).rglob("*"))
    rate, plot, report = graph.run(node[0], node[1], node[2])
    assert f"{rate:.2g}" in report.splitlines()[-1] and report.count("rate ") == 10
    assert any(rate == pytest.approx(tried / 2, rel=0.02) for tried in RATES)
    assert plot.shape == (1, 384, 768, 3) and plot.std() > 0.05 and set(Path(host.models).rglob("*")) == before
