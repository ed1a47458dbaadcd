"""Regional prompts and token weights inside a conditioning, as the Stage C model reads them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import comfy.conds
import comfy.utils
import torch
from torch import Tensor

from ....stages.attention.regions import EVERYONE, Layout, weights_of
from ....stages.errors import WrongInput
from ....stages.nets.stage_c import StageCConfig

REGIONS_KEY = "cascade_studio_regions"
WEIGHTS_KEY = "cascade_studio_token_weights"
"""Keys in a conditioning: its :class:`Regions`, and how much each of its text tokens counts, (1, T)."""

OWN = {REGIONS_KEY: "regions (Regional Prompt)", WEIGHTS_KEY: "token weights (Encode Prompt, weighting 'attention')"}
"""What conditionings may hold that core's own network does not read."""

PICTURES_KEY = "unclip_conditioning"
"""The host's key of image prompts, a list of what CLIP vision gave for each."""


Span = TypeVar("Span", bound=Sequence)
"""Anything whose first two members are the start and the end, as percentages of the host, 0 to 1."""


@dataclass(frozen=True, eq=False)
class Region:
    """A prompt with its image prompts, the part of the picture that hears it, (B, h, w), and how loudly."""

    text: Tensor
    pooled: Tensor
    mask: Tensor
    strength: float
    token_weights: Tensor | None = None
    pictures: tuple[dict[str, Any], ...] = ()


@dataclass(frozen=True, eq=False)
class Regions:
    """All regions of one conditioning; ``keep_base`` lets them hear the base prompt as well."""

    regions: tuple[Region, ...]
    keep_base: bool


def pick_regions(regions: Regions, index: int) -> Regions:
    """``regions`` for picture ``index`` of a batch alone: one of what holds an entry for each picture."""

    def narrow(values: Tensor) -> Tensor:
        place = index % values.shape[0]
        return values[place : place + 1]

    return replace(
        regions,
        regions=tuple(
            replace(region, text=narrow(region.text), pooled=narrow(region.pooled), mask=narrow(region.mask))
            for region in regions.regions
        ),
    )


def refuse_foreign(*conditionings: Any) -> None:
    """Raise ``WrongInput`` where prompts hold what only our own Stage C hears."""
    held = {
        words
        for conditioning in conditionings
        for _, extra in conditioning or ()
        for key, words in OWN.items()
        if extra.get(key) is not None
    }
    if held:
        raise WrongInput(
            f"Stage C was loaded by another loader, whose network cannot hear the prompt's "
            f"{' and '.join(sorted(held))}. Load the file with Load Stable Cascade, or take that off the "
            "prompt."
        )


def join_image_embeds(pictures: Sequence[dict[str, Any]] | None, width: int) -> Tensor:
    """CLIP-vision embeddings of all image prompts, each times its strength: (1, n, width); zeros without any."""
    if not pictures:
        return torch.zeros((1, 1, width))
    embeds = torch.cat(
        [item["clip_vision_output"].image_embeds.unsqueeze(0) * item["strength"] for item in pictures], dim=1
    )
    if embeds.shape[-1] != width:
        raise WrongInput(
            f"Stage C got an image prompt {embeds.shape[-1]} wide; this model needs {width}. Encode the image with the "
            "CLIP vision model that belongs to Stable Cascade (CLIP ViT-L/14), not with another one."
        )
    return embeds


class CONDRegions(comfy.conds.CONDRegular):
    """How loudly each cell of the Stage C grid hears what, (B, prompts + 1, H, W); cropped with an area."""

    def process_cond(self, batch_size: int, area: Any = None, **kwargs: Any) -> CONDRegions:
        """The weights of an ``area``, for every picture of the batch."""
        weights = self.cond
        if area is not None:
            height, width, top, left = area
            weights = weights[..., top : top + height, left : left + width]
        return self._copy_with(comfy.utils.repeat_to_batch_size(weights, batch_size))


