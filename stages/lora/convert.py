"""LoRA files out of matched ones: in ComfyUI's layout, in kohya's and in the official trainer's."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ..errors import WrongFile
from .match import BUNDLED, INDICES, OFFSETS, TEXT_PREFIX, TOKENS_KEY, UNET_PREFIX, MatchedLora, name_tensors
from .names import Shape, modules_of, positions
from .parts import find_alpha, find_method, find_rank

COMFYUI, KOHYA, OFFICIAL = "ComfyUI", "kohya", "official"
LAYOUTS = (COMFYUI, KOHYA, OFFICIAL)


def to_layout(lora: MatchedLora, layout: str, shapes: Mapping[str, Shape]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """``(tensors, metadata)`` of ``lora`` in one of :data:`LAYOUTS`; ``shapes`` are those of the diffusion model.

    Raises :class:`WrongFile` for what the official layout cannot hold. Nothing is copied where nothing changes.
    """
    metadata = {"format": "pt", "cascade_studio.lora": layout}
    if lora.words:
        metadata[TOKENS_KEY] = json.dumps(dict(lora.words))
    if layout == OFFICIAL:
        return {**to_official(lora, shapes), **token_tensors(lora)}, metadata
    unet, text = lora.unet, lora.text
    if layout == KOHYA:
        stage = "lora_prior_unet_" if lora.stage == "stage_c" else "lora_unet_"
        unet, text = ({module.replace(".", "_"): parts for module, parts in each.items()} for each in (unet, text))
        tensors = {**name_tensors(stage, unet), **name_tensors("lora_prior_te_", text)}
    else:
        tensors = {**name_tensors(UNET_PREFIX, unet), **name_tensors(TEXT_PREFIX, text)}
    return {**tensors, **token_tensors(lora)}, metadata


def token_tensors(lora: MatchedLora) -> dict[str, Tensor]:
    """The changes to the token table; every layout keeps them in the same entries."""
    found = {f"{BUNDLED}{word}.clip_g": rows for word, rows in lora.bundled.items()}
    if lora.offsets:
        found[OFFSETS] = torch.stack(list(lora.offsets.values()))
        found[INDICES] = torch.tensor(list(lora.offsets))
    return found


def to_official(lora: MatchedLora, shapes: Mapping[str, Shape]) -> dict[str, Tensor]:
    """The positional layout: ``weights.N.lora_up`` (out, rank) and ``lora_down`` (rank, in), fused q, k and v.

    The official trainer adds up @ down / rank, so another strength goes into ``lora_up``. All layers have one rank
    there: lower ones are filled with zeros, and so are layers that the LoRA leaves alone. Bands of q, k and v with
    different ``lora_down`` become the blocks of one three times as high.
    """
    if not lora.unet:
        raise WrongFile("The official layout holds changes to Stage C, and this LoRA has none. Choose another layout.")
    modules = modules_of(shapes)
    order = positions(modules)
    check_official(lora, order)
    pairs = [
        fuse_layers([lora.unet.get(module) for module in names], [modules[module] for module in names])
        for names in order
    ]
    rank = max(down.shape[0] for _, down, _ in pairs)
    tensors = {}
    for index, (up, down, scale) in enumerate(pairs):
        extra = rank - down.shape[0]
        up = up if scale * rank == 1.0 else up * (scale * rank)
        tensors[f"weights.{index}.lora_up"] = torch.nn.functional.pad(up, (0, extra)) if extra else up
        tensors[f"weights.{index}.lora_down"] = torch.nn.functional.pad(down, (0, 0, 0, extra)) if extra else down
    return tensors


def check_official(lora: MatchedLora, order: Sequence[tuple[str, ...]]) -> None:
    """Raises :class:`WrongFile` unless the LoRA is a plain one on attention layers alone."""
    attention = {module for names in order for module in names}
    others = [module for module in lora.unet if module not in attention]
    unplain = [
        module
        for module, parts in lora.unet.items()
        if module not in others
        and (find_method(parts) != "LoRA" or set(parts) - {"lora_up.weight", "lora_down.weight", "alpha"})
    ]
    reason = ""
    if others:
        reason = f"this one changes {len(others)} other layers (for example {others[0]})"
    elif unplain:
        reason = f"{len(unplain)} layers of this one are more than that (for example {unplain[0]})"
    elif lora.text:
        reason = f"this one changes {len(lora.text)} layers of the text encoder"
    if reason:
        raise WrongFile(
            f"The official layout holds plain LoRAs on attention layers only, and {reason}. Choose the ComfyUI layout."
        )


def fuse_layers(parts: Sequence[Mapping[str, Tensor] | None], shapes: Sequence[Shape]) -> tuple[Tensor, Tensor, float]:
    """``(up, down, scale)`` of the layers that are one in the official network; scale is alpha / rank."""
    present = [each for each in parts if each is not None]
    if not present:
        rows, columns = sum(shape[0] for shape in shapes), shapes[0][1]
        return torch.zeros(rows, 1), torch.zeros(1, columns), 1.0
    ups, downs = ([each[f"lora_{way}.weight"].flatten(1) for each in present] for way in ("up", "down"))
    scales, first = [find_scale(each) for each in present], downs[0]
    shared = all(down.shape == first.shape and torch.equal(down, first) for down in downs) and len(set(scales)) == 1
    if shared and len(present) == len(parts):
        return torch.cat(ups), first, scales[0]
    nothing = torch.zeros(1, first.shape[1], dtype=first.dtype)
    own = iter(zip(ups, downs, scales))
    factors = [
        (torch.zeros(shape[0], 1, dtype=first.dtype), nothing, 1.0) if each is None else next(own)
        for each, shape in zip(parts, shapes)
    ]
    up_blocks = [up * scale for up, _, scale in factors]
    return torch.block_diag(*up_blocks), torch.cat([down for _, down, _ in factors]), 1.0


def find_scale(parts: Mapping[str, Tensor]) -> float:
    """What the product of the two factors is multiplied by: alpha / rank, 1 without an alpha."""
    alpha, rank = find_alpha(parts), find_rank(parts)
    return 1.0 if alpha is None or rank is None else alpha / rank
