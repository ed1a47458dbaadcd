"""What a run from a terminal is asked before its first step: whether its settings and its models go together."""

from __future__ import annotations

from ..stages.errors import WrongInput
from ..stages.training.settings import Settings


def check_parts(settings: Settings, kind: str, stage_a: str) -> None:
    """Raise :class:`WrongInput` where ``settings`` ask for another model than ``kind``, or cannot go together."""
    what = settings.what
    needed = kind if what == "lora" else "stage_b" if what == "stage_b" else "stage_c"
    if kind != needed:
        raise WrongInput(f"A run of {what} needs {needed}. Give its file as '{needed}', or choose another 'what'.")
    if kind == "stage_b" and not stage_a:
        raise WrongInput("Stage B learns to make Stage A's latents. Give Stage A's file as 'stage_a', too.")
