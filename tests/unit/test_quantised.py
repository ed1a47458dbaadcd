"""Weights of other quantisers, GGUF files, shards and open-clip towers: read exactly, or named; never read silently."""

from __future__ import annotations

import json
import struct

import pytest
import recipe
import torch
from safetensors.torch import save_file

from cascade_studio.stages import StageC, StageCConfig, from_file, from_state_dict
from cascade_studio.stages.errors import UnreadableFile, WrongFile
from cascade_studio.stages.files.clip import TextConfig, VisionConfig, tower_shapes
from cascade_studio.stages.files.convert import normalise
from cascade_studio.stages.files.gguf import FORMATS, load_gguf
from cascade_studio.stages.files.identify import identify
from cascade_studio.stages.files.open import OpenedModels, open_model

CONFIG = StageCConfig(
    c_cond=64,
    c_hidden=(64, 128),
    nhead=(1, 2),
    blocks=((1, 1), (1, 1)),
    c_clip_text=32,
    c_clip_text_pooled=32,
    c_clip_img=32,
)
NF4 = torch.linspace(-1, 1, 16)


@pytest.fixture
def weights() -> dict[str, torch.Tensor]:
    shapes = {key: tuple(value.shape) for key, value in StageC(CONFIG, device="meta").state_dict().items()}
    return recipe.weights_for(shapes)


def note(**values) -> torch.Tensor:
    return torch.frombuffer(bytearray(json.dumps(values).encode()), dtype=torch.uint8)


def rows_int8(weight):
    scale = weight.abs().amax(1, keepdim=True) / 127
    return (weight / scale).round().to(torch.int8), scale


def sdnq_int8(layer, weight):
    stored, scale = rows_int8(weight)
    return {f"{layer}.weight": stored, f"{layer}.scale": scale}


def sdnq_uint4(layer, weight, group=16):
    grouped = weight.reshape(len(weight), -1, group)
    low, high = grouped.amin(-1, keepdim=True), grouped.amax(-1, keepdim=True)
    scale = (high - low) / 15
    codes = ((grouped - low) / scale).round().to(torch.uint8).reshape(-1, 2)
    packed = codes[:, 0] | (codes[:, 1] << 4)
    return {f"{layer}.weight": packed, f"{layer}.scale": scale, f"{layer}.zero_point": low}


def bitsandbytes_int8(layer, weight):
    stored, scale = rows_int8(weight)
    return {
        f"{layer}.weight": stored,
        f"{layer}.SCB": scale[:, 0] * 127,
        f"{layer}.weight_format": torch.zeros((), dtype=torch.uint8),
    }


def bitsandbytes_nf4(layer, weight, block=64):
    blocks = weight.reshape(-1, block)
    peaks = blocks.abs().amax(1)
    codes = (blocks[..., None] / peaks[:, None, None] - NF4).abs().argmin(-1).to(torch.uint8).flatten()
    return {
        f"{layer}.weight": ((codes[::2] << 4) | codes[1::2])[:, None],
        f"{layer}.weight.absmax": peaks,
        f"{layer}.weight.quant_map": NF4.clone(),
        f"{layer}.weight.quant_state.bitsandbytes__nf4": note(
            quant_type="nf4", blocksize=block, dtype="bfloat16", shape=list(weight.shape)
        ),
    }


def quanto_int8(layer, weight):
    stored, scale = rows_int8(weight)
    return {
        f"{layer}.weight._data": stored,
        f"{layer}.weight._scale": scale,
        f"{layer}.input_scale": torch.ones(()),
        f"{layer}.output_scale": torch.ones(()),
    }


def fp8(end):
    def store(layer, weight):
        scale = weight.abs().amax(1, keepdim=True) / 448
        return {f"{layer}.weight": (weight / scale).to(torch.float8_e4m3fn), f"{layer}{end}": scale}

    return store


READ = {
    "SDNQ int8": (sdnq_int8, 0.01),
    "SDNQ uint4": (sdnq_uint4, 0.1),
    "bitsandbytes int8": (bitsandbytes_int8, 0.01),
    "bitsandbytes nf4": (bitsandbytes_nf4, 0.1),
    "quanto int8": (quanto_int8, 0.01),
    "fp8 and scale": (fp8(".scale"), 0.07),
    "fp8 and weight_scale_inv": (fp8(".weight_scale_inv"), 0.07),
}


def quantise(weights, store):
    made = {}
    for key, value in weights.items():
        layer = key.removesuffix(".weight")
        inner = key.endswith(".weight") and value.ndim == 2 and "_blocks." in key
        made.update(store(layer, value) if inner else {key: value})
    return made


