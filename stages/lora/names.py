"""Names in LoRA files: which layer and which part of an adapter a key means, in every layout in use.

A *module* is a layer under our canonical name without ``.weight`` (``down_blocks.0.2.attention.attn.to_q``), or a
parameter that is no layer's weight or bias under its full name (``down_blocks.0.0.channelwise.2.gamma``). A *part* is
what stands behind it in a file (``lora_up.weight``, ``alpha``, ``hada_w1_a``), in the spelling that ComfyUI reads.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from torch import Tensor

from ..files.convert import QKV

Shape = tuple[int, ...]

ATTENTION = ".attention.attn."

_SPELLINGS = {
    "lora_B.weight": "lora_up.weight",
    "lora_A.weight": "lora_down.weight",
    "lora_B.default.weight": "lora_up.weight",
    "lora_A.default.weight": "lora_down.weight",
    "lora.up.weight": "lora_up.weight",
    "lora.down.weight": "lora_down.weight",
    "lora_linear_layer.up.weight": "lora_up.weight",
    "lora_linear_layer.down.weight": "lora_down.weight",
    "lora_B": "lora_up.weight",
    "lora_A": "lora_down.weight",
    "lora_up": "lora_up.weight",
    "lora_down": "lora_down.weight",
}
_COMFYUI = (
    "lora_up.weight",
    "lora_down.weight",
    "lora_mid.weight",
    "alpha",
    "dora_scale",
    "diff",
    "diff_b",
    "set_weight",
    "hada_w1_a",
    "hada_w1_b",
    "hada_w2_a",
    "hada_w2_b",
    "hada_t1",
    "hada_t2",
    "lokr_w1",
    "lokr_w1_a",
    "lokr_w1_b",
    "lokr_w2",
    "lokr_w2_a",
    "lokr_w2_b",
    "lokr_t2",
    "oft_blocks",
    "rescale",
    "a1.weight",
    "a2.weight",
    "b1.weight",
    "b2.weight",
    "w_norm",
    "b_norm",
)
_ALL = "|".join(re.escape(part) for part in sorted((*_SPELLINGS, *_COMFYUI), key=len, reverse=True))
# Old diffusers files have an underscore before "lora.up".
_KEY = re.compile(rf"(.+?)(?:\.({_ALL})|_(lora\.(?:up|down)\.weight))$")

_PREFIX = re.compile(
    r"(?:base_model\.model\.|model\.|diffusion_model\.|unet\.|prior\.|decoder\.|transformer\.|text_encoders?(?:_2)?\.|"
    r"clip_g\.|lora_prior_unet_|lora_prior_te_|lora_prior_|lora_unet_|lora_te[12]?_|lycoris_|unet_)*"
)
POSITIONAL = re.compile(r"(?:.*\.)?(weights\.\d+)\.(lora_up|lora_down)$")


_OF_ULTRAPIXEL = re.compile(r"(?:module\.)?(\d+)\.(lora_up|lora_down|embeddings|indices)")


def name_officially(tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """A file of UltraPixel's personalisation, whose keys are bare numbers, under the official trainer's names.

    Its numbers follow the official order, and the last one is the token; other files are given back as they are.
    """
    found = {key: match for key in tensors if (match := _OF_ULTRAPIXEL.fullmatch(key))}
    if not found or len(found) < len(tensors):
        return tensors
    return {
        (f"weights.{match[1]}" if match[2].startswith("lora") else "embeddings") + f".{match[2]}": tensors[key]
        for key, match in found.items()
    }


def split_key(key: str) -> tuple[str, str] | None:
    """``(module as the file spells it, part as ComfyUI spells it)``; None for a key that is no adapter's."""
    if found := POSITIONAL.match(key):
        return found[1], f"{found[2]}.weight"
    if not (found := _KEY.match(key)):
        return None
    part = found[2] or found[3]
    return found[1], _SPELLINGS.get(part, part)


def bare(module: str) -> str:
    """``module`` without what trainers put in front of it, its dots turned into underscores."""
    return _PREFIX.sub("", module, count=1).replace(".", "_")


def is_text(module: str) -> bool:
    """Whether a file's module belongs to the text encoder."""
    return bare(module).startswith(("text_model_", "text_projection"))


def modules_of(shapes: Mapping[str, Shape]) -> dict[str, Shape]:
    """Shape of every module of a network, from the shapes of its parameters (canonical names); biases are left out."""
    found = {}
    for name, shape in shapes.items():
        if not name.endswith(".bias"):
            found[name.removesuffix(".weight")] = tuple(shape)
    return found


def table(modules: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """What files call the modules of a network: ``{bare name: modules}``, three of them for a fused q, k and v."""
    modules = list(modules)
    found: dict[str, tuple[str, ...]] = {}
    is_prior = "clip_txt_mapper" in modules
    for module in modules:
        for alias in _aliases(module, is_prior):
            found.setdefault(alias.replace(".", "_"), (module,))
        base, _, last = module.rpartition(".")
        if last == QKV[0] and module.rfind(ATTENTION) >= 0:
            fused = tuple(f"{base}.{part}" for part in QKV)
            for alias in ("in_proj", "in_proj_weight", ""):
                found[f"{base}.{alias}".rstrip(".").replace(".", "_")] = fused
    return found


def _aliases(module: str, is_prior: bool) -> list[str]:
    names = [module]
    start, attention, last = module.rpartition(ATTENTION)
    if attention and last == "out_proj":
        names += [
            f"{start}.attention.{other}"
            for other in ("to_out.0", "to_out", "processor.to_out", "attn.base_layer.out_proj")
        ]
    elif attention:
        names += [f"{start}.attention.{last}", f"{start}.attention.processor.{last}"]
    if module == "clip_mapper" and not is_prior:
        names.append("clip_txt_pooled_mapper")
    return names


def positions(modules: Iterable[str]) -> list[tuple[str, ...]]:
    """The modules behind each index of an official file: for each attention block its output projection, then q, k, v.

    The official trainer (train/train_c_lora.py with its default filter ".attn") numbers them by position: down blocks
    first, then up blocks, each by level and place.
    """
    blocks = [module[: -len(QKV[0])] for module in modules if module.endswith(ATTENTION + QKV[0])]
    blocks.sort(key=lambda block: (not block.startswith("down_"), *map(int, re.findall(r"\d+", block))))
    return [names for block in blocks for names in ((f"{block}out_proj",), tuple(f"{block}{part}" for part in QKV))]


def layout_of(keys: Iterable[str]) -> str:
    """What people call the layout of a file with these ``keys``."""
    keys = list(keys)
    if any(POSITIONAL.match(key) for key in keys):
        return "official"
    for layout, marks in (
        ("kohya", ("lora_prior_", "lora_unet_", "lora_te")),
        ("LyCORIS", ("lycoris_",)),
        ("ComfyUI", ("diffusion_model.", "text_encoders.")),
    ):
        if any(key.startswith(marks) for key in keys):
            return layout
    if any(key.startswith("base_model.model.") for key in keys):
        return "PEFT"
    return "diffusers" if any(".lora" in key or "_lora." in key for key in keys) else "other"
