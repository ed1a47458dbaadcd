"""Merges in the real host: exact ends, parts that touch only themselves, and saved files that are what was on the
wire.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from family import fp8_scaled, stage_b_weights, stage_c_weights
from forward import attention_shapes, comfyui, forward, inputs_for, low_rank, noise
from graphs import check_sentence
from safetensors import safe_open
from safetensors.torch import load_file
from world import Studio, changed, relative

from cascade_studio.stages import identify, normalise, read_header
from cascade_studio.stages.lora.extract import EVERYTHING
from cascade_studio.stages.lora.merge import GROUPS, group_of

STAGES = ("prior", "decoder")
SHARES = dict.fromkeys(GROUPS, 0.0)


@pytest.fixture(scope="module")
def models(studio) -> dict[str, list]:
    """Models of each stage: the family's weights, and others around them."""
    found = {}
    for stage, weights, count in (("prior", stage_c_weights(), 3), ("decoder", stage_b_weights(), 2)):
        found[stage] = []
        for number in range(count):
            other = {
                key: value + 0.4 * number * (value.std() if value.std() > 0 else 0.1) * noise(*value.shape, seed=i)
                for i, (key, value) in enumerate(weights.items())
            }
            found[stage].append(studio.load(stage, studio.write(f"diffusion_models/t_merge_{stage}_{number}", other)))
    return found


def answer(model) -> torch.Tensor:
    return forward(model, inputs_for(model.model.diffusion_model.config))


def merge(studio: Studio, first, second, **shares: float):
    return studio.call("CascadeStudio_MergeModels", model1=first, model2=second, **{**SHARES, **shares})


@pytest.mark.parametrize("stage", STAGES)
def test_ends_are_exact(studio, models, stage):
    first, second = models[stage][:2]
    before, after = answer(first), answer(second)
    assert changed(before, after)
    assert torch.equal(answer(merge(studio, first, second)), before)
    assert torch.equal(answer(merge(studio, first, second, **dict.fromkeys(GROUPS, 1.0))), after)
    half = answer(merge(studio, first, second, **dict.fromkeys(GROUPS, 0.5)))
    simple = studio.call("ModelMergeSimple", model1=first, model2=second, ratio=0.5)
    assert relative(half, answer(simple)) <= 1e-5 and changed(half, before) and changed(half, after)
    assert torch.equal(answer(first), before) and torch.equal(answer(second), after)


@pytest.mark.parametrize("stage", STAGES)
def test_each_part_touches_only_itself(studio, models, stage):
    import comfy.model_management

    first, second = models[stage][:2]
    names = list(first.model.diffusion_model.state_dict())
    levels = len(first.model.diffusion_model.config.c_hidden)
    before = {key: value.clone() for key, value in first.model.diffusion_model.state_dict().items()}
    plain = answer(first)
    for group in GROUPS:
        merged = merge(studio, first, second, **{group: 0.7})
        assert not torch.equal(answer(merged), plain), group
        comfy.model_management.load_models_gpu([merged])
        patched = merged.model.diffusion_model.state_dict()
        moved = {key for key in names if not torch.equal(patched[key], before[key])}
        assert moved == {key for key in names if group_of(key, levels) == group}


@pytest.mark.parametrize("stage", STAGES)
def test_add_difference(studio, models, stage):
    first, second, third = models[stage][0], models[stage][1], models[stage][-1]

    def added(model, after, before, strength):
        return answer(
            studio.call("CascadeStudio_AddDifference", model=model, tuned=after, base=before, strength=strength)
        )

    plain = answer(third)
    assert torch.equal(added(third, second, first, 0.0), plain)
    assert torch.equal(added(third, second, second, 5.0), plain), "no difference is nothing"
    assert changed(added(third, second, first, 1.0), plain)
    if stage == "prior":  # the tiny decoder amplifies the rounding of its weights a thousandfold
        assert relative(added(first, second, first, 1.0), answer(second)) <= 1e-4
        assert relative(added(second, second, first, -1.0), answer(first)) <= 1e-4


def test_loras_on_the_wire_are_merged_too(studio, models):
    first, second, _ = models["prior"]
    name = studio.write("loras/t_merged", comfyui(low_rank(attention_shapes(first), size=3.0)))
    with_lora = studio.call("CascadeStudio_LoadLora", lora=name, prior=second)
    all_of_it = merge(studio, first, with_lora, **dict.fromkeys(GROUPS, 1.0))
    assert relative(answer(all_of_it), answer(with_lora)) <= 1e-5
    assert changed(answer(with_lora), answer(second))


