"""Prompts with weights that act on the Stable Cascade text encoder, in parts and averages.

The host weighs a token by moving its hidden state away from that of an empty prompt at the same place. In the bigG
encoder those states share most of their length whatever the prompt says, and the pooled text, all that Stage B hears,
is not moved at all. ``CONTRAST`` compares with the same prompt without the words instead: with E the prompt's embedding
and E- that of the prompt with the words replaced by a neutral token, it gives E + (w - 1)(E - E-), for every token
and for the pooled text. Weight 1 is the prompt, weight 0 the prompt without the words. ``ATTENTION`` leaves the
embedding alone and lets Stage C count the words w times in its attention.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ....stages.errors import WrongInput
from ....stages.inputs import prompt as language
from ..models.model import is_finite
from ..models.regions import WEIGHTS_KEY
from . import embeddings

CONTRAST, ATTENTION, HOST = "contrast", "attention", "comfyui"
METHODS = (CONTRAST, ATTENTION, HOST)
FIRST, ALL = "first part", "all parts"
POOLED = (FIRST, ALL)
LARGEST = torch.finfo(torch.float16).max

Row = list[tuple[Any, float]]
"""77 tokens, each with its weight."""
Entries = list[list[Any]]
"""A conditioning: [hidden states (1, T, c), {"pooled_output": (1, c), ...}], one entry for every step of a schedule."""


def encode_text(clip: Any, text: str, method: str = CONTRAST, pooled: str = FIRST, where: str = "This node") -> Entries:
    """The conditioning of ``text``; exactly the host's own for a prompt without weights and without our words."""
    embeddings.check_embeddings(clip, text, where)
    prompts = [
        (prompt.weight, encode_prompt(clip, prompt.parts, method, pooled, where))
        for prompt in language.parse_prompt(text)
    ]
    if len(prompts) == 1:
        return check_encoded(prompts[0][1], where)
    return check_encoded(average_prompts(prompts, lambda: encode_rows(clip, tokenize_rows(clip, "", where))), where)


def check_encoded(entries: Entries, where: str) -> Entries:
    """``entries`` themselves; raises :class:`WrongInput` where weights moved them beyond what nets can hold."""
    for text, extra in entries:
        for values in (text, extra["pooled_output"]):
            if not is_finite(values) or values.abs().max() > LARGEST:
                raise WrongInput(
                    f"{where} got weights that move the prompt beyond what the model can hold. Weights between 0 and 2 "
                    "are usual: write smaller ones, and averages whose weights do not cancel each other."
                )
    return entries


def tokenize_rows(clip: Any, text: str, where: str) -> list[Row]:
    """``text`` in rows of 77 tokens with their weights."""
    language.check_text(text)
    tokens = clip.tokenize(text)
    if list(tokens) != ["g"]:
        raise WrongInput(
            f"{where} got a text encoder of another kind of model. It needs the Stable Cascade text encoder: "
            "wire the 'clip' output of Load Stable Cascade into it."
        )
    language.check_weights([weight for row in tokens["g"] for _, weight in row])
    return tokens["g"]


def encode_rows(clip: Any, rows: list[Row]) -> Entries:
    """What the host makes of ``rows``, its own weighting included."""
    return clip.encode_from_tokens_scheduled({"g": rows})


