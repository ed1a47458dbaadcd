"""Recognition: every published layout at full size (meta tensors), any other size, and other models' files."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from cascade_studio.stages.errors import WrongFile
from cascade_studio.stages.files.convert import to_comfyui, to_diffusers, to_official
from cascade_studio.stages.files.header import (
    MARKER,
    TensorInfo,
    describe_tensors,
    marker_tensor,
    marker_text,
    read_marker,
    tensor_bytes,
)
from cascade_studio.stages.files.identify import identify
from cascade_studio.stages.files.kinds import KINDS, is_published
from cascade_studio.stages.files.load import require
from cascade_studio.stages.nets.controlnet import ControlNetConfig
from cascade_studio.stages.nets.encoder import EncoderConfig
from cascade_studio.stages.nets.previewer import PreviewerConfig
from cascade_studio.stages.nets.prior_coder import PriorCoderConfig
from cascade_studio.stages.nets.stage_a import StageAConfig
from cascade_studio.stages.nets.stage_b import StageBConfig
from cascade_studio.stages.nets.stage_c import StageCConfig

PUBLISHED = {kind.name: kind.published for kind in KINDS.values() if kind.published}
SIZES = [(kind, name) for kind, sizes in PUBLISHED.items() for name in sizes]
COUNTS = {
    ("stage_c", "3.6B"): (1294, 3_589_103_632),
    ("stage_c", "1B"): (654, 1_030_785_040),
    ("stage_b", "1.5B"): (1454, 1_562_941_136),
    ("stage_b", "700M"): (826, 699_471_248),
    ("stage_a", ""): (122, 18_406_894),
    ("encoder", ""): (784, 20_197_968),
    ("previewer", ""): (58, 3_979_651),
    ("controlnet", "Canny"): (796, None),
    ("controlnet", "inpainting"): (796, None),
    ("controlnet", "super-resolution"): (86, None),
    ("controlnet", "identity"): (132, None),
    ("ultrapixel", ""): (156, 71_953_408),  # without the third of the file that acts nowhere
}


def meta(kind, config):
    return KINDS[kind].module(config, device="meta").state_dict()


def tiny_c(**changes):
    return replace(
        StageCConfig(
            c_cond=64,
            c_hidden=(64, 128),
            nhead=(1, 2),
            blocks=((1, 3), (2, 1)),
            c_clip_text=32,
            c_clip_text_pooled=48,
            c_clip_img=24,
        ),
        **changes,
    )


def tiny_b(**changes):
    return replace(
        StageBConfig(
            c_cond=64,
            c_hidden=(16, 32, 64, 128),
            nhead=(-1, -1, 1, 2),
            blocks=((1, 2, 3, 1), (2, 3, 1, 1)),
            block_repeat=((1, 2, 1, 1), (3, 3, 2, 2)),
            c_clip=32,
        ),
        **changes,
    )


@pytest.fixture(scope="module")
def published():
    """State dicts of every published size on the meta device."""
    return {(kind, name): meta(kind, PUBLISHED[kind][name]) for kind, name in SIZES}


@pytest.mark.parametrize("kind, name", SIZES)
def test_published_sizes(published, kind, name):
    own = published[kind, name]
    official = to_official(own)
    found = identify(official)
    keys, parameters = COUNTS[kind, name]
    assert (found.kind, found.layout, found.config) == (kind, "official", PUBLISHED[kind][name])
    assert len(official) == keys
    assert parameters in (None, found.parameters)
    assert is_published(kind, found.config)
    shapes = {key: list(tensor.shape) for key, tensor in official.items()}
    assert identify(shapes).config == found.config


@pytest.mark.parametrize("kind, name", [size for size in SIZES if size[0] in ("stage_c", "stage_b")])
def test_layouts_and_prefixes(published, kind, name):
    own, config = published[kind, name], PUBLISHED[kind][name]
    for layout, tensors in (("comfyui", own), ("diffusers", to_diffusers(own)), ("official", to_official(own))):
        assert (identify(tensors).layout, identify(tensors).config) == (layout, config)
    for prefix in ("model.diffusion_model.", "module.", "module._orig_mod."):
        found = identify(to_comfyui(own, prefix))
        assert (found.kind, found.prefix, found.config) == (kind, prefix, config)
    wrapped = identify({"state_dict": to_official(own), "epoch": 3})
    assert (wrapped.wrapper, wrapped.config) == ("state_dict", config)


def test_descriptions(published):
    half = {
        key: TensorInfo(info.shape, torch.bfloat16)
        for key, info in describe_tensors(to_official(published["stage_b", "700M"])).items()
    }
    assert identify(half).describe() == "a Stable Cascade Stage B decoder (700M, bf16, official layout)"
    assert (
        identify(published["stage_c", "3.6B"]).describe()
        == "a Stable Cascade Stage C prior (3.6B, fp32, comfyui layout)"
    )
    assert identify(published["stage_a", ""]).describe() == "a Stable Cascade Stage A VAE (18M, fp32, official layout)"
    narrow = identify(meta("stage_c", tiny_c()))
    assert narrow.size.endswith(("k", "M")) and narrow.size in narrow.describe()


@pytest.mark.parametrize(
    "kind, config",
    [
        ("stage_c", tiny_c()),
        (
            "stage_c",
            tiny_c(level_config=("CT", "CTAF"), nhead=(-1, 2), t_conds=("sca",), kernel_size=5, c_clip_seq=2, c_r=32),
        ),
        ("stage_c", tiny_c(c_in=4, c_out=8, block_repeat=((1, 2), (2, 1)), blocks=((3, 1), (1, 1)))),
        (
            "stage_c",
            tiny_c(
                c_hidden=(64, 64, 128),
                nhead=(1, 1, 2),
                blocks=((1, 1, 1), (1, 1, 2)),
                switch_level=(False, False),
                block_repeat=((1, 1, 1), (1, 1, 1)),
                level_config=("CTA", "CTA", "CTA"),
            ),
        ),
        ("stage_b", tiny_b()),
        ("stage_b", tiny_b(t_conds=(), c_effnet=8, c_pixels=4, c_clip_seq=1, level_config=("C", "CT", "CCTA", "TA"))),
        ("stage_a", StageAConfig(c_hidden=16, bottleneck_blocks=3, codebook_size=32)),
        ("stage_a", StageAConfig(levels=3, c_hidden=32, bottleneck_blocks=1, codebook_size=16, c_latent=8)),
        (
            "encoder",
            EncoderConfig(
                c_stem=8, widths=(8, 8, 16, 16, 24, 32), repeats=(1, 2, 1, 3, 1, 1), c_features=48, c_latent=4
            ),
        ),
        ("previewer", PreviewerConfig(c_in=4, c_hidden=16)),
        (
            "controlnet",
            ControlNetConfig(
                c_in=3,
                c_proj=64,
                trunk=EncoderConfig(c_stem=8, widths=(8,) * 6, repeats=(1,) * 6, c_features=16, c_in=3),
            ),
        ),
        ("controlnet", ControlNetConfig(c_in=5, c_proj=64, proj_blocks=(0, 1, 2), bottleneck_mode="simple")),
        (
            "controlnet",
            ControlNetConfig(c_in=4, c_proj=64, bottleneck_mode="large", c_large=(64, 32), blocks_large=2, c_embed=16),
        ),
        ("stage_c_vae", PriorCoderConfig(EncoderConfig(), PreviewerConfig(c_hidden=32))),
        ("stage_c_vae", PriorCoderConfig(previewer=PreviewerConfig())),
    ],
)
def test_any_size(kind, config):
    found = identify(meta(kind, config))
    assert (found.kind, found.problem) == (kind, "")
    trunk = replace(found.config.trunk, c_in=config.trunk.c_in) if kind == "controlnet" else None
    assert (replace(found.config, trunk=trunk) if trunk else found.config) == config


def test_packed_weights_count_double():
    tensors = describe_tensors(meta("stage_c", tiny_c()))
    packed = {
        key: TensorInfo((info.shape[0], info.shape[1] // 2), torch.uint8)
        if key.endswith(".weight") and len(info.shape) == 2
        else info
        for key, info in tensors.items()
    }
    found, plain = identify(packed), identify(tensors)
    assert (found.config, found.parameters) == (plain.config, plain.parameters)


def test_missing_tensors_keep_the_config():
    tensors = to_official(meta("stage_b", tiny_b()))
    for lost in ("down_blocks.2.4.", "clip_mapper.bias", "up_blocks.0.0.", "embedding.1."):
        rest = {key: value for key, value in tensors.items() if not key.startswith(lost)}
        assert identify(rest).config == tiny_b(), lost
    hopeless = identify(
        {key: value for key, value in tensors.items() if not key.startswith(("down_blocks.2", "up_blocks.1"))}
    )
    assert hopeless.kind == "stage_b" and hopeless.config is None and hopeless.problem


def test_marker_settles_what_shapes_cannot_tell():
    config = tiny_c(nhead=(2, 4), switch_level=(True,), self_attn=False)
    tensors = meta("stage_c", config)
    assert identify(tensors).config != config
    assert identify(tensors, {MARKER: marker_text("stage_c", config)}).config == config
    marked = to_comfyui({**tensors, MARKER: marker_tensor("stage_c", config)})
    found = identify(marked)
    assert (found.config, found.parameters) == (config, identify(tensors).parameters)
    for dtype in (torch.float16, torch.bfloat16):
        assert tensor_bytes(marked["model.diffusion_model." + MARKER].to(dtype)).decode() == marker_text(
            "stage_c", config
        )
    nested = ControlNetConfig(trunk=EncoderConfig(c_stem=8), proj_blocks=(1, 5))
    assert read_marker({}, {MARKER: marker_text("controlnet", nested)})[1]["proj_blocks"] == (1, 5)
    assert identify(meta("controlnet", nested), {MARKER: marker_text("controlnet", nested)}).config == nested


@pytest.mark.parametrize(
    "text, words", [("{", "cannot be read"), ('{"kind": "stage_c", "config": {"tau": 1}}', "update the pack")]
)
def test_bad_marker(text, words):
    with pytest.raises(WrongFile, match=words):
        identify(meta("stage_c", tiny_c()), {MARKER: text})


CLIP_L = {
    "text_model.embeddings.token_embedding.weight": (49408, 768),
    "text_model.encoder.layers.0.mlp.fc1.weight": (3072, 768),
    "text_model.embeddings.position_embedding.weight": (77, 768),
}
CLIP_G = {
    "token_embedding.weight": (49408, 1280),
    "positional_embedding": (77, 1280),
    "text_projection": (1280, 1280),
    **{f"transformer.resblocks.{i}.mlp.c_fc.weight": (5120, 1280) for i in range(32)},
}
VISION = {
    "vision_model.embeddings.patch_embedding.weight": (1024, 3, 14, 14),
    "visual_projection.weight": (768, 1024),
    "vision_model.embeddings.position_embedding.weight": (257, 1024),
    **{f"vision_model.encoder.layers.{i}.mlp.fc1.weight": (4096, 1024) for i in range(24)},
}
UNET = {"input_blocks.0.0.weight": (320, 4, 3, 3), "out.2.weight": (4, 320, 3, 3)}
CONTEXT = "input_blocks.{}.1.transformer_blocks.0.attn2.to_k.weight"
SD15 = {**UNET, CONTEXT.format(1): (320, 768)}
SDXL = {**UNET, "label_emb.0.0.weight": (1280, 2816), CONTEXT.format(4): (640, 2048)}
VAE = {
    "encoder.conv_in.weight": (128, 3, 3, 3),
    "decoder.conv_in.weight": (512, 4, 3, 3),
    "quant_conv.weight": (8, 8, 1, 1),
}


def under(prefix, tensors):
    return {prefix + key: shape for key, shape in tensors.items()}


@pytest.mark.parametrize(
    "tensors, kind, title",
    [
        (CLIP_L, "text_encoder", "a CLIP-L text encoder"),
        (CLIP_G, "text_encoder", "a CLIP-G text encoder"),
        (
            under("clip_g.transformer.", {**CLIP_L, "text_projection.weight": (768, 768)}),
            "text_encoder",
            "a CLIP-L text encoder",
        ),
        (VISION, "clip_vision", "a CLIP-L vision tower"),
        (SD15, "foreign", "a Stable Diffusion 1.5 diffusion model"),
        (under("model.diffusion_model.", SD15), "foreign", "a Stable Diffusion 1.5 diffusion model"),
        ({**UNET, CONTEXT.format(1): (320, 1024)}, "foreign", "a Stable Diffusion 2 diffusion model"),
        (SDXL, "foreign", "an SDXL diffusion model"),
        (
            {
                **under("model.diffusion_model.", SD15),
                **under("first_stage_model.", VAE),
                **under("cond_stage_model.transformer.", CLIP_L),
            },
            "foreign",
            "a Stable Diffusion 1.5 checkpoint",
        ),
        (
            {
                **under("model.diffusion_model.", SDXL),
                **under("first_stage_model.", VAE),
                **under("conditioner.embedders.1.model.", CLIP_G),
            },
            "foreign",
            "an SDXL checkpoint",
        ),
        (
            {"double_blocks.0.img_attn.qkv.weight": (9216, 3072), "img_in.weight": (3072, 64)},
            "foreign",
            "a Flux diffusion model",
        ),
        ({"joint_blocks.0.x_block.attn.qkv.weight": (4608, 1536)}, "foreign", "a Stable Diffusion 3 diffusion model"),
        (
            {"down_blocks.0.resnets.0.conv1.weight": (320, 320, 3, 3), "time_embedding.linear_1.weight": (1280, 320)},
            "foreign",
            "a Stable Diffusion diffusion model in diffusers layout",
        ),
        (VAE, "foreign", "an SD or SDXL VAE"),
        (under("first_stage_model.", VAE), "foreign", "an SD or SDXL VAE"),
        (
            {"encoder.block.0.layer.0.SelfAttention.q.weight": (4096, 4096), "shared.weight": (32128, 4096)},
            "foreign",
            "a T5 text encoder",
        ),
        (
            {"model.1.sub.0.RDB1.conv1.0.weight": (32, 64, 3, 3), "model.0.weight": (64, 3, 3, 3)},
            "foreign",
            "an upscaling model",
        ),
        (
            {
                "control_model.input_hint_block.0.weight": (16, 3, 3, 3),
                "control_model.zero_convs.0.0.weight": (320, 320, 1, 1),
            },
            "foreign",
            "a ControlNet of another model",
        ),
        (
            {"weights.0.lora_up": (2048, 4), "weights.0.lora_down": (4, 2048)},
            "lora",
            "a Stable Cascade LoRA in the official layout",
        ),
        (
            {"lora_prior_unet_down_blocks_0_2_attention_attn_to_q.lora_up.weight": (64, 4)},
            "lora",
            "a Stable Cascade LoRA in kohya layout",
        ),
        ({"down_blocks.0.2.attention.to_q.lora_A.weight": (4, 64)}, "lora", "a Stable Cascade LoRA"),
        (
            {"lora_unet_input_blocks_1_1_proj_in.lora_up.weight": (320, 4)},
            "lora",
            "a LoRA of another model, or of unknown origin",
        ),
        ({"clip_g": (4, 1280)}, "embeddings", "a textual-inversion embedding"),
        ({"conv.weight": (3, 3)}, "unknown", "an unknown file"),
        ({}, "unknown", "a file without tensors"),
    ],
)
def test_other_files(tensors, kind, title):
    found = identify(tensors)
    assert (found.kind, found.title) == (kind, title)
    assert found.describe().startswith(title)
    with pytest.raises(WrongFile, match="'prior' input needs a Stage C model"):
        require(found, "stage_c")


def test_clip_sizes():
    text = identify(CLIP_G).config
    assert (text.hidden_size, text.intermediate_size, text.num_hidden_layers, text.num_attention_heads) == (
        1280,
        5120,
        32,
        20,
    )
    assert (text.projection_dim, text.hidden_act, text.vocab_size) == (1280, "gelu", 49408)
    vision = identify(VISION).config
    assert (vision.image_size, vision.patch_size, vision.projection_dim, vision.num_hidden_layers) == (224, 14, 768, 24)


def test_all_in_one(published):
    halves = PriorCoderConfig(EncoderConfig(), PreviewerConfig())
    prior = {
        **to_comfyui(published["stage_c", "1B"]),
        **under("vae.", meta("stage_c_vae", halves)),
        **under("text_encoder.clip_g.", CLIP_G),
        **under("clip_l_vision.", VISION),
    }
    found = identify(prior)
    assert [part.kind for part in found.parts] == ["stage_c", "text_encoder", "stage_c_vae", "clip_vision"]
    assert [part.prefix for part in found.parts] == [
        "model.diffusion_model.",
        "text_encoder.clip_g.",
        "vae.",
        "clip_l_vision.",
    ]
    assert found.part("stage_c").config == PUBLISHED["stage_c"]["1B"] and found.part("stage_c_vae").config == halves
    assert found.describe().startswith(
        "an all-in-one Stable Cascade checkpoint with a Stable Cascade Stage C prior (1B,"
    )
    with pytest.raises(WrongFile, match="'decoder' input needs a Stage B model; choose a file that holds it"):
        require(found, "stage_b")
    decoder = identify({**to_comfyui(published["stage_b", "700M"]), **under("vae.", published["stage_a", ""])})
    assert [part.kind for part in decoder.parts] == ["stage_b", "stage_a"]