def test_errors(studio, models):
    narrow = {**stage_c_weights(), "clip_txt_mapper.weight": noise(128, 32)}
    narrow = studio.load("prior", studio.write("diffusion_models/t_narrow", narrow))
    for kind, inputs, words in (
        ("MergeModels", {"model1": models["prior"][0], "model2": models["decoder"][0]}, ["same stage", "model2"]),
        ("MergeModels", {"model1": models["prior"][0], "model2": narrow}, ["two sizes", "lite"]),
        (
            "AddDifference",
            {"model": models["prior"][0], "tuned": models["decoder"][0], "base": models["prior"][1]},
            ["tuned", "same stage"],
        ),
    ):
        graph = studio.graph()
        check_sentence(graph.error(graph.add(f"CascadeStudio_{kind}", **inputs)[0]), *words)


# Saving


def save(studio: Studio, model, layout: str, **inputs) -> tuple[Path, str]:
    given = {"dtype": "fp32", "filename_prefix": "diffusion_models/t_saved", **inputs}
    name, report = studio.call("CascadeStudio_SaveModel", range(2), model=model, layout=layout, **given)
    return studio.host.base / "output" / "diffusion_models" / name, report


def reload(studio: Studio, stage: str, path: Path):
    shutil.copy(path, studio.models / "diffusion_models" / path.name)
    studio.host.folder_paths.filename_list_cache.clear()
    return studio.load(stage, path.name)


@pytest.mark.parametrize("stage", STAGES)
def test_saved_files_are_what_was_on_the_wire(studio, models, stage):
    """A merge with a LoRA on it, in each layout: the weights of the wire, under the names the layout is known by."""
    first, second = models[stage][:2]
    name = studio.write(f"loras/t_saved_{stage}", comfyui(low_rank(attention_shapes(first), size=3.0)))
    slot = STAGES.index(stage)
    wired = studio.call("CascadeStudio_LoadLora", slot, lora=name, **{stage: merge(studio, first, second, deep_up=0.5)})
    expected = answer(wired)
    weights = {key: value.clone() for key, value in wired.model.diffusion_model.state_dict().items()}
    assert changed(expected, answer(first))
    published = set((stage_c_weights if stage == "prior" else stage_b_weights)())
    for layout in ("ComfyUI", "official", "diffusers"):
        path, report = save(studio, wired, layout)
        assert layout in report and path.name in report
        names = set(read_header(path).tensors)
        if layout == "official":
            assert names == published
        elif layout == "diffusers":
            assert not any(".attn." in key for key in names) and "clip_mapper.weight" not in names
            assert (
                any(key.endswith("attention.to_out.0.weight") for key in names)
                and "clip_txt_pooled_mapper.weight" in names
            )
        else:
            assert all(key.startswith("model.diffusion_model.") for key in names)
        tensors = load_file(path)
        again = normalise(tensors, identify(tensors))
        assert again.keys() == weights.keys() and all(torch.equal(again[key], value) for key, value in weights.items())
        if (stage, layout) in (("prior", "official"), ("prior", "ComfyUI"), ("decoder", "diffusers")):
            assert torch.equal(answer(reload(studio, stage, path)), expected)


def test_core_reads_what_it_saves_itself(studio, models):
    """Our ComfyUI layout has the tensors of core's CheckpointSave."""
    model = models["prior"][1]
    path, _ = save(studio, model, "ComfyUI")
    graph = studio.graph()
    graph.add(
        "CheckpointSave",
        model=model,
        clip=studio.parts.clip,
        vae=studio.parts.stage_a,
        filename_prefix="checkpoints/t_core",
    )
    assert graph.execute().success
    theirs = load_file(studio.host.base / "output" / "checkpoints" / "t_core_00001_.safetensors")
    theirs = {key: value for key, value in theirs.items() if key.startswith("model.diffusion_model.")}
    mine = load_file(path)
    assert mine.keys() == theirs.keys() and all(torch.equal(mine[key], value) for key, value in theirs.items())


def test_metadata_and_dtypes(studio, models):
    model = models["prior"][0]
    large, _ = save(studio, model, "official")
    graph = studio.graph()
    node = graph.add(
        "CascadeStudio_SaveModel",
        model=model,
        layout="official",
        dtype="bf16",
        title="Mine",
        notes="of two",
        filename_prefix="diffusion_models/t_small",
    )
    result = graph.execute(node[0], extra_data={"extra_pnginfo": {"workflow": {"nodes": []}}})
    small = large.with_name(result.values[(node.name, 0)])
    header = read_header(small)
    assert small.stat().st_size < 0.6 * large.stat().st_size
    assert {info.dtype for info in header.tensors.values()} == {torch.bfloat16}
    with safe_open(small, "pt") as file:
        metadata = file.metadata()
    assert metadata["modelspec.title"] == "Mine" and metadata["modelspec.description"] == "of two"
    assert metadata["modelspec.architecture"] == "stable-cascade-v1-stage-c"
    assert json.loads(metadata["workflow"]) == {"nodes": []} and node.name in json.loads(metadata["prompt"])
    assert result.ui[node.name]["text"][0].startswith(small.name)
    tensors, whole = load_file(small), load_file(large)
    assert all(torch.equal(tensors[key], value.bfloat16()) for key, value in whole.items())


