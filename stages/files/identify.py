"""What a checkpoint is: recognition of every file layout from names and shapes of its tensors."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from math import prod
from typing import Any

import torch
from torch import Tensor

from ..errors import WrongFile
from ..nets.controlnet import ControlNetConfig
from ..nets.encoder import EncoderConfig
from ..nets.previewer import PreviewerConfig
from ..nets.sizes import find_published_name, settle_config
from ..nets.stage_a import StageAConfig
from ..nets.stage_b import StageBConfig
from ..nets.stage_c import StageCConfig
from . import shapes as derive
from .clip import OPEN_CLIP, TRANSFORMERS, TextConfig, VisionConfig, text_config, vision_config
from .header import TensorInfo, describe_tensors
from .marker import MARKER, as_tuples, read_marker
from .other_models import adapter, foreign, foreign_checkpoint
from .shapes import Shapes

OFFICIAL, COMFYUI, DIFFUSERS = "official", "comfyui", "diffusers"
WRAPPERS = ("state_dict", "model_state_dict", "module", "model", "params_ema", "params")
PREFIXES = (
    "module.",
    "_orig_mod.",
    "model.diffusion_model.",
    "diffusion_model.",
    "state_dict.",
    "unet.",
    "first_stage_model.",
    "vae.",
    "text_encoder.",
    "clip_l_vision.",
    "clip_g.",
    "clip_l.",
)
CHECKPOINT_PREFIXES = ("model.diffusion_model.", "text_encoder.", "vae.", "clip_l_vision.")
"""Where ComfyUI's all-in-one files keep the diffusion model, the text encoder, the VAE and the CLIP vision tower."""
PACKED_FORMATS = {"nvfp4", "convrot_w4a4"}
SCALES = (
    ".scale_weight",
    ".scale_input",
    ".weight_scale",
    ".weight_scale_2",
    ".input_scale",
    ".pre_quant_scale",
    ".comfy_quant",
    "_weight_scale",
    "_scale_weight",
)
_UNCOUNTED = SCALES + ("running_mean", "running_var", "num_batches_tracked", "scaled_fp8", MARKER)


@dataclass(frozen=True)
class PriorCoderConfig:
    """The Stage C VAE of ComfyUI's files: image encoder and Previewer in one; None for a half that is not there."""

    encoder: EncoderConfig | None = None
    previewer: PreviewerConfig | None = None


CONFIGS = {
    "stage_c": StageCConfig,
    "stage_b": StageBConfig,
    "stage_a": StageAConfig,
    "encoder": EncoderConfig,
    "previewer": PreviewerConfig,
    "controlnet": ControlNetConfig,
    "stage_c_vae": PriorCoderConfig,
    "text_encoder": TextConfig,
    "clip_vision": VisionConfig,
}
NETWORKS = ("stage_c", "stage_b", "stage_a", "encoder", "previewer", "stage_c_vae", "controlnet")

TITLES = {
    "stage_c": "a Stable Cascade Stage C prior",
    "stage_b": "a Stable Cascade Stage B decoder",
    "stage_a": "a Stable Cascade Stage A VAE",
    "encoder": "the Stable Cascade image encoder (EfficientNet)",
    "previewer": "the Stable Cascade Previewer",
    "stage_c_vae": "a Stable Cascade Stage C VAE (image encoder and Previewer)",
    "controlnet": "a Stable Cascade ControlNet",
    "text_encoder": "a CLIP text encoder",
    "clip_vision": "a CLIP vision tower",
    "checkpoint": "an all-in-one Stable Cascade checkpoint",
}


