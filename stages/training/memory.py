"""How much memory a run will take on its device, told before it starts."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache

import torch
from torch import nn

from ..files.clip import TextConfig, tower_shapes
from ..nets.backend import weight_of
from ..nets.controlnet import ControlNet, ControlNetConfig
from ..nets.encoder import EncoderConfig
from ..nets.unet import UNetConfig
from ..units import GB
from .control import plan_control
from .frozen_net import CLASSES, MOST_SCORES
from .lora_layers import find_layers
from .settings import SLIM, Settings

STREAM = 4
"""Bytes of an activation between groups: float32, also when products are computed in bfloat16."""
GROUP = {False: 58, True: 36}
"""Bytes that a C, T, A group keeps for its way back, to a cell and channel: the four-fold wide hidden layer before and
after GELU and GRN, norms, projections; with products in float32 and in bfloat16. Counted by
tests/unit/test_tuning_plan.py."""
TAUGHT = {False: 32, True: 20}
"""Bytes beside these where the group's own weights learn: what each layer has read."""
SCORES = {False: 4, True: 6}
"""Bytes of each product of a head, a cell and a token that a processor's attention keeps: after the softmax in float32,
and in the values' dtype where that is another."""
SPOKEN = {False: 8, True: 4}
"""Bytes of keys and values to a token and channel."""
BACKWARD = 1.9
"""What one group keeps, with the gradients that live beside it."""
FIXED = {False: 800_000_000, True: 690_000_000}
"""On a card: libraries, kernels and what an allocator leaves unused. On a processor: Python with PyTorch and
what that loads on its way, most of it code."""
UPDATE = {"adamw_8bit": 32, "adafactor": 16}
"""Bytes for a number of the largest weight while it is updated."""
MOMENTS = {"adamw": 8.0, "adamw_8bit": 2.04, "adafactor": 0.02, "prodigy": 16.0, "schedule_free": 8.0, "adamw_cpu": 0.0}
"""Bytes that an optimiser keeps of a learned number, float32; of a bfloat16 one AdamW keeps half of it."""
ON_HOST = 12.0
"""Bytes that adamw_cpu keeps of a learned number in the computer's memory."""
TOKENS = 77 + 8
"""Tokens of a prompt beside the cells: its words, its pooled text and its picture, four each."""
HALVED = {False: 1.0, True: 0.55}
"""What a ControlNet keeps where products are computed in bfloat16, of what it keeps in float32: some layers stay wide.
Beside it are its weights in bfloat16."""
TRUNK = EncoderConfig()
"""The published image encoder."""
NAMES = {
    "lora": "LoRA",
    "words": "words",
    "text_lora": "LoRA",
    "stage_c": "Stage C",
    "stage_b": "Stage B",
    "controlnet": "ControlNet",
}


@dataclass(frozen=True)
class Plan:
    """Bytes of the device by what they are for; ``host`` are those of the computer's memory beside it."""

    parts: dict[str, int]
    host: int = 0

    @property
    def total(self) -> int:
        """All of it."""
        return sum(self.parts.values())

    def describe(self) -> str:
        """One sentence for a log."""
        parts = ", ".join(f"{name} {size / GB:.2f}" for name, size in self.parts.items())
        beside = f" and {self.host / GB:.1f} GB of the computer's memory" if self.host else ""
        return f"Memory plan: {self.total / GB:.1f} GB ({parts}){beside}."