def test_quantised_models_are_written_as_plain_ones(studio):
    model = studio.load("prior", "stage_c_fp8_scaled.safetensors")
    path, _ = save(studio, model, "official", dtype="bf16", filename_prefix="diffusion_models/t_plain")
    found = load_file(path)
    assert found.keys() == stage_c_weights().keys() and {value.dtype for value in found.values()} == {torch.bfloat16}
    assert all(
        relative(value, stage_c_weights()[key]) < 0.2 for key, value in found.items() if key.endswith("_proj_weight")
    )
    as_is, _ = save(studio, model, "ComfyUI", dtype="as it is", filename_prefix="diffusion_models/t_as_is")
    names = read_header(as_is).tensors
    assert "model.diffusion_model.down_blocks.0.2.attention.attn.to_q.weight_scale" in names
    assert names["model.diffusion_model.down_blocks.0.2.attention.attn.to_q.weight"].dtype == torch.float8_e4m3fn


def test_saving_errors(studio, models, monkeypatch):
    from cascade_studio.nodes.host.files import write as model_files

    model = models["prior"][0]

    def failure(**inputs) -> str:
        graph = studio.graph()
        given = {
            "model": model,
            "layout": "official",
            "dtype": "fp32",
            "filename_prefix": "diffusion_models/t_fail",
            **inputs,
        }
        return graph.error(graph.add("CascadeStudio_SaveModel", **given)[0])

    check_sentence(failure(filename_prefix="../outside"), "output folder")
    huge = studio.write("loras/t_huge", {"diffusion_model.embedding.1.diff_b": 1e6 * noise(128)})
    big = studio.call("CascadeStudio_LoadLora", lora=huge, prior=model)
    check_sentence(failure(model=big, dtype="fp16"), "embedding.1.bias", "fp16 cannot hold")
    monkeypatch.setattr(model_files.disk, "free_bytes", lambda path: 1000)
    check_sentence(failure(), "free", "smaller number format")
    monkeypatch.undo()
    monkeypatch.setattr(model_files.comfy.utils, "save_torch_file", full_disk)
    check_sentence(failure(), "disk is full")
    monkeypatch.undo()
    monkeypatch.setattr(model_files.disk, "replace", held)
    check_sentence(failure(), "could not be written", "held by another program")
    assert not list((studio.host.base / "output" / "diffusion_models").glob("t_fail*"))


def held(source, target) -> None:
    raise PermissionError(13, "held by another program")


def full_disk(tensors, path, metadata=None) -> None:
    Path(path).write_bytes(b"half of it")
    raise OSError(28, "No space left on device")


def open_fp8(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The numbers in a file of :func:`family.fp8_scaled` in its newer form: each weight times its scale."""
    own = {key: value for key, value in weights.items() if not key.endswith((".comfy_quant", ".weight_scale"))}
    return {key: value.float() * weights.get(f"{key}_scale", torch.ones(())).float() for key, value in own.items()}


@pytest.mark.parametrize("stage", STAGES)
def test_quantised_models_count_as_the_numbers_they_hold(studio, models, stage):
    """As second model of a merge, as either side of a difference and of an extraction."""
    first = models[stage][0]
    weights = {key: value.float() for key, value in models[stage][1].model.diffusion_model.state_dict().items()}
    quantised = fp8_scaled(normalise(weights, identify(weights)), new=True)
    file = studio.write(f"diffusion_models/t_scaled_{stage}", quantised)
    scaled, plain = (
        studio.load(stage, file),
        studio.load(stage, studio.write(f"diffusion_models/t_opened_{stage}", open_fp8(quantised))),
    )
    for share in (1.0, 0.5):
        given = dict.fromkeys(GROUPS, share)
        expected = answer(merge(studio, first, plain, **given))
        assert relative(answer(merge(studio, first, scaled, **given)), expected) <= 1e-5
    for one, other in ((scaled, first), (first, scaled), (scaled, plain)):
        tuned, base = ((plain if model is scaled else model) for model in (one, other))
        expected, found = (
            answer(studio.call("CascadeStudio_AddDifference", model=first, tuned=a, base=b, strength=1.0))
            for a, b in ((tuned, base), (one, other))
        )
        assert relative(found, expected) <= 1e-5
    from cascade_studio.nodes.host.lora.merge import extract_lora

    change, _ = extract_lora(scaled, first, 4096, 1.0, EVERYTHING, torch.float32, "it")
    lora = studio.call(
        "CascadeStudio_LoadLora",
        STAGES.index(stage),
        lora=studio.write(f"loras/t_of_{stage}", change),
        **{stage: first},
    )
    assert relative(answer(lora), answer(plain)) < 1e-3
