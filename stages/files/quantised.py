"""Weights in fewer bits by other people's quantisers: told from what lies beside a weight, and turned into plain ones.

ComfyUI's own formats (``comfy_quant``, ``weight_scale``, ``scale_weight``) stay as they are, its layers compute in
them. Sources of the formats: the SDNQ, bitsandbytes and optimum-quanto packages, and DeepSeek-V3's
``weight_scale_inv``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import prod
from typing import NamedTuple

import torch
from torch import Tensor

from ..errors import WrongFile
from .header import TensorInfo
from .json_text import BadJson, parse_object

Shape = tuple[int, ...]
Infos = Mapping[str, TensorInfo]
INT8 = (torch.int8, torch.uint8)
FLOAT8 = (torch.float8_e4m3fn, torch.float8_e5m2)

OTHER_WAY = "Take a bf16, fp16, fp32 or fp8_scaled file of this model."
_UNREADABLE = (
    (".qweight", "GPTQ or AWQ"),
    (".W_q", "HQQ"),
    (".weight._shift", "optimum-quanto in 4 or 2 bits"),
    (".hadamard", "SDNQ with a rotation"),
    (".codebook", "SDNQ with a codebook"),
    (".weight.absmax", "bitsandbytes in 4 bits without its quant_state"),
    (".SCB", "bitsandbytes"),
    (".zero_point", "SDNQ"),
    (".weight_scale_inv", "blocks with scales"),
    (".scale", "a quantiser that keeps 'scale' beside each weight"),
)
"""Ends of keys that only quantised files have, and whose work they are; read where :data:`SCHEMES` can."""

_BESIDE = (
    ("", (".SCB", ".weight_format", ".scale", ".zero_point", ".svd_up", ".svd_down", ".hadamard", ".weight_scale_inv")),
    (
        ".weight",
        (
            ".absmax",
            ".quant_map",
            ".nested_absmax",
            ".nested_quant_map",
            ".quant_state.bitsandbytes__nf4",
            ".quant_state.bitsandbytes__fp4",
            "._data",
            "._scale",
            "._shift",
        ),
    ),
)
_QUANTO_EXTRA = (".input_scale", ".output_scale")


class WeightKeys(NamedTuple):
    """The entries of one weight: what they are called beside its layer, and their keys in the file."""

    layer: str
    keys: Mapping[str, str]

    def among(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The entries' tensors, by what the entries are called."""
        return {name: tensors[key] for name, key in self.keys.items()}


@dataclass(frozen=True)
class Scheme:
    """One way to store a weight. applies: by the infos of its entries; shape: of the plain weight, () where it cannot
    be
    told; restore: the plain weight in float32 from its entries."""

    name: str
    applies: Callable[[Infos], bool]
    shape: Callable[[Infos], Shape]
    restore: Callable[[Mapping[str, Tensor]], Tensor]


def _own_shape(infos: Infos) -> Shape:
    return infos[".weight" if ".weight" in infos else ".weight._data"].shape


# bitsandbytes


def _state_of(texts: Mapping[str, bytes | None]) -> dict:
    text = next((texts[key] for key in texts if ".quant_state." in key), None)
    try:
        state = parse_object(text or b"{}")
        shape = state.get("shape")
        if isinstance(shape, list) and shape and all(type(n) is int and n > 0 for n in shape):
            return {**state, "shape": tuple(shape)}
    except BadJson:
        pass
    return {}


