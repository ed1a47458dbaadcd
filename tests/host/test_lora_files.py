"""LoRA files that we write: converted and extracted ones, in the host's own loader as in ours."""

from __future__ import annotations

import shutil

import pytest
import torch
from forward import attention_shapes, comfyui, forward, low_rank, noise, official
from graphs import check_sentence
from safetensors import safe_open
from safetensors.torch import load_file
from world import Studio, changed, relative


@pytest.fixture(scope="module")
def changes(studio) -> dict:
    return low_rank(attention_shapes(studio.parts.prior), size=2.0)


@pytest.fixture(scope="module")
def plain(studio) -> torch.Tensor:
    return forward(studio.parts.prior)


def adopt(studio: Studio, name: str) -> str:
    """Move a written LoRA to where the loaders look in these tests."""
    shutil.move(studio.host.base / "output" / "loras" / name, studio.models / "loras" / name)
    studio.host.folder_paths.filename_list_cache.clear()
    return name


def convert(studio: Studio, name: str, layout: str, **inputs) -> tuple[str, str]:
    given = {"model": studio.parts.prior, "filename_prefix": f"loras/{layout}", **inputs}
    return studio.call("CascadeStudio_ConvertLora", range(2), lora=name, layout=layout, **given)


def core(studio: Studio, name: str, model=None):
    return studio.call("LoraLoaderModelOnly", model=model or studio.parts.prior, lora_name=name, strength_model=1.0)


def ours(studio: Studio, name: str, **inputs):
    return studio.call("CascadeStudio_LoadLora", lora=name, **{"prior": studio.parts.prior, **inputs})


@pytest.mark.parametrize("layout", ["ComfyUI", "kohya"])
def test_core_loads_converted_official_files_as_we_load_the_originals(studio, changes, plain, layout):
    name = studio.write("loras/t_convert", official(changes))
    written, report = convert(studio, name, layout)
    assert written.endswith("_00001_.safetensors") and "32 of 32 keys used" not in report and "16 of 16" in report
    result = forward(core(studio, adopt(studio, written)))
    assert relative(result, forward(ours(studio, name))) <= 1e-6 and changed(result, plain)
    assert torch.equal(forward(ours(studio, written)), result)


def test_official_and_back_is_exact(studio, changes):
    original = official(changes)
    name = studio.write("loras/t_back", original)
    there = adopt(studio, convert(studio, name, "ComfyUI")[0])
    back = load_file(studio.models / "loras" / adopt(studio, convert(studio, there, "official")[0]))
    assert back.keys() == original.keys() and all(torch.equal(back[key], value) for key, value in original.items())


def test_text_and_tokens_survive(studio, changes):
    file = {
        **comfyui(changes),
        "embeddings.embeddings": noise(1, 64),
        "embeddings.indices": torch.tensor([49408]),
        "lora_prior_te_text_projection.lora_up.weight": noise(64, 2),
        "lora_prior_te_text_projection.lora_down.weight": noise(2, 64),
    }
    name = studio.write("loras/t_survive", file)
    written, report = convert(studio, name, "ComfyUI", clip=studio.parts.clip)
    found = load_file(studio.host.base / "output" / "loras" / written)
    assert len(found) == len(file) and "text_encoders.clip_g.transformer.text_projection.lora_up.weight" in found
    assert torch.equal(found["embeddings.embeddings"], file["embeddings.embeddings"])
    written, report = convert(studio, name, "ComfyUI")
    assert "no CLIP is wired" in report
    assert len(load_file(studio.host.base / "output" / "loras" / written)) == len(comfyui(changes))


def test_nothing_is_overwritten(studio, changes):
    name = studio.write("loras/t_counter", comfyui(changes))
    names = [convert(studio, name, "ComfyUI", filename_prefix="loras/counted")[0] for _ in range(2)]
    assert names == ["counted_00001_.safetensors", "counted_00002_.safetensors"]
    folder = studio.host.base / "output" / "loras"
    assert all((folder / name).is_file() for name in names) and not list(folder.glob("*.part"))