def encode_prompt(clip: Any, parts: tuple[str, ...], method: str, pooled: str, where: str) -> Entries:
    """Text and pooled text of the ``parts`` of a prompt, their weights applied by ``method``, with the ``pooled`` of
    one row or of all."""
    rows = [row for part in parts for row in tokenize_rows(clip, part, where)]
    weighted = any(weight != 1.0 for row in rows for _, weight in row)
    if method == CONTRAST and weighted:
        entries = contrast_rows(clip, rows, pooled, where)
    else:
        plain = method == HOST or not weighted
        entries = encode_rows(clip, rows if plain else [drop_weights(row) for row in rows])
        if pooled == ALL and len(rows) > 1:
            alone = [encode_rows(clip, [drop_weights(row)]) for row in rows]
            entries = [
                [text, {**extra, "pooled_output": average_pooled([row[step] for row in alone])}]
                for step, (text, extra) in enumerate(entries)
            ]
    if method == ATTENTION and weighted:
        weights = torch.tensor([[weight for row in rows for _, weight in row]])
        if weights.min() < 0:
            raise WrongInput(
                f"{where} got a negative weight, which the method '{ATTENTION}' cannot count. Put the words "
                f"into the negative prompt, or choose '{CONTRAST}'."
            )
        entries = [[text, {**extra, WEIGHTS_KEY: weights}] for text, extra in entries]
    return entries


def drop_weights(row: Row) -> Row:
    """The tokens of ``row``, each with the weight 1."""
    return [(token, 1.0) for token, _ in row]


def contrast_rows(clip: Any, rows: list[Row], pooled: str, where: str) -> Entries:
    """Every row moved away from what it is without its weighted words."""
    filler = tokenize_rows(clip, ",", where)[0][1][0]
    moved = [contrast_row(clip, row, filler) for row in rows]
    out = []
    for step, (_, extra) in enumerate(moved[0]):
        of_step = [row[step] for row in moved]
        first = extra["pooled_output"] if pooled == FIRST else average_pooled(of_step)
        out.append([torch.cat([text for text, _ in of_step], dim=1), {**extra, "pooled_output": first}])
    return out


def contrast_row(clip: Any, row: Row, filler: Any) -> Entries:
    """The text of ``row`` moved, for each weight w, by (w - 1) times the difference that its tokens make beside
    ``filler``."""
    entries = encode_rows(clip, [drop_weights(row)])
    moved = [[text.clone(), extra["pooled_output"].clone()] for text, extra in entries]
    for weight, places in language.group_by_weight([weight for _, weight in row]).items():
        hidden = [(filler if index in places else token, 1.0) for index, (token, _) in enumerate(row)]
        for both, (text, extra), (without, lacking) in zip(moved, entries, encode_rows(clip, [hidden])):
            both[0] += (weight - 1) * (text - without)
            both[1] += (weight - 1) * (extra["pooled_output"] - lacking["pooled_output"])
    return [[text, {**extra, "pooled_output": pooled}] for (text, pooled), (_, extra) in zip(moved, entries)]


def average_pooled(entries: Entries) -> Tensor:
    """The mean of the pooled texts, (B, width)."""
    return torch.stack([extra["pooled_output"] for _, extra in entries]).mean(0)


def average_prompts(prompts: list[tuple[float, Entries]], empty: Any) -> Entries:
    """The weighted average of hidden states, pooled text and token weights; shorter prompts end with empty rows."""
    total = sum(weight for weight, _ in prompts)
    length = max(text.shape[1] for _, entries in prompts for text, _ in entries)
    out = []
    for step, (_, extra) in enumerate(prompts[0][1]):
        text = pooled = weights = 0
        for weight, entries in prompts:
            own, its = entries[min(step, len(entries) - 1)]
            missing = length - own.shape[1]
            own_weights = its.get(WEIGHTS_KEY, torch.ones(1, own.shape[1]))
            if missing:
                blank = empty()[0][0]
                own = torch.cat([own, blank.repeat(1, missing // blank.shape[1], 1)], dim=1)
                own_weights = torch.cat([own_weights, torch.ones(1, missing)], dim=1)
            text = text + weight / total * own
            pooled = pooled + weight / total * its["pooled_output"]
            weights = weights + weight / total * own_weights
        marked = (
            {WEIGHTS_KEY: weights.clamp(min=0)} if any(WEIGHTS_KEY in entries[0][1] for _, entries in prompts) else {}
        )
        out.append([text, {**extra, "pooled_output": pooled, **marked}])
    return out
