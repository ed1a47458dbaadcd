"""LoRA files: every layout is read as the same change, every key is accounted for, and nothing wrong is applied."""

from __future__ import annotations

import pytest
import torch
from recipe import weights_for
from tiny import TOLERANCE, golden, index, relative, split_qkv, tiny_net, tiny_weights
from torch import Tensor

from cascade_studio.stages.errors import WrongFile
from cascade_studio.stages.files.identify import identify
from cascade_studio.stages.lora import names as lora_names
from cascade_studio.stages.lora.convert import COMFYUI, KOHYA, OFFICIAL, to_layout
from cascade_studio.stages.lora.match import TOKENS_KEY, match_lora
from cascade_studio.stages.lora.parts import find_delta_shape, find_method, fits

INPUTS = ("x", "r", "clip_text", "clip_text_pooled", "clip_img")
BLOCK = "down_blocks.0.2.attention.attn"
PARTS = ("to_q", "to_k", "to_v", "out_proj")
TEXT_LAYER = "text_model.encoder.layers.0.mlp.fc1"
TEXT = {
    f"{TEXT_LAYER}.weight": (384, 96),
    "text_projection.weight": (96, 96),
    "text_model.embeddings.token_embedding.weight": (49408, 96),
}


def shapes(name: str = "stage_c_tiny") -> dict[str, tuple[int, ...]]:
    return {key: tuple(value.shape) for key, value in tiny_weights(name).items()}


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def delta(parts: dict[str, Tensor]) -> Tensor:
    """What a plain LoRA adds to a weight, as a matrix."""
    down = parts["lora_down.weight"].flatten(1)
    scale = float(parts["alpha"]) / len(down) if "alpha" in parts else 1.0
    return parts["lora_up.weight"].flatten(1) @ down * scale


def pairs() -> dict[str, tuple[Tensor, Tensor]]:
    """One low-rank change for each projection of the first attention; q, k and v share their second factor."""
    return {
        part: (noise(128, 4, seed=i), noise(4, 128, seed=9 if part != "out_proj" else 10))
        for i, part in enumerate(PARTS)
    }


def written(style: str) -> dict[str, Tensor]:
    """The same change in the layout ``style``."""
    found = {}
    flat = BLOCK.replace(".", "_")
    for part, (up, down) in pairs().items():
        plain = "to_out.0" if part == "out_proj" else part
        module, ends = {
            "comfyui": (f"diffusion_model.{BLOCK}.{part}", ("lora_up.weight", "lora_down.weight")),
            "kohya": (f"lora_prior_unet_{flat}_{part}", ("lora_up.weight", "lora_down.weight")),
            "generic": (f"lora_unet_{flat}_{part}", ("lora_up.weight", "lora_down.weight")),
            "peft": (f"base_model.model.{BLOCK}.{part}", ("lora_B.weight", "lora_A.weight")),
            "peft named": (f"base_model.model.{BLOCK}.{part}", ("lora_B.default.weight", "lora_A.default.weight")),
            "diffusers": (f"prior.down_blocks.0.2.attention.{plain}", ("lora_B.weight", "lora_A.weight")),
            "diffusers up": (f"unet.down_blocks.0.2.attention.{plain}", ("lora.up.weight", "lora.down.weight")),
            "processors": (
                f"unet.down_blocks.0.2.attention.processor.{plain.removesuffix('.0')}_lora",
                ("up.weight", "down.weight"),
            ),
            "linear layers": (
                f"unet.down_blocks.0.2.attention.{plain}",
                ("lora_linear_layer.up.weight", "lora_linear_layer.down.weight"),
            ),
        }[style]
        found[f"{module}.{ends[0]}"], found[f"{module}.{ends[1]}"] = up, down
    return found


def fused(module: str, out: str) -> dict[str, Tensor]:
    """The same change with q, k and v in one."""
    changes = pairs()
    return {
        f"{module}.lora_up.weight": torch.cat([changes[part][0] for part in PARTS[:3]]),
        f"{module}.lora_down.weight": changes["to_q"][1],
        f"{out}.lora_up.weight": changes["out_proj"][0],
        f"{out}.lora_down.weight": changes["out_proj"][1],
    }


