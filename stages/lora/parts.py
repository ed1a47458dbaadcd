"""The parts of one adapter (LoRA, LoHa, LoKr, OFT, plain differences): its method, size and rank, and its rows.

Parts are the tensors of one layer by the names that ComfyUI reads (see :mod:`stages.lora.names`). What an adapter
does to a weight is the host's mathematics; here are only the shapes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod

from torch import Tensor

Parts = Mapping[str, Tensor]

_METHODS = (
    ("lora_up.weight", "LoRA"),
    ("hada_w1_a", "LoHa"),
    ("lokr_w1", "LoKr"),
    ("lokr_w1_a", "LoKr"),
    ("oft_blocks", "OFT"),
    ("a1.weight", "GLoRA"),
    ("diff", "difference"),
    ("w_norm", "difference"),
    ("set_weight", "replacement"),
    ("diff_b", "difference"),
)


def find_method(parts: Parts) -> str:
    """ "LoRA", "LoHa", …; "" for parts that make no whole adapter."""
    name = next((name for part, name in _METHODS if part in parts), "")
    needs = {
        "LoRA": ("lora_down.weight",),
        "LoHa": ("hada_w1_b", "hada_w2_a", "hada_w2_b"),
        "GLoRA": ("a2.weight", "b1.weight", "b2.weight"),
    }.get(name, ())
    return name if all(part in parts for part in needs) else ""


def find_rank(parts: Parts) -> int | None:
    """The rank of a low-rank adapter; None where the word has no meaning."""
    if "lora_down.weight" in parts:
        return parts["lora_down.weight"].shape[0]
    if "hada_w1_b" in parts:
        return parts["hada_w1_b"].shape[0]
    return next((parts[part].shape[0] for part in ("lokr_w2_b", "lokr_w1_b") if part in parts), None)


def find_alpha(parts: Parts) -> float | None:
    """What the rank divides, if the file tells it."""
    return float(parts["alpha"]) if "alpha" in parts else None


def fits(parts: Parts, shape: Sequence[int], bias_size: int | None = None) -> bool:
    """Whether the adapter changes a weight of ``shape``, or of its rows and columns, and a bias of this size.

    A bias is as long as the weight has rows, unless told otherwise: that of a transposed convolution is not.
    """
    given, rows, columns = find_delta_shape(parts), shape[0] if shape else 1, prod(shape[1:])
    if given is not None and (given[0] != rows or given[1] not in (None, columns)):
        return False
    bias = parts.get("diff_b", parts.get("b_norm"))
    return bias is None or bias.numel() == (rows if bias_size is None else bias_size)


def find_delta_shape(parts: Parts) -> tuple[int, int | None] | None:
    """``(rows, columns)`` of the change that the adapter makes; columns None for any, None for a bias alone."""
    kind = find_method(parts)
    if kind == "LoRA":
        down, mid = parts["lora_down.weight"], parts.get("lora_mid.weight")
        return parts["lora_up.weight"].shape[0], _columns(down) * (prod(mid.shape[2:]) if mid is not None else 1)
    if kind == "LoHa":
        first, second, core = parts["hada_w1_a"], parts["hada_w1_b"], parts.get("hada_t1")
        if core is not None:
            return first.shape[1], second.shape[1] * prod(core.shape[2:])
        return first.shape[0], second.shape[1]
    if kind == "LoKr":
        return _kronecker(parts)
    if kind == "OFT":
        blocks = parts["oft_blocks"]
        return blocks.shape[-3] * blocks.shape[-2], None
    if kind == "GLoRA":
        return None
    whole = next((parts[part] for part in ("diff", "set_weight", "w_norm") if part in parts), None)
    return None if whole is None else (whole.shape[0] if whole.ndim else 1, _columns(whole))


def _columns(tensor: Tensor) -> int:
    return prod(tensor.shape[1:])


def _kronecker(parts: Parts) -> tuple[int, int] | None:
    sides = []
    for side in ("lokr_w1", "lokr_w2"):
        first, second, core = (parts.get(f"{side}_a"), parts.get(f"{side}_b"), parts.get("lokr_t2"))
        if side in parts:
            sides.append((parts[side].shape[0], _columns(parts[side])))
        elif first is None or second is None:
            return None
        elif side == "lokr_w2" and core is not None:
            sides.append((first.shape[1], second.shape[1] * prod(core.shape[2:])))
        else:
            sides.append((first.shape[0], _columns(second)))
    return sides[0][0] * sides[1][0], sides[0][1] * sides[1][1]


_BY_ROWS = {
    "LoRA": ("lora_up.weight",),
    "LoHa": ("hada_w1_a", "hada_w2_a"),
    "LoKr": ("lokr_w1", "lokr_w1_a"),
    "OFT": ("oft_blocks",),
    "difference": ("diff",),
    "replacement": ("set_weight",),
}
"""The parts whose first dimension runs along the rows of the weight, by method."""


def cut_rows(parts: Parts, count: int) -> list[dict[str, Tensor]] | None:
    """The adapter of a fused weight as ``count`` adapters of its equal bands of rows; None where it mixes them.

    The rows of a low-rank product are the rows of its first factor. A Kronecker product can be cut where its outer
    factor has that many bands, an orthogonal one where its blocks do (and no constraint spans them).
    """
    kind = find_method(parts)
    if kind not in _BY_ROWS or any(part in parts for part in ("lora_mid.weight", "hada_t1", "hada_t2", "rescale")):
        return None
    if kind == "OFT" and (parts["oft_blocks"].ndim != 3 or (find_alpha(parts) or 0) > 0):
        return None
    along = [part for part in (*_BY_ROWS[kind], "dora_scale", "diff_b") if part in parts]
    if any(parts[part].shape[0] % count for part in along):
        return None
    bands = [dict(parts) for _ in range(count)]
    for part in along:
        for band, rows in zip(bands, parts[part].chunk(count)):
            band[part] = rows
    return bands