def plan(
    kind: str,
    config: UNetConfig,
    settings: Settings,
    *,
    device: str = "cuda",
    processes: int = 1,
    cells: int | None = None,
    text: TextConfig | None = None,
    trunk: EncoderConfig = TRUNK,
    bfloat16: bool | None = None,
    pictures: int = 0,
) -> Plan:
    """The plan for training what the settings say, with a network "stage_c" or "stage_b" of ``config``.

    cells: of the largest latent as the network embeds it, by default those of the settings' resolution. text: a
    text encoder that has to stay, because words or a LoRA on it are learned. trunk: of the image encoder that a
    ControlNet starts from. bfloat16: how products are computed, by default so but on a processor. pictures: bytes
    of all that is encoded, which stays in the computer's memory.
    """
    net = CLASSES[kind, False](config, device="meta")
    if cells is None:
        cells = (settings.resolution // 32) ** 2 if kind == "stage_c" else (settings.resolution // 6) ** 2
    at_once = -(-settings.batch_size // (processes * settings.accumulation))
    learned, stored, cpu = count_learned(net, config, settings, trunk, text), 4, device == "cpu"
    whole = settings.what in ("stage_c", "stage_b")
    parts = {"frozen weights": count_weight_bytes(net, settings.base_on(device))}
    if whole:
        parts, stored = {}, 2 if settings.stored == "bf16" else 4
    fused = stored == 2 and settings.optimiser in SLIM and processes * settings.accumulation == 1
    moments = MOMENTS[settings.optimiser] / (2 if stored == 2 and settings.optimiser not in SLIM else 1)
    beside = int(learned * ON_HOST) if settings.optimiser == "adamw_cpu" else 0
    if cpu and beside:
        moments, beside = ON_HOST, 0
    size = stored + (0 if fused else stored) + moments
    largest = max(parameter.numel() for parameter in net.parameters())
    update = largest * UPDATE.get(settings.optimiser, 0) if fused else 0
    parts[f"{NAMES[settings.what]} with its optimiser"] = int(learned * (size + (4 if settings.ema else 0))) + update
    parts["activations"] = count_activations(config, at_once, cells, settings.checkpointing, device, bfloat16, whole)
    if settings.what == "controlnet":
        narrow = not cpu if bfloat16 is None else bfloat16
        kept = count_control(plan_control(config, settings, trunk), math.isqrt(cells)) * HALVED[narrow]
        parts["hints"] = int(at_once * kept) + (2 * learned if narrow else 0)
    if text is not None:
        plain = 4 if settings.base_on(device) == "fp32" else 2
        parts["text encoder"] = plain * count_text(text) + count_text_activations(text, at_once)
    if cpu and pictures:
        parts["pictures"] = pictures
    return Plan({**parts, "overhead": FIXED[cpu]}, beside)


def count_learned(
    net: nn.Module, config: UNetConfig, settings: Settings, trunk: EncoderConfig, text: TextConfig | None = None
) -> int:
    """Numbers that learn."""
    if settings.what in ("stage_c", "stage_b"):
        return sum(parameter.numel() for parameter in net.parameters())
    if settings.what == "controlnet":
        with torch.device("meta"):
            control = ControlNet(plan_control(config, settings, trunk))
        return sum(parameter.numel() for parameter in control.parameters())
    if settings.what in ("words", "text_lora"):
        tower = text or TextConfig()
        adapters = tower.num_hidden_layers * 4 * settings.rank * 2 if settings.what == "text_lora" else 0
        return (len(settings.tokens) + adapters) * tower.hidden_size
    layers = [weight_of(layer).shape[:2] for _, layer in find_layers(net, settings.blocks)]
    if settings.method == "loha":
        return sum(2 * settings.rank * sum(shape) for shape in layers)
    if settings.method == "lokr":
        return sum(64 + settings.rank * sum(shape) // 8 for shape in layers)
    return sum(settings.rank * sum(shape) + (shape[0] if settings.method == "dora" else 0) for shape in layers)


@cache
def count_control(config: ControlNetConfig, side: int) -> int:
    """Bytes in float32 that a ControlNet keeps of one hint for ``side`` x ``side`` cells until the way back, counted in
    its graph without any numbers."""
    with torch.device("meta"):
        net = ControlNet(config)
        hint = torch.empty(1, config.c_in, side * config.cell, side * config.cell)
    known = {id(parameter) for parameter in net.parameters()}
    kept: list[torch.Tensor] = []

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        if id(tensor) not in known:
            known.add(id(tensor))
            kept.append(tensor)  # also so that no other gets its id
        return tensor

    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        net(hint)
    storages = {tensor.untyped_storage()._cdata: tensor.untyped_storage().nbytes() for tensor in kept}
    return sum(storages.values())


def count_text(text: TextConfig) -> int:
    """Numbers of a text encoder."""
    return sum(map(math.prod, tower_shapes(text).values()))


def count_text_activations(text: TextConfig, batch: int) -> int:
    """Bytes that a text encoder keeps of ``batch`` prompts: what its layers hand on, and one layer's own."""
    width, tokens = text.hidden_size, batch * text.max_position_embeddings
    own = 2 * text.intermediate_size + 8 * width
    return int(STREAM * tokens * (text.num_hidden_layers * width + BACKWARD * own))


def count_weight_bytes(net: nn.Module, base: str) -> int:
    """Bytes of a network's frozen weights as :func:`.frozen.frozen_net` stores them."""
    plain = 4 if base == "fp32" else 2
    total = sum(p.numel() for p in net.parameters()) * plain
    if base == "fp8":
        total -= sum(
            module.weight.numel() * (plain - 1) - 4 * len(module.weight)
            for module in net.modules()
            if isinstance(module, nn.Linear)
        )
    return total


def count_activations(
    config: UNetConfig,
    batch: int,
    cells: int,
    checkpointing: bool,
    device: str = "cuda",
    bfloat16: bool | None = None,
    whole: bool = False,
) -> int:
    """Bytes that ``batch`` latents of ``cells`` (of the embedded grid) keep until the way back, and its peak.

    On a processor attention keeps its products, one for each head, cell and token; the kernels of cards keep none.
    bfloat16: how products are computed, by default so but on a processor. whole: the network itself learns.
    """
    cpu = device == "cpu"
    narrow = not cpu if bfloat16 is None else bfloat16
    levels, groups = config.c_hidden, [0] * len(config.c_hidden)
    for way, places in ((0, range(len(levels))), (1, range(len(levels) - 1, -1, -1))):
        for level, count, repeat in zip(places, config.blocks[way], config.block_repeat[way]):
            groups[level] += count * repeat
    halved = getattr(config, "switch_level", None)
    kept, handed, shrink = [], [], 1
    for level, channels in enumerate(levels):
        if level and (halved is None or halved[level - 1]):
            shrink *= 4
        grid = cells // shrink
        size = batch * grid * channels
        attention = "A" in config.level_config[level]
        tokens = TOKENS + grid
        scores = 0
        if attention and cpu and grid <= MOST_SCORES:
            scores = batch * config.nhead[level] * grid * tokens * SCORES[narrow]
        spoken = batch * tokens * channels * SPOKEN[narrow] if attention else 0
        kept.append((GROUP[narrow] + (TAUGHT[narrow] if whole else 0)) * size + scores + spoken)
        handed.append(STREAM * size)
    largest = max(kept)
    if not checkpointing:
        return int(sum(count * size for count, size in zip(groups, kept)) + (BACKWARD - 1) * largest)
    return int(sum(count * size for count, size in zip(groups, handed)) + BACKWARD * largest)
