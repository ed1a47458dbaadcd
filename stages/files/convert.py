"""State dicts from one key layout to another: canonical names in, the names of any published format out.

The canonical names are the official ones with the attention split into ``attention.attn.to_q/to_k/to_v``. Fused
weights are cut into views, nothing is copied and no input is changed.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..errors import WrongFile
from .clip import OPEN_CLIP, to_transformers
from .guide import KEY as GUIDE_KEY, name_guide_tensors
from .header import MARKER, tensor_bytes
from .identify import FileKind, unwrap
from .json_text import parse_object
from .quantised import FLOAT8 as FLOAT8_DTYPES, restore_weights

QKV = ("to_q", "to_k", "to_v")
FLOAT8 = {dtype: str(dtype).removeprefix("torch.") for dtype in FLOAT8_DTYPES}
PLAIN_FORMATS = ("float8_e4m3fn", "float8_e5m2", "int8_tensorwise")
"""The quantised formats whose weight is stored value times one scale, for the whole tensor or for each row."""

LAYER_ENTRIES = ("weight_scale", "weight_scale_2", "input_scale", "pre_quant_scale", "comfy_quant")
"""What a quantised layer has beside its weight and bias."""

OF_VISION = ("vision_model.", "visual_projection", "logit_scale")
_SCALE_NAMES = {"scale_weight": "weight_scale", "scale_input": "input_scale"}
_FUSED = re.compile(r"(.*\.attention\.attn)\.in_proj[_.](weight|bias)$")
_FUSED_SCALE = re.compile(
    r"(.*\.attention\.attn)\.(?:in_proj[_.])?(?:weight_)?"
    r"(scale_weight|scale_input|weight_scale|input_scale|comfy_quant|scale)$"
)


def normalise(tensors: Mapping[str, Any], kind: FileKind) -> dict[str, Tensor]:
    """The tensors of ``kind`` (the result of ``identify``, or one of its parts) under canonical names.

    Quantisation entries end up at their layer as ``weight_scale``, ``input_scale`` and ``comfy_quant``, the names of
    ComfyUI's newer files; see :func:`dequantise`. Other quantisers' weights become plain ones of bf16. Markers are left
    out, and so is what a file holds beside the network.
    """
    _, tensors = unwrap(tensors)
    start = kind.prefix
    given = {key[len(start) :]: t for key, t in tensors.items() if isinstance(t, Tensor) and key.startswith(start)}
    if kind.restored:
        given = restore_weights(given)
    if kind.kind == "ultrapixel":
        return name_guide_tensors(given)
    if kind.kind in ("text_encoder", "clip_vision"):
        given = _keep_tower(given, kind)
    found: dict[str, Tensor] = {}
    for key, tensor in given.items():
        name = _canonical(key, kind)
        if name is not None and not name.endswith(MARKER):
            found.update(_split(name, tensor))
    _note_formats(found, kind)
    return found


def dequantise(tensors: Mapping[str, Tensor], dtype: torch.dtype | None = torch.bfloat16) -> dict[str, Tensor]:
    """Plain tensors of ``dtype`` from canonical ones: each quantised weight times its scale, scales dropped.

    Raises :class:`WrongFile` for formats that are more than a scale (nvfp4, mxfp8, rotated int4 and int8).
    """
    plain: dict[str, Tensor] = {}
    for key, tensor in tensors.items():
        layer, _, name = key.rpartition(".")
        if name in LAYER_ENTRIES:
            continue
        settings = _settings(tensors.get(f"{layer}.comfy_quant")) if name == "weight" else {}
        scale = tensors.get(f"{layer}.weight_scale") if name == "weight" else None
        if settings and not _is_plain(settings):
            raise WrongFile(
                f"The weights of this file are stored as {settings.get('format', 'an unknown format')}, "
                "which can be used in ComfyUI only. Take a bf16, fp16, fp32 or fp8 file here."
            )
        if scale is not None:
            if scale.numel() not in (1, len(tensor)):
                raise WrongFile(
                    f"{layer} has {scale.numel()} scales for {len(tensor)} rows. "
                    "Take a file with one scale for each tensor or row, or a bf16 file."
                )
            tensor = tensor.float() * scale.float().reshape(-1, *[1] * (tensor.ndim - 1))
        if tensor.is_floating_point() and (scale is not None or tensor.dtype in FLOAT8):
            tensor = tensor.to(dtype or torch.bfloat16)
        plain[key] = tensor
    return plain


def to_official(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Canonical tensors under the official names, attention fused again (those weights are copied)."""
    _refuse_quantised(tensors)
    result: dict[str, Tensor] = {}
    for key, tensor in tensors.items():
        base, _, rest = key.partition(".attn.to_q.")
        if rest:
            result[f"{base}.attn.in_proj_{rest}"] = torch.cat([tensors[f"{base}.attn.{part}.{rest}"] for part in QKV])
        elif not any(f".attn.{part}." in key for part in QKV):
            result[key] = tensor
    return result