FILES = {
    style: written(style)
    for style in (
        "comfyui",
        "kohya",
        "generic",
        "peft",
        "peft named",
        "diffusers",
        "diffusers up",
        "processors",
        "linear layers",
    )
}
FILES["fused kohya"] = fused(
    "lora_prior_unet_down_blocks_0_2_attention_attn_in_proj", "lora_prior_unet_down_blocks_0_2_attention_attn_out_proj"
)
FILES["fused weight"] = fused(f"diffusion_model.{BLOCK}.in_proj_weight", f"diffusion_model.{BLOCK}.out_proj")
FILES["fused peft"] = fused(f"base_model.model.{BLOCK}", f"base_model.model.{BLOCK}.base_layer.out_proj")


@pytest.mark.parametrize("style", FILES)
def test_every_layout_is_the_same_change(style):
    lora = match_lora(FILES[style], {"stage_c": shapes()})
    assert lora.stage == "stage_c" and set(lora.unet) == {f"{BLOCK}.{part}" for part in PARTS}
    for part, (up, down) in pairs().items():
        assert torch.equal(delta(lora.unet[f"{BLOCK}.{part}"]), up @ down)
    report = lora.report
    assert len(report.matched) == report.total == len(FILES[style]) and not report.unmatched + report.mismatched
    assert report.unet_layers == 4 and report.methods == ("LoRA",) and report.ranks == (4,)
    assert set(lora.unet_tensors()) == set(FILES["comfyui"])


def test_layouts_have_names():
    names = {style: lora_names.layout_of(FILES[style]) for style in FILES}
    assert names["kohya"] == names["generic"] == "kohya" and names["comfyui"] == "ComfyUI"
    assert names["peft"] == "PEFT" and names["diffusers"] == names["processors"] == "diffusers"
    assert lora_names.layout_of(golden("stage_c_tiny_lora")) == "official"


def official() -> dict[str, Tensor]:
    return {key: value for key, value in golden("stage_c_tiny_lora").items() if key != "out"}


def test_golden():
    """The recorded output of the official code with this file on the network."""
    lora = match_lora(official(), {"stage_c": shapes()})
    assert lora.report.layout == "official" and len(lora.unet) == 4 * 6
    net, tensors = tiny_net("stage_c_tiny"), golden("stage_c_tiny")
    weights = dict(net.state_dict())
    for module, parts in lora.unet.items():
        weights[f"{module}.weight"] = weights[f"{module}.weight"] + delta(parts)
    net.load_state_dict(weights)
    out = net(*(tensors[name] for name in INPUTS))
    expected = golden("stage_c_tiny_lora")["out"]
    assert relative(out, expected) <= TOLERANCE and relative(tensors["out"], expected) > 0.01


@pytest.mark.parametrize("start", ["module.", ""])
def test_ultrapixels_numbers_are_the_official_positions(start):
    """Its training writes bare numbers for the layers and the next one for the token."""
    layers = [key for key in official() if key.startswith("weights.")]
    last = len(layers) // 2
    file = {f"{start}{key.removeprefix('weights.')}": official()[key] for key in layers}
    token = {"embeddings": noise(1, 96), "indices": torch.tensor([49408])}
    file.update({f"{start}{last}.{name}": value for name, value in token.items()})
    found, nets = identify(file), {"stage_c": shapes(), "text_encoder": TEXT}
    assert found.kind == "lora" and "UltraPixel" in found.title
    ours, expected = match_lora(file, nets), match_lora({key: official()[key] for key in layers}, nets)
    assert ours.unet.keys() == expected.unet.keys() and not ours.report.unmatched
    for module, parts in expected.unet.items():
        assert all(torch.equal(ours.unet[module][part], value) for part, value in parts.items())
    assert torch.equal(ours.offsets[49408], token["embeddings"][0]) and ours.report.layout == "official"


