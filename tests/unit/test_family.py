"""The tiny checkpoint family: what it holds, that every file loads, and what bad files and wrong inputs get."""

from __future__ import annotations

import struct

import family as maker
import pytest
import torch
from safetensors.torch import save, save_file

from cascade_studio import stages
from cascade_studio.stages import Backend, WrongFile, from_file, from_state_dict, identify, load_file, read_header
from cascade_studio.stages.diffusion import sampling
from cascade_studio.stages.diffusion.noise import NoiseStreams
from cascade_studio.stages.files.load import require

KINDS = {
    "diffusion_models/stage_c": "stage_c",
    "diffusion_models/stage_b": "stage_b",
    "diffusion_models/stage_c_diffusers_fp16": "stage_c",
    "diffusion_models/stage_b_diffusers_fp16": "stage_b",
    "diffusion_models/stage_c_fp8_scaled": "stage_c",
    "diffusion_models/stage_b_fp8_scaled": "stage_b",
    "diffusion_models/stage_c_fp8_scaled_new": "stage_c",
    "vae/stage_a": "stage_a",
    "vae/effnet_encoder": "encoder",
    "vae/previewer": "previewer",
    "vae/stage_c_vae": "stage_c_vae",
    "controlnet/canny": "controlnet",
    "model_patches/ultrapixel_t2i": "ultrapixel",
    "text_encoders/clip_g": "text_encoder",
    "clip_vision/clip_l_vision": "clip_vision",
    "loras/official": "lora",
    "loras/kohya": "lora",
    "checkpoints/stable_cascade_stage_c": "checkpoint",
    "checkpoints/stable_cascade_stage_b": "checkpoint",
}
NETWORKS = {name: kind for name, kind in KINDS.items() if kind in stages.files.identify.NETWORKS}


@pytest.fixture(scope="module")
def family(tmp_path_factory):
    return maker.write_family(tmp_path_factory.mktemp("models"))


def test_files(family):
    assert family.keys() == KINDS.keys()
    assert sum(path.stat().st_size for path in family.values()) < 40_000_000
    assert all(path.is_file() and path.suffix == ".safetensors" for path in family.values())


def test_weights_are_the_same_every_time(family):
    again = maker.stage_c_weights()
    tensors, _ = load_file(family["diffusion_models/stage_c"])
    assert tensors.keys() == again.keys()
    assert all(torch.equal(tensors[key], again[key].to(torch.bfloat16)) for key in tensors)


@pytest.mark.parametrize("name", KINDS)
def test_recognised(family, name):
    tensors, metadata = load_file(family[name])
    header = read_header(family[name])
    found = identify(tensors, metadata)
    assert found.kind == KINDS[name] and not found.problem
    assert identify(header.tensors, header.metadata).describe() == found.describe()


@pytest.mark.parametrize("name", NETWORKS)
def test_loads(family, name):
    net = from_file(family[name], expect=NETWORKS[name], dtype=torch.float32)
    assert not net.training and not any(p.requires_grad or p.is_meta for p in net.parameters())
    assert not any(b.is_meta for b in net.buffers())
    assert {p.dtype for p in net.parameters()} == {torch.float32} == {net.dtype}


def test_sizes_fit_together(family):
    configs = {name: identify(*load_file(path)).config for name, path in family.items() if KINDS[name] != "checkpoint"}
    c, b, text = (
        configs[name] for name in ("diffusion_models/stage_c", "diffusion_models/stage_b", "text_encoders/clip_g")
    )
    assert text.hidden_size == c.c_clip_text and text.projection_dim == c.c_clip_text_pooled == b.c_clip
    assert configs["clip_vision/clip_l_vision"].projection_dim == c.c_clip_img
    assert (
        configs["controlnet/canny"].c_proj == c.c_hidden[0]
        and max(configs["controlnet/canny"].proj_blocks) < c.res_blocks
    )
    assert configs["vae/effnet_encoder"].c_latent == configs["vae/previewer"].c_in == c.c_in == b.c_effnet


@pytest.mark.parametrize(
    "name, tolerance",
    [
        ("diffusion_models/stage_{}_diffusers_fp16", 0.01),
        ("checkpoints/stable_cascade_stage_{}", 0.0),
        ("diffusion_models/stage_{}_fp8_scaled", 0.08),
    ],
)
@pytest.mark.parametrize("letter", "cb")
def test_variants_hold_the_same_network(family, letter, name, tolerance):
    plain = from_file(family[f"diffusion_models/stage_{letter}"], dtype=torch.float32)
    other = from_file(family[name.format(letter)], expect=f"stage_{letter}", dtype=torch.float32)
    assert other.config == plain.config
    theirs = other.state_dict()
    for key, value in plain.state_dict().items():
        assert (theirs[key] - value).abs().max() <= tolerance * value.abs().max(), key


