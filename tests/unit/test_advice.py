"""The advice on number formats and presets: the whole table, as a function of the machine alone."""

from __future__ import annotations

from dataclasses import replace

import pytest

from cascade_studio.nodes.checkpoints.catalogue import load
from cascade_studio.nodes.checkpoints.presets import FULL_ROOM, Machine, advise_format, rank_presets
from cascade_studio.stages.units import GB

FULL_C, LITE_C, FULL_B, LITE_B = 3_589_103_632, 1_030_785_040, 1_562_941_136, 699_471_248
AMPERE = Machine("cuda", "an RTX 3090", True, True, True, 24 * GB)
TURING = Machine("cuda", "an RTX 2080", False, True, True, 24 * GB)
MAXWELL = Machine("cuda", "a GTX 980", False, False, True, 24 * GB)
APPLE = Machine("mps", "the graphics device (mps)", True, True, False, 48 * GB)
SAPPHIRE = Machine("cpu", "this processor", True, False, True, 64 * GB)
PROCESSOR = Machine("cpu", "this processor", False, False, True, 64 * GB)


def with_room(machine: Machine, gigabytes: float) -> Machine:
    return replace(machine, room=int(gigabytes * GB))


@pytest.mark.parametrize(
    "machine, stage, stored, parameters, storage, compute",
    [
        # bf16 where the device has it, whatever the file holds
        (AMPERE, "stage_c", "bf16", FULL_C, "bf16", "bf16"),
        (AMPERE, "stage_c", "fp32", FULL_C, "bf16", "bf16"),
        (AMPERE, "stage_b", "bf16", FULL_B, "bf16", "bf16"),
        (AMPERE, "stage_b", "fp32", FULL_B, "bf16", "bf16"),
        # files made for fp16 stay so
        (AMPERE, "stage_c", "fp16", FULL_C, "fp16", "fp16"),
        (TURING, "stage_c", "fp16", FULL_C, "fp16", "fp16"),
        (APPLE, "stage_c", "fp16", FULL_C, "fp16", "fp16"),
        (AMPERE, "stage_b", "fp16", FULL_B, "fp16", "fp16"),
        # without bf16, and on Apple's devices: Stage C in fp32, Stage B in fp16
        (TURING, "stage_c", "bf16", FULL_C, "fp32", "fp32"),
        (TURING, "stage_b", "bf16", FULL_B, "fp16", "fp16"),
        (APPLE, "stage_c", "bf16", FULL_C, "fp32", "fp32"),
        (APPLE, "stage_b", "bf16", FULL_B, "fp16", "fp16"),
        (MAXWELL, "stage_c", "bf16", FULL_C, "fp32", "fp32"),
        (MAXWELL, "stage_b", "bf16", FULL_B, "fp32", "fp32"),
        # processors
        (SAPPHIRE, "stage_c", "bf16", FULL_C, "bf16", "bf16"),
        (SAPPHIRE, "stage_b", "fp32", FULL_B, "bf16", "bf16"),
        (PROCESSOR, "stage_c", "bf16", FULL_C, "fp32", "fp32"),
        (PROCESSOR, "stage_b", "fp16", FULL_B, "fp32", "fp32"),
        (SAPPHIRE, "stage_c", "fp16", FULL_C, "bf16", "bf16"),
        # short memory: kept as the file has it; streamed a little; and in 8 bits where it would be much
        (with_room(TURING, 15), "stage_c", "bf16", FULL_C, "bf16", "fp32"),
        (with_room(TURING, 15), "stage_c", "fp32", FULL_C, "bf16", "fp32"),
        (with_room(PROCESSOR, 12), "stage_c", "fp16", FULL_C, "fp16", "fp32"),
        (with_room(TURING, 4), "stage_c", "bf16", FULL_C, "fp8_e4m3fn", "fp32"),
        (with_room(AMPERE, 4), "stage_c", "bf16", FULL_C, "fp8_e4m3fn", "bf16"),
        (with_room(AMPERE, 6), "stage_c", "bf16", FULL_C, "bf16", "bf16"),
        (with_room(AMPERE, 8), "stage_c", "bf16", FULL_C, "bf16", "bf16"),
        (with_room(AMPERE, 6), "stage_b", "bf16", FULL_B, "bf16", "bf16"),
        (with_room(AMPERE, 4), "stage_b", "bf16", LITE_B, "bf16", "bf16"),
        (with_room(AMPERE, 3), "stage_c", "bf16", LITE_C, "bf16", "bf16"),
        (replace(AMPERE, room=None), "stage_c", "bf16", FULL_C, "bf16", "bf16"),
        (with_room(AMPERE, 6), "stage_c", "bf16", LITE_C, "bf16", "bf16"),
        (with_room(PROCESSOR, 5), "stage_c", "bf16", FULL_C, "fp8_e4m3fn", "fp32"),
        (with_room(AMPERE, 5), "stage_b", "bf16", LITE_B, "bf16", "bf16"),
        (with_room(AMPERE, 1), "stage_c", "bf16", FULL_C, "fp8_e4m3fn", "bf16"),
        # devices that cannot hold 8 bits keep what they have
        (with_room(APPLE, 8), "stage_c", "bf16", FULL_C, "fp32", "fp32"),
        (with_room(APPLE, 3), "stage_b", "bf16", FULL_B, "fp16", "fp16"),
    ],
)
def test_formats(machine, stage, stored, parameters, storage, compute):
    choice = advise_format(machine, stage, stored, parameters)
    assert (choice.storage, choice.compute) == (storage, compute)
    text = choice.describe()
    assert text.startswith(storage) and (f"computing in {compute}" in text) == (storage != compute)
    assert machine.name in text or "made for" in text or "its file" in text
    assert ("are needed" in text) == (storage != compute)