def test_positions_are_those_of_the_official_code():
    """Output projection before q, k and v; down before up, by level and place, tenth after second."""
    config = {**index()["stage_c_tiny"]["config"], "blocks": ((4, 1), (1, 4))}
    from cascade_studio.stages import StageC, StageCConfig

    names = StageC(StageCConfig(**config), device="meta").state_dict()
    order = lora_names.positions(lora_names.modules_of({key: tuple(value.shape) for key, value in names.items()}))
    blocks = [places[0].removesuffix(".attention.attn.out_proj") for places in order[::2]]
    assert blocks == [
        *(f"down_blocks.0.{i}" for i in (2, 5, 8, 11)),
        "down_blocks.1.2",
        "up_blocks.0.2",
        *(f"up_blocks.1.{i}" for i in (2, 5, 8, 11)),
    ]
    assert all(len(places) == 3 for places in order[1::2])


def test_another_number_of_layers_is_refused():
    """Positions alone would put the changes on wrong layers of a network of the same width."""
    short = {key: value for key, value in official().items() if not key.startswith(("weights.10.", "weights.11."))}
    with pytest.raises(WrongFile, match="counts 10 attention layers by their position"):
        match_lora(short, {"stage_c": shapes()})


def test_official_round_trip_is_exact():
    nets = {"stage_c": shapes()}
    there, _ = to_layout(match_lora(official(), nets), COMFYUI, shapes())
    assert all(key.startswith("diffusion_model.") for key in there)
    back, _ = to_layout(match_lora(there, nets), OFFICIAL, shapes())
    assert back.keys() == official().keys()
    assert all(torch.equal(back[key], value) for key, value in official().items())


@pytest.mark.parametrize("layout", [COMFYUI, KOHYA])
def test_comfyui_round_trips_are_exact(layout):
    nets = {"stage_c": shapes()}
    there, _ = to_layout(match_lora(FILES["comfyui"], nets), layout, shapes())
    back, _ = to_layout(match_lora(there, nets), COMFYUI, shapes())
    assert back.keys() == FILES["comfyui"].keys()
    assert all(torch.equal(back[key], value) for key, value in FILES["comfyui"].items())


def test_different_factors_become_blocks_of_one():
    """Official files fuse q, k and v; changes with factors of their own, and other alphas, stay the same change."""
    file = dict(FILES["comfyui"])
    file[f"diffusion_model.{BLOCK}.to_k.lora_down.weight"] = noise(4, 128, seed=20)
    file[f"diffusion_model.{BLOCK}.to_v.alpha"] = torch.tensor(2.0)
    nets = {"stage_c": shapes()}
    before = match_lora(file, nets)
    fused_file, _ = to_layout(before, OFFICIAL, shapes())
    assert {value.shape[0] for key, value in fused_file.items() if key.endswith("lora_down")} == {12}
    after = match_lora(fused_file, nets)
    for module, parts in before.unet.items():
        assert torch.allclose(delta(after.unet[module]), delta(parts), rtol=1e-5, atol=1e-5)
    untouched = next(parts for module, parts in after.unet.items() if module not in before.unet)
    assert not delta(untouched).any()


def test_official_layout_refuses_what_it_cannot_hold():
    nets = {"stage_c": shapes(), "text_encoder": TEXT}
    other = {
        "diffusion_model.clf.1.lora_up.weight": noise(16, 2, 1, 1),
        "diffusion_model.clf.1.lora_down.weight": noise(2, 128, 1, 1),
    }
    whole = {f"diffusion_model.{BLOCK}.to_q.diff": noise(128, 128)}
    text = {
        f"lora_prior_te_{TEXT_LAYER.replace('.', '_')}.lora_up.weight": noise(384, 2),
        f"lora_prior_te_{TEXT_LAYER.replace('.', '_')}.lora_down.weight": noise(2, 96),
    }
    for file, words in (
        ({**FILES["kohya"], **other}, "clf.1"),
        (whole, "more than that"),
        ({**FILES["kohya"], **text}, "text encoder"),
        (text, "has none"),
    ):
        with pytest.raises(WrongFile, match=words):
            to_layout(match_lora(file, nets), OFFICIAL, shapes())


