"""Key layouts to one another and back, exactly; quantised files to plain tensors."""

from __future__ import annotations

import json

import pytest
import recipe
import torch

from cascade_studio.stages.errors import WrongFile
from cascade_studio.stages.files.convert import dequantise, normalise, to_comfyui, to_diffusers, to_official
from cascade_studio.stages.files.header import MARKER, marker_tensor
from cascade_studio.stages.files.identify import identify
from cascade_studio.stages.nets.stage_a import StageA, StageAConfig
from cascade_studio.stages.nets.stage_b import StageB, StageBConfig
from cascade_studio.stages.nets.stage_c import StageC, StageCConfig

C = StageCConfig(
    c_cond=64,
    c_hidden=(64, 128),
    nhead=(1, 2),
    blocks=((1, 1), (1, 1)),
    c_clip_text=32,
    c_clip_text_pooled=32,
    c_clip_img=16,
)
B = StageBConfig(
    c_cond=64,
    c_hidden=(16, 16, 64, 64),
    nhead=(-1, -1, 1, 1),
    blocks=((1, 1, 1, 1), (1, 1, 1, 1)),
    block_repeat=((1, 1, 1, 1), (2, 1, 2, 1)),
    c_clip=32,
)
A = StageAConfig(c_hidden=16, bottleneck_blocks=1, codebook_size=8)
ATTENTION = "down_blocks.0.2.attention.attn"


def weights(net):
    return recipe.weights_for({key: tuple(value.shape) for key, value in net.state_dict().items()})


@pytest.fixture(scope="module", params=["stage_c", "stage_b", "stage_a"])
def canonical(request):
    net = {
        "stage_c": StageC(C, device="meta"),
        "stage_b": StageB(B, device="meta"),
        "stage_a": StageA(A, device="meta"),
    }
    return weights(net[request.param])


@pytest.fixture
def stage_c():
    return weights(StageC(C, device="meta"))


def same(left, right):
    return left.keys() == right.keys() and all(torch.equal(left[key], right[key]) for key in left)


@pytest.mark.parametrize(
    "write",
    [
        to_official,
        to_diffusers,
        to_comfyui,
        dict,
        lambda sd: {"state_dict": to_official(sd)},
        lambda sd: to_comfyui(to_official(sd), "module."),
    ],
)
def test_round_trip(canonical, write):
    written = write(canonical)
    before = dict(written)
    assert same(normalise(written, identify(written)), canonical)
    assert written.keys() == before.keys() and all(written[key] is before[key] for key in before)


def test_official_names(stage_c):
    official = to_official(stage_c)
    fused = official[f"{ATTENTION}.in_proj_weight"]
    assert fused.shape == (192, 64) and not any(".to_q." in key for key in official)
    views = normalise(official, identify(official))
    assert all(
        views[f"{ATTENTION}.to_{name}.weight"].data_ptr() == fused[64 * i :].data_ptr() for i, name in enumerate("qkv")
    )
    assert {f"{ATTENTION.rpartition('.')[0]}.{name}.weight" for name in ("to_q", "to_k", "to_v", "to_out.0")} <= set(
        to_diffusers(stage_c)
    )


def test_stage_b_and_a_in_diffusers():
    assert "clip_txt_pooled_mapper.weight" in to_diffusers(weights(StageB(B, device="meta")))
    assert "vquantizer.embedding.weight" in to_diffusers(weights(StageA(A, device="meta")))


def test_what_is_left_out(stage_c):
    file = {
        **to_comfyui(stage_c),
        f"model.diffusion_model.{MARKER}": marker_tensor("stage_c", C),
        "epoch": 3,
        "optimizer.step": torch.zeros(1),
    }
    assert same(normalise(file, identify(file)), stage_c)


def quantise(weight, dtype=torch.float8_e4m3fn, rows=False):
    peak = {torch.float8_e4m3fn: 448.0, torch.float8_e5m2: 57344.0, torch.int8: 127.0}[dtype]
    scale = weight.abs().amax(1, keepdim=True) / peak if rows else weight.abs().amax() / peak
    stored = weight / scale
    return (stored.round() if dtype == torch.int8 else stored).to(dtype), scale


def note(**settings):
    return torch.frombuffer(bytearray(json.dumps(settings).encode()), dtype=torch.uint8)


