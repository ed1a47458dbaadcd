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

from .phrases import PHRASES, make_phrase
from .subjects import COLOURS, LANGUAGES, PLAIN, Subject
from .words import FOREIGN_TEMPLATES, SHADES, C, N, P, S, colour_words, make_names, nominative, predicative, speak

LENGTH = 77
START, END = 49406, 49407
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


def join_caption(template: list[str], subject: str, colour: str = "") -> str:
    """The caption as one writes it."""
    return " ".join(speak(template, subject, colour)).replace(" ,", ",")


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


def count_tokens(fragments: list[Fragment]) -> int:
    """How many tokens they have, without start and end."""
    return sum(len(fragment_tokens(part)) for part in fragments)


def tokens(fragments: list[Fragment], length: int = LENGTH) -> list[int]:
    """Start, fragments, end, and end again up to ``length`` as the host pads for Stable Cascade."""
    body = [token for part in fragments for token in fragment_tokens(part)][: length - 2]
    return [START, *body, *[END] * (length - 1 - len(body))]


class Speaker:
    """Names pictures at random: in English or one of the other languages, by a label or another word, barely or in a
    sentence.
    """

    FOREIGN, ANOTHER, TAGGED, UNNAMED, WORDY = 0.25, 0.45, 0.1, 0.7, 0.75
    """Shares of other languages, of other English words than the label, of added tags, of white left unsaid, and of
    :mod:`.phrases` where a caption need not be bare."""

    def __init__(self, subjects: list[Subject]) -> None:
        self.subjects, self.names = subjects, make_names(subjects)

    def caption(
        self,
        index: int,
        colour: str,
        rng: random.Random,
        bare: float = 0.5,
        foreign: float = FOREIGN,
        longest: int = LENGTH - 2,
    ) -> list[str]:
        """Fragments of a caption of a subject on ``colour``; the share ``bare`` says little but the two words.

        Of at most ``longest`` tokens, if one of eight in the same language is.
        """
        language = "en"
        if colour not in SHADES and rng.random() < foreign:
            language = rng.choice(LANGUAGES[1:])
        for _ in range(8):
            said = self.say(index, colour, rng, language, bare)
            if count_tokens(said) <= longest:
                break
        return said

    def say(self, index: int, colour: str, rng: random.Random, language: str, bare: float) -> list[str]:
        """Fragments of a caption in ``language``, of any length."""
        names, tags = self.names[index][language], self.subjects[index].tags
        name = rng.choice(names) if language != "en" or rng.random() < self.ANOTHER else names[0]
        if language == "en" and set(tags) - {name} and rng.random() < self.TAGGED:
            name = " ".join(rng.sample([name, rng.choice([tag for tag in tags if tag != name])], 2))
        said = rng.choice(colour_words(colour, language))
        named, barely = colour != PLAIN or rng.random() >= self.UNNAMED, rng.random() < bare
        if not barely and rng.random() < self.WORDY:
            template = make_phrase(language, rng, named)
        elif not named:
            template = rng.choice(PLAIN_TEMPLATES[: 2 if barely else None] if language == "en" else ([S],))
        elif language == "en":
            template = rng.choice(COLOUR_TEMPLATES[: 4 if barely else None])
        else:
            template = rng.choice(FOREIGN_TEMPLATES[language][: 1 if barely else None])
        return speak(template, name, said)

    def caption_plainly(self, index: int, colour: str) -> list[str]:
        """The caption that means what all others of a subject on ``colour`` mean."""
        return [self.subjects[index].labels["en"], "on a", colour, "background"]

    def words(self) -> set[str]:
        """Everything that :meth:`caption` can say, in fragments."""
        templates = [
            *PLAIN_TEMPLATES,
            *COLOUR_TEMPLATES,
            *(each for some in FOREIGN_TEMPLATES.values() for each in some),
        ]
        found = {part for template in templates for part in template} - {S, C, N, P}
        colours = {word for colour in COLOURS for language in LANGUAGES for word in colour_words(colour, language)}
        found |= colours | {say(word) for word in colours for say in (nominative, predicative)}
        found |= {part for phrases in PHRASES.values() for part in phrases.fragments()}
        found |= {*SHADES, *(tag for subject in self.subjects for tag in subject.tags)}
        return found | {name for entry in self.names for names in entry.values() for name in names}


def batch_tokens(captions: list[list[Fragment]], length: int = LENGTH) -> Tensor:
    """(B, length) int64."""
    return torch.tensor([tokens(fragments, length) for fragments in captions])
