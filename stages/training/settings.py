"""The settings of a training run: one schema, read by the nodes, the command line's file and its tests.

Every setting says what it is once (:class:`Spec`): its kind, its limits, its choices and the words that explain it.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import Field, asdict, dataclass, field, fields, replace
from hashlib import sha256
from typing import Any

from ..errors import WrongInput

WHAT = ("lora", "words", "stage_c", "stage_b", "controlnet", "text_lora")
BASES = ("auto", "bf16", "fp8", "fp32")
LOSS_WEIGHTS = ("p2", "adaptive", "constant", "velocity", "min_snr")
LAYOUTS = ("comfyui", "official", "diffusers")
METHODS = ("lora", "loha", "lokr", "dora")
OPTIMISERS = ("adamw", "adamw_8bit", "adafactor", "prodigy", "schedule_free", "adamw_cpu")
SLIM = ("adamw_8bit", "adafactor", "adamw_cpu")
"""Optimisers that can update during the backward pass, and lose nothing of bf16 weights: by rounding by chance, or by
float32 weights in the computer's memory."""
SCHEDULES = ("constant", "linear", "cosine", "restarts")
HINTS = ("canny", "inpaint", "super_resolution", "pictures")
ATTENTION = ".attn"
"""The official filter: query, key, value and output projections of every attention block."""
LONGEST_NAME = 100
"""Letters: file systems take 255 bytes, of which the step's number, ``.safetensors`` and a draft's suffix need some."""
SEEDS = 2**64 - 1

_NAME = re.compile(r"\w[\w .()-]*(?<![ .])")


@dataclass(frozen=True)
class Spec:
    """What a setting may be. kind: "int", "float", "bool", "text", "choice", "words" (a list) or "pairs".

    ``free`` settings may differ between a run and its continuation: they do not change what is learned at a step.
    """

    kind: str
    says: str
    low: float = -math.inf
    high: float = math.inf
    choices: tuple[str, ...] = ()
    step: float = 0.0
    free: bool = False

    def check(self, name: str, value: Any) -> Any:
        """``value`` in this setting's type; :class:`WrongInput` says what is needed instead."""
        found, needed = getattr(self, f"_{self.kind}")(value)
        if found is None:
            raise WrongInput(f"The training setting '{name}' is {_quote(value)}. It needs {needed}.")
        return found

    def _int(self, value: Any) -> tuple[int | None, str]:
        whole = isinstance(value, (int, float)) and not isinstance(value, bool) and value == value // 1
        fine = whole and self.low <= value <= self.high
        return int(value) if fine else None, f"a whole number from {self.low:,} to {self.high:,}"

    def _float(self, value: Any) -> tuple[float | None, str]:
        fine = isinstance(value, (int, float)) and not isinstance(value, bool) and self.low <= value <= self.high
        return float(value) if fine else None, f"a number from {self.low:g} to {self.high:g}"

    def _bool(self, value: Any) -> tuple[bool | None, str]:
        return value if isinstance(value, bool) else None, "true or false"

    def _text(self, value: Any) -> tuple[str | None, str]:
        return value if isinstance(value, str) else None, "a text in quotes"

    def _choice(self, value: Any) -> tuple[str | None, str]:
        return value if value in self.choices else None, f"one of: {', '.join(self.choices)}"

    def _words(self, value: Any) -> tuple[tuple[str, ...] | None, str]:
        fine = isinstance(value, (list, tuple)) and all(isinstance(word, str) and word for word in value)
        return tuple(value) if fine else None, 'a list of texts, such as [".attn", ".channelwise"]'

    def _pairs(self, value: Any) -> tuple[tuple[tuple[str, str], ...] | None, str]:
        fine = isinstance(value, (list, tuple)) and all(
            isinstance(pair, (list, tuple)) and len(pair) == 2 and all(isinstance(part, str) for part in pair)
            for pair in value
        )
        return tuple(map(tuple, value)) if fine else None, 'pairs, each as ["[word]", "words to start from"]'


