"""The part of the prompt language that is ours: ``BREAK`` and ``AVG``. Weights in parentheses are the host's.

    a red house BREAK autumn leaves        two parts; the second starts its own 77 tokens
    a cat AVG a dog:0.5                    the average of two prompts, the second half as strong

Both words count only in capitals and on their own. A part's weight is the number behind its last colon.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from ..errors import WrongInput

BREAK, AVERAGE = "BREAK", "AVG"
_WEIGHT = re.compile(r"^(?P<text>.*):\s*(?P<weight>[-+]?(?:\d+\.?\d*|\.\d+))\s*$", re.DOTALL)


@dataclass(frozen=True)
class Prompt:
    """One prompt of an average: its parts, each of which starts anew, and its share."""

    parts: tuple[str, ...]
    weight: float = 1.0


def split_at(text: str, word: str) -> list[str]:
    """``text`` cut at every ``word`` that stands alone, and stripped where it was cut."""
    pieces = re.split(rf"(?<!\S){word}(?!\S)", text)
    return pieces if len(pieces) == 1 else [piece.strip() for piece in pieces]


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
        words, weight = (found["text"], float(found["weight"])) if found else (alternative, 1.0)
        prompts.append(Prompt(tuple(split_at(words, BREAK)), weight))
    if sum(prompt.weight for prompt in prompts) <= 0:
        raise WrongInput(
            f"The prompts of an average have the weights {[prompt.weight for prompt in prompts]}, which "
            "have to be more than 0 together. Give at least one prompt a larger weight."
        )
    return tuple(prompts)


def group_by_weight(weights: Sequence[float]) -> dict[float, list[int]]:
    """The places of the tokens of every weight but 1, by weight."""
    found: dict[float, list[int]] = {}
    for index, weight in enumerate(weights):
        if weight != 1.0:
            found.setdefault(float(weight), []).append(index)
    return found
