"""Files of other models that end up in our inputs, told by a few of their keys and described in a few words."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import NamedTuple

from .shapes import Shapes


class Foreign(NamedTuple):
    """``title`` describes what a file with these keys is; ``use`` says which input it belongs to."""

    title: str
    use: str
    keys: tuple[str, ...]
    test: Callable[[Shapes], bool] = lambda shapes: True


_MODEL = "It belongs to another model family and works with no Cascade node; choose a Stable Cascade file instead."
_TEXT = "Stable Cascade uses the CLIP-G text encoder instead."
_CONTEXT = "input_blocks.{}.1.transformer_blocks.0.attn2.to_k.weight"


def _context(shapes: Shapes) -> int:
    """The text width of a Stable Diffusion UNet in its original layout."""
    return shapes.first(*((_CONTEXT.format(i), 1) for i in (1, 4, 5, 7)))


_FAMILIES = (
    Foreign(
        "an SDXL diffusion model",
        _MODEL,
        (r"input_blocks\.0\.0\.weight", r"label_emb\."),
        lambda s: _context(s) in (0, 2048, 1280),
    ),
    Foreign(
        "a Stable Diffusion 2 diffusion model", _MODEL, (r"input_blocks\.0\.0\.weight",), lambda s: _context(s) == 1024
    ),
    Foreign(
        "a Stable Diffusion 1.5 diffusion model",
        _MODEL,
        (r"input_blocks\.0\.0\.weight",),
        lambda s: _context(s) in (0, 768),
    ),
    Foreign("a Stable Diffusion style diffusion model", _MODEL, (r"input_blocks\.0\.0\.weight",)),
    Foreign(
        "an SDXL diffusion model in diffusers layout",
        _MODEL,
        (r"down_blocks\.0\.resnets\.0\.conv1\.weight", r"add_embedding\."),
    ),
    Foreign(
        "a Stable Diffusion diffusion model in diffusers layout",
        _MODEL,
        (r"down_blocks\.0\.resnets\.0\.conv1\.weight", r"time_embedding\."),
    ),
    Foreign("a Flux diffusion model", _MODEL, (r"double_blocks\.0\.img_attn\.",)),
    Foreign("a Flux diffusion model in diffusers layout", _MODEL, (r"single_transformer_blocks\.0\.",)),
    Foreign("a Stable Diffusion 3 diffusion model", _MODEL, (r"joint_blocks\.0\.",)),
    Foreign("a Würstchen v2 prior", _MODEL, (r"cond_mapper\.0\.weight", r"projection\.weight")),
    Foreign("a video or image diffusion transformer", _MODEL, (r"blocks\.0\.(self_attn|attn|attn1|cross_attn)\.",)),
    Foreign(
        "a diffusion transformer of another family",
        _MODEL,
        (r"(transformer_blocks|layers)\.0\.(attn|attention|adaLN)",),
    ),
    Foreign(
        "a ControlNet of another model",
        "Stable Cascade needs ControlNets made for its Stage C.",
        (r"(control_model\.)?(input_hint_block|zero_convs|controlnet_cond_embedding|controlnet_down_blocks)\.",),
    ),
    Foreign(
        "a T2I adapter of another model",
        "Stable Cascade needs ControlNets made for its Stage C.",
        (r"body\.0\.(block1|resnets|in_conv)",),
    ),
    Foreign("an IP-Adapter", _MODEL, (r"(ip_adapter|image_proj)\.",)),
    Foreign("a T5 text encoder", _TEXT, (r"(encoder\.)?block\.0\.layer\.0\.SelfAttention\.",)),
    Foreign("a language model", _TEXT, (r"(language_model\.)?(model\.)?layers\.0\.self_attn\.",)),
    Foreign(
        "an SD or SDXL VAE",
        "Stable Cascade decodes with Stage A; choose a Stage A file as the VAE.",
        (r"decoder\.(conv_in|up\.0|mid|up_blocks\.0\.resnets)", r"encoder\.(conv_in|down)"),
    ),
    Foreign(
        "an SD or SDXL VAE decoder",
        "Stable Cascade decodes with Stage A; choose a Stage A file as the VAE.",
        (r"decoder\.conv_in\.weight",),
    ),
    Foreign(
        "a TAESD preview VAE",
        "Stable Cascade has its own Previewer; choose previewer.safetensors.",
        (r"(taesd_)?(decoder|encoder)\.(layers\.)?\d+\.(conv\.0\.)?weight",),
    ),
    Foreign(
        "an upscaling model",
        "It upscales finished pictures: load it with an upscale model loader.",
        (r"(model\.1\.sub\.0\.RDB1|body\.0\.rdb1|RRDB_trunk\.0|layers\.0\.residual_group)\.",),
    ),
)

_CHECKPOINTS = (
    ("an SDXL checkpoint", "conditioner.embedders.1."),
    ("a Stable Diffusion 2 checkpoint", "cond_stage_model.model."),
    ("a Stable Diffusion 1.5 checkpoint", "cond_stage_model."),
    ("a Stable Diffusion checkpoint", "first_stage_model."),
)


def find_foreign(shapes: Shapes) -> tuple[str, str] | None:
    """``(title, advice)`` for the keys of another model's file, with no prefix; None when nothing matches."""
    for entry in _FAMILIES:
        matchers = [re.compile(key) for key in entry.keys]
        if all(any(m.match(key) for key in shapes.tensors) for m in matchers) and entry.test(shapes):
            return entry.title, entry.use
    return None