def _quote(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:60]}… ({len(text)} letters)"


def _number(default: float, says: str, low: float, high: float, step: float = 0.0, free: bool = False) -> Any:
    kind = "int" if isinstance(default, int) else "float"
    return field(default=default, metadata={"spec": Spec(kind, says, low, high, step=step, free=free)})


def _choice(default: str, choices: tuple[str, ...], says: str) -> Any:
    return field(default=default, metadata={"spec": Spec("choice", says, choices=choices)})


def _value(kind: str, default: Any, says: str, free: bool = False) -> Any:
    return field(default=default, metadata={"spec": Spec(kind, says, free=free)})


@dataclass(frozen=True)
class Settings:
    """How to train; the file of the command line holds these fields as JSON. Each field's :class:`Spec` explains it."""

    what: str = _choice(
        "lora",
        WHAT,
        "What learns: a LoRA on Stage C or Stage B, new words alone, a whole stage, a ControlNet, or a LoRA on the "
        "text encoder.",
    )
    name: str = _value("text", "my_lora", "Name of the file.", free=True)
    steps: int = _number(
        1000, "Updates in all. Raise it and start again to go on with a finished run.", 1, 1_000_000, free=True
    )
    batch_size: int = _number(4, "Pictures to an update, over all processes and parts.", 1, 4096)
    accumulation: int = _number(
        1, "Into how many parts a batch is cut. More need less memory and give the same result.", 1, 4096, free=True
    )
    learning_rate: float = _number(1e-4, "How large each update is; 0.0001 officially.", 1e-9, 1.0, 1e-5)
    warm_up: int = _number(10, "Steps over which the learning rate rises.", 0, 100_000)
    weight_decay: float = _number(0.01, "How fast weights shrink on their own; 0.01 officially.", 0.0, 1.0, 0.001)
    clip: float = _number(1.0, "The most that the gradient's norm may be; longer ones are shortened.", 1e-6, 1e6, 0.1)
    rank: int = _number(4, "How much the LoRA can hold; 4 officially, more for many subjects.", 1, 1024)
    alpha: float = _number(4.0, "Its effect is multiplied by alpha / rank.", 1e-3, 1e5, 0.5)
    blocks: tuple[str, ...] = _value(
        "words",
        (ATTENTION,),
        "What is trained: parts of layer names. .attn is the attention (official), .kv_mapper the prompt's "
        "way in, .channelwise the residual blocks, .mapper the noise level.",
    )
    seed: int = _number(0, "The order of the pictures and all noise. Another seed is another run.", 0, SEEDS)
    resolution: int = _number(
        768,
        "Side of the square whose area the image encoder sees. 768 suits models that paint 1024 px; 384 "
        "suits Cascade Mini. Other shapes get the same area.",
        32,
        4096,
        32,
    )
    base: str = _choice(
        "auto", BASES, "How the frozen model is stored: bf16, or fp8 in half of that. auto is fp32 on a processor."
    )
    checkpointing: bool = _value(
        "bool", True, "Compute activations twice instead of keeping them: far less memory, a third slower.", free=True
    )
    ema: float = _number(
        0.0, "Decay of averaged weights, which are then the result; 0 takes the last weights.", 0.0, 0.999999, 0.001
    )
    loss_weight: str = _choice(
        "p2",
        LOSS_WEIGHTS,
        "How noise levels count: p2 and adaptive are the official ways, constant counts all alike, velocity "
        "counts the first, noisiest steps most, min_snr the clear ones less.",
    )
    shift: float = _number(1.0, "Shift of the noise schedule in training; 1 officially.", 0.1, 16.0, 0.1)
    offset_noise: float = _number(
        0.0, "Noise on whole channels, for darker and brighter pictures; up to about 0.1.", 0.0, 1.0, 0.01
    )
    drop_text: float = _number(
        0.05, "How often a caption is left out, so that guidance works; 0.05 officially.", 0.0, 1.0, 0.01
    )
    save_every: int = _number(
        250, "Steps between files kept on the way; 0 keeps none. The state is saved anyway.", 0, 1_000_000, free=True
    )
    sample_every: int = _number(
        100, "Steps between live samples, the first before training; 0 paints none.", 0, 1_000_000, free=True
    )
    sample_prompt: str = _value(
        "text",
        "",
        "What the live samples show, one line each, with a size if wanted: a red apple | 1024x768. Left empty, the "
        "first picture's caption.",
        free=True,
    )
    tokens: tuple[tuple[str, str], ...] = _value("pairs", (), "Words to learn, each with words to start from.")
    layout: str = _choice(
        "comfyui", LAYOUTS, "Names in the file: comfyui loads in every loader, official in the official code."
    )
    method: str = _choice("lora", METHODS, "How the change of a layer is written down.")
    start_from: str = _value("text", "", "A LoRA to go on from, with other pictures or another rate.")
    optimiser: str = _choice(
        "adamw",
        OPTIMISERS,
        "adamw keeps two numbers to a weight, adamw_8bit a quarter of that, adafactor almost nothing; adamw_cpu keeps "
        "them, and the weights in fp32, in the computer's memory; prodigy and schedule_free need their own Python "
        "packages.",
    )
    schedule: str = _choice("constant", SCHEDULES, "How the learning rate goes after the warm-up.")
    restarts: int = _number(3, "How often the schedule 'restarts' begins anew.", 1, 1000)
    weights: str = _choice(
        "auto",
        ("auto", "bf16", "fp32"),
        "How a stage that learns is stored: bf16, of which adamw_8bit, adafactor and adamw_cpu lose nothing; auto is "
        "bf16 with these, else fp32.",
    )
    hint: str = _choice("canny", HINTS, "What a ControlNet sees; pictures takes them from a second folder.")
    control_blocks: tuple[str, ...] = _value(
        "words", (), "ResBlocks that a ControlNet feeds, as numbers; empty spreads eight over the model."
    )
    validate_every: int = _number(
        50, "Steps between losses on fixed noise, which decide whether training has gone wrong; 0 never.", 0, 1_000_000
    )
    held_out: int = _number(
        0,
        "Pictures that are not learned from: the loss on fixed noise is then theirs, and says what is learned beyond "
        "the pictures. 0 judges on those that are learned.",
        0,
        100_000,
    )
    list_steps: bool = _value(
        "bool",
        False,
        "Put the files of save_every among the loaders' lists, in a folder of the run's name, instead of into output.",
        free=True,
    )
    trunk_steps: int = _number(
        0, "Steps in which a new ControlNet's trunk first learns to tell the picture from its hint alone.", 0, 100_000
    )

    def __post_init__(self) -> None:
        for setting in fields(self):
            value = spec_of(setting).check(setting.name, getattr(self, setting.name))
            object.__setattr__(self, setting.name, value)
        if not _NAME.fullmatch(self.name) or len(self.name) > LONGEST_NAME:
            raise WrongInput(
                f"The name of the training run is {_quote(self.name)}. Use at most {LONGEST_NAME} letters, digits, "
                "spaces, dots, hyphens and underscores, beginning with a letter or a digit and not ending with a dot."
            )
        if not self.blocks:
            raise WrongInput(
                "No blocks to train are named. Give parts of module names, such as .attn for the "
                "attention or .channelwise for the residual blocks."
            )
        taught = self.what if self.what == "text_lora" else ", ".join(self.blocks)
        if self.is_lora and self.layout == "official" and (taught != ATTENTION or self.method != "lora"):
            raise WrongInput(
                f"The official file layout holds a plain LoRA of the attention alone, but this is a {self.method} of "
                f"{taught}. Train a lora of {ATTENTION} only, or choose the comfyui layout."
            )
        if self.is_lora and self.layout == "diffusers":
            raise WrongInput("A LoRA is written in the comfyui or the official layout. Choose one of them.")
        if self.weights == "bf16" and self.optimiser not in SLIM and self.what in ("stage_c", "stage_b"):
            raise WrongInput(
                f"A stage in bf16 loses most of what {self.optimiser} changes. Choose adamw_8bit, adafactor or "
                "adamw_cpu, which do not, or fp32 weights."
            )
        if self.what == "words" and not self.tokens:
            raise WrongInput("Words are to be learned, but none is named. Write for example [name] = dog.")
        names = [text.casefold() for text, _ in self.tokens]
        if len(set(names)) < len(names):
            raise WrongInput("A word to learn is named twice. Name each once; case makes no difference.")
        if self.start_from and self.what in ("words", "stage_c", "stage_b"):
            raise WrongInput(
                f"A run of {self.what} has no start_from, which is for LoRAs and ControlNets. Leave it out; a stage "
                "goes on where its own file is given as the model."
            )
        if not all(block.isdecimal() for block in self.control_blocks):
            raise WrongInput(
                f"The ControlNet is to feed the blocks {', '.join(self.control_blocks)}. Give their numbers, such as "
                '["0", "4", "8"].'
            )

    @property
    def is_lora(self) -> bool:
        """Whether adapters beside frozen layers learn."""
        return self.what in ("lora", "words", "text_lora")

    @property
    def stored(self) -> str:
        """How a stage that learns is stored, "bf16" or "fp32"."""
        return ("bf16" if self.optimiser in SLIM else "fp32") if self.weights == "auto" else self.weights

    def base_on(self, device: str) -> str:
        """How frozen weights are stored on a ``device`` ("cpu", "cuda", …)."""
        return ("fp32" if device == "cpu" else "bf16") if self.base == "auto" else self.base

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return json.loads(json.dumps(asdict(self)))

    def identity(self, *facts: str) -> str:
        """16 hexadecimal digits, equal for a run and its continuation; ``facts`` name the model and the data.

        Settings at their default do not count, so that runs go on where a later version has new ones.
        """
        plain = Settings().as_dict()
        kept = {key: value for key, value in self.as_dict().items() if not SPECS[key].free and value != plain[key]}
        if self.schedule != "constant":
            kept["steps"] = self.steps  # the rate of every step depends on them
        return sha256(json.dumps([kept, *facts], sort_keys=True).encode()).hexdigest()[:16]


