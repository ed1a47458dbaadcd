"""Which number format and which preset suit a machine: one table, a pure function of what the machine can do.

Formats are named as in the loaders: "fp32", "bf16", "fp16", "fp8_e4m3fn".
"""

from __future__ import annotations

from dataclasses import dataclass

from ...stages.files.kinds import KINDS
from ...stages.nets import memory
from .disk import in_words

BYTES = {"fp64": 8, "fp32": 4, "bf16": 2, "fp16": 2, "fp8_e4m3fn": 1, "fp8_e5m2": 1}
"""Bytes of one weight."""

FP8 = "fp8_e4m3fn"

LARGEST = {"stage_c": ("3.6B", 24, (1, 1)), "stage_b": ("1.5B", 256, (1, 2, 4, 8))}
"""The largest published network of a stage, the side of its latent at 1024x1024, and the strides of its levels."""

CONTEXT = 600_000_000
"""What a driver and the host keep of a device's memory for themselves, in bytes."""

STREAMED = 2_500_000_000
"""Bytes of weights that the host may stream at every step before 8 bits are advised: 0.2 s over PCIe 3 x16."""

FULL_ROOM = 10_000_000_000
"""From how much memory on the full models are advised: Stage C alone has 7.2 GB in bf16."""


@dataclass(frozen=True)
class Machine:
    """The device that computes.

    kind: "cpu", "mps", or torch's name of a graphics device ("cuda" for NVIDIA and AMD). name: for people.
    bf16, fp16: whether it computes in them well. fp8: whether it can hold weights in 8 bits.
    room: all its memory in bytes, whatever holds it now, so that the advice is the same at every run; None if unknown.
    """

    kind: str
    name: str
    bf16: bool
    fp16: bool
    fp8: bool
    room: int | None


@dataclass(frozen=True)
class FormatChoice:
    """Formats that weights are kept in and computed in, and why."""

    storage: str
    compute: str
    reason: str

    def describe(self) -> str:
        """Such as "bf16: NVIDIA H100 computes in bf16"."""
        computing = "" if self.compute == self.storage else f", computing in {self.compute}"
        return f"{self.storage}{computing}: {self.reason}"


def advise_format(machine: Machine, stage: str, stored: str, parameters: int) -> FormatChoice:
    """Formats for ``stage`` ("stage_c" or "stage_b"), whose file holds ``parameters`` weights in ``stored``.

    The format that the machine computes in, or that of the file where only that fits. 8 bits, which change the picture,
    only where more than ``STREAMED`` of the weights would have to be streamed at every step.
    """
    compute, reason = _compute(machine, stage, stored)
    steps = [compute, *_smaller(machine, compute, stored)]
    if machine.room is None:
        return FormatChoice(compute, compute, reason)
    working = measure_pass(stage, BYTES[compute]) + (CONTEXT if machine.kind != "cpu" else 0)
    lacking = {step: max(0, parameters * BYTES[step] + working - machine.room) for step in steps}
    exact = [step for step in steps if step != FP8]
    storage = next((step for step in exact if not lacking[step]), exact[-1])
    streamed = lacking[storage]
    if streamed > (STREAMED if machine.kind != "cpu" else 0) and FP8 in steps:
        storage = FP8
    if storage != compute:
        needed = in_words(parameters * BYTES[compute] + working)
        reason += (
            f"; kept in {storage}, since the device has {in_words(machine.room)} of memory and {needed} are needed"
        )
    if streamed:
        reason += (
            f"; {in_words(streamed)} of {exact[-1]} weights "
            f"{'are' if storage != FP8 else 'would have to be'} streamed at every step"
        )
    return FormatChoice(storage, compute, reason)


def measure_pass(stage: str, dtype_size: int) -> int:
    """Bytes that a guided pass of the stage's largest network at 1024x1024 takes beside its weights, as planned."""
    name, side, strides = LARGEST[stage]
    return memory.activation_memory(KINDS[stage].published[name], 2, side, side, dtype_size, strides)


def _compute(machine: Machine, stage: str, stored: str) -> tuple[str, str]:
    """The format to compute in, and why."""
    if stored == "fp16" and machine.fp16:
        return "fp16", f"{'this Stage C is made for fp16' if stage == 'stage_c' else 'its file is fp16'}"
    if machine.bf16 and machine.kind != "mps":
        return "bf16", f"{machine.name} computes in bf16"
    if machine.kind == "cpu":
        return "fp32", f"{machine.name} has no instructions for bf16"
    if stage == "stage_b" and machine.fp16:
        return "fp16", f"{machine.name} computes in fp16"
    if stage == "stage_c" and machine.fp16:
        return "fp32", (
            f"{machine.name} computes in fp16, which Stage C overflows in; a Stage C made for fp16 is "
            "quicker here (preset 'Full models for devices without bf16')"
        )
    return "fp32", f"{machine.name} computes neither in bf16 nor in fp16"


def _smaller(machine: Machine, compute: str, stored: str) -> list[str]:
    """Formats that take less room than ``compute``, the largest first."""
    steps = []
    if compute == "fp32" and machine.kind != "mps":
        steps.append(stored if stored in ("bf16", "fp16") else "bf16")
    elif compute == "fp32" and machine.fp16 and stored == "fp16":
        steps.append("fp16")
    return [*steps, FP8] if machine.fp8 else steps


def rank_presets(machine: Machine) -> tuple[tuple[str, ...], str]:
    """Keys of the presets that suit the machine, the best first, and why: the first is fetched if none is here."""
    if machine.kind == "cpu":
        return (
            "lite-bf16",
            "lite-fp32",
        ), "without a graphics card the lite models have the fewest weights to compute with"
    if machine.room is None:
        return ("lite-bf16", "lite-fp32"), f"how much memory {machine.name} has is not known"
    room = f"{machine.name} has {in_words(machine.room)} of memory"
    if machine.room < FULL_ROOM:
        return ("lite-bf16", "lite-fp32"), f"{room}, and the full models want {in_words(FULL_ROOM)}"
    if machine.bf16 and machine.kind != "mps":
        return ("full-bf16", "all-in-one", "mixed-bf16", "full-fp32"), room
    return ("fp16",), f"{room} and no bf16"