@dataclass(frozen=True)
class FileKind:
    """What :func:`identify` found.

    kind: one of :data:`NETWORKS`, ``text_encoder``, ``clip_vision``, ``checkpoint`` (see ``parts``), ``lora``,
        ``embeddings``, ``foreign`` (another model's file) or ``unknown``.
    layout: ``official``, ``comfyui`` or ``diffusers`` key names; ``transformers`` or ``open-clip`` for CLIP.
    prefix: what every key of it begins with; wrapper: the entry of the file that holds the tensors, if any.
    config: the network's config dataclass; None where it cannot be told (``problem`` says why).
    parameters: number of weights; dtypes: names such as "bf16", the most used first.
    quantisation: "" or what the weights are stored as; quantised: format by layer (keys without the prefix).
    parts: what an all-in-one checkpoint holds. advice: what to do with a file that belongs elsewhere.
    """

    kind: str
    title: str
    layout: str = ""
    prefix: str = ""
    wrapper: str = ""
    config: Any = None
    parameters: int = 0
    dtypes: tuple[str, ...] = ()
    quantisation: str = ""
    quantised: Mapping[str, Any] = field(default_factory=dict, repr=False)
    parts: tuple[FileKind, ...] = ()
    advice: str = ""
    problem: str = ""

    @property
    def size(self) -> str:
        """ "3.6B", "700M", …: the published name where there is one."""
        return find_published_name(self.kind, self.config) or _count(self.parameters)

    def describe(self) -> str:
        """A few words, such as "a Stable Cascade Stage B decoder (700M, bf16, official layout)"."""
        if self.kind in ("lora", "embeddings", "foreign", "unknown"):
            return self.title
        if self.parts:
            return f"{self.title} with " + ", ".join(part.describe() for part in self.parts)
        notes = [self.size, self.quantisation or "/".join(self.dtypes)]
        notes.append(f"{self.layout} layout" if self.kind in NETWORKS and self.layout else "")
        return f"{self.title} ({', '.join(note for note in notes if note)})"

    def part(self, kind: str) -> FileKind | None:
        """This file, or the part of it, that is of ``kind``; None without one."""
        return next((found for found in (self, *self.parts) if found.kind == kind), None)


def identify(tensors: Mapping[str, Any], metadata: Mapping[str, str] | None = None) -> FileKind:
    """What ``tensors`` (tensors, meta tensors or shapes by key) are; never raises for an unknown file.

    A marker (tensor or ``metadata``, see :mod:`stages.files.marker`) settles what shapes leave open; one that cannot be
    read raises :class:`WrongFile`.
    """
    wrapper, tensors = unwrap(tensors)
    infos = describe_tensors(tensors)
    if not infos:
        return FileKind(
            "unknown", "a file without tensors", wrapper=wrapper, advice="Choose a safetensors file of Stable Cascade."
        )
    marker = read_marker(tensors, metadata)
    formats = _formats(tensors, metadata)
    found = _checkpoint(infos, formats, marker) or _identify(infos, "", formats, marker)
    return replace(found, wrapper=wrapper)


def unwrap(tensors: Mapping[str, Any]) -> tuple[str, Mapping[str, Any]]:
    """``(name, tensors)`` of the nested dict that trainers wrap a state dict in; ``("", tensors)`` without one."""
    for name in WRAPPERS:
        inner = tensors.get(name)
        if isinstance(inner, Mapping) and describe_tensors(inner):
            deeper, innermost = unwrap(inner)
            return f"{name}.{deeper}" if deeper else name, innermost
    return "", tensors


def _checkpoint(infos: dict[str, TensorInfo], formats: dict[str, Any], marker: Any) -> FileKind | None:
    """An all-in-one file: the diffusion model beside at least one other part."""
    groups = {prefix: {k: v for k, v in infos.items() if k.startswith(prefix)} for prefix in CHECKPOINT_PREFIXES}
    present = {prefix: group for prefix, group in groups.items() if group}
    others = [key for key in infos if not key.startswith(CHECKPOINT_PREFIXES)]
    if other := foreign_checkpoint(list(infos)):
        return FileKind("foreign", other[0], advice=other[1])
    if len(present) < 2 or len(others) > len(infos) // 2:
        return None
    parts = [
        _identify({key[len(prefix) :]: info for key, info in group.items()}, prefix, formats, marker)
        for prefix, group in present.items()
    ]
    known = tuple(part for part in parts if part.kind not in ("foreign", "unknown"))
    if not any(part.kind in NETWORKS for part in known):
        return next((part for part in parts if part.kind == "foreign"), None)
    return FileKind(
        "checkpoint",
        TITLES["checkpoint"],
        COMFYUI,
        parameters=sum(p.parameters for p in known),
        dtypes=known[0].dtypes,
        parts=known,
    )


def _identify(infos: dict[str, TensorInfo], prefix: str, formats: Mapping[str, Any], marker: Any) -> FileKind:
    """What the tensors of one network are; ``prefix`` is what was already cut off the keys."""
    infos, prefix = _cut(infos, prefix)
    formats = {k[len(prefix) :]: v for k, v in formats.items() if k.startswith(prefix)}
    shapes = Shapes(_official_names(infos), _packed(infos, formats))
    keys = list(infos)
    if found := adapter(keys):
        return FileKind(found[0], found[2], layout=found[1], prefix=prefix, **_contents(infos, shapes, formats))
    kind, layout = _network(shapes, infos)
    if marker and kind and marker[0] != kind:
        marker = None
    if kind is None:
        found = foreign(shapes) or ("an unknown file", "Choose a file of Stable Cascade.")
        return FileKind("foreign" if foreign(shapes) else "unknown", found[0], prefix=prefix, advice=found[1])
    config, problem = _config(kind, shapes, layout, marker)
    title = config.title if isinstance(config, (TextConfig, VisionConfig)) else TITLES[kind]
    return FileKind(kind, title, layout, prefix, config=config, problem=problem, **_contents(infos, shapes, formats))


