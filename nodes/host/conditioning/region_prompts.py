"""Regional prompts as a node puts them together: what a region carries, when it is heard, and its ControlNets."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ....stages.errors import WrongInput
from ....stages.inputs.pictures import check_mask
from ..models.regions import PICTURES_KEY, REGIONS_KEY, WEIGHTS_KEY, Region, Regions, cut_in_time, find_time
from .control_chain import MaskedControl

REFUSED = {"area": "an area", "mask": "a mask of its own", "hooks": "a hook", REGIONS_KEY: "regions of its own"}
"""Keys of a conditioning that a region cannot have."""

Span = tuple[float, float, Region, Any]
"""A region in one part of the run: start, end (as percentages of the host, 0 to 1), the region, its ControlNets."""


def add_region(base: Any, prompt: Any, mask: Tensor, strength: float, keep_base: bool, where: str) -> Any:
    """``base`` with one more region; each entry of it gets it. A strength of 0 changes nothing.

    A prompt in several parts, each with its own part of the run, is heard as they say; entries of ``base`` are split
    where it changes.
    """
    if strength == 0:
        return base
    spans = list_spans(prompt, check_mask(mask, where), strength, where)
    controls: dict[tuple[int, Any], MaskedControl] = {}

    def place_region(extra: dict[str, Any], span: Span) -> dict[str, Any]:
        *_, region, control = span
        before = extra[REGIONS_KEY].regions if REGIONS_KEY in extra else ()
        made = {**extra, REGIONS_KEY: Regions((*before, region), keep_base)}
        if control is not None:
            key = (id(control), extra.get("control"))
            controls.setdefault(key, MaskedControl(control, region.mask).set_previous_controlnet(extra.get("control")))
            made.update(control=controls[key], control_apply_to_uncond=extra.get("control_apply_to_uncond", False))
        return made

    return [
        [text, inside if span is None else place_region(inside, span)]
        for text, extra in base
        for inside, span in cut_in_time(extra, spans)
    ]


def list_spans(prompt: Any, mask: Tensor, strength: float, where: str) -> list[Span]:
    """The region of a prompt by parts of the run; refuses prompts that are heard at the same time."""
    spans = sorted(
        (
            (*find_time(extra), make_region(text, extra, mask, strength, where), extra.get("control"))
            for text, extra in prompt
        ),
        key=lambda span: span[0],
    )
    if not spans or any(after[0] < before[1] for before, after in zip(spans, spans[1:])):
        raise WrongInput(
            f"{where} got {len(prompt)} prompts combined for one region. It needs exactly one: give each "
            "its own region."
        )
    return spans


def make_region(text: Tensor, extra: dict[str, Any], mask: Tensor, strength: float, where: str) -> Region:
    """The region of one entry of a conditioning, or a sentence about what it cannot carry."""
    carried = [words for key, words in REFUSED.items() if extra.get(key) is not None]
    carried += ["a strength of its own"] if extra.get("strength", 1.0) != 1.0 else []
    if carried:
        raise WrongInput(
            f"{where} got a region's prompt that carries {' and '.join(carried)}. A region is words, image "
            "prompts and ControlNets: put the rest on the base prompt, and the region's place into "
            "the mask."
        )
    pooled = extra.get("pooled_output")
    if pooled is None:
        raise WrongInput(
            f"{where} got a region's prompt without pooled output. Wire it straight from a text encoder "
            "node that uses the Stable Cascade text encoder."
        )
    return Region(text, pooled, mask, strength, extra.get(WEIGHTS_KEY), tuple(extra.get(PICTURES_KEY) or ()))
