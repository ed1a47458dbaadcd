"""Image prompts in the host's ``unclip_conditioning``, which core nodes read and write as well."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import comfy.clip_vision
import comfy.model_management
import torch
from torch import Tensor

from ....stages.errors import WrongInput
from ....stages.inputs import image_prompts as rules
from ..models.regions import PICTURES_KEY, cut_in_time, find_time
from .hints import read_rgb, to_image

Entries = list[dict[str, Any]]


def prepare_pictures(
    vision: Any, images: Iterable[Tensor | None], weights: Iterable[float], crop: str, where: str
) -> tuple[Tensor, list[float]]:
    """What CLIP sees of every picture with a weight: (n, 3, size, size), and the n weights.

    A batch of pictures counts as so many image prompts of the same weight. Raises WrongInput for more than eight.
    """
    found, kept = [], []
    for number, (image, weight) in enumerate(zip(images, weights), 1):
        if image is not None and weight:
            found.append(
                rules.prepare_for_clip(read_rgb(image, where, f"image_{number}"), find_image_size(vision, where), crop)
            )
            kept += [weight] * image.shape[0]
    if len(kept) > rules.MOST:
        raise WrongInput(
            f"{where} got {len(kept)} pictures, but {rules.MOST} are the most. Give fewer, or smaller batches."
        )
    return torch.cat(found) if found else torch.zeros(0, 3, 1, 1), kept


def find_image_size(vision: Any, where: str) -> int:
    """Pixels a side that a CLIP vision tower reads; refuses towers of another kind."""
    if getattr(vision, "model_type", "") != "clip_vision_model":
        raise WrongInput(
            f"{where} got a vision model of the kind {getattr(vision, 'model_type', 'unknown')}. Stable "
            "Cascade needs CLIP ViT-L/14: wire the 'clip_vision' output of Load Stable Cascade into it."
        )
    return vision.image_size


@torch.no_grad()
def embed_picture(vision: Any, picture: Tensor) -> comfy.clip_vision.Output:
    """The host's CLIP vision output of one picture (1, 3, size, size), without its rounding to 8 bits."""
    comfy.model_management.load_model_gpu(vision.patcher)
    pixels = rules.normalise_for_clip(picture.to(vision.load_device))
    last, between, embeds, projected = vision.model(pixel_values=pixels, intermediate_output=-2)
    rest = comfy.model_management.intermediate_device()
    output = comfy.clip_vision.Output()
    output["last_hidden_state"], output["penultimate_hidden_states"] = last.to(rest), between.to(rest)
    output["image_embeds"], output["mm_projected"] = embeds.to(rest), projected
    output["image_sizes"] = [pixels.shape[1:]]
    return output


def add_pictures(
    positive: Any,
    negative: Any,
    vision: Any,
    found: Tensor,
    weights: Sequence[float],
    percents: tuple[float, float],
    text: tuple[float, Any],
    where: str,
) -> tuple[Any, Any]:
    """Both conditionings with the image prompts: those of a negative weight go, at its size, into the negative one.

    text: the weight of the prompt's text, and the CLIP that the empty prompt comes from where that is not 1.
    """
    start, end = percents
    if end <= start:
        raise WrongInput(
            f"{where} starts at {start:g} and ends at {end:g}, so the pictures would never be heard. The "
            "end has to come after the start: 0 is the beginning of sampling, 1 its end."
        )
    entries: dict[bool, Entries] = {True: [], False: []}
    for picture, weight in zip(found, weights):
        entries[weight > 0].append(
            {
                "clip_vision_output": embed_picture(vision, picture[None]),
                "strength": abs(weight),
                "noise_augmentation": 0.0,
            }
        )
    return (
        add_during(positive, entries[True], percents, encode_empty(text, where)),
        add_during(negative, entries[False], percents),
    )


def add_during(conditioning: Any, entries: Entries, percents: tuple[float, float], fade: Any = None) -> Any:
    """``conditioning`` with ``entries`` (and its text faded) between start and end, and as it was before and after."""
    if not entries and fade is None:
        return conditioning
    result = []
    for text, extra in conditioning:
        first, last = find_time(extra)
        for inside, span in cut_in_time(extra, [percents]) if first < last else [(extra, None)]:
            if span is None:
                result.append([text, inside])
                continue
            heard = {**inside, PICTURES_KEY: [*inside.get(PICTURES_KEY, ()), *entries]} if entries else dict(inside)
            result.append(fade_entry(text, heard, *fade) if fade else [text, heard])
    return result


def encode_empty(text: tuple[float, Any], where: str) -> tuple[float, Tensor, Tensor] | None:
    """The text's weight with the tokens and the pooled text of the empty prompt; None where the text stays as it is."""
    weight, clip = text
    if weight == 1.0:
        return None
    if clip is None:
        raise WrongInput(
            f"The text weight of {where} is {weight:g}, but there is no text encoder to fade the prompt "
            "with. Wire the 'clip' output of Load Stable Cascade into it, or set the text weight to 1."
        )
    [[tokens, extra]] = clip.encode_from_tokens_scheduled(clip.tokenize(""))
    return weight, tokens, extra["pooled_output"]


def fade_entry(text: Tensor, extra: dict[str, Any], weight: float, tokens: Tensor, pooled: Tensor) -> list[Any]:
    """One entry of a conditioning with its text and pooled text at ``weight``."""
    for given, empty in ((text, tokens), (extra.get("pooled_output"), pooled)):
        if given is not None and given.shape[-1] != empty.shape[-1]:
            raise WrongInput(
                f"The prompt is {given.shape[-1]} wide, but the empty prompt of the 'clip' input "
                f"{empty.shape[-1]}. Use the text encoder that made the prompt."
            )
    if extra.get("pooled_output") is not None:
        extra = {**extra, "pooled_output": rules.fade_text(extra["pooled_output"], pooled, weight)}
    return [rules.fade_text(text, tokens, weight), extra]


def show_pictures(found: Tensor) -> Tensor | None:
    """What CLIP sees, as an IMAGE; None without any picture."""
    return to_image(found.clamp(0.0, 1.0)) if len(found) else None