@pytest.mark.parametrize(
    "dtype, rows, precision",
    [
        (torch.float8_e4m3fn, False, 0.07),
        (torch.float8_e4m3fn, True, 0.07),
        (torch.float8_e5m2, False, 0.13),
        (torch.int8, False, 0.02),
    ],
)
@pytest.mark.parametrize("names", ["old", "new", "metadata"])
def test_scaled_weights(stage_c, dtype, rows, precision, names):
    layers = [key[: -len(".weight")] for key, value in stage_c.items() if value.ndim == 2 and "_blocks." in key]
    file, metadata = dict(stage_c), {}
    form = {torch.float8_e4m3fn: "float8_e4m3fn", torch.float8_e5m2: "float8_e5m2", torch.int8: "int8_tensorwise"}[
        dtype
    ]
    for layer in layers:
        file[f"{layer}.weight"], scale = quantise(stage_c[f"{layer}.weight"], dtype, rows)
        file[f"{layer}.{'scale_weight' if names == 'old' else 'weight_scale'}"] = scale
        if names == "old":
            file[f"{layer}.scale_input"] = torch.ones(())
        if names == "new":
            file[f"{layer}.comfy_quant"] = note(format=form)
    if names == "old":
        file["scaled_fp8"] = torch.zeros(2, dtype=torch.float8_e4m3fn)
    if names == "metadata":
        metadata["_quantization_metadata"] = json.dumps({"layers": {layer: {"format": form} for layer in layers}})
    kind = identify(file, metadata)
    assert kind.quantisation and kind.config == C
    kept = normalise(file, kind)
    layer = f"{ATTENTION}.to_q"
    assert json.loads(bytes(kept[f"{layer}.comfy_quant"].tolist()))["format"] == form
    assert kept[f"{layer}.weight"].dtype == dtype and f"{layer}.weight_scale" in kept
    assert f"{layer}.scale_weight" not in kept and "scaled_fp8" not in kept
    plain = dequantise(kept, torch.float32)
    assert plain.keys() == stage_c.keys()
    for key, value in stage_c.items():
        assert (plain[key] - value).abs().max() <= precision * value.abs().max(), key
    with pytest.raises(WrongFile, match="Quantised weights cannot be written"):
        to_official(kept)


@pytest.mark.parametrize("rows", [False, True])
def test_fused_scaled_weights(stage_c, rows):
    file = to_official(stage_c)
    key = f"{ATTENTION}.in_proj_weight"
    file[key], scale = quantise(file[key], rows=rows)
    file[f"{key}_scale"] = scale
    kept = normalise(file, identify(file))
    assert kept[f"{ATTENTION}.to_k.weight_scale"].numel() == (64 if rows else 1)
    plain = dequantise(kept, torch.float32)
    assert plain.keys() == stage_c.keys()
    for name in ("to_q", "to_k", "to_v"):
        value = stage_c[f"{ATTENTION}.{name}.weight"]
        assert (plain[f"{ATTENTION}.{name}.weight"] - value).abs().max() <= 0.07 * value.abs().max()


def test_plain_fp8_and_formats_beyond_a_scale(stage_c):
    plain = dequantise(
        {"a.weight": torch.ones(2, 2, dtype=torch.float8_e4m3fn), "a.bias": torch.ones(2)}, torch.float16
    )
    assert [plain["a.weight"].dtype, plain["a.bias"].dtype] == [torch.float16, torch.float32]
    with pytest.raises(WrongFile, match="a has 3 scales for 2 rows"):
        dequantise({"a.weight": torch.ones(2, 2, dtype=torch.float8_e4m3fn), "a.weight_scale": torch.ones(3)})
    layer = f"{ATTENTION}.to_q"
    packed = {
        **stage_c,
        f"{layer}.weight": torch.zeros(64, 32, dtype=torch.uint8),
        f"{layer}.comfy_quant": note(format="nvfp4"),
        f"{layer}.weight_scale": torch.ones(64, 4),
        f"{layer}.weight_scale_2": torch.ones(()),
    }
    kind = identify(packed)
    assert (kind.quantisation, kind.config) == ("nvfp4", C)
    assert f"{layer}.weight_scale_2" in normalise(packed, kind)
    with pytest.raises(WrongFile, match="stored as nvfp4.*bf16, fp16, fp32 or fp8"):
        dequantise(normalise(packed, kind))


def test_early_text_projection():
    width = 64
    file = {
        "text_encoder.clip_g.transformer.text_model.encoder.layers.0.mlp.fc1.weight": torch.zeros(256, width),
        "text_encoder.clip_g.transformer.text_model.embeddings.token_embedding.weight": torch.zeros(9, width),
        "text_encoder.clip_g.text_projection": torch.arange(2.0 * width).view(width, 2),
        "text_encoder.clip_g.logit_scale": torch.zeros(()),
    }
    kind = identify(file)
    assert kind.kind == "text_encoder" and kind.config.projection_dim == 2
    found = normalise(file, kind)
    assert "text_model.encoder.layers.0.mlp.fc1.weight" in found
    assert torch.equal(found["text_projection.weight"], file["text_encoder.clip_g.text_projection"].T)
