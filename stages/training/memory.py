"""How much memory a run will take on its device, told before it starts."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from ..nets.unet import UNetConfig
from .frozen_net import CLASSES
from .lora_layers import find_layers
from .settings import Settings

GB = 10**9
STREAM = 4
"""Bytes of an activation between groups: float32, also when products are computed in bfloat16."""
GROUP = 90
"""Bytes that a C, T, A group keeps for its way back, to a cell and channel: the four-fold wide hidden layer before and
after GELU and GRN, norms, projections. Counted by tests/unit/test_tuning_plan.py: 54 with products in bfloat16, 76 in
float32,
which is what cards without bfloat16 compute in."""
BACKWARD = 1.5
"""Gradients that live beside what one group kept."""
LEARNED = 16
"""Bytes to a learned parameter: itself, its gradient and two moments, float32."""
FIXED = 800_000_000
"""Libraries, kernels and what an allocator leaves unused."""


@dataclass(frozen=True)
class Plan:
    """Bytes by what they are for."""

    parts: dict[str, int]

    @property
    def total(self) -> int:
        """All of it."""
        return sum(self.parts.values())

    def describe(self) -> str:
        """One sentence for a log."""
        parts = ", ".join(f"{name} {size / GB:.2f}" for name, size in self.parts.items())
        return f"Memory plan: {self.total / GB:.1f} GB ({parts})."


def plan(
    kind: str,
    config: UNetConfig,
    settings: Settings,
    *,
    device: str = "cuda",
    processes: int = 1,
    cells: int | None = None,
    text_parameters: int = 0,
) -> Plan:
    """The plan for training a LoRA on "stage_c" or "stage_b" of ``config``.

    cells: of the largest latent, by default those of the settings' resolution. text_parameters: of a text encoder that
    has to stay, because words are learned.
    """
    net = CLASSES[kind, False](config, device="meta")
    cells = (settings.resolution // 32) ** 2 if cells is None else cells
    at_once = -(-settings.batch_size // (processes * settings.accumulation))
    learned = sum(settings.rank * sum(layer.weight.shape[:2]) for _, layer in find_layers(net, settings.blocks))
    parts = {
        "frozen weights": count_weight_bytes(net, settings.base_on(device)),
        "LoRA with its optimiser": learned * (LEARNED + (4 if settings.ema else 0)),
        "activations": count_activations(config, at_once, cells, settings.checkpointing),
    }
    if text_parameters:
        parts["text encoder"] = 2 * text_parameters + GROUP * 77 * 1280 * 32 * at_once
    return Plan({**parts, "overhead": FIXED})


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


def count_activations(config: UNetConfig, batch: int, cells: int, checkpointing: bool) -> int:
    """Bytes that ``batch`` latents of ``cells`` (of the embedded grid) keep until the way back, and its peak."""
    levels, groups = config.c_hidden, [0] * len(config.c_hidden)
    for way, places in ((0, range(len(levels))), (1, range(len(levels) - 1, -1, -1))):
        for level, count, repeat in zip(places, config.blocks[way], config.block_repeat[way]):
            groups[level] += count * repeat
    halved = getattr(config, "switch_level", None)
    sizes, shrink = [], 1
    for level, channels in enumerate(levels):
        if level and (halved is None or halved[level - 1]):
            shrink *= 4
        sizes.append(batch * cells // shrink * channels)
    if not checkpointing:
        return int(sum(GROUP * count * size for count, size in zip(groups, sizes)) + BACKWARD * GROUP * max(sizes))
    return int(sum(STREAM * count * size for count, size in zip(groups, sizes)) + (1 + BACKWARD) * GROUP * max(sizes))