def _four_bit_shape(infos: Infos) -> Shape:
    state = _state_of({name: info.text for name, info in infos.items()})
    shape = state.get("shape", ())
    fits = prod(infos[".weight"].shape) == -(-prod(shape) // 2) if shape else False
    return shape if fits else ()


def _restore_four_bits(parts: Mapping[str, Tensor]) -> Tensor:
    """``quant_map[code] · absmax`` a block; the first value of a byte is in its upper half (Dettmers et al. 2023)."""
    state = _state_of({n: bytes(t.tolist()) for n, t in parts.items() if ".quant_state." in n})
    block, shape = int(state.get("blocksize", 64)), state["shape"]
    peaks = parts[".weight.absmax"]
    if ".weight.nested_absmax" in parts:
        nested = parts[".weight.nested_quant_map"].float()[peaks.long()]
        outer = parts[".weight.nested_absmax"].float().repeat_interleave(int(state.get("nested_blocksize", 256)))
        peaks = nested * outer[: len(nested)] + float(state.get("nested_offset", 0.0))
    packed = parts[".weight"].flatten()
    codes = torch.stack((packed >> 4, packed & 15), dim=-1).flatten()[: prod(shape)].long()
    values = parts[".weight.quant_map"].float()[codes]
    return (values * peaks.float().repeat_interleave(block)[: len(values)]).reshape(shape)


def _is_four_bits(infos: Infos) -> bool:
    return any(".quant_state." in name for name in infos) and {".weight.absmax", ".weight.quant_map"} <= set(infos)


def _restore_scb(parts: Mapping[str, Tensor]) -> Tensor:
    """LLM.int8(): each row was divided by its largest value and multiplied by 127."""
    return parts[".weight"].float() * (parts[".SCB"].float().reshape(-1, 1) / 127)


# SDNQ


def _sdnq_stored(weight: Shape, scale: Shape) -> Shape:
    """The shape of the quantised numbers (groups apart), which a packed weight has lost, from that of its scales."""
    if len(weight) > 1:
        return weight
    axis = {2: 1, 3: 2, 4: 1, 5: 2}.get(len(scale), 0)
    if not axis or scale[axis] != 1:
        return ()
    values, others = prod(weight) * 2, prod(scale)
    return (*scale[:axis], values // others, *scale[axis + 1 :]) if values % others == 0 else ()


def _join_groups(stored: Shape) -> Shape:
    return (stored[0], stored[1] * stored[2], *stored[3:]) if len(stored) in (3, 5) else stored


def _sdnq_shape(infos: Infos) -> Shape:
    weight, scale = infos[".weight"].shape, infos[".scale"].shape
    stored = _sdnq_stored(weight, scale)
    if not stored or len(stored) != len(scale) and prod(scale) != 1:
        return ()
    fits = prod(scale) == 1 or all(small in (1, large) for small, large in zip(scale, stored, strict=True))
    return (_join_groups(stored) if len(stored) == len(scale) else stored) if fits else ()


def _restore_sdnq(parts: Mapping[str, Tensor]) -> Tensor:
    """number · scale, plus the zero point where there is one; then the low-rank part that SVD kept out of it."""
    weight, scale = parts[".weight"], parts[".scale"].float()
    stored = _sdnq_stored(tuple(weight.shape), tuple(scale.shape))
    if weight.ndim == 1:
        weight = torch.stack((weight & 15, weight >> 4), dim=-1).view(stored)
        if ".zero_point" not in parts:
            weight = weight.to(torch.int16) - 8
    plain = weight.float() * scale
    if ".zero_point" in parts:
        plain = plain + parts[".zero_point"].float()
    plain = plain.reshape(_join_groups(stored) if len(stored) == scale.ndim else stored)
    if ".svd_up" in parts:
        plain = plain + (parts[".svd_up"].float() @ parts[".svd_down"].float()).reshape(plain.shape)
    return plain


def _is_sdnq(infos: Infos) -> bool:
    known = ".weight" in infos and ".scale" in infos and ".hadamard" not in infos
    return known and infos[".weight"].dtype in INT8 + FLOAT8


# Scales of blocks, and optimum-quanto


def _blocks_shape(infos: Infos) -> Shape:
    """The weight's own, where its scales are one, one a row, or one a block of at most 128 x 128."""
    weight, scale = infos[".weight"].shape, infos[".weight_scale_inv"].shape
    whole = len(weight) == 2 and len(scale) == 2
    fits = (
        prod(scale) in (1, weight[0])
        or whole
        and all(
            small and -(-large // small) <= 128 and -(-large // -(-large // small)) == small
            for small, large in zip(scale, weight, strict=True)
        )
    )
    return weight if fits else ()


def _restore_blocks(parts: Mapping[str, Tensor]) -> Tensor:
    weight, scale = parts[".weight"].float(), parts[".weight_scale_inv"].float()
    if scale.numel() in (1, len(weight)):
        return weight * scale.reshape(-1, *[1] * (weight.ndim - 1))
    for dim, size in enumerate(weight.shape):
        scale = scale.repeat_interleave(-(-size // scale.shape[dim]), dim=dim).narrow(dim, 0, size)
    return weight * scale


def _restore_quanto(parts: Mapping[str, Tensor]) -> Tensor:
    return parts[".weight._data"].float() * parts[".weight._scale"].float()


SCHEMES = (
    Scheme("bitsandbytes 4 bits", _is_four_bits, _four_bit_shape, _restore_four_bits),
    Scheme("bitsandbytes int8", lambda i: ".weight" in i and ".SCB" in i, _own_shape, _restore_scb),
    Scheme(
        "optimum-quanto 8 bits",
        lambda i: {".weight._data", ".weight._scale"} <= set(i) and ".weight._shift" not in i,
        _own_shape,
        _restore_quanto,
    ),
    Scheme("SDNQ", _is_sdnq, _sdnq_shape, _restore_sdnq),
    Scheme("scales of blocks", lambda i: {".weight", ".weight_scale_inv"} <= set(i), _blocks_shape, _restore_blocks),
)


def find_quantised(infos: Infos) -> dict[str, tuple[Scheme, WeightKeys]]:
    """By the key of its plain weight, how each foreign quantised weight is stored; empty for other files."""
    grouped: dict[str, dict[str, str]] = {}
    for key in infos:
        for start, ends in _BESIDE:
            for end in ends:
                if key.endswith(start + end):
                    grouped.setdefault(key[: -len(start + end)], {})[start + end] = key
    found = {}
    for layer, keys in grouped.items():
        if f"{layer}.weight" in infos:
            keys[".weight"] = f"{layer}.weight"
        entries = {name: infos[key] for name, key in keys.items()}
        scheme = next((scheme for scheme in SCHEMES if scheme.applies(entries) and scheme.shape(entries)), None)
        if scheme is not None:
            if ".weight._data" in keys:
                keys.update((end, layer + end) for end in _QUANTO_EXTRA if layer + end in infos)
            found[f"{layer}.weight"] = scheme, WeightKeys(layer, keys)
    return found


def plain_infos(infos: Infos) -> tuple[dict[str, TensorInfo], tuple[str, ...]]:
    """``infos`` as they are once the weights are plain, and the names of the schemes that are in use."""
    layers = find_quantised(infos)
    used = {key for _, parts in layers.values() for key in parts.keys.values()}
    plain = {key: info for key, info in infos.items() if key not in used}
    for key, (scheme, parts) in layers.items():
        entries = {name: infos[entry] for name, entry in parts.keys.items()}
        plain[key] = TensorInfo(scheme.shape(entries), torch.bfloat16)
    return plain, tuple(sorted({scheme.name for scheme, _ in layers.values()}))


def restore_weights(tensors: Mapping[str, Tensor], dtype: torch.dtype = torch.bfloat16) -> dict[str, Tensor]:
    """``tensors`` with every foreign quantised weight as a plain one of ``dtype``; the others as they are."""
    infos = {
        key: TensorInfo(tuple(t.shape), t.dtype, bytes(t.flatten().tolist()) if ".quant_state." in key else None)
        for key, t in tensors.items()
    }
    layers = find_quantised(infos)
    if not layers:
        return dict(tensors)
    used = {key for _, parts in layers.values() for key in parts.keys.values()}
    plain = {key: tensor for key, tensor in tensors.items() if key not in used}
    for key, (scheme, parts) in layers.items():
        plain[key] = scheme.restore(parts.among(tensors)).to(dtype)
    return plain


def unreadable_quantiser(infos: Infos) -> str:
    """Whose work a file is that holds quantised weights of a kind that is not read; "" for others."""
    if not any(info.dtype in INT8 + FLOAT8 or info.dtype == torch.int32 for info in infos.values()):
        return ""
    return next((name for end, name in _UNREADABLE if any(key.endswith(end) for key in infos)), "")


def check_numbers(tensors: Mapping[str, Tensor], name: str, allowed: set[str]) -> None:
    """Raises :class:`WrongFile` where a weight is stored in whole numbers without what tells their meaning.

    ``allowed`` are keys that a quantised layer of ComfyUI's own formats is made of.
    """
    infos = {key: TensorInfo(tuple(t.shape), t.dtype) for key, t in tensors.items() if key not in allowed}
    if quantiser := unreadable_quantiser(infos):
        raise WrongFile(f"{name} was quantised by {quantiser}, in a way that cannot be read. {OTHER_WAY}")
    for key, info in infos.items():
        counted = key.endswith(("num_batches_tracked", "position_ids")) or key.startswith("cascade_studio.")
        if info.dtype is not None and not info.dtype.is_floating_point and not counted:
            stored = str(info.dtype).removeprefix("torch.")
            raise WrongFile(
                f"{name} stores {key} as {stored} without the scales that belong to it, so its values cannot be "
                f"known. {OTHER_WAY}"
            )
