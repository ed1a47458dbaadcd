"""What the pictures of a batch are called while Stage C and the text encoder learn: any name, and the plain one."""

from __future__ import annotations

import random

from .captions import Fragment, count_tokens, word_tokens
from .phrases import PHRASES
from .scenes import SHORT, Pool, Scenes
from .subjects import COLOURS, Subject

Captions = list[list[Fragment]]


def list_strangers(subjects: list[Subject], stranger: int) -> list[list[Fragment]]:
    """Words that say nothing about a picture, in four kinds: a token that nobody knows, what tags other subjects, what
    sentences of all languages are made of, and words that share their tokens with names ("clipart" those of a clip and
    of a part).
    """
    tags = [tag for subject in subjects for tag in subject.tags if tag not in COLOURS]
    names = {label for subject in subjects for label in subject.labels.values()}
    sentences = {part for phrases in PHRASES.values() for part in phrases.fragments()} - names
    return [kind for kind in ([(stranger,)], [*tags], sorted(sentences), mix_names(subjects)) if kind]


def mix_names(subjects: list[Subject], count: int = 5000) -> list[Fragment]:
    """Up to ``count`` words of the first token of one name and the last of another, which are no names themselves."""
    labels = [label for subject in subjects for label in subject.labels.values()]
    names = {word for label in labels for word in label.split() if word.isalpha()}
    split = [tokens for tokens in map(word_tokens, sorted(names)) if len(tokens) > 1]
    rng = random.Random(len(split))
    mixed = {(rng.choice(split)[0], rng.choice(split)[-1]) for _ in range(count if split else 0)}
    return sorted(mixed - {*split})


def strew(
    said: list[Fragment], rng: random.Random, share: float, strangers: list[list[Fragment]], length: int
) -> list[Fragment]:
    """``said``, and in the ``share`` of captions one to three of ``strangers`` between, each kind as often, as far as
    ``length`` tokens hold them.
    """
    said = list(said)
    if said and rng.random() < share:
        for _ in range(rng.randint(1, 3)):
            stranger = rng.choice(rng.choice(strangers))
            if count_tokens([*said, stranger]) <= length - 2:
                said.insert(rng.randint(0, len(said)), stranger)
    return said


def say_both(
    scenes: Scenes,
    pool: Pool,
    index: list[int],
    bare: float,
    foreign: float,
    dropped: float,
    plainly: float = 0.0,
    length: int = SHORT,
) -> tuple[Captions, Captions]:
    """Random captions of pictures of ``pool``, and their plain ones.

    The share ``dropped`` of both says nothing; of the others the share ``plainly`` of the first is plain as well.
    ``length``: tokens that captions are to fit in.
    """
    subjects, colours = ([names[i] for i in index] for names in (pool.subjects, pool.colours))
    said: Captions = [*scenes.fragments(subjects, colours, bare, foreign, length)]
    plain: Captions = [scenes.speaker.caption_plainly(*pair) for pair in zip(subjects, colours)]
    for row in range(len(index)):
        if scenes.rng.random() < dropped:
            said[row] = plain[row] = []
        elif scenes.rng.random() < plainly:
            said[row] = [*plain[row]]
    return said, plain
