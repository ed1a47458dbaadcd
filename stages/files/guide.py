"""UltraPixel's file: its key names in every known copy, its sizes from shapes, and its tensors under our names."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from torch import Tensor

from ..nets.guide import GuideConfig

HEAD_WIDTH = 32  # channels of a head, in all that is published
KEY = re.compile(
    r"(?:model\.)?(?:diffusion_model\.)?(?:module\.)?(agg_net|agg_net_up|\d+)\.([01])\."
    r"((?:input_layer|tokenizer|wtokens|transformer_encoder|base_params|wtoken_postfc|output_layer|toout|mapp_t"
    r"|hr_norm)(?:\..+)?)"
)
UNUSED = ("hr_norm.alpha.", "hr_norm.gamma.")
"""A third of the file, which the published forward never touches."""


def map_guide_keys(keys: Iterable[str]) -> dict[str, str]:
    """The published name of every used key of a guide file: {key: name}.

    The published file numbers its two lists after the norms that stood before them (64 and 65 for the 3.6B Stage C);
    the smaller number is ``agg_net``.
    """
    found = {key: match for key in keys if (match := KEY.fullmatch(key))}
    numbers = sorted({int(match[1]) for match in found.values() if match[1].isdigit()})
    if len(numbers) not in (0, 2):
        return {}
    lists = dict(zip(map(str, numbers), ("agg_net", "agg_net_up"), strict=True)) if numbers else {}
    return {
        key: f"{lists.get(match[1], match[1])}.{match[2]}.{match[3]}"
        for key, match in found.items()
        if not match[3].startswith(UNUSED)
    }


def name_guide_tensors(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a guide file under our names; nothing is copied."""
    named = {}
    for key, name in map_guide_keys(tensors).items():
        if name.endswith(".toout.0.weight"):
            features, target = tensors[key].chunk(2, dim=1)
            start = name.removesuffix("weight")
            named.update({f"{start}features.weight": features, f"{start}target.weight": target})
        else:
            named[name.replace(".toout.0.bias", ".toout.0.features.bias")] = tensors[key]
    return named


def derive_guide_config(shapes: Mapping[str, tuple[int, ...]]) -> GuideConfig:
    """The sizes of the guide nets from the shapes of a file's keys; raises ``LookupError`` where they do not tell."""
    named = {name: shapes[key] for key, name in map_guide_keys(shapes).items()}
    try:
        inner, c = named["agg_net.0.input_layer.weight"][:2]
        groups, c_r = named["agg_net.0.wtokens"][0] // 2, named["agg_net.0.mapp_t.mapper.weight"][1]
    except (KeyError, IndexError, ValueError):
        raise LookupError("the tensors that tell its sizes are missing or damaged") from None
    if not groups or inner % groups or inner % HEAD_WIDTH:
        raise LookupError(f"its {groups} groups do not divide its width of {inner}")
    return GuideConfig(c=c, c_inner=inner, nhead=inner // HEAD_WIDTH, groups=groups, c_r=c_r)
