"""Which number format and which preset suit a machine: one table, a pure function of what the machine can do.

Formats are named as in the loaders: "fp32", "bf16", "fp16", "fp8_e4m3fn".
"""

from __future__ import annotations

from dataclasses import dataclass

from .disk import in_words

BYTES = {"fp64": 8, "fp32": 4, "bf16": 2, "fp16": 2, "fp8_e4m3fn": 1, "fp8_e5m2": 1}
"""Bytes of one weight."""

WORKING = {"stage_c": 1_000_000_000, "stage_b": 2_500_000_000}
"""About what a pass at 1024x1024 takes beside the weights, in bytes."""

FULL_ROOM = 10_000_000_000
"""From how much memory on the full models are advised: Stage C alone has 7.2 GB in bf16."""


@dataclass(frozen=True)
class Machine:
    """The device that computes.

    kind: "cpu", "mps", or torch's name of a graphics device ("cuda" for NVIDIA and AMD). name: for people.
    bf16, fp16: whether it computes in them well. fp8: whether it can hold weights in 8 bits.
    room: bytes that models may take, those of models that can be unloaded included.
    """

    kind: str
    name: str
    bf16: bool
    fp16: bool
    fp8: bool
    room: int


@dataclass(frozen=True)
class Choice:
    """Formats that weights are kept in and computed in, and why."""

    storage: str
    compute: str
    reason: str

    def describe(self) -> str:
        """Such as "bf16: NVIDIA H100 computes in bf16"."""
        computing = "" if self.compute == self.storage else f", computing in {self.compute}"
        return f"{self.storage}{computing}: {self.reason}"


def choose(machine: Machine, stage: str, stored: str, parameters: int) -> Choice:
    """Formats for ``stage`` ("stage_c" or "stage_b"), whose file holds ``parameters`` weights in ``stored``.

    The format that the machine computes in; if the weights do not fit beside a pass, the smallest step down that does.
    """
    compute, reason = _compute(machine, stage, stored)
    steps = [compute, *_smaller(machine, compute, stored)]
    needed = [parameters * BYTES[step] + WORKING[stage] for step in steps]
    fitting = [step for step, most in zip(steps, needed) if most <= machine.room]
    storage = fitting[0] if fitting else steps[-1]
    if storage != compute:
        reason += (
            f"; kept in {storage}, since {in_words(machine.room)} of memory are free and {in_words(needed[0])} needed"
        )
    return Choice(storage, compute, reason)


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
    return [*steps, "fp8_e4m3fn"] if machine.fp8 else steps


def suited(machine: Machine) -> tuple[tuple[str, ...], str]:
    """Keys of the presets that suit the machine, the best first, and why: the first is fetched if none is here."""
    free = f"{in_words(machine.room)} of memory are free on {machine.name}"
    if machine.kind == "cpu":
        return (
            "lite-bf16",
            "lite-fp32",
        ), "without a graphics card the lite models have the fewest weights to compute with"
    if machine.room < FULL_ROOM:
        return ("lite-bf16", "lite-fp32"), f"{free}, and the full models want {in_words(FULL_ROOM)}"
    if machine.bf16 and machine.kind != "mps":
        return ("full-bf16", "all-in-one", "mixed-bf16", "full-fp32"), free
    return ("fp16",), f"{free}, and it has no bf16"
