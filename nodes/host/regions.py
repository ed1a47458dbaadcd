"""Regional prompts and token weights inside a conditioning, and what the Stage C model makes of them."""
from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import comfy.conds
import comfy.utils
import torch
from torch import Tensor

from ...stages.errors import WrongInput
from ...stages.regions import Layout, weights_of

REGIONS_KEY = "cascade_studio_regions"
WEIGHTS_KEY = "cascade_studio_token_weights"
"""Keys in a conditioning: its :class:`Regions`, and how much each of its text tokens counts, (1, T)."""

UNSUPPORTED = {"unclip_conditioning": "an image prompt", "control": "a ControlNet", "area": "an area",
               "mask": "a mask of its own", "hooks": "a hook", REGIONS_KEY: "regions of its own"}


@dataclass(frozen=True, eq=False)
class Region:
    """A prompt, the part of the picture that hears it, and how loudly."""

    text: Tensor
    pooled: Tensor
    mask: Tensor
    strength: float
    token_weights: Tensor | None = None


@dataclass(frozen=True, eq=False)
class Regions:
    """All regions of one conditioning; ``keep_base`` lets them hear the base prompt as well."""

    regions: tuple[Region, ...]
    keep_base: bool


def with_region(base: Any, prompt: Any, mask: Tensor, strength: float, keep_base: bool, where: str) -> Any:
    """``base`` with one more region; each entry of it gets it. A strength of 0 changes nothing."""
    if strength == 0:
        return base
    region = region_of(prompt, mask, strength, where)
    out = []
    for text, extra in base:
        before = extra[REGIONS_KEY].regions if REGIONS_KEY in extra else ()
        out.append([text, {**extra, REGIONS_KEY: Regions((*before, region), keep_base)}])
    return out


def region_of(prompt: Any, mask: Tensor, strength: float, where: str) -> Region:
    """The region of a prompt, or a sentence about what it cannot carry."""
    if len(prompt) != 1:
        raise WrongInput(f"{where} got {len(prompt)} prompts combined for one region. It needs exactly one: give each "
                         "its own region.")
    text, extra = prompt[0]
    carried = [words for key, words in UNSUPPORTED.items() if extra.get(key) is not None]
    if carried:
        raise WrongInput(f"{where} got a region's prompt that carries {' and '.join(carried)}. A region is text alone: "
                         "put that on the base prompt, and wire the region straight from its text encoder.")
    pooled = extra.get("pooled_output")
    if pooled is None:
        raise WrongInput(f"{where} got a region's prompt without pooled output. Wire it straight from a text encoder "
                         "node that uses the Stable Cascade text encoder.")
    mask = mask[None] if mask.ndim == 2 else mask
    if mask.ndim != 3 or 0 in mask.shape:
        raise WrongInput(f"{where} got a mask of shape {tuple(mask.shape)}. It needs a MASK, (batch, height, width): "
                         "draw one in the mask editor, or use a node that makes masks.")
    return Region(text, pooled, mask, strength, extra.get(WEIGHTS_KEY))


class CONDRegions(comfy.conds.CONDRegular):
    """How loudly each cell of the Stage C grid hears each prompt, (B, prompts, H, W); cropped with an area."""

    def process_cond(self, batch_size: int, area: Any = None, **kwargs: Any) -> CONDRegions:
        weights = self.cond
        if area is not None:
            height, width, top, left = area
            weights = weights[..., top:top + height, left:left + width]
        return self._copy_with(comfy.utils.repeat_to_batch_size(weights, batch_size))


def joint_prompts(text: Tensor, pooled: Tensor, regions: Regions) -> tuple[Tensor, Tensor]:
    """Text tokens (B, T, c) and pooled text (B, n, c) of the base prompt and all regions behind each other."""
    def joined(first: Tensor, others: list[Tensor]) -> Tensor:
        if any(other.shape[-1] != first.shape[-1] for other in others):
            raise WrongInput(f"Stage C got regions {others[0].shape[-1]} wide beside a prompt {first.shape[-1]} wide. "
                             "They were encoded by different text encoders: use the CLIP output of the Stable Cascade "
                             "loader for all of them.")
        return torch.cat([first, *(comfy.utils.repeat_to_batch_size(other.to(first), first.shape[0])
                                   for other in others)], dim=1)

    base = pooled if pooled.ndim == 3 else pooled[:, None]
    return (joined(text, [region.text for region in regions.regions]),
            joined(base, [region.pooled if region.pooled.ndim == 3 else region.pooled[:, None]
                          for region in regions.regions]))


def region_conds(text: Tensor, pooled: Tensor, regions: Regions, noise: Tensor, pooled_tokens: int
                 ) -> dict[str, comfy.conds.CONDRegular]:
    """The conditions that carry the regions into the network."""
    joint_text, joint_pooled = joint_prompts(text, pooled, regions)
    layout = Layout((text.shape[1], *(region.text.shape[1] for region in regions.regions)), pooled_tokens)
    weights = weights_of([region.mask for region in regions.regions],
                         [region.strength for region in regions.regions],
                         (int(noise.shape[-2]), int(noise.shape[-1])), regions.keep_base)
    return {"clip_text": comfy.conds.CONDRegular(joint_text), "clip_text_pooled": comfy.conds.CONDRegular(joint_pooled),
            "region_weights": CONDRegions(weights.to(noise.device)), "region_layout": comfy.conds.CONDConstant(layout)}


def token_weights(text: Tensor, weights: Tensor | None, regions: Regions | None) -> Tensor | None:
    """How much every text token counts, those of the regions included: (1, T), or None where all count once."""
    parts = [(text, weights), *((region.text, region.token_weights) for region in (regions.regions if regions else ()))]
    if all(part is None for _, part in parts):
        return None
    return torch.cat([torch.ones(1, tokens.shape[1]) if part is None else part.cpu() for tokens, part in parts], dim=1)
