"""LoRAs in the real host: every layout acts as the plain one, nothing stays behind, and errors are sentences."""

from __future__ import annotations

import pytest
import torch
from forward import attention_shapes, comfyui, forward, low_rank, noise, official
from graphs import check_sentence
from recipe import weights_for
from tiny import TOLERANCE, golden, index
from world import Studio, changed, relative


@pytest.fixture(scope="module")
def changes(studio) -> dict:
    """A strong change of rank 4 on every projection of Stage C."""
    return low_rank(attention_shapes(studio.parts.prior), size=2.0)


@pytest.fixture(scope="module")
def plain(studio) -> dict[str, torch.Tensor]:
    return {name: forward(getattr(studio.parts, name)) for name in ("prior", "decoder")}


@pytest.fixture(scope="module")
def expected(studio, changes) -> torch.Tensor:
    """The change as the host's own loader applies it from ComfyUI's layout."""
    name = studio.write("loras/t_plain", comfyui(changes))
    return forward(studio.call("LoraLoaderModelOnly", model=studio.parts.prior, lora_name=name, strength_model=1.0))


def load(studio: Studio, name: str, slots=range(4), **inputs):
    given = {"lora": name, "prior": studio.parts.prior, **inputs}
    return studio.call(
        "CascadeStudio_LoadLora", slots, **{key: value for key, value in given.items() if value is not None}
    )


def renamed(changes: dict, style: str) -> dict[str, torch.Tensor]:
    found = {}
    for module, (up, down) in changes.items():
        diffusers = module.replace(".attention.attn.to_", ".attention.to_").replace(".attn.out_proj", ".to_out.0")
        start, ends = {
            "kohya": ("lora_prior_unet_" + module.replace(".", "_"), ("lora_up.weight", "lora_down.weight")),
            "diffusers": (f"unet.{diffusers}", ("lora_B.weight", "lora_A.weight")),
            "peft": (f"base_model.model.{module}", ("lora_B.default.weight", "lora_A.default.weight")),
        }[style]
        found[f"{start}.{ends[0]}"], found[f"{start}.{ends[1]}"] = up, down
        if style == "kohya":
            found[f"{start}.alpha"] = torch.tensor(float(len(down)))
    return found