def _network(shapes: Shapes, infos: Mapping[str, TensorInfo]) -> tuple[str | None, str]:
    """``(kind, layout)`` of the tensors of one network."""
    starts = {key.partition(".")[0] for key in shapes.tensors}
    if "down_blocks" in starts and starts & {"clf", "embedding", "clip_mapper", "clip_txt_mapper"}:
        if _has(shapes, r"down_blocks\.\d+\.\d+\.(depthwise|channelwise|mapper|kv_mapper|attention)"):
            is_c = starts & {"clip_txt_mapper", "clip_img_mapper"} or _has(shapes, r"down_downscalers\.1\.1\.blocks\.")
            return "stage_c" if is_c else "stage_b", _unet_layout(infos)
    if _has(shapes, r"vquantizer\.|up_blocks\.\d+\.gammas"):
        return "stage_a", DIFFUSERS if "vquantizer.embedding.weight" in infos else OFFICIAL
    if _has(shapes, r"(encoder\.backbone\.\d|previewer\.blocks\.\d)"):
        return "stage_c_vae", COMFYUI
    if {"backbone", "projections"} <= starts:
        return "controlnet", OFFICIAL
    if _has(shapes, r"backbone\.1\.0\.block\."):
        return "encoder", OFFICIAL
    if "blocks.2.running_mean" in shapes and "blocks.0.weight" in shapes:
        return "previewer", OFFICIAL
    if _has(shapes, r"vision_model\.encoder\.layers\."):
        return "clip_vision", TRANSFORMERS
    if _has(shapes, r"visual\.transformer\.resblocks\."):
        return "clip_vision", OPEN_CLIP
    if _has(shapes, r"text_model\.encoder\.layers\."):
        return "text_encoder", TRANSFORMERS
    if _has(shapes, r"transformer\.resblocks\.") and "token_embedding.weight" in shapes:
        return "text_encoder", OPEN_CLIP
    return None, ""


def _unet_layout(infos: Mapping[str, TensorInfo]) -> str:
    if any(".attention.to_" in key for key in infos) or (
        "clip_txt_pooled_mapper.weight" in infos and "clip_txt_mapper.weight" not in infos
    ):
        return DIFFUSERS
    return COMFYUI if any(".attention.attn.to_" in key for key in infos) else OFFICIAL


def _config(kind: str, shapes: Shapes, layout: str, marker: Any) -> tuple[Any, str]:
    """``(config, problem)`` of a network of ``kind``."""
    if marker:
        return config_from(kind, marker[1]), ""
    if kind == "text_encoder":
        return text_config(shapes, layout), ""
    if kind == "clip_vision":
        return vision_config(shapes, layout), ""
    try:
        if kind == "stage_c_vae":
            halves = {"encoder": derive.encoder_config, "previewer": derive.previewer_config}
            found = {
                name: derived(shapes, f"{name}.") for name, derived in halves.items() if _has(shapes, rf"{name}\.")
            }
        else:
            found = getattr(derive, f"{kind}_config")(shapes)
        return settle_config(kind, config_from(kind, found)), ""
    except LookupError as error:
        return None, str(error)


def config_from(kind: str, values: Mapping[str, Any]) -> Any:
    """The config dataclass of ``kind`` with ``values``, as a marker or JSON has them; raises :class:`WrongFile`."""
    cls, nested = CONFIGS[kind], {"trunk": EncoderConfig, "encoder": EncoderConfig, "previewer": PreviewerConfig}
    names = {f.name for f in fields(cls)}
    if unknown := sorted(set(values) - names):
        raise WrongFile(
            f"The config of this file has settings that this version does not know ({', '.join(unknown)}). "
            "It was made with another version of Cascade Studio: update the pack."
        )
    settle_config_values = {}
    for name, value in values.items():
        if name in nested and isinstance(value, Mapping):
            value = nested[name](**{key: as_tuples(item) for key, item in value.items()})
        settle_config_values[name] = as_tuples(value)
    return cls(**settle_config_values)


