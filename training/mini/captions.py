"""Captions: what the text encoder and Stage C are told about a picture, and its tokens.

A template is a list of fragments. CLIP's tokenizer splits at spaces and punctuation, so the tokens of a caption are
those of its fragments one after the other, and fragments are tokenised once. A fragment may also be a tuple of tokens.
"""

from __future__ import annotations

import os
import random
from functools import cache, lru_cache
from pathlib import Path

import torch
from torch import Tensor

from .data import PLAIN, Subject

LENGTH = 77
START, END = 49406, 49407
S, C = "{subject}", "{colour}"
Fragment = str | tuple[int, ...]

PLAIN_TEMPLATES = ([S], ["a", S], ["a picture of", S], ["a", S, "emoji"], [S, "icon"], ["the", S], ["an image of a", S])
COLOUR_TEMPLATES = (
    [S, "on a", C, "background"],
    ["a", S, "on a", C, "background"],
    [S, ",", C, "background"],
    [S, "on", C],
    ["a picture of", S, "on a", C, "background"],
    [C, "background", ",", S],
    ["a", S, "with a", C, "background"],
    ["an image of a", S, "on", C],
    [S, "in front of a", C, "background"],
    ["the", S, ",", "on a", C, "background"],
)
HELD_TEMPLATES = (
    ["an emoji of a", S, "against a", C, "backdrop"],
    ["a drawing of", S, "over a", C, "background"],
    ["show me a", S, "with a", C, "backdrop"],
    ["one", S, "standing on a plain", C, "background"],
    ["a nice", S, ",", C, "background color"],
    ["a", C, "background with a", S, "in the middle"],
)
"""Only for the held-out prompts."""


def spoken(template: list[str], subject: str, colour: str = "") -> str:
    """The caption as one writes it."""
    return " ".join({S: subject, C: colour}.get(part, part) for part in template).replace(" ,", ",")


@lru_cache(maxsize=1)
def tokenizer():
    """The tokenizer files of the host, read by transformers."""
    from transformers import CLIPTokenizer

    root = os.environ.get("CASCADE_STUDIO_HOST_PATH")
    if not root:
        raise SystemExit("The host's tokenizer is needed: run the recipe as 'python3 dev.py run -m training.mini'.")
    return CLIPTokenizer.from_pretrained(Path(root) / "comfy" / "sd1_tokenizer")


@cache
def word_tokens(text: str) -> tuple[int, ...]:
    """Token ids of ``text`` without start and end."""
    return tuple(tokenizer()(text)["input_ids"][1:-1])


def fragment_tokens(fragment: Fragment) -> tuple[int, ...]:
    """Token ids of a fragment without start and end."""
    return word_tokens(fragment) if isinstance(fragment, str) else fragment


def tokens(fragments: list[Fragment], length: int = LENGTH) -> list[int]:
    """Start, fragments, end, and end again up to ``length`` as the host pads for Stable Cascade."""
    body = [token for part in fragments for token in fragment_tokens(part)][: length - 2]
    return [START, *body, *[END] * (length - 1 - len(body))]


def caption(subject: Subject, colour: str, rng: random.Random) -> list[str]:
    """Fragments of a random caption of ``subject`` on ``colour``: mostly its English name, at times tags or others."""
    name = subject.labels["en"]
    kind = rng.random()
    if kind < 0.12:
        name = subject.labels[rng.choice([language for language in subject.labels if language != "en"])]
    elif kind < 0.30 and subject.tags:
        extra = rng.sample(subject.tags, min(len(subject.tags), rng.choice((1, 2))))
        name = " ".join([name, *extra]) if rng.random() < 0.6 else " ".join([*extra, name])
    unnamed = colour == PLAIN and rng.random() < 0.7
    template = rng.choice(PLAIN_TEMPLATES if unnamed else COLOUR_TEMPLATES)
    return [{S: name, C: colour}.get(part, part) for part in template]


def batch_tokens(captions: list[list[Fragment]], length: int = LENGTH) -> Tensor:
    """(B, length) int64."""
    return torch.tensor([tokens(fragments, length) for fragments in captions])
