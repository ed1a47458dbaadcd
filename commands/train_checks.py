"""What a run from a terminal is asked before its first step: whether its settings and its models go together."""

from __future__ import annotations

import torch

from ..stages.errors import WrongInput
from ..stages.training.objectives import ALL
from ..stages.training.run import Lesson
from ..stages.training.settings import Settings


def check_parts(settings: Settings, kind: str, stage_a: str) -> None:
    """Raise :class:`WrongInput` where ``settings`` ask for another model than ``kind``, or cannot go together."""
    what = settings.what
    needed = kind if what == "lora" else "stage_b" if what == "stage_b" else "stage_c"
    if kind != needed:
        raise WrongInput(f"A run of {what} needs {needed}. Give its file as '{needed}', or choose another 'what'.")
    if kind == "stage_b" and not stage_a:
        raise WrongInput("Stage B learns to make Stage A's latents. Give Stage A's file as 'stage_a', too.")
    if settings.start_from and what in ("words", "stage_c", "stage_b"):
        raise WrongInput(
            f"A run of {what} has no start_from, which is for LoRAs and ControlNets. Leave it out; a stage goes on "
            "where its own file is given as the model."
        )
    names = [text.casefold() for text, _ in settings.tokens]
    if len(set(names)) < len(names):
        raise WrongInput("A word to learn is named twice in 'tokens'. Name each once; case makes no difference.")


def check_words(lesson: Lesson) -> None:
    """Raise :class:`WrongInput` for a word that is in no caption: nothing would be learned of it."""
    ids = [row[name].flatten() for row in lesson.rows for name in ("ids", f"{ALL}ids") if name in row]
    said = set(torch.cat(ids).tolist())
    missing = [word.text for word in lesson.given.words if word.token not in said]
    if missing:
        raise WrongInput(
            f"No caption holds {', '.join(missing)} within its first 75 tokens, so nothing would be learned of it. "
            "Write it into the captions, or put it in front of all by 'trigger'."
        )