def test_parts_of_a_checkpoint(family):
    path = family["checkpoints/stable_cascade_stage_c"]
    coder = from_file(path, expect="stage_c_vae", dtype=torch.float32)
    alone = from_file(family["vae/effnet_encoder"])
    image = torch.rand(1, 3, 64, 64)
    assert torch.allclose(coder.encoder(image), alone(image), atol=0.02)
    assert coder.previewer(torch.zeros(1, 16, 4, 4)).shape == (1, 3, 32, 32)
    assert type(from_file(path)).__name__ == "StageC"
    assert type(from_file(family["checkpoints/stable_cascade_stage_b"], expect="stage_a")).__name__ == "StageA"


def test_precision(family):
    path = family["diffusion_models/stage_c_fp8_scaled"]
    assert from_file(path).dtype == torch.bfloat16
    assert {p.dtype for p in from_file(path, dtype=torch.float16).parameters()} == {torch.float16}
    tensors, _ = load_file(family["diffusion_models/stage_c"])
    kept = from_state_dict(tensors)
    assert kept.clip_txt_mapper.weight.data_ptr() == tensors["clip_txt_mapper.weight"].data_ptr()
    mixed = {key: value.float() if key.endswith("bias") else value for key, value in tensors.items()}
    assert {p.dtype for p in from_state_dict(mixed).parameters()} == {torch.bfloat16}


def test_another_backend_keeps_quantised_weights(family):
    """A host's own layers read weight_scale and comfy_quant; here they only take them."""

    class Linear(torch.nn.Linear):
        def _load_from_state_dict(self, state_dict, prefix, *args):
            self.format = state_dict.pop(prefix + "comfy_quant", None)
            self.scale = state_dict.pop(prefix + "weight_scale", None)
            super()._load_from_state_dict(state_dict, prefix, *args)

    net = from_file(family["diffusion_models/stage_c_fp8_scaled"], backend=Backend(Linear=Linear), dtype=torch.float16)
    layer = net.down_blocks[0][2].attention.attn.to_q
    assert layer.weight.dtype == torch.float8_e4m3fn and layer.scale is not None and layer.format is not None
    assert net.clip_txt_mapper.weight.dtype == torch.float16


def test_own_classes_and_marker(family):
    class Marked(stages.StageC):
        def __init__(self, config, **options):
            super().__init__(config, **options)
            self.cascade_studio = torch.nn.Module()
            self.cascade_studio.register_buffer("config", stages.marker_tensor("stage_c", config))

    net = from_file(family["diffusion_models/stage_c"], classes={"stage_c": Marked})
    assert type(net) is Marked
    saved = {f"model.diffusion_model.{key}": value for key, value in net.state_dict().items()}
    assert stages.read_marker(saved)[0] == "stage_c"
    assert from_state_dict(saved).config == net.config


@torch.inference_mode()
def test_pictures_are_not_flat(family):
    c, b, a = (
        from_file(family[name], dtype=torch.float32)
        for name in ("diffusion_models/stage_c", "diffusion_models/stage_b", "vae/stage_a")
    )
    generator = torch.Generator().manual_seed(0)
    text, pooled = torch.randn(2, 7, 64, generator=generator), torch.randn(2, 64, generator=generator)

    def sample(net, noise, steps, shift, **conditions):
        def predict(x, r, guided):
            return net(x, r, **conditions), None

        streams = NoiseStreams([5, 5], 1)
        return [*sampling.sample(predict, noise, timesteps=sampling.timesteps(steps), shift=shift, noise=streams.next)][
            -1
        ].denoised

    noise = torch.randn(1, 16, 3, 3, generator=generator).expand(2, -1, -1, -1)
    prior = sample(c, noise, 12, 2.0, clip_text=text, clip_text_pooled=pooled)
    noise = torch.randn(1, 4, 32, 32, generator=generator).expand(2, -1, -1, -1)
    pictures = a.decode(sample(b, noise, 8, 1.0, effnet=prior, clip=pooled))
    assert pictures.shape == (2, 3, 128, 128)
    assert 0.3 < pictures.mean() < 0.7 and ((pictures < 0) | (pictures > 1)).float().mean() < 0.2
    assert pictures.std() > 0.1
    assert (pictures[0] - pictures[1]).std() > 0.01, "the prompt has no effect"


WRONG = [
    (
        "diffusion_models/stage_b",
        "stage_c",
        "This file is a Stable Cascade Stage B decoder (857k, bf16, official layout). "
        "The 'prior' input needs a Stage C model; choose this file as the decoder instead.",
    ),
    (
        "diffusion_models/stage_c",
        "stage_b",
        "The 'decoder' input needs a Stage B model; choose this file as the prior instead.",
    ),
    (
        "vae/previewer",
        "stage_a",
        "The 'Stage A VAE' input needs a Stage A VAE; choose this file as the Previewer (Stage C VAE) instead.",
    ),
    ("text_encoders/clip_g", "stage_c", "This file is a CLIP text encoder of width 64"),
    (
        "loras/official",
        "controlnet",
        "The 'ControlNet' input needs a Stable Cascade ControlNet; choose this file in a LoRA loader instead.",
    ),
    (
        "checkpoints/stable_cascade_stage_c",
        "stage_b",
        "The 'decoder' input needs a Stage B model; choose a file that holds it.",
    ),
    (
        "clip_vision/clip_l_vision",
        None,
        "A Stable Cascade network is needed here. Choose this file as the CLIP vision model instead.",
    ),
]