def find_foreign_checkpoint(keys: list[str]) -> tuple[str, str] | None:
    """``(title, advice)`` for a checkpoint that holds another model with its text encoder or VAE."""
    if not any(key.startswith("model.diffusion_model.") for key in keys):
        return None
    for title, prefix in _CHECKPOINTS:
        if any(key.startswith(prefix) for key in keys):
            return title, _MODEL
    return None


def find_adapter(keys: list[str]) -> tuple[str, str, str] | None:
    """``(kind, layout, title)`` of a LoRA or textual-inversion file; None for anything else."""
    if any(re.match(r"weights\.\d+\.lora_(up|down)", key) for key in keys):
        return "lora", "official", "a Stable Cascade LoRA in the official layout"
    if any(re.fullmatch(r"(module\.)?\d+\.lora_(up|down)", key) for key in keys):
        return "lora", "official", "a Stable Cascade LoRA of UltraPixel's training (official layout)"
    if "embeddings.embeddings" in keys or "emb_params" in keys or any(k.startswith("string_to_param") for k in keys):
        return "embeddings", "", "a textual-inversion embedding"
    if keys and all(key.startswith(("clip_g", "clip_l")) and "." not in key for key in keys):
        return "embeddings", "", "a textual-inversion embedding"
    marks = (
        ".lora_up.",
        ".lora_down.",
        ".lora_A.",
        ".lora_B.",
        ".lora.up.",
        ".lora.down.",
        ".hada_w1_a",
        ".lokr_w1",
        ".oft_blocks",
        ".lora_linear_layer.",
    )
    ends = (".diff", ".diff_b", ".lora_A", ".lora_B", ".lora_up", ".lora_down")
    if not any(key.endswith(ends) or any(mark in key for mark in marks) for key in keys):
        return None
    if any(key.startswith("lora_prior_") for key in keys):
        return "lora", "kohya", "a Stable Cascade LoRA in kohya layout"
    block = re.compile(r"(down|up)_blocks[._]\d+[._]\d+[._](attention|channelwise|kv_mapper|mapper)")
    if any(map(block.search, keys)):
        return "lora", "kohya" if keys[0].startswith("lora_") else "diffusers", "a Stable Cascade LoRA"
    return "lora", "other", "a LoRA of another model, or of unknown origin"