def test_the_reasons_say_what_to_do():
    text = advise_format(TURING, "stage_c", "bf16", FULL_C).reason
    assert "Stage C overflows in" in text and f"preset '{load().presets['fp16'].title}'" in text
    short = advise_format(with_room(AMPERE, 4), "stage_c", "bf16", FULL_C).reason
    assert "kept in fp8_e4m3fn, since the device has 4.00 GB of memory and" in short
    assert "of bf16 weights would have to be streamed at every step" in short
    assert (
        "of bf16 weights are streamed at every step"
        in advise_format(with_room(AMPERE, 6), "stage_c", "bf16", FULL_C).reason
    )
    assert "stream" not in advise_format(with_room(AMPERE, 10), "stage_c", "bf16", FULL_C).reason
    assert "no instructions for bf16" in advise_format(PROCESSOR, "stage_c", "bf16", FULL_C).reason


@pytest.mark.parametrize(
    "machine, first",
    [
        (AMPERE, "full-bf16"),
        (with_room(AMPERE, 10), "full-bf16"),
        (with_room(AMPERE, 9.9), "lite-bf16"),
        (TURING, "fp16"),
        (with_room(TURING, 8), "lite-bf16"),
        (APPLE, "fp16"),
        (with_room(APPLE, 8), "lite-bf16"),
        (replace(AMPERE, room=None), "lite-bf16"),
        (SAPPHIRE, "lite-bf16"),
        (PROCESSOR, "lite-bf16"),
    ],
)
def test_full_or_lite(machine, first):
    keys, reason = rank_presets(machine)
    assert keys[0] == first and len(set(keys)) == len(keys)
    assert set(keys) <= set(load().presets), "the presets exist"
    assert machine.kind == "cpu" or machine.name in reason


def test_full_models_fit_where_they_are_advised():
    """Where the full preset is taken, neither stage has to be squeezed into 8 bits."""
    machine = replace(AMPERE, room=FULL_ROOM)
    assert [
        advise_format(machine, stage, "bf16", size).storage
        for stage, size in (("stage_c", FULL_C), ("stage_b", FULL_B))
    ] == ["bf16", "bf16"]