@pytest.mark.parametrize("name, expect, sentence", WRONG)
def test_wrong_input(family, name, expect, sentence):
    tensors, metadata = load_file(family[name])
    with pytest.raises(WrongFile) as error:
        from_state_dict(tensors, expect=expect, metadata=metadata)
    assert sentence in str(error.value)


def test_wrong_state_dicts(family):
    tensors, _ = load_file(family["diffusion_models/stage_b"])
    with pytest.raises(WrongFile, match="holds a list, not a dict"):
        from_state_dict([1])
    for nothing in ({}, {"state_dict": {}}, {"step": 3}):
        with pytest.raises(WrongFile, match="This file is a file without tensors"):
            from_state_dict(nothing)
    with pytest.raises(
        WrongFile,
        match=r"b\.safetensors looks like a Stable Cascade Stage B decoder .* lacks tensors \(12\): "
        r"down_blocks\.2\.0\.\S+, \S+, \S+ and 9 more\. Take a complete file",
    ):
        lost = ("down_blocks.2.0.", "down_blocks.2.1.")
        from_state_dict({k: v for k, v in tensors.items() if not k.startswith(lost)}, name="b.safetensors")
    with pytest.raises(WrongFile, match=r"holds tensors that do not belong there \(1\): extra\.weight\."):
        from_state_dict({**tensors, "extra.weight": torch.zeros(1)})
    with pytest.raises(WrongFile, match=r"wrong shape \(1\): clf\.1\.bias is 3 instead of 16"):
        from_state_dict({**tensors, "clf.1.bias": torch.zeros(3)})
    with pytest.raises(WrongFile, match="no readable blocks. The file was saved without"):
        from_state_dict({k: v for k, v in tensors.items() if not k.startswith(("down_blocks.2", "up_blocks.1"))})


def test_require_takes_several_kinds(family):
    wanted = ("stage_c_vae", "encoder", "previewer")
    assert require(identify(*load_file(family["vae/previewer"])), wanted).kind == "previewer"
    with pytest.raises(WrongFile, match="'Stage C VAE' input needs the image encoder, the Previewer or both"):
        require(identify(*load_file(family["vae/stage_a"])), wanted)


GOOD = save({"a": torch.zeros(64)})
DAMAGED = {
    "empty (0 bytes)": b"",
    "cut off: it has": GOOD[:-10],
    "cut off inside its header": GOOD[:40],
    "damaged: it has": GOOD + b"rest",
    "damaged header": struct.pack("<Q", 20) + b"{not json at all....",
    "holds no tensors": struct.pack("<Q", 2) + b"{}",
    "PyTorch pickle": b"PK\x03\x04" + bytes(600),
    "PyTorch pickle (": b"\x80\x02}q\x00." + bytes(30),
    "web page": b"\n<!DOCTYPE html><html><body>Sign in</body></html>",
    "Git LFS pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
    "GGUF file": b"GGUF\x03\x00\x00\x00" + bytes(100),
    "JSON text": b'{"error": "Repository not found", "url": "https://example.org/model"}',
    "not a safetensors file": b"\x01\x02\x03",
    "not a safetensors file, ": bytes(2000),
}


@pytest.mark.parametrize("words", DAMAGED)
def test_damaged_files(tmp_path, words):
    path = tmp_path / "model.safetensors"
    path.write_bytes(DAMAGED[words])
    for read in (read_header, load_file, from_file):
        with pytest.raises(WrongFile) as error:
            read(path)
        assert words in str(error.value) and str(error.value).startswith("model.safetensors")
        assert str(error.value).rstrip(".") != str(error.value), "not a sentence"
    assert path.read_bytes() == DAMAGED[words]


def test_missing_file_and_folder(tmp_path):
    with pytest.raises(WrongFile, match="There is no file gone.safetensors in"):
        load_file(tmp_path / "gone.safetensors")
    with pytest.raises(WrongFile, match="is a folder, not a checkpoint file"):
        read_header(tmp_path)


def test_header_tells_marker_and_sizes(tmp_path):
    path = tmp_path / "marked.safetensors"
    config = stages.StageCConfig(c_hidden=(64, 64))
    save_file(
        {"a": torch.zeros(2, 3, dtype=torch.float16), "x." + stages.MARKER: stages.marker_tensor("stage_c", config)},
        path,
    )
    header = read_header(path)
    assert header.tensors["a"][:2] == ((2, 3), torch.float16) and header.size == path.stat().st_size
    assert stages.read_marker(header.tensors, header.metadata)[1]["c_hidden"] == (64, 64)
