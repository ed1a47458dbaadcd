"""New words for the host's tokenizer: tokens that a LoRA trained, and embeddings that it brings."""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ....stages.errors import WrongInput
from ....stages.lora.match import TOKEN_TABLE, MatchedLora

TABLE = f"clip_g.transformer.{TOKEN_TABLE}.weight"


def parse_tokens(text: str) -> dict[str, str]:
    """``{word: pattern}`` from lines such as ``[fernando] = ^dog</w>``; the pattern may be left out."""
    found = {}
    for line in text.splitlines():
        word, _, pattern = (part.strip() for part in line.partition("="))
        if not word:
            continue
        if " " in word:
            raise WrongInput(
                f"The token '{word}' has a space in it. Write one token a line, such as [fernando] = ^dog</w>."
            )
        try:
            re.compile(pattern)
        except re.error as error:
            raise WrongInput(
                f"The start '{pattern}' of the token {word} is no valid pattern ({error}). Write a part of a word, "
                "such as dog, or a whole one, such as ^dog</w>."
            ) from None
        found[word] = pattern
    return found


def make_vectors(
    lora: MatchedLora, clip: Any, strength: float, typed: Mapping[str, str]
) -> tuple[dict[str, Tensor], list[str]]:
    """``{word: vectors (n, width)}`` that ``lora`` adds to the prompt, and lines that say how to write them.

    As the official trainer does, an added token starts from the mean of all tokens that its pattern matches (zeros
    without one) and gets the trained offset, here times ``strength``.
    """
    ids = lora.new_tokens
    given = dict(typed or lora.words)
    if len(given) > len(ids):
        raise WrongInput(
            f"'tokens' names {len(given)} words, but {lora.report.name} adds {len(ids)} tokens. Write one line for "
            "each added token, or none."
        )
    fresh, lines = {}, []
    for number, index in enumerate(ids):
        word, pattern = list(given.items())[number] if number < len(given) else (f"[token{number + 1}]", "")
        offset = lora.offsets[index].float()
        fresh[word] = (find_start(clip, word, pattern, len(offset)) + strength * offset)[None]
        note = (
            f"starting from {pattern}"
            if pattern
            else (
                "starting from zero: write it in 'tokens' with the word that its training started from, if there "
                "was one"
            )
        )
        lines.append(f"Write {word} in the prompt for new token {number + 1} ({note})")
    for word, rows in lora.bundled.items():
        fresh[word] = strength * rows.float()
        lines.append(f"Write {word} in the prompt for the embedding")
    return fresh, lines


def find_start(clip: Any, word: str, pattern: str, width: int) -> Tensor:
    """The mean of the token vectors whose text ``pattern`` matches; zeros for no pattern."""
    if not pattern:
        return torch.zeros(width)
    texts = clip.tokenizer.clip_g.inv_vocab
    rows = [index for index, text in texts.items() if re.search(pattern, text)]
    weight, convert = clip.patcher.get_key_patches(TABLE)[TABLE][0]
    rows = [index for index in rows if index < len(weight)]
    if not rows:
        raise WrongInput(
            f"No token of the text encoder matches the start '{pattern}' of {word}. Write a part of a common word, "
            "such as dog, or a whole one, such as ^dog</w>."
        )
    return convert(weight, inplace=False)[rows].float().mean(0).cpu()


def teach(tokenizer: Any, fresh: Mapping[str, Tensor]) -> Any:
    """A copy of the host's ``tokenizer`` that knows the words of ``fresh``; everything else is shared."""
    outer, inner = copy.copy(tokenizer), copy.copy(tokenizer.clip_g)
    inner.tokenizer = Vocabulary(inner.tokenizer, fresh)
    outer.clip_g = inner
    return outer


def list_words(tokenizer: Any) -> dict[str, Tensor]:
    """The words that :func:`teach` has given to ``tokenizer``, with their vectors."""
    found: dict[str, Tensor] = {}
    inner = getattr(getattr(tokenizer, "clip_g", None), "tokenizer", None)
    while isinstance(inner, Vocabulary):
        found, inner = {**inner.fresh, **found}, inner.inner
    return found


class Vocabulary:
    """The host's vocabulary with extra words: a call gives their vectors where it would give token ids.

    Upper and lower case are the same, as for all other words.
    """

    def __init__(self, inner: Any, fresh: Mapping[str, Tensor]) -> None:
        self.inner = inner
        self.fresh = {word.lower(): rows for word, rows in fresh.items()}
        words = sorted(self.fresh, key=len, reverse=True)
        self.pattern = re.compile("|".join(map(make_pattern, words)), re.IGNORECASE)

    def __call__(self, text: str, *args: Any, **kwargs: Any) -> dict[str, list[Any]]:
        if not self.pattern.search(text):
            return self.inner(text, *args, **kwargs)
        begin, *_, end = self.inner("")["input_ids"]
        ids, place = [begin], 0
        for found in self.pattern.finditer(text):
            ids += self.plain(text[place : found.start()])
            ids += list(self.fresh[found[0].lower()])
            place = found.end()
        return {"input_ids": [*ids, *self.plain(text[place:]), end]}

    def plain(self, text: str) -> list[Any]:
        """Token ids of ``text``, without start and end."""
        return self.inner(text)["input_ids"][1:-1] if text.strip() else []

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name in ("inner", "fresh", "pattern"):
            raise AttributeError(name)
        return getattr(self.inner, name)


def make_pattern(word: str) -> str:
    """A pattern for ``word`` that does not match inside a longer word."""
    before = r"(?<!\w)" if re.match(r"\w", word) else ""
    return f"{before}{re.escape(word)}" + (r"(?!\w)" if re.match(r"\w", word[-1]) else "")
