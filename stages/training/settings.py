"""The settings of a training run: what a node's inputs, and the command line's JSON file, say."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from hashlib import sha256
from typing import Any

from ..errors import WrongInput

BASES = ("auto", "bf16", "fp8", "fp32")
LOSS_WEIGHTS = ("p2", "adaptive", "constant", "velocity")
LAYOUTS = ("comfyui", "official")
ATTENTION = ".attn"
"""The official filter: query, key, value and output projections of every attention block."""

FREE = ("name", "steps", "accumulation", "checkpointing", "save_every", "sample_every", "sample_prompt")
"""Settings that may differ between a run and its continuation: they do not change what is learned at a step."""

_NAME = re.compile(r"[\w][\w .()-]*")
_LIMITS = {
    "steps": (1, 1_000_000),
    "batch_size": (1, 4096),
    "accumulation": (1, 4096),
    "rank": (1, 1024),
    "resolution": (32, 4096),
    "learning_rate": (1e-9, 1.0),
    "alpha": (1e-3, 1e5),
    "clip": (1e-6, 1e6),
    "weight_decay": (0.0, 1.0),
    "drop_text": (0.0, 1.0),
    "offset_noise": (0.0, 1.0),
    "ema": (0.0, 0.999999),
    "shift": (0.1, 16.0),
    "warm_up": (0, 100_000),
    "save_every": (0, 1_000_000),
    "sample_every": (0, 1_000_000),
}


@dataclass(frozen=True)
class Settings:
    """How to train; the file of the command line holds these fields as JSON.

    batch_size: pictures to an update, over all processes and parts. accumulation: into how many parts a process cuts
    its pictures, one after another, to save memory. rank, alpha: the LoRA adds alpha/rank · up · down to a weight.
    blocks: parts of module names; layers whose name holds one of them are trained. resolution: side in pixels of the
    square whose area the image encoder sees (768 for a model that paints 1024 px). base: how the frozen weights are
    stored; auto is fp32 on a processor and bf16 elsewhere. checkpointing: compute activations again instead of keeping
    them. ema: decay of averaged weights, 0 without. shift, offset_noise, drop_text, loss_weight: the objective.
    save_every, sample_every: in steps, 0 never. tokens: words to learn, each with words to start from. layout: names in
    the file, ComfyUI's or the official ones.
    """

    name: str = "my_lora"
    steps: int = 1000
    batch_size: int = 4
    accumulation: int = 1
    learning_rate: float = 1e-4
    warm_up: int = 10
    weight_decay: float = 0.01
    clip: float = 1.0
    rank: int = 4
    alpha: float = 4.0
    blocks: tuple[str, ...] = (ATTENTION,)
    seed: int = 0
    resolution: int = 768
    base: str = "auto"
    checkpointing: bool = True
    ema: float = 0.0
    loss_weight: str = "p2"
    shift: float = 1.0
    offset_noise: float = 0.0
    drop_text: float = 0.05
    save_every: int = 250
    sample_every: int = 100
    sample_prompt: str = ""
    tokens: tuple[tuple[str, str], ...] = ()
    layout: str = "comfyui"

    def __post_init__(self) -> None:
        object.__setattr__(self, "blocks", tuple(self.blocks))
        object.__setattr__(self, "tokens", tuple((str(word), str(start)) for word, start in self.tokens))
        for name, (low, high) in _LIMITS.items():
            value = getattr(self, name)
            if not isinstance(value, (int, float)) or isinstance(value, bool) or not low <= value <= high:
                raise WrongInput(f"The training setting '{name}' is {value!r}. It needs a number from {low} to {high}.")
        for name, known in (("base", BASES), ("loss_weight", LOSS_WEIGHTS), ("layout", LAYOUTS)):
            if getattr(self, name) not in known:
                raise WrongInput(
                    f"The training setting '{name}' is {getattr(self, name)!r}. It can be one of: {', '.join(known)}."
                )
        if not _NAME.fullmatch(self.name):
            raise WrongInput(
                f"The name of the training run is {self.name!r}. Use letters, digits, spaces, dots, "
                "hyphens and underscores, beginning with a letter or a digit."
            )
        if not self.blocks or not all(self.blocks):
            raise WrongInput(
                "No blocks to train are named. Give parts of module names, such as .attn for the "
                "attention or .channelwise for the residual blocks."
            )
        if self.layout == "official" and self.blocks != (ATTENTION,):
            raise WrongInput(
                f"The official file layout holds the attention alone, but the blocks to train are "
                f"{', '.join(self.blocks)}. Train {ATTENTION} only, or choose the comfyui layout."
            )

    def base_on(self, device: str) -> str:
        """How frozen weights are stored on a ``device`` ("cpu", "cuda", …)."""
        return ("fp32" if device == "cpu" else "bf16") if self.base == "auto" else self.base

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return json.loads(json.dumps(asdict(self)))

    def identity(self, *facts: str) -> str:
        """16 hexadecimal digits that are equal for a run and its continuation;
        ``facts`` name the model and the data.
        """
        kept = {key: value for key, value in self.as_dict().items() if key not in FREE}
        return sha256(json.dumps([kept, *facts], sort_keys=True).encode()).hexdigest()[:16]


def from_dict(values: Mapping[str, Any], where: str = "The settings") -> Settings:
    """Settings from JSON values; entries that are left out keep their default."""
    known = {field.name for field in fields(Settings)}
    unknown = sorted(set(values) - known)
    if unknown:
        raise WrongInput(
            f"{where} name {', '.join(unknown)}, which is no training setting. Known are: {', '.join(sorted(known))}."
        )
    try:
        return Settings(**values)
    except TypeError as error:
        raise WrongInput(
            f"{where} hold a value of the wrong kind ({error}). Lists are needed for 'blocks' and "
            "'tokens', numbers and words elsewhere."
        ) from error
    except ValueError as error:
        if isinstance(error, WrongInput):
            raise
        raise WrongInput(
            f'{where} hold tokens that are no pairs. Write each as ["[word]", "words to start from"].'
        ) from error