def fused(changes: dict) -> dict[str, torch.Tensor]:
    found = {}
    for key, value in official(changes).items():
        number, way = int(key.split(".")[1]), key.rpartition("_")[2]
        block = list(dict.fromkeys(module.rpartition(".")[0] for module in changes))[number // 2]
        name = f"{block}.{'in_proj' if number % 2 else 'out_proj'}".replace(".", "_")
        found[f"lora_prior_unet_{name}.lora_{way}.weight"] = value / 4 if way == "up" else value
    return found


def test_golden(studio):
    """The recorded output of the official code: its positional file on its network, through the host."""
    network = studio.write("diffusion_models/t_golden", weights_for(index()["stage_c_tiny"]["keys"]))
    tensors, recorded = golden("stage_c_tiny"), golden("stage_c_tiny_lora")
    file = studio.write("loras/t_golden", {key: value for key, value in recorded.items() if key != "out"})
    model = studio.load("prior", network)
    given = (
        tensors["x"],
        tensors["r"],
        {name: tensors[name] for name in ("clip_text", "clip_text_pooled", "clip_img")},
    )
    before = forward(model, given)
    assert relative(before, tensors["out"]) <= TOLERANCE
    with_lora, _, _, report = load(studio, file, prior=model)
    assert relative(forward(with_lora, given), recorded["out"]) <= TOLERANCE
    assert "24 of 24 keys used" in report and "24 layers of Stage C" in report and "Rank 4, alpha 1" in report
    assert relative(recorded["out"], tensors["out"]) > 0.01
    assert torch.equal(forward(model, given), before), "taking the LoRA off gives the bits back"


@pytest.mark.parametrize("style", ["plain", "kohya", "diffusers", "peft", "official", "fused"])
def test_every_layout_acts_as_the_plain_one(studio, plain, changes, expected, style):
    file = {"plain": comfyui, "official": official, "fused": fused}.get(style, lambda c: renamed(c, style))(changes)
    name = studio.write(f"loras/t_{style}", file)
    model, decoder, clip, report = load(studio, name, decoder=studio.parts.decoder)
    assert decoder is studio.parts.decoder and clip is None
    assert relative(forward(model), expected) <= 1e-5
    assert changed(expected, plain["prior"])
    assert f"{len(file)} of {len(file)} keys used" in report and "16 layers of Stage C" in report
    assert torch.equal(forward(studio.parts.prior), plain["prior"])


def test_family_files(studio, plain):
    for name in ("official.safetensors", "kohya.safetensors"):
        model, _, clip, report = load(studio, name, clip=studio.parts.clip, strength_model=20.0)
        assert relative(forward(model), plain["prior"]) > 1e-4 and "16 layers of Stage C" in report


ROWS, COLUMNS = 128, 128
METHODS = {
    "loha": {
        "hada_w1_a": noise(ROWS, 4),
        "hada_w1_b": noise(4, COLUMNS),
        "hada_w2_a": noise(ROWS, 4, seed=1),
        "hada_w2_b": noise(4, COLUMNS, seed=1),
        "alpha": torch.tensor(4.0),
    },
    "lokr": {"lokr_w1": noise(8, 8), "lokr_w2": noise(16, 16)},
    "oft": {"oft_blocks": noise(4, 32, 32)},
    "difference": {"diff": noise(ROWS, COLUMNS), "diff_b": noise(ROWS)},
}


@pytest.mark.parametrize("method", METHODS)
def test_other_methods(studio, plain, method):
    """Through the host's adapters, and fused exactly as split."""
    parts, block = METHODS[method], "up_blocks_1_2_attention_attn"
    split = {
        f"lora_prior_unet_{block}_{name}.{part}": value.clone()
        for name in ("to_q", "to_k", "to_v")
        for part, value in parts.items()
    }
    rows = {
        "loha": ("hada_w1_a", "hada_w2_a"),
        "lokr": ("lokr_w1",),
        "oft": ("oft_blocks",),
        "difference": ("diff", "diff_b"),
    }[method]
    joined = {
        f"lora_prior_unet_{block}_in_proj.{part}": torch.cat([value] * 3) if part in rows else value
        for part, value in parts.items()
    }
    results = []
    for number, file in enumerate((split, joined)):
        model, *_, report = load(studio, studio.write(f"loras/t_{method}_{number}", file))
        assert "3 layers of Stage C" in report
        results.append(forward(model))
    assert torch.equal(*results) and not torch.equal(results[0], plain["prior"])
    assert torch.isfinite(results[0]).all() and relative(results[0], plain["prior"]) > 1e-4


def test_stage_b(studio, plain):
    file = comfyui(low_rank(attention_shapes(studio.parts.decoder), size=30.0))
    name = studio.write(
        "loras/t_stage_b", {key.replace("diffusion_model.", "unet."): value for key, value in file.items()}
    )
    prior, decoder, _, report = load(studio, name, decoder=studio.parts.decoder)
    assert prior is studio.parts.prior and "layers of Stage B" in report and "Wrong shape" not in report
    assert relative(forward(decoder), plain["decoder"]) > 1e-4
    core = studio.write("loras/t_stage_b_core", file)
    theirs = studio.call("LoraLoaderModelOnly", model=studio.parts.decoder, lora_name=core, strength_model=1.0)
    assert torch.equal(forward(decoder), forward(theirs))
    assert torch.equal(forward(studio.parts.decoder), plain["decoder"])


def test_strength(studio, plain, changes, expected):
    """0 is the same object; opposite strengths cancel; the effect grows."""
    name = studio.write("loras/t_strength", comfyui(changes))
    model, *_, report = load(studio, name, strength_model=0.0)
    assert model is studio.parts.prior and "strength_model is 0" in report
    _, _, clip, _ = load(studio, "official.safetensors", clip=studio.parts.clip, strength_clip=0.0)
    assert clip is studio.parts.clip
    half = load(studio, name, range(1), strength_model=0.5)
    half = forward(half[0] if isinstance(half, list) else half)
    assert 0 < relative(half, plain["prior"]) < relative(expected, plain["prior"])
    there = load(studio, name)[0]
    back = load(studio, name, prior=there, strength_model=-1.0)[0]
    assert relative(forward(back), plain["prior"]) <= 1e-4


def test_stack(studio, plain):
    """Three LoRAs in a stack are three loaders in a row."""
    names = [
        studio.write(f"loras/t_stack_{seed}", comfyui(low_rank(attention_shapes(studio.parts.prior), seed=seed)))
        for seed in range(3)
    ]
    model, results = studio.parts.prior, [plain["prior"]]
    for number, name in enumerate(names):
        model = load(studio, name, prior=model, strength_model=number - 0.5)[0]
        results.append(forward(model))
    assert all(changed(after, before) for before, after in zip(results, results[1:]))
    graph, stack = studio.graph(), {}
    for number, name in enumerate(names):
        node = graph.add("CascadeStudio_LoraStack", lora=name, strength_model=number - 0.5, **stack)
        stack = {"stack": node[0]}
    applied = graph.add("CascadeStudio_ApplyLoraStack", prior=studio.parts.prior, **stack)
    stacked, report = graph.run(applied[0], applied[3])
    assert torch.equal(forward(stacked), results[-1])
    assert [name for name in names if name in report] == names and report.count("32 of 32 keys used") == 3


def test_report_is_shown_in_the_node(studio, changes):
    graph = studio.graph()
    node = graph.add(
        "CascadeStudio_LoadLora", lora=studio.write("loras/t_shown", comfyui(changes)), prior=studio.parts.prior
    )
    result = graph.execute(node[3])
    assert result.ui[node.name]["text"] == [result.values[(node.name, 3)]]


def test_partial_files_are_applied_and_told(studio, plain, changes):
    file = comfyui(changes)
    wrong = next(key for key in file if key.endswith("to_v.lora_up.weight"))
    file[wrong] = noise(99, 4)
    file["diffusion_model.nowhere.lora_up.weight"] = noise(4, 4)
    model, *_, report = load(studio, studio.write("loras/t_partial", file))
    assert changed(forward(model), plain["prior"])
    assert "30 of 33 keys used" in report and "15 layers of Stage C" in report
    assert f"{wrong}: 99×128 given, 128×128 needed" in report and "nowhere" in report


def test_effect_in_a_sampler(studio, changes):
    """Through KSampler and back."""
    latent = studio.canvas()[0]
    before = studio.core_sample(studio.parts.prior, latent, seed=4, steps=1)
    model = load(studio, studio.write("loras/t_sampled", comfyui(changes)))[0]
    assert changed(studio.core_sample(model, latent, seed=4, steps=1), before)
    assert torch.equal(studio.core_sample(studio.parts.prior, latent, seed=4, steps=1), before)


# Errors


def failure(studio: Studio, kind: str = "CascadeStudio_LoadLora", **inputs) -> str:
    graph = studio.graph()
    return graph.error(graph.add(kind, **inputs)[0])


def test_errors_are_sentences(studio, changes):
    parts = studio.parts
    name = studio.write("loras/t_errors", comfyui(changes))
    check_sentence(failure(studio, lora="absent.safetensors", prior=parts.prior), "absent.safetensors", "models/loras")
    check_sentence(failure(studio, lora=name), "no model", "wire the prior")
    large = studio.write(
        "loras/t_large", {key: noise(200, 4) if "_up" in key else value for key, value in comfyui(changes).items()}
    )
    check_sentence(failure(studio, lora=large, prior=parts.prior), "no key", "another size", "200×128 given")
    check_sentence(failure(studio, lora=name, prior=parts.decoder), "'prior' input", "Stage C")
    check_sentence(failure(studio, lora=name, clip=parts.clip), "not wired")
    foreign = studio.write("loras/t_foreign", {"lora_unet_input_blocks_1_1_proj_in.lora_up.weight": noise(32, 4)})
    check_sentence(failure(studio, lora=foreign, prior=parts.prior), foreign, "another model")
    (studio.models / "loras" / "t_pickle.safetensors").write_bytes(b"PK\x03\x04" + bytes(200))
    check_sentence(failure(studio, lora="t_pickle.safetensors", prior=parts.prior), "pickle")
    for kind in ("CascadeStudio_LoadHookLora", "CascadeStudio_ConvertLora"):
        inputs = {} if "Hook" in kind else {"layout": "ComfyUI"}
        check_sentence(failure(studio, kind, lora="absent.safetensors", model=parts.prior, **inputs), "absent")
        check_sentence(failure(studio, kind, lora=large, model=parts.prior, **inputs), "another size")


def test_bundled_files_are_offered(studio, monkeypatch, tmp_path, changes):
    """What lies beside the bundled models, after the user's own; replaced files are read again."""
    from safetensors.torch import save_file

    from cascade_studio.nodes.checkpoints import find
    from cascade_studio.nodes.host.files import names as files
    from cascade_studio.nodes.host.files.stamps import stamp_absent

    folder = tmp_path / "mini" / "loras"
    folder.mkdir(parents=True)
    save_file(comfyui(changes), folder / "t_brought.safetensors")
    monkeypatch.setattr(find, "PACK", tmp_path)
    assert "t_brought.safetensors" in files.Library().list_names("lora")
    assert "32 of 32" in load(studio, "t_brought.safetensors")[3]
    (folder / "kohya.safetensors").write_bytes(b"")
    assert files.find("lora", "kohya.safetensors") == str(studio.models / "loras" / "kohya.safetensors"), (
        "the user's first"
    )
    before = files.stamp("lora", "t_brought.safetensors")
    save_file(comfyui(dict(list(changes.items())[:4])), folder / "t_brought.safetensors")
    assert files.stamp("lora", "t_brought.safetensors") != before
    assert files.stamp("lora", "absent.safetensors") == stamp_absent("absent.safetensors")
