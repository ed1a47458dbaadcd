"""What a checkpoint is: recognition of every file layout from names and shapes of its tensors."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from math import prod
from typing import Any

import torch

from ..errors import WrongFile
from .guide import KEY as GUIDE_KEY
from .header import MARKER, TensorInfo, describe_tensors, read_marker
from .json_text import BadJson, parse_object
from .kinds import COMFYUI, KINDS, NETWORKS, config_from, find_published_name, settle_config
from .other_models import find_adapter, find_foreign, find_foreign_checkpoint
from .quantised import OTHER_WAY, plain_infos, unreadable_quantiser
from .shapes import Shapes

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
class FileKind:
    """What :func:`identify` found.

    kind: a name in :data:`..kinds.KINDS`, ``foreign`` (another model's file) or ``unknown``.
    layout: ``official``, ``comfyui`` or ``diffusers`` key names; ``transformers`` or ``open-clip`` for CLIP.
    prefix: what every key of it begins with; wrapper: the entry of the file that holds the tensors, if any.
    config: the network's config dataclass; None where it cannot be told (``problem`` says why).
    parameters: number of weights; dtypes: names such as "bf16", the most used first.
    quantisation: "" or what the weights are stored as; quantised: format by layer (keys without the prefix).
    restored: whether the weights are turned into plain ones when they are read (see :mod:`.quantised`).
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
    restored: bool = False
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

    A marker (tensor or ``metadata``, see :mod:`stages.files.header`) settles what shapes leave open; one that cannot be
    read raises :class:`WrongFile`.
    """
    wrapper, tensors = unwrap(tensors)
    infos = describe_tensors(tensors)
    if not infos:
        return FileKind(
            "unknown", "a file without tensors", wrapper=wrapper, advice="Choose a safetensors file of Stable Cascade."
        )
    marker, unreadable = read_marker(infos, metadata), unreadable_quantiser(infos)
    infos, schemes = plain_infos(infos)
    formats = _formats(infos, metadata)
    found = _checkpoint(infos, formats, marker) or _identify(infos, "", formats, marker)
    return _note_quantiser(replace(found, wrapper=wrapper), schemes, unreadable)


def _note_quantiser(found: FileKind, schemes: tuple[str, ...], unreadable: str) -> FileKind:
    """``found`` with a word on whose quantised weights the file holds, read here or not."""
    if schemes:
        parts = tuple(_note_quantiser(part, schemes, "") for part in found.parts)
        return replace(found, quantisation=" and ".join(schemes), restored=True, parts=parts)
    if unreadable and found.kind == "unknown":
        return replace(found, title=f"a file quantised by {unreadable}, which cannot be read", advice=OTHER_WAY)
    return found


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
    if other := find_foreign_checkpoint(list(infos)):
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
        KINDS["checkpoint"].title,
        COMFYUI,
        parameters=sum(p.parameters for p in known),
        dtypes=known[0].dtypes,
        parts=known,
    )


def _identify(infos: dict[str, TensorInfo], prefix: str, formats: Mapping[str, Any], marker: Any) -> FileKind:
    """What the tensors of one network are; ``prefix`` is what was already cut off the keys."""
    infos, prefix = _cut(infos, prefix)
    formats = {k[len(prefix) :]: v for k, v in formats.items() if k.startswith(prefix)}
    guides = {key: info for key, info in infos.items() if GUIDE_KEY.fullmatch(key)}
    if guides and len(guides) < len(infos):
        rest = _identify({key: info for key, info in infos.items() if key not in guides}, prefix, formats, marker)
        guide = _identify(guides, prefix, formats, marker)
        if rest.kind not in NETWORKS:
            return guide
        title = "a whole UltraPixel generator"
        return FileKind("checkpoint", title, rest.layout, prefix, dtypes=rest.dtypes, parts=(rest, guide))
    shapes = Shapes(_official_names(infos), _find_packed(infos, formats), infos)
    contents = _contents(infos, shapes, formats)
    if found := find_adapter(list(infos)):
        return FileKind(found[0], found[2], layout=found[1], prefix=prefix, **contents)
    towers = [
        _network(kind.name, layout, shapes, prefix, marker, contents)
        for kind in KINDS.values()
        if (layout := kind.layout_of(shapes))
    ]
    if len(towers) > 1 and {tower.kind for tower in towers} == {"clip_vision", "text_encoder"}:
        return FileKind("checkpoint", "a whole CLIP model", towers[0].layout, prefix, parts=tuple(towers), **contents)
    if towers:
        return towers[0]
    title, advice = find_foreign(shapes) or ("", "Choose a file of Stable Cascade.")
    return FileKind("foreign" if title else "unknown", title or "an unknown file", prefix=prefix, advice=advice)


def _network(kind: str, layout: str, shapes: Shapes, prefix: str, marker: Any, contents: Mapping[str, Any]) -> FileKind:
    """The network of ``kind`` with its config, which the marker or the shapes tell."""
    config, problem = None, ""
    try:
        if marker and marker[0] == kind:
            config = config_from(kind, marker[1])
        else:
            found = KINDS[kind].derive(shapes, layout)
            config = settle_config(kind, config_from(kind, found)) if isinstance(found, dict) else found
    except LookupError as error:
        problem = str(error)
    title = getattr(config, "title", KINDS[kind].title)
    return FileKind(kind, title, layout, prefix, config=config, problem=problem, **contents)


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


def _formats(infos: Mapping[str, TensorInfo], metadata: Mapping[str, str] | None) -> dict[str, Any]:
    """Quantisation settings by layer, as ComfyUI's files hold them (``X.comfy_quant`` or the metadata)."""
    formats: dict[str, Any] = {}
    if text := (metadata or {}).get("_quantization_metadata"):
        try:
            formats = {layer: dict(settings) for layer, settings in parse_object(text).get("layers", {}).items()}
        except (BadJson, AttributeError, TypeError, ValueError):
            raise WrongFile(f"The entry '_quantization_metadata' of this file cannot be read. {OTHER_WAY}") from None
    for key, info in infos.items():
        if key.endswith(".comfy_quant"):
            try:
                formats[key[: -len(".comfy_quant")]] = parse_object(info.text or b"{}")
            except BadJson:
                raise WrongFile(f"The entry '{key[-60:]}' of this file cannot be read. {OTHER_WAY}") from None
        elif key.endswith((".scale_weight", ".weight_scale")):
            formats.setdefault(key.rpartition(".")[0], {})
    return formats


def _find_packed(infos: Mapping[str, TensorInfo], formats: Mapping[str, Any]) -> frozenset[str]:
    layers = {layer for layer, settings in formats.items() if str(settings.get("format")) in PACKED_FORMATS}
    layers |= {
        key[: -len(".weight")] for key, info in infos.items() if key.endswith(".weight") and info.dtype == torch.uint8
    }
    return frozenset(layer.replace(".attention.to_out.0", ".attention.attn.out_proj") for layer in layers)


def _contents(infos: Mapping[str, TensorInfo], shapes: Shapes, formats: Mapping[str, Any]) -> dict[str, Any]:
    """Parameter count, dtypes by share, and quantisation."""
    count = 0
    shares: Counter[str] = Counter()
    for key, info in infos.items():
        if not key.endswith(_UNCOUNTED):
            packed = 2 if key.rpartition(".")[0] in shapes.packed and key.endswith(".weight") else 1
            count += prod(info.shape) * packed
            if info.dtype is not None:
                shares[dtype_name(info.dtype)] += prod(info.shape)
    names = sorted({str(settings.get("format", "") or "fp8 scaled") for settings in formats.values()})
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
