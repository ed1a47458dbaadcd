"""UltraPixel's file: its key names in every known copy, its sizes from shapes, and the nets from its weights."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from torch import Tensor

from ..errors import WrongFile
from ..nets.backend import TORCH, Backend
from ..nets.guide import GuideConfig, GuideNets

HEAD_WIDTH = 32  # channels of a head, in all that is published
KEY = re.compile(r"(?:model\.)?(?:diffusion_model\.)?(?:module\.)?(agg_net|agg_net_up|\d+)\.([01])\.(.+)")
UNUSED = ("hr_norm.alpha.", "hr_norm.gamma.")
"""A third of the file, which the published forward never touches."""

CONFIG_KEYS = {f"agg_net.0.{name}" for name in ("input_layer.weight", "wtokens", "mapp_t.mapper.weight")}


def map_guide_keys(keys: Iterable[str]) -> dict[str, str]:
    """Our name of every used key of a guide file: {theirs: ours}.

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


def is_guide(keys: Iterable[str]) -> bool:
    """Whether keys are those of UltraPixel's guide nets."""
    ours = set(map_guide_keys(keys).values())
    return {"agg_net.0.tokenizer.posemb", "agg_net_up.1.base_params.wb0"} <= ours


def derive_guide_config(shapes: Mapping[str, tuple[int, ...]]) -> GuideConfig:
    """The sizes of the guide nets from the shapes of our key names."""
    inner, c = shapes["agg_net.0.input_layer.weight"][:2]
    return GuideConfig(
        c=c,
        c_inner=inner,
        nhead=inner // HEAD_WIDTH,
        groups=shapes["agg_net.0.wtokens"][0] // 2,
        c_r=shapes["agg_net.0.mapp_t.mapper.weight"][1],
    )


def build_guide(tensors: Mapping[str, Tensor], *, dtype=None, device=None, backend: Backend = TORCH) -> GuideNets:
    """The guide nets with the weights of a file in any of its forms; ``dtype`` None keeps that of the file.

    Raises :class:`~.errors.WrongFile` where tensors are missing, are more, or have other shapes.
    """
    ours = {name: tensors[key] for key, name in map_guide_keys(tensors).items()}
    if not is_guide(tensors) or not CONFIG_KEYS <= ours.keys():
        raise WrongFile("The file does not hold UltraPixel's guide nets. Use ultrapixel_t2i.safetensors.")
    config = derive_guide_config({name: tuple(tensor.shape) for name, tensor in ours.items()})
    nets = GuideNets(config, dtype=dtype or ours["agg_net.0.wtokens"].dtype, device=device, backend=backend)
    expected = {name: tuple(tensor.shape) for name, tensor in nets.state_dict().items()}
    wrong = sorted(
        name
        for name in expected.keys() | ours.keys()
        if tuple(getattr(ours.get(name), "shape", ())) != expected.get(name)
    )
    if wrong:
        raise WrongFile(
            f"The guide nets of UltraPixel have {len(expected)} tensors, but {len(wrong)} of this file are missing, "
            f"unknown or of another shape, among them {wrong[0]}. It is incomplete or was made for another model."
        )
    nets.load_state_dict(ours)
    return nets.eval().requires_grad_(False)