@pytest.mark.parametrize("name", READ)
@pytest.mark.parametrize("prefix", ["", "model.diffusion_model."])
def test_what_can_be_read_is_read(weights, name, prefix, tmp_path):
    store, precision = READ[name]
    file = {prefix + key: value.contiguous() for key, value in quantise(weights, store).items()}
    save_file(file, tmp_path / "model.safetensors")
    opened = open_model(tmp_path / "model.safetensors")
    assert opened.kind.kind == "stage_c" and opened.kind.config == CONFIG and opened.kind.restored
    assert identify(file).config == CONFIG and opened.kind.quantisation in opened.kind.describe()
    found = normalise(opened.read_tensors(), opened.kind)
    assert found.keys() == weights.keys()
    for key, value in weights.items():
        assert (found[key].float() - value).abs().max() <= precision * value.abs().max(), key
    assert isinstance(from_file(tmp_path / "model.safetensors", dtype=torch.float32), StageC)


def plain_int8(layer, weight):
    return {f"{layer}.weight": rows_int8(weight)[0]}


def boolean(layer, weight):
    return {f"{layer}.weight": weight > 0}


def quanto_int4(layer, weight):
    return {**quanto_int8(layer, weight), f"{layer}.weight._shift": torch.zeros(len(weight), 1)}


def rotated(layer, weight):
    return {**sdnq_int8(layer, weight), f"{layer}.hadamard": torch.eye(4)}


def odd_scales(layer, weight):
    return {**sdnq_int8(layer, weight), f"{layer}.scale": torch.ones(3, 1)}


@pytest.mark.parametrize("store", [plain_int8, boolean, quanto_int4, rotated, odd_scales])
def test_what_cannot_be_read_is_named(weights, store):
    with pytest.raises(WrongFile) as error:
        from_state_dict(quantise(weights, store), name="m.safetensors")
    assert "fp8_scaled" in str(error.value) or "Stage C" in str(error.value), error.value
    assert "ownload it again" not in str(error.value)


@pytest.mark.parametrize("dtype", [torch.int8, torch.int16, torch.int32, torch.int64, torch.uint8, torch.bool])
def test_no_weight_is_a_whole_number(weights, dtype):
    with pytest.raises(WrongFile, match="scales|wrong shape"):
        from_state_dict({**weights, "clf.1.weight": weights["clf.1.weight"].to(dtype)})


# GGUF


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value)) + value.encode()


def gguf(tensors: dict[str, tuple[tuple[int, ...], int, bytes]]) -> bytes:
    head, data = struct.pack("<4sIQQ", b"GGUF", 3, len(tensors), 1), b""
    head += text("general.architecture") + struct.pack("<I", 8) + text("cascade")
    for key, (shape, number, raw) in tensors.items():
        data += bytes(-len(data) % 32)
        head += text(key) + struct.pack(f"<I{len(shape)}Q", len(shape), *reversed(shape))
        head += struct.pack("<IQ", number, len(data))
        data += raw
    return head + bytes(-len(head) % 32) + data


def q8_0(weight: torch.Tensor) -> bytes:
    blocks = weight.reshape(-1, 32)
    scale = (blocks.abs().amax(1, keepdim=True) / 127).half()
    codes = (blocks / scale.float()).round().clamp(-127, 127).to(torch.int8)
    return b"".join(s.numpy().tobytes() + c.numpy().tobytes() for s, c in zip(scale, codes, strict=True))


def test_gguf_models_are_read(weights, tmp_path):
    tensors = {}
    for key, value in weights.items():
        plain = value.ndim != 2 or value.shape[1] % 32
        raw = value.numpy().tobytes() if plain else q8_0(value)
        tensors[key] = (tuple(value.shape), 0 if plain else 8, raw)
    path = tmp_path / "model.gguf"
    path.write_bytes(gguf(tensors))
    opened = open_model(path)
    assert opened.kind.kind == "stage_c" and opened.kind.config == CONFIG and opened.kind.quantisation == "GGUF Q8_0"
    found = load_gguf(path)
    for key, value in weights.items():
        assert (found[key].float() - value).abs().max() <= 0.015 * value.abs().max(), key
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(UnreadableFile, match="cut off"):
        open_model(path)


@pytest.mark.parametrize("number", FORMATS)
def test_gguf_formats_are_those_of_the_gguf_package(number):
    """Random blocks, restored here and there; needs the package, which the pack does not."""
    package = pytest.importorskip("gguf")
    form = FORMATS[number]
    generator = torch.Generator().manual_seed(number)
    raw = torch.randint(0, 256, (5, form.size), dtype=torch.uint8, generator=generator)
    if form.values == 1:
        raw = (
            torch.randn(5, 1, generator=generator)
            .to({"F32": torch.float32, "F16": torch.float16}.get(form.name, torch.bfloat16))
            .view(torch.uint8)
        )
    for place in {"Q6_K": (208,)}.get(form.name, (0, 2)) if form.values > 1 else ():
        raw[:, place : place + 2] = torch.randn(5, 1, generator=generator).half().view(torch.uint8)
    if form.name in ("Q5_0", "Q4_0", "Q8_0"):
        raw[:, 2:4] = torch.randint(0, 256, (5, 2), dtype=torch.uint8, generator=generator)
    theirs = package.quants.dequantize(raw.numpy(), package.GGMLQuantizationType(number))
    assert torch.allclose(
        form.restore(raw).reshape(5, -1), torch.from_numpy(theirs).reshape(5, -1), rtol=1e-4, atol=1e-5
    )