def test_every_key_is_accounted_for():
    file = {
        **FILES["kohya"],
        "lora_prior_unet_nowhere.lora_up.weight": noise(4, 4),
        "counter": noise(1),
        "lora_prior_unet_clf_1.lora_up.weight": noise(99, 2),
        "lora_prior_unet_clf_1.lora_down.weight": noise(2, 128),
        "lora_prior_te_text_projection.lora_up.weight": noise(96, 2),
        "lora_prior_te_text_projection.lora_down.weight": noise(2, 96),
    }
    report = match_lora(file, {"stage_c": shapes()}).report
    assert report.total == len(file)
    assert set(report.unmatched) == {"counter", "lora_prior_unet_nowhere.lora_up.weight"}
    assert {each.key for each in report.mismatched} == {key for key in file if "clf_1" in key}
    assert set(report.idle_text) == {key for key in file if "_te_" in key}
    text = report.text(["a note"])
    assert "8 of 14 keys used" in text and "99×128 given, 16×128×1×1 needed" in text and text.endswith("a note")
    assert "no CLIP is wired" in text and "counter" in text
    both = match_lora(file, {"stage_c": shapes(), "text_encoder": TEXT})
    assert set(both.text) == {"text_projection"} and both.report.text_layers == 1 and not both.report.idle_text


def test_a_layer_that_comes_twice_is_used_once():
    file = {**FILES["kohya"], **FILES["fused peft"]}
    report = match_lora(file, {"stage_c": shapes()}).report
    assert report.unet_layers == 4 and set(report.unmatched) == set(FILES["fused peft"])


def test_nothing_that_fits_is_an_error():
    wrong_size = {key: noise(7, *value.shape[1:]) if "up" in key else value for key, value in FILES["kohya"].items()}
    foreign = {"lora_unet_input_blocks_1_1_proj_in.lora_up.weight": noise(320, 4)}
    for file, nets, words in (
        (wrong_size, {"stage_c": shapes()}, "another shape"),
        (foreign, {"stage_c": shapes()}, "another model"),
        (FILES["kohya"], {"text_encoder": TEXT}, "Stage C or Stage B model, which is not wired"),
    ):
        with pytest.raises(WrongFile, match=words) as caught:
            match_lora(file, nets, name="mine.safetensors")
        assert "mine.safetensors" in str(caught.value) and str(caught.value).endswith(".")


def test_a_file_goes_to_the_stage_that_it_fits():
    nets = {"stage_c": shapes(), "stage_b": shapes("stage_b_tiny")}
    assert match_lora(FILES["diffusers"], nets).stage == "stage_c"
    module = next(key for key in nets["stage_b"] if key.endswith("attn.to_q.weight"))
    rows, columns = nets["stage_b"][module]
    file = {
        f"lora_unet_{module.removesuffix('.weight').replace('.', '_')}.lora_{end}.weight": noise(*size)
        for end, size in (("up", (rows, 2)), ("down", (2, columns)))
    }
    pooled = nets["stage_b"]["clip_mapper.weight"]
    file.update(
        {
            "decoder.clip_txt_pooled_mapper.lora_B.weight": noise(pooled[0], 2),
            "decoder.clip_txt_pooled_mapper.lora_A.weight": noise(2, pooled[1]),
        }
    )
    lora = match_lora(file, nets)
    assert lora.stage == "stage_b" and set(lora.unet) == {module.removesuffix(".weight"), "clip_mapper"}


def kron(parts: dict[str, Tensor]) -> Tensor:
    return torch.kron(parts["lokr_w1"], parts["lokr_w2"])


def hadamard(parts: dict[str, Tensor]) -> Tensor:
    return (parts["hada_w1_a"] @ parts["hada_w1_b"]) * (parts["hada_w2_a"] @ parts["hada_w2_b"])


