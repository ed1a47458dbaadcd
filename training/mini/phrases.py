"""Sentences around a subject and its background: what people write about a picture beside the two words that count.

:func:`make_phrase` puts the parts of ``phrases.json`` together at random, some millions of ways in every language. They
were written by somebody who knew none of the wordings that measure; those with a word of ``HELD_TEMPLATES`` or
``HELD_FOREIGN`` that no template of the training has were taken out.
"""

from __future__ import annotations

import json
import random
import re
from dataclasses import dataclass
from pathlib import Path

from .words import C, N, P, S

FILE = Path(__file__).with_name("phrases.json")
MARKS = ",.;:!?"
Said = tuple[str, ...]


@dataclass(frozen=True)
class Phrases:
    """Parts of a sentence, in fragments, with :data:`.words.C`, ``N`` or ``P`` for the colour.

    What comes before the subject (``openings``), how the background is said after it (``behind``) or before it
    (``firsts``), what stands between the two (``middles``) and at the end (``endings``).
    """

    openings: tuple[Said, ...]
    behind: tuple[Said, ...]
    firsts: tuple[Said, ...]
    middles: tuple[Said, ...]
    endings: tuple[Said, ...]

    def fragments(self) -> set[str]:
        """Everything that a phrase can say beside subject and background."""
        parts = (*self.openings, *self.behind, *self.firsts, *self.middles, *self.endings)
        return {part for some in parts for part in some} - {C, N, P}


def split_phrase(text: str) -> Said:
    """The fragments of a part as it is written: what is before the colour, the colour, what is behind it."""
    return tuple(part.strip() for part in re.split(r"(\{[^}]*\})", text) if part.strip())


def read_phrases() -> dict[str, Phrases]:
    """``phrases.json`` by language."""
    kept = json.loads(FILE.read_text(encoding="utf-8"))
    return {
        language: Phrases(**{kind: tuple(split_phrase(text) for text in texts) for kind, texts in kinds.items()})
        for language, kinds in kept.items()
    }


PHRASES = read_phrases()


def make_phrase(language: str, rng: random.Random, named: bool = True) -> list[str]:
    """A template around subject and background, which is left out unless ``named``."""
    phrases = PHRASES[language]
    template: list[str] = []
    first = named and rng.random() < 0.2
    if first:
        template.extend(rng.choice(phrases.firsts))
    elif rng.random() < 0.8:
        template.extend(rng.choice(phrases.openings))
    template.append(S)
    if rng.random() < 0.2:
        template.extend(rng.choice(phrases.middles))
    if named and not first:
        template.extend(rng.choice(phrases.behind))
    if rng.random() < 0.25:
        template.extend(rng.choice(phrases.endings))
    return settle_commas(template)


def settle_commas(template: list[str]) -> list[str]:
    """``template`` with one punctuation mark where two parts bring one each, the later one, and no comma, semicolon or
    colon at the end.
    """
    settled: list[str] = []
    for part in template:
        if part[0] in MARKS:
            strip_end(settled, MARKS)
        settled.append(part)
    strip_end(settled, ",;:")
    return settled


def strip_end(parts: list[str], marks: str) -> None:
    """Take ``marks`` off the end of ``parts``, and those that are nothing else."""
    while parts and parts[-1][-1] in marks:
        parts[-1] = parts[-1][:-1].rstrip()
        if not parts[-1]:
            parts.pop()