def spec_of(setting: Field[Any]) -> Spec:
    """What a field of :class:`Settings` may be."""
    return setting.metadata["spec"]


SPECS: dict[str, Spec] = {setting.name: spec_of(setting) for setting in fields(Settings)}

PRESETS: dict[str, dict[str, Any]] = {
    "style": {"steps": 1500, "learning_rate": 4e-4, "rank": 12, "alpha": 12.0, "blocks": (".attn", ".channelwise")},
    "subject": {"steps": 800, "learning_rate": 4e-4, "rank": 8, "alpha": 8.0, "drop_text": 0.0},
    "concept": {"steps": 2000, "learning_rate": 2e-4, "rank": 16, "alpha": 16.0, "blocks": (".attn", ".kv_mapper")},
    "large set": {"steps": 10_000, "learning_rate": 1e-4, "rank": 32, "alpha": 32.0, "batch_size": 16},
    "controlnet": {
        "steps": 3000,
        "learning_rate": 1e-3,
        "batch_size": 16,
        "warm_up": 20,
        "schedule": "cosine",
        "ema": 0.9,
        "drop_text": 0.2,
    },
}
"""Starting points by task."""


def from_dict(values: Mapping[str, Any], where: str = "The settings") -> Settings:
    """Settings from JSON values; entries that are left out keep their default."""
    if not isinstance(values, Mapping):
        raise WrongInput(f'{where} are {_quote(values)}. They have to be names with values: {{"steps": 1000, …}}.')
    unknown = sorted(map(str, set(values) - set(SPECS)))
    if unknown:
        raise WrongInput(
            f"{where} name {', '.join(unknown)}, which is no training setting. Known are: {', '.join(sorted(SPECS))}."
        )
    return replace(Settings(), **values)