def rotations(parts: dict[str, Tensor]) -> Tensor:
    return torch.block_diag(*parts["oft_blocks"])


OTHERS = {
    "LoHa": (
        {
            "hada_w1_a": noise(384, 3),
            "hada_w1_b": noise(3, 128),
            "hada_w2_a": noise(384, 3, seed=1),
            "hada_w2_b": noise(3, 128, seed=1),
            "alpha": torch.tensor(2.0),
        },
        hadamard,
    ),
    "LoKr": ({"lokr_w1": noise(6, 8), "lokr_w2": noise(64, 16)}, kron),
    "OFT": ({"oft_blocks": noise(12, 32, 32)}, rotations),
    "difference": ({"diff": noise(384, 128), "diff_b": noise(384)}, lambda parts: parts["diff"]),
}


@pytest.mark.parametrize("name", OTHERS)
def test_other_methods_on_fused_layers(name):
    """Each of q, k and v gets the band of rows that is its own."""
    parts, whole = OTHERS[name]
    file = {f"lora_prior_unet_{BLOCK.replace('.', '_')}_in_proj.{part}": value for part, value in parts.items()}
    lora = match_lora(file, {"stage_c": shapes()})
    assert lora.report.methods == (name,) and len(lora.unet) == 3
    bands = [whole(lora.unet[f"{BLOCK}.{part}"]) for part in PARTS[:3]]
    joined = torch.block_diag(*bands) if name == "OFT" else torch.cat(bands)
    assert torch.equal(joined, whole(parts))
    if "alpha" in parts:
        assert all(torch.equal(lora.unet[f"{BLOCK}.{part}"]["alpha"], parts["alpha"]) for part in PARTS[:3])


@pytest.mark.parametrize(
    "parts",
    [
        {"lokr_w1": noise(8, 8), "lokr_w2": noise(48, 16)},
        {"oft_blocks": noise(4, 96, 96)},
        {"oft_blocks": noise(12, 32, 32), "alpha": torch.tensor(0.1)},
    ],
    ids=["LoKr", "OFT", "constrained OFT"],
)
def test_what_mixes_rows_is_left_out(parts):
    file = {f"diffusion_model.{BLOCK}.in_proj.{part}": value for part, value in parts.items()}
    report = match_lora({**file, **FILES["kohya"]}, {"stage_c": shapes()}).report
    assert {each.key for each in report.mismatched} == set(file) and "cannot be cut in three" in report.text()


def test_sizes_of_adapters():
    cases = [
        ({"lora_up.weight": noise(8, 2, 1, 1), "lora_down.weight": noise(2, 4, 3, 3)}, (8, 36)),
        (
            {"lora_up.weight": noise(8, 2), "lora_down.weight": noise(2, 4), "lora_mid.weight": noise(2, 2, 3, 3)},
            (8, 36),
        ),
        (
            {
                "hada_t1": noise(2, 2, 3, 3),
                "hada_w1_a": noise(2, 8),
                "hada_w1_b": noise(2, 4),
                "hada_w2_a": noise(2, 8),
                "hada_w2_b": noise(2, 4),
            },
            (8, 36),
        ),
        ({"lokr_w1_a": noise(2, 1), "lokr_w1_b": noise(1, 3), "lokr_w2": noise(4, 5)}, (8, 15)),
        ({"oft_blocks": noise(2, 4, 4)}, (8, None)),
        ({"diff_b": noise(8)}, None),
    ]
    for parts, expected in cases:
        assert find_delta_shape(parts) == expected
        assert fits(parts, (8, expected[1] or 5) if expected else (8, 5))
        assert not fits(parts, (9, 5))
    assert find_method({"lora_up.weight": noise(2, 2)}) == "", "half an adapter is none"


