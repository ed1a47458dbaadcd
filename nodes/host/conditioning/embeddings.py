"""Textual-inversion embeddings that a prompt names: whether they are there, and whether they have changed."""

from __future__ import annotations

import os
import re
from typing import Any

import comfy.sd1_clip
import folder_paths

from ....stages.errors import WrongInput
from ..files import stamps

FOLDER, WORD = "embeddings", "embedding:"
_NAMED = re.compile(rf"(?:^|(?<=[\s(:])){WORD}([^\s<\[(),]*)")


def list_named(text: str) -> list[str]:
    """What ``text`` names as ``embedding:name``, without brackets, commas and a weight."""
    return list(dict.fromkeys(found.rsplit(":", 1)[0] for found in _NAMED.findall(text)))


def stamp_embeddings(text: str | None) -> str:
    """Changes with every file that ``text`` may name; with every embedding where the text comes over a wire."""
    if text is not None and WORD not in text:
        return stamps.digest()
    stems = None if text is None else {strip_name(name) for name in list_named(text)}
    found = []
    for file in folder_paths.get_filename_list(FOLDER):
        if stems is None or strip_name(file) in stems:
            path = folder_paths.get_full_path(FOLDER, file)
            found.append(stamps.stamp_file(path) if path and os.path.isfile(path) else stamps.stamp_absent(file))
    return stamps.digest(*found)


def strip_name(name: str) -> str:
    """A file's name, or that of an embedding, without folder and ending."""
    stem, ending = os.path.splitext(os.path.basename(name.replace("\\", "/")))
    return stem if ending.lower() in folder_paths.supported_pt_extensions else stem + ending


def check_embeddings(clip: Any, text: str, where: str) -> None:
    """Raises :class:`WrongInput` where ``text`` names an embedding that is not there, or of another text encoder.

    The host would leave the word out, and say so in its log only.
    """
    tokenizer = getattr(clip.tokenizer, "clip_g", None)
    folders = getattr(tokenizer, "embedding_directory", None)
    if folders is None or WORD not in text:
        return
    width = clip.cond_stage_model.clip_g.transformer.get_input_embeddings().weight.shape[-1]
    for name in list_named(text):
        rows = read_embedding(name, folders, tokenizer) if name else None
        if rows is None:
            raise WrongInput(
                f"{where} got a prompt with {WORD}{name}, but models/{FOLDER} holds no embedding of that name that can "
                "be read. Put the file there, correct the name, or take the word out."
            )
        if rows.shape[-1] != width:
            raise WrongInput(
                f"{where} got a prompt with {WORD}{name}, whose vectors are {rows.shape[-1]} wide; this text encoder "
                f"needs {width}. The embedding was made for another model: take one that was trained "
                "for Stable Cascade."
            )


def read_embedding(name: str, folders: Any, tokenizer: Any) -> Any:
    """The vectors (n, width) as the host reads them; None for what it cannot read."""
    try:
        return comfy.sd1_clip.load_embed(name, folders, tokenizer.embedding_size, tokenizer.embedding_key)
    except Exception:  # the host's reader fails with errors of many kinds on files that are no embedding
        return None