def to_comfyui(tensors: Mapping[str, Tensor], prefix: str = "model.diffusion_model.") -> dict[str, Tensor]:
    """Canonical tensors as ComfyUI's files have them: split attention, each key behind ``prefix``."""
    return {prefix + key: tensor for key, tensor in tensors.items()}


def to_diffusers(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Canonical tensors of Stage A, B or C under the names of diffusers' models."""
    _refuse_quantised(tensors)
    renames = {"vquantizer.codebook.weight": "vquantizer.embedding.weight"}
    renames.update({f"clip_mapper.{end}": f"clip_txt_pooled_mapper.{end}" for end in ("weight", "bias")})
    result: dict[str, Tensor] = {}
    for key, tensor in tensors.items():
        key = key.replace(".attn.out_proj.", ".to_out.0.").replace(".attention.attn.to_", ".attention.to_")
        result[renames.get(key, key)] = tensor
    return result


def _canonical(key: str, kind: FileKind) -> str | None:
    """The canonical name of ``key`` (its prefix already cut), or None for what no network holds."""
    if kind.kind in ("stage_b", "stage_c"):
        key = key.replace(".attention.to_out.0.", ".attention.attn.out_proj.")
        key = key.replace(".attention.to_", ".attention.attn.to_")
        if kind.kind == "stage_b" and key.startswith("clip_txt_pooled_mapper."):
            key = "clip_mapper." + key.partition(".")[2]
    elif kind.kind == "stage_a" and key == "vquantizer.embedding.weight":
        key = "vquantizer.codebook.weight"
    elif kind.kind == "stage_c_vae" and key in ("encoder.mean", "encoder.std"):
        return None
    return None if key == "scaled_fp8" or GUIDE_KEY.fullmatch(key) else key


def _keep_tower(tensors: Mapping[str, Tensor], kind: FileKind) -> dict[str, Tensor]:
    """The tensors of a CLIP tower alone, under transformers' names."""
    found = {key.removeprefix("transformer.") if ".text_" in key else key: value for key, value in tensors.items()}
    if kind.layout == OPEN_CLIP:
        return to_transformers(tensors, vision=kind.kind == "clip_vision")
    if kind.kind == "text_encoder":
        _turn_projection(found)
    other = ("text_model.", "text_projection", "logit_scale") if kind.kind == "clip_vision" else OF_VISION
    return {key: value for key, value in found.items() if not key.startswith(other)}


def _split(name: str, tensor: Tensor) -> dict[str, Tensor]:
    """``name`` and its tensor; a fused attention entry as its three views, a quantisation entry under its new name."""
    if fused := _FUSED.match(name):
        rows = tensor.shape[0] // 3
        return {f"{fused[1]}.{part}.{fused[2]}": tensor.narrow(0, i * rows, rows) for i, part in enumerate(QKV)}
    layer, _, last = name.rpartition(".")
    if (fused := _FUSED_SCALE.match(name)) and not layer.endswith(QKV + ("out_proj",)):
        last = {"scale": "weight_scale"}.get(fused[2], _SCALE_NAMES.get(fused[2], fused[2]))
        thirds = tensor.chunk(3) if last == "weight_scale" and tensor.numel() > 1 else (tensor,) * 3
        return {f"{fused[1]}.{part}.{last}": third for part, third in zip(QKV, thirds)}
    return {f"{layer}.{_SCALE_NAMES[last]}" if last in _SCALE_NAMES else name: tensor}


def _note_formats(tensors: dict[str, Tensor], kind: FileKind) -> None:
    """Give every layer with a scale the ``comfy_quant`` entry that says how it is stored."""
    for key in [key for key in tensors if key.endswith(".weight_scale")]:
        layer = key[: -len(".weight_scale")]
        weight, note = tensors.get(f"{layer}.weight"), f"{layer}.comfy_quant"
        if weight is None or note in tensors:
            continue
        settings = kind.quantised.get(layer) or kind.quantised.get(layer.replace(".attention.attn.", ".attention."))
        settings = settings or {"format": FLOAT8.get(weight.dtype, "int8_tensorwise")}
        text = json.dumps(settings).encode("utf-8")
        tensors[note] = torch.frombuffer(bytearray(text), dtype=torch.uint8)


def _turn_projection(tensors: dict[str, Tensor]) -> None:
    """open-clip keeps the text projection transposed, and early ComfyUI files did too."""
    if "text_projection" in tensors and any(key.startswith("text_model.") for key in tensors):
        tensors.setdefault("text_projection.weight", tensors.pop("text_projection").transpose(0, 1))


def _settings(note: Tensor | None) -> dict[str, Any]:
    return parse_object(tensor_bytes(note)) if note is not None else {}


def _is_plain(settings: Mapping[str, Any]) -> bool:
    params = settings.get("params")
    params = params if isinstance(params, dict) else {}
    return settings.get("format") in PLAIN_FORMATS and not (settings.get("convrot") or params.get("convrot"))


def _refuse_quantised(tensors: Mapping[str, Tensor]) -> None:
    if any(key.endswith(".weight_scale") for key in tensors):
        raise WrongFile(
            "Quantised weights cannot be written in this layout. Turn them into plain ones first (stages.dequantise)."
        )