def test_conversion_errors(studio, changes):
    name = studio.write(
        "loras/t_wide",
        {
            f"diffusion_model.clf.1.{part}": value
            for part, value in (("lora_up.weight", noise(16, 2, 1, 1)), ("lora_down.weight", noise(2, 128, 1, 1)))
        },
    )
    for layout, prefix, words in (("official", "loras/x", "attention layers"), ("ComfyUI", "../x", "output folder")):
        graph = studio.graph()
        node = graph.add(
            "CascadeStudio_ConvertLora", lora=name, model=studio.parts.prior, layout=layout, filename_prefix=prefix
        )
        check_sentence(graph.error(node[0]), words)


# Extraction


@pytest.fixture(scope="module")
def tuned(studio) -> dict:
    """Models whose every parameter differs a little from the family's."""
    found = {}
    for stage, file in (("prior", "stage_c"), ("decoder", "stage_b")):
        weights = {}
        for number, (key, value) in enumerate(
            load_file(studio.models / f"diffusion_models/{file}.safetensors").items()
        ):
            size = 0.3 * value.float().std() if value.float().std() > 0 else 0.1
            weights[key] = value.float() + size * noise(*value.shape, seed=number)
        found[stage] = studio.load(stage, studio.write(f"diffusion_models/t_tuned_{stage}", weights))
    return found


def patched_weights(model) -> dict[str, torch.Tensor]:
    """The weights of a model with everything on its wire."""
    import comfy.model_management

    comfy.model_management.load_models_gpu([model])
    return {key: value.clone() for key, value in model.model.diffusion_model.state_dict().items()}


def extract(studio: Studio, after, before, **inputs) -> tuple[str, str]:
    given = {"rank": 4096, "dtype": "fp32", "layers": "all layers, biases and norms", **inputs}
    written, report = studio.call("CascadeStudio_ExtractLora", range(2), tuned=after, base=before, **given)
    return adopt(studio, written), report


@pytest.mark.parametrize("stage", ["prior", "decoder"])
def test_full_rank_reproduces_the_difference(studio, tuned, stage):
    base, after = getattr(studio.parts, stage), tuned[stage]
    name, report = extract(studio, after, base)
    loaded = studio.call("CascadeStudio_LoadLora", ("prior", "decoder").index(stage), lora=name, **{stage: base})
    before, expected, result = map(patched_weights, (base, after, loaded))
    for key, value in expected.items():
        assert relative(result[key] - before[key], value - before[key]) <= 1e-4, key
    assert "0 are the same" in report and f"{len(expected)} layers differ" in report
    core_loaded = patched_weights(core(studio, name, base))
    assert all(torch.equal(core_loaded[key], value) for key, value in result.items())
    if stage == "prior":
        assert relative(forward(loaded), forward(after)) <= 1e-4 and changed(forward(after), forward(base))


def test_a_low_rank_change_is_found_by_decomposition(studio, changes, plain):
    """A model with a LoRA on its wire, against the one without: a LoRA of the same rank is the same change."""
    wired = ours(studio, studio.write("loras/t_source", comfyui(changes)))
    name, report = extract(studio, wired, studio.parts.prior, rank=4, layers="all layers")
    expected = forward(wired)
    assert relative(forward(ours(studio, name)), expected) <= 1e-4 and changed(expected, plain)
    assert "16 layers differ" in report and "100.0% of the change kept on average, rank 4 to 4" in report
    found = load_file(studio.models / "loras" / name)
    assert len(found) == 3 * 16 and found[
        "diffusion_model.up_blocks.1.2.attention.attn.to_q.lora_down.weight"
    ].shape == (4, 128)
    worse, report = extract(studio, wired, studio.parts.prior, rank=1, layers="attention")
    assert relative(forward(ours(studio, worse)), expected) > 1e-2 and "rank 1 to 1" in report


def test_energy_and_dtype(studio, tuned):
    name, report = extract(
        studio, tuned["prior"], studio.parts.prior, rank=64, energy=0.5, layers="attention", dtype="fp16"
    )
    with safe_open(studio.models / "loras" / name, "pt") as file:
        downs = [file.get_tensor(key) for key in file.keys() if key.endswith("lora_down.weight")]
    assert len(downs) == 16 and all(down.dtype == torch.float16 and 1 < len(down) < 64 for down in downs)


def test_extraction_errors(studio):
    for before, words in ((studio.parts.prior, "no difference"), (studio.parts.decoder, "same stage")):
        graph = studio.graph()
        check_sentence(
            graph.error(graph.add("CascadeStudio_ExtractLora", tuned=studio.parts.prior, base=before)[0]), words
        )
