"""What a card shows beside the result: the picture, the hint or the same without the thing that the workflow is for.

Before stands at the left and below, after at the right and above, as in the drawn diagrams.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

from PIL import Image

from .authoring.flow import Output
from .authoring.recipes import RECIPES
from .diagrams import SIDE, join_halves
from .titles import title_of

Prompt = dict[str, Any]
Wire = list[Any]

BEFORE, DRAFTS = "card/before", "card/drafts"
"""Prefixes of what only a card saves."""

TILES = 2
"""Drafts across and down on the card of the board."""


def find_given(prompt: Prompt) -> Wire:
    """The picture that the workflow loads."""
    return [find_node(prompt, "LoadImage"), 0]


def find_hint(prompt: Prompt) -> Wire:
    """What its ControlNet is shown."""
    return [find_node(prompt, "CascadeStudio_CannyHint"), 0]


def find_compared(prompt: Prompt) -> Wire:
    """What its slider calls before."""
    return prompt[find_node(prompt, "CascadeStudio_Compare")]["inputs"]["before"]


PAIRS: dict[str, Callable[[Prompt], Wire]] = {
    title_of("image_to_image"): find_given,
    title_of("image_variation"): find_given,
    title_of("reconstruction"): find_given,
    title_of("canny"): find_hint,
    title_of("guidance"): find_compared,
    title_of("train_lora"): find_compared,
}
"""Workflows whose before lies on a wire."""

WITHOUT = {title_of("lora_stack"), title_of("lora_schedule"), title_of("merge")}
"""Workflows whose before is the same picture without what they are for."""

BOARDS = {title_of("draft_board")}
"""Workflows whose card is a sheet of drafts."""

SEEDS = {title_of("image_variation"): 8}
"""Where another seed than the usual one shows better what the workflow does."""

TRAINING = {"CascadeStudio_TrainLora": "steps"}
"""What a card takes from the workflow itself, where tests take less."""


def find_node(prompt: Prompt, kind: str) -> str:
    """The key of the first node of ``kind``."""
    return next(key for key, node in prompt.items() if node["class_type"] == kind)


def keep_training(prompt: Prompt, whole: Prompt) -> None:
    """As many steps of training in ``prompt`` as in the workflow as opened."""
    for key, node in prompt.items():
        name = TRAINING.get(node["class_type"])
        if name:
            node["inputs"][name] = whole[key]["inputs"][name]


def save_more(name: str, prompt: Prompt) -> Prompt:
    """``prompt`` with what the card of ``name`` needs among what it saves."""
    prompt = copy.deepcopy(prompt)
    if name in PAIRS:
        save(prompt, PAIRS[name](prompt), BEFORE)
    if name in BOARDS:
        board = prompt[find_node(prompt, "CascadeStudio_DraftBoard")]["inputs"]
        prompt["drafts"] = {
            "class_type": "CascadeStudio_DecodePreview",
            "inputs": {"prior": board["prior"], "vae": board["vae"]},
        }
        save(prompt, ["drafts", 0], DRAFTS)
    return prompt


def save(prompt: Prompt, wire: Wire, prefix: str) -> None:
    """Let ``prompt`` save what lies on ``wire``."""
    prompt[prefix] = {"class_type": "SaveImage", "inputs": {"images": wire, "filename_prefix": prefix}}


def take_off(name: str, prompt: Prompt) -> Prompt:
    """``prompt`` without what the workflow ``name`` is for."""
    prompt = copy.deepcopy(prompt)
    for feature in RECIPES[name]().features:
        if not isinstance(feature.neutral, Output):
            prompt[feature.node.key]["inputs"][feature.input] = feature.neutral
    return prompt


def draw_pair(before: Image.Image, after: Image.Image) -> Image.Image:
    """Both halves of a card."""
    return join_halves(*(fill_square(picture, SIDE) for picture in (before, after)))


def draw_sheet(drafts: list[Image.Image]) -> Image.Image:
    """The first drafts beside and below each other."""
    side = SIDE // TILES
    sheet = Image.new("RGB", (SIDE, SIDE))
    for number, draft in enumerate(drafts[: TILES**2]):
        sheet.paste(fill_square(draft, side), (number % TILES * side, number // TILES * side))
    return sheet


def fill_square(picture: Image.Image, side: int) -> Image.Image:
    """``picture`` in RGB, so many pixels a side."""
    return picture.convert("RGB").resize((side, side), Image.Resampling.LANCZOS)