def _cut(infos: dict[str, TensorInfo], prefix: str) -> tuple[dict[str, TensorInfo], str]:
    """``infos`` without the known prefixes that its keys share, and ``prefix`` with them.

    A few keys may stand outside (a trainer's leftovers, a marker); they are dropped.
    """
    for cut in PREFIXES:
        inside = {key[len(cut) :]: info for key, info in infos.items() if key.startswith(cut)}
        if inside and len(inside) >= len(infos) - 4 and len(inside) > len(infos) // 2:
            return _cut(inside, prefix + cut)
    return infos, prefix


def _official_names(infos: Mapping[str, TensorInfo]) -> dict[str, TensorInfo]:
    """Keys of every layout in the official names, as far as sizes are read from them."""
    names = {}
    renames = {"vquantizer.embedding.weight": "vquantizer.codebook.weight"}
    if "clip_txt_mapper.weight" not in infos and "clip_img_mapper.weight" not in infos:
        renames.update({f"clip_txt_pooled_mapper.{end}": f"clip_mapper.{end}" for end in ("weight", "bias")})
    for key, info in infos.items():
        key = renames.get(key, key.replace(".attention.to_out.0.", ".attention.attn.out_proj."))
        if key.startswith(("transformer.text_model.", "transformer.text_projection.")):
            key = key[len("transformer.") :]
        names[key] = info
    return names


def _formats(tensors: Mapping[str, Any], metadata: Mapping[str, str] | None) -> dict[str, Any]:
    """Quantisation settings by layer, as ComfyUI's files hold them (``X.comfy_quant`` or the metadata)."""
    try:
        formats = dict(json.loads((metadata or {}).get("_quantization_metadata", "{}")).get("layers", {}))
    except (ValueError, AttributeError):
        formats = {}
    for key, value in tensors.items():
        if key.endswith(".comfy_quant"):
            text = bytes(value.tolist()).decode() if isinstance(value, Tensor) and not value.is_meta else "{}"
            formats[key[: -len(".comfy_quant")]] = json.loads(text)
        elif key.endswith((".scale_weight", ".weight_scale")):
            formats.setdefault(key.rpartition(".")[0], {})
    return formats


def _packed(infos: Mapping[str, TensorInfo], formats: Mapping[str, Any]) -> frozenset[str]:
    layers = {layer for layer, settings in formats.items() if settings.get("format") in PACKED_FORMATS}
    layers |= {
        key[: -len(".weight")] for key, info in infos.items() if key.endswith(".weight") and info.dtype == torch.uint8
    }
    return frozenset(layer.replace(".attention.to_out.0", ".attention.attn.out_proj") for layer in layers)


def _contents(infos: Mapping[str, TensorInfo], shapes: Shapes, formats: Mapping[str, Any]) -> dict[str, Any]:
    """Parameter count, dtypes by share, and quantisation."""
    count, shares = 0, Counter()
    for key, info in infos.items():
        if not key.endswith(_UNCOUNTED):
            packed = 2 if key.rpartition(".")[0] in shapes.packed and key.endswith(".weight") else 1
            count += prod(info.shape) * packed
            if info.dtype is not None:
                shares[dtype_name(info.dtype)] += prod(info.shape)
    names = sorted({settings.get("format", "") or "fp8 scaled" for settings in formats.values()})
    return {
        "parameters": count,
        "dtypes": tuple(name for name, _ in shares.most_common()),
        "quantisation": "/".join(_QUANTISED.get(name, name) for name in names),
        "quantised": dict(formats),
    }


_QUANTISED = {"float8_e4m3fn": "fp8 scaled", "float8_e5m2": "fp8 scaled", "int8_tensorwise": "int8"}
_NAMES = {
    torch.float32: "fp32",
    torch.float16: "fp16",
    torch.bfloat16: "bf16",
    torch.float64: "fp64",
    torch.float8_e4m3fn: "fp8",
    torch.float8_e5m2: "fp8",
    torch.int8: "int8",
    torch.uint8: "uint8",
}


def dtype_name(dtype: torch.dtype) -> str:
    """ "fp32", "bf16", …: how people write a dtype."""
    return _NAMES.get(dtype, str(dtype).removeprefix("torch."))


def _count(parameters: int) -> str:
    """Four places at most: "3.6B", "54M", "980k"."""
    for unit, name in ((1_000_000_000, "B"), (1_000_000, "M"), (1_000, "k")):
        if parameters >= unit * 0.9995:
            digits = 1 if parameters < 10 * unit else 0
            return f"{parameters / unit:.{digits}f}".removesuffix(".0") + name
    return str(parameters)


def _has(shapes: Shapes, pattern: str) -> bool:
    matcher = re.compile(pattern)
    return any(matcher.match(key) for key in shapes.tensors)
