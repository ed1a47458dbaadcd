"""What loading a model holds and reads: its weights once, beside the mapped file, in a process of its own."""

from __future__ import annotations

import sys
import time
from dataclasses import replace
from pathlib import Path

import harness
import pytest
import torch

sys.path.append(str(harness.REPOSITORY / "tests" / "benchmarks"))

from measure_loading import MIB, measure_apart, shapes_of_net, watching, write_noise  # noqa: E402

from cascade_studio.stages.files.kinds import KINDS  # noqa: E402

pytestmark = pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="asks Linux what a process holds")
SLACK = 24 * MIB
"""What the host's classes and the reading itself need."""


@pytest.fixture(scope="module")
def file(tmp_path_factory) -> Path:
    """Stage C as wide as the lite one, with a block a level: 250 MB."""
    config = replace(KINDS["stage_c"].published["1B"], blocks=((1, 1), (1, 1)))
    path = tmp_path_factory.mktemp("loading") / "stage_c.safetensors"
    assert write_noise(path, shapes_of_net("stage_c", config)) > 200 * MIB
    return path


@pytest.mark.parametrize("dtype", ["auto", "fp8_e4m3fn"])
def test_loading_holds_the_weights_once_and_reads_them_once(file, dtype):
    found, size = measure_apart("ours", file, "stage_c", dtype), file.stat().st_size
    assert found["weights"] > (0.9 if dtype == "auto" else 0.45) * size
    assert found["own_peak"] <= found["weights"] + SLACK, "more than one copy of the weights"
    assert found["peak"] <= found["weights"] + size + SLACK
    assert found["mapped"] <= SLACK, "the file is still held"
    assert found["copied"] <= SLACK, "read by calls that copy"
    assert found["disk"] <= 1.02 * size + SLACK


def test_what_is_held_for_a_moment_is_seen():
    found: dict[str, int] = {}
    with watching(found):
        held = torch.ones(200 * MIB, dtype=torch.uint8)
        time.sleep(0.2)
        del held
    assert found["own"] < 100 * MIB < 190 * MIB < found["own_peak"] < 220 * MIB
    assert found["peak"] > 190 * MIB