def join_prompts(text: Tensor, pooled: Tensor, regions: Regions) -> tuple[Tensor, Tensor]:
    """Text tokens (B, T, c) and pooled text (B, n, c) of the base prompt and all regions behind each other."""

    def join(first: Tensor, others: list[Tensor]) -> Tensor:
        if any(other.shape[-1] != first.shape[-1] for other in others):
            raise WrongInput(
                f"Stage C got regions {others[0].shape[-1]} wide beside a prompt {first.shape[-1]} wide. "
                "They were encoded by different text encoders: use the CLIP output of the Stable Cascade "
                "loader for all of them."
            )
        return torch.cat(
            [first, *(comfy.utils.repeat_to_batch_size(other.to(first), first.shape[0]) for other in others)], dim=1
        )

    base = pooled if pooled.ndim == 3 else pooled[:, None]
    return (
        join(text, [region.text for region in regions.regions]),
        join(
            base, [region.pooled if region.pooled.ndim == 3 else region.pooled[:, None] for region in regions.regions]
        ),
    )


def join_pictures(
    whole: Sequence[dict[str, Any]] | None, regions: Regions, width: int
) -> tuple[Tensor, tuple[int, ...]]:
    """The image prompts of the whole picture (the empty one without any) and of all regions behind each other,
    (1, n, width), and whose each is."""
    embeds = [join_image_embeds(whole, width)]
    owners = [EVERYONE] * embeds[0].shape[1]
    for number, region in enumerate(regions.regions, 1):
        if region.pictures:
            embeds.append(join_image_embeds(region.pictures, width).to(embeds[0]))
            owners += [number] * embeds[-1].shape[1]
    return torch.cat(embeds, dim=1), tuple(owners)


def make_region_conds(
    text: Tensor,
    pooled: Tensor,
    whole: Sequence[dict[str, Any]] | None,
    regions: Regions,
    noise: Tensor,
    config: StageCConfig,
) -> dict[str, comfy.conds.CONDRegular]:
    """The conditions that carry the regions into the network. whole: the image prompts of the base prompt."""
    joint_text, joint_pooled = join_prompts(text, pooled, regions)
    pictures, owners = join_pictures(whole, regions, config.c_clip_img)
    layout = Layout((text.shape[1], *(region.text.shape[1] for region in regions.regions)), config.c_clip_seq, owners)
    weights = weights_of(
        [region.mask for region in regions.regions],
        [region.strength for region in regions.regions],
        (int(noise.shape[-2]), int(noise.shape[-1])),
        regions.keep_base,
        [bool(region.pictures) and not whole for region in regions.regions],
    )
    return {
        "clip_text": comfy.conds.CONDRegular(joint_text),
        "clip_text_pooled": comfy.conds.CONDRegular(joint_pooled),
        "clip_img": comfy.conds.CONDRegular(pictures),
        "region_weights": CONDRegions(weights.to(noise.device)),
        "region_layout": comfy.conds.CONDConstant(layout),
    }


def join_token_weights(text: Tensor, weights: Tensor | None, regions: Regions | None) -> Tensor | None:
    """How much every text token counts, those of the regions included: (1, T), or None where all count once."""
    parts = [(text, weights), *((region.text, region.token_weights) for region in (regions.regions if regions else ()))]
    if all(part is None for _, part in parts):
        return None
    return torch.cat([torch.ones(1, tokens.shape[1]) if part is None else part.cpu() for tokens, part in parts], dim=1)


def find_time(extra: dict[str, Any]) -> tuple[float, float]:
    """The part of the run in which an entry of a conditioning is heard."""
    return extra.get("start_percent", 0.0), extra.get("end_percent", 1.0)


def cut_in_time(extra: dict[str, Any], spans: Sequence[Span]) -> Iterator[tuple[dict[str, Any], Span | None]]:
    """An entry of a conditioning cut where ``spans`` begin and end, each piece with the span over it, or None."""
    first, last = find_time(extra)
    cuts = sorted({first, last, *(cut for span in spans for cut in span[:2] if first < cut < last)})
    for start, end in zip(cuts, cuts[1:] or cuts):
        inside = extra if (start, end) == (first, last) else {**extra, "start_percent": start, "end_percent": end}
        yield inside, next((span for span in spans if span[0] <= start and end <= span[1]), None)
