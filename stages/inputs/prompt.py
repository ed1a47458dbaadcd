"""The part of the prompt language that is ours: ``BREAK`` and ``AVG``. Weights in parentheses are the host's.

    a red house BREAK autumn leaves        two parts; the second starts its own 77 tokens
    a cat AVG a dog:0.5                    the average of two prompts, the second half as strong

Both words count only in capitals and on their own, between spaces or commas. A part's weight is the number behind its
last colon, unless a number stands before it too: "ratio 16:9" is text.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

from ..errors import WrongInput

BREAK, AVERAGE = "BREAK", "AVG"
MOST_BRACKETS = 100
_WEIGHT = re.compile(r"^(?P<text>.*)(?<!\d):\s*(?P<weight>[-+]?(?:\d+\.?\d*|\.\d+))\s*$", re.DOTALL)


@dataclass(frozen=True)
class Prompt:
    """One prompt of an average: its parts, each of which starts anew, and its share."""

    parts: tuple[str, ...]
    weight: float = 1.0


def split_at(text: str, word: str) -> list[str]:
    """``text`` cut at every ``word`` that stands alone, and stripped where it was cut, of a comma behind it too."""
    first, *rest = re.split(rf"(?<![^\s,]){word}(?![^\s,])", text)
    return [first.strip(), *(piece.lstrip(" \t\r\n,").rstrip() for piece in rest)] if rest else [first]


def parse_prompt(text: str) -> tuple[Prompt, ...]:
    """The prompts of an average and their parts. Text without our words comes back as it is.

    Raises :class:`WrongInput` where the weights of an average leave nothing.
    """
    alternatives = split_at(text, AVERAGE)
    if len(alternatives) == 1:
        return (Prompt(tuple(split_at(text, BREAK))),)
    prompts = []
    for alternative in alternatives:
        found = _WEIGHT.match(alternative)
        words, weight = (found["text"].rstrip(), float(found["weight"])) if found else (alternative, 1.0)
        prompts.append(Prompt(tuple(split_at(words, BREAK)), weight))
    if not 0 < sum(prompt.weight for prompt in prompts) < math.inf:
        raise WrongInput(
            f"The prompts of an average have the weights {', '.join(f'{prompt.weight:g}' for prompt in prompts)}, "
            "which have to be more than 0 together, and no infinity. Give at least one prompt a larger weight."
        )
    return tuple(prompts)


def group_by_weight(weights: Sequence[float]) -> dict[float, list[int]]:
    """The places of the tokens of every weight but 1, by weight."""
    found: dict[float, list[int]] = {}
    for index, weight in enumerate(weights):
        if weight != 1.0:
            found.setdefault(float(weight), []).append(index)
    return found


def check_text(text: str) -> None:
    """Raises :class:`WrongInput` for what cannot be read: halves of characters, and brackets in brackets too deep."""
    if re.search("[\ud800-\udfff]", text):
        raise WrongInput(
            "The prompt holds half of a character (a lone surrogate), which no text encoder can read. Type the text "
            "anew, or correct the program that sent it."
        )
    level = deepest = 0
    for char in re.sub(r"\\[()]", "", text):
        level += {"(": 1, ")": -1}.get(char, 0)
        deepest = max(deepest, level)
    if min(deepest, text.count(")")) > MOST_BRACKETS:
        raise WrongInput(
            f"The prompt has round brackets {deepest} deep, but {MOST_BRACKETS} is the most that can be read. Write a "
            "weight as (word:1.5) instead, and brackets that belong to the text as \\( and \\)."
        )


def check_weights(weights: Sequence[float]) -> None:
    """Raises :class:`WrongInput` for a weight that is no number, or infinity."""
    wrong = [weight for weight in weights if not math.isfinite(weight)]
    if wrong:
        raise WrongInput(
            f"The prompt gives a word the weight {wrong[0]:g}. A weight is a number such as 1.3: look for brackets "
            "that end in :nan or :inf, or in a number with hundreds of digits."
        )