def test_transposed_convolutions_have_a_bias_of_another_length():
    nets = {"stage_b": {"up_upscalers.0.1.weight": (8, 4, 2, 2), "up_upscalers.0.1.bias": (4,)}}
    file = {
        "diffusion_model.up_upscalers.0.1.diff": noise(8, 4, 2, 2),
        "diffusion_model.up_upscalers.0.1.diff_b": noise(4),
    }
    assert set(match_lora(file, nets).unet["up_upscalers.0.1"]) == {"diff", "diff_b"}


def test_tokens_and_bundled_embeddings():
    file = {
        **official(),
        "embeddings.embeddings": noise(3, 96),
        "embeddings.indices": torch.tensor([320, 49408, 49409]),
        "bundle_emb.<cat>.clip_g": noise(2, 96),
        "bundle_emb.<cat>.clip_g_out": noise(2, 96),
        "bundle_emb.<dog>.string_to_param.*": noise(1, 96),
        "bundle_emb.<old>.clip_l": noise(2, 7),
    }
    nets = {"stage_c": shapes(), "text_encoder": TEXT}
    lora = match_lora(file, nets, {TOKENS_KEY: '{"[fernando]": "^dog</w>"}'})
    assert lora.new_tokens == [49408, 49409] and list(lora.offsets) == [320, 49408, 49409]
    assert torch.equal(lora.offsets[49408], file["embeddings.embeddings"][1])
    assert {word: tuple(rows.shape) for word, rows in lora.bundled.items()} == {"<cat>": (2, 96), "<dog>": (1, 96)}
    assert lora.words == {"[fernando]": "^dog</w>"}
    assert [each.key for each in lora.report.mismatched] == ["bundle_emb.<old>.clip_l"]
    text = lora.report.text()
    assert "Adds 2 tokens" in text and "Moves 1 token " in text and "<cat>" in text
    back = match_lora(*reversed_arguments(to_layout(lora, COMFYUI, shapes()), nets))
    assert (
        back.words == lora.words
        and list(back.offsets) == list(lora.offsets)
        and back.bundled.keys() == lora.bundled.keys()
    )
    assert not match_lora(file, {"stage_c": shapes()}).offsets


def reversed_arguments(file: tuple[dict, dict], nets: dict) -> tuple[dict, dict, dict]:
    tensors, metadata = file
    return tensors, nets, metadata


def test_metadata_is_told():
    metadata = {
        "ss_base_model_version": "stable_cascade",
        "ss_network_dim": "8",
        "ss_network_alpha": "4",
        "modelspec.trigger_phrase": "a drawing",
        "ss_sd_model_name": "None",
        "ss_tag_frequency": '{"a": {"cat": 3, "dog": 9}, "b": {"cat": 7}}',
    }
    text = match_lora(FILES["kohya"], {"stage_c": shapes()}, metadata).report.text()
    for words in ("base model stable_cascade", "rank and alpha 8 and 4", "trigger words a drawing", "tags cat, dog"):
        assert words in text
    assert "checkpoint" not in text
    assert "does not say" in match_lora(FILES["kohya"], {"stage_c": shapes()}, {"ss_tag_frequency": "{"}).report.text()


def test_alpha_of_diffusers_metadata():
    metadata = {"lora_adapter_metadata": '{"prior.lora_alpha": 8, "prior.r": 4}'}
    lora = match_lora(FILES["diffusers"], {"stage_c": shapes()}, metadata)
    assert {float(parts["alpha"]) for parts in lora.unet.values()} == {8.0}
    assert lora.report.alphas == (8.0,)
    own = match_lora(FILES["diffusers"], {"stage_c": shapes()}, {"lora_adapter_metadata": "not JSON"})
    assert all("alpha" not in parts for parts in own.unet.values())


def test_inputs_are_not_changed():
    file = official()
    before = {key: value.clone() for key, value in file.items()}
    to_layout(match_lora(file, {"stage_c": shapes()}), COMFYUI, shapes())
    assert file.keys() == before.keys() and all(torch.equal(file[key], value) for key, value in before.items())


def test_official_names_of_fused_weights_are_the_published_ones():
    keys = index()["stage_c_tiny"]["keys"]
    assert set(split_qkv(weights_for(keys))) == set(shapes())