# Shards, and files that are opened once


def test_shards_are_one_model(weights, tmp_path):
    names = [f"model-0000{number}-of-00002.safetensors" for number in (1, 2)]
    halves = [dict(list(weights.items())[0::2]), dict(list(weights.items())[1::2])]
    for name, half in zip(names, halves, strict=True):
        save_file(half, tmp_path / name)
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(
        json.dumps({"weight_map": {key: name for name, half in zip(names, halves, strict=True) for key in half}})
    )
    for path in (tmp_path / names[0], tmp_path / names[1], index):
        opened = open_model(path)
        assert opened.kind.config == CONFIG and opened.read_tensors().keys() == weights.keys()
    (tmp_path / names[1]).unlink()
    with pytest.raises(UnreadableFile, match="one of 2 files of a model, and model-00002-of-00002"):
        open_model(tmp_path / names[0])


def test_a_file_is_opened_once(weights, tmp_path, monkeypatch):
    from cascade_studio.stages.files import open as opening

    save_file(weights, tmp_path / "m.safetensors")
    read = []
    real = opening.read_header
    monkeypatch.setattr(opening, "read_header", lambda path: read.append(path) or real(path))
    models = OpenedModels()
    assert models.open(tmp_path / "m.safetensors") is models.open(str(tmp_path / "m.safetensors"))
    assert len(read) == 1


# UltraPixel, and CLIP towers


def test_ultrapixel_is_known_by_name(weights):
    guides = {
        f"module.64.0.{name}": torch.zeros(4, 4) for name in ("tokenizer.posemb", "base_params.wb0", "toout.0.weight")
    }
    found = identify(guides)
    assert found.kind == "ultrapixel" and "UltraPixel" in found.describe()
    with pytest.raises(WrongFile, match="UltraPixel's guide nets"):
        from_state_dict(guides, expect="stage_c")
    whole = identify({**weights, **{key.removeprefix("module."): value for key, value in guides.items()}})
    assert "a whole UltraPixel generator" in whole.describe() and whole.part("stage_c").config == CONFIG


def open_clip(tensors: dict[str, torch.Tensor], vision: bool) -> dict[str, torch.Tensor]:
    """The inverse of the conversion, written out: q, k and v joined, projections turned."""
    start, made = ("vision_model", {}) if vision else ("text_model", {})
    top = "visual." if vision else ""
    names = {
        f"{start}.embeddings.class_embedding": "visual.class_embedding",
        f"{start}.embeddings.patch_embedding.weight": "visual.conv1.weight",
        f"{start}.embeddings.token_embedding.weight": "token_embedding.weight",
        f"{start}.embeddings.position_embedding.weight": f"{top}positional_embedding",
        "visual_projection.weight": "visual.proj",
        "text_projection.weight": "text_projection",
    }
    for key, value in tensors.items():
        name = names.get(key)
        if name is None:
            name = key.replace(f"{start}.encoder.layers.", f"{top}transformer.resblocks.")
            for old, new in (
                ("text_model.final_layer_norm", "ln_final"),
                ("vision_model.pre_layrnorm", "visual.ln_pre"),
                ("vision_model.post_layernorm", "visual.ln_post"),
                ("layer_norm1", "ln_1"),
                ("layer_norm2", "ln_2"),
                ("mlp.fc1", "mlp.c_fc"),
                ("mlp.fc2", "mlp.c_proj"),
                ("self_attn.out_proj", "attn.out_proj"),
            ):
                name = name.replace(old, new)
        if ".self_attn.q_proj." in name:
            thirds = [tensors[key.replace("q_proj", f"{part}_proj")] for part in "qkv"]
            made[name.replace("self_attn.q_proj.", "attn.in_proj_")] = torch.cat(thirds)
        elif ".self_attn." not in name:
            made[name] = value.T.contiguous() if name in ("visual.proj", "text_projection") else value
    return made


TOWERS = {"text_encoder": TextConfig(64, 128, 2, 1, 64, 100, 7), "clip_vision": VisionConfig(64, 128, 2, 1, 32, 28, 14)}


@pytest.mark.parametrize("kind", TOWERS)
@pytest.mark.parametrize("beside", [False, True])
def test_open_clip_towers_are_converted(kind, beside):
    """Alone, and out of a whole CLIP model that holds both."""
    towers = {name: recipe.weights_for(tower_shapes(config)) for name, config in TOWERS.items()}
    file = open_clip(towers[kind], kind == "clip_vision")
    if beside:
        other = next(name for name in TOWERS if name != kind)
        file = {**file, **open_clip(towers[other], other == "clip_vision"), "logit_scale": torch.zeros(())}
    part = identify(file).part(kind)
    assert part is not None and tower_shapes(part.config) == tower_shapes(TOWERS[kind])
    found = normalise(file, part)
    assert found.keys() == towers[kind].keys()
    assert all(torch.equal(found[key], value) for key, value in towers[kind].items())
