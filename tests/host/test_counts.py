"""What a forward pass does on a graphics card, counted: beside the host's own networks, the record and the plan."""

from __future__ import annotations

import json
import sys
from functools import cache

import harness
import pytest
import torch

sys.path.append(str(harness.REPOSITORY / "tests" / "benchmarks"))

import bench_cards  # noqa: E402
import bench_counts  # noqa: E402
from bench_counts import CASES, RECORD, Case, check_rise, count_case, count_small, plan_memory  # noqa: E402

from cascade_studio.stages.files.kinds import KINDS  # noqa: E402
from cascade_studio.stages.nets.stage_b import StageB  # noqa: E402

count = cache(count_case)
LIMITS = {
    # kernels, bytes outside the products, peak: ours by the host's. Without a kernel of our own Stage C ends here: of
    # the 30 times that a group moves its stream, 20 are passes over the four-fold hidden layer (docs/speed.md).
    ("Stage C", "bf16"): (0.73, 0.465, 0.52),
    ("Stage C", "fp16"): (0.75, 0.475, 0.56),
    ("Stage B", "bf16"): (0.75, 0.43, 0.50),
    ("Stage B", "fp16"): (0.75, 0.455, 0.55),
}


@pytest.mark.parametrize(
    "case", [case for case in CASES if (case.network, case.dtype) in LIMITS], ids=lambda case: case.name
)
def test_fewer_kernels_and_bytes_than_the_host(case):
    found = count(case)
    for key, limit in zip(("kernels", "bytes_outside", "peak"), LIMITS[case.network, case.dtype], strict=True):
        ours, host = (getattr(found[who], key) for who in ("ours", "host"))
        assert ours <= limit * host, f"{key}: {ours / host:.3f} of the host's"


@pytest.mark.parametrize(
    "network, size", [("Stage C", "3.6B"), ("Stage C", "1B"), ("Stage B", "1.5B"), ("Stage B", "700M")]
)
def test_float16_costs_what_bfloat16_costs(network, size):
    half, brain = (count(Case(network, size, dtype))["ours"] for dtype in ("fp16", "bf16"))
    for key in ("kernels", "bytes_outside", "peak"):
        assert getattr(half, key) <= 1.15 * getattr(brain, key), key


@pytest.mark.parametrize("batch", [1, 4])
def test_stage_a_in_few_kernels_and_a_quarter_of_the_memory(batch):
    found = count(Case("Stage A", "", "bf16", 1024, batch))
    assert found["ours"].kernels <= 1.5 * found["host"].kernels
    assert found["ours"].peak <= found["host"].peak / 4


PLANNED = [
    *(
        Case(f"Stage {stage}", size, dtype, 1024, batch)
        for stage, size in (("C", "3.6B"), ("C", "1B"), ("B", "1.5B"), ("B", "700M"))
        for dtype in ("fp32", "bf16", "fp16")
        for batch in (1, 2, 3, 4)
    ),
    *(
        Case(f"Stage {stage}", size, "fp8", 1024, batch)
        for stage, size in (("C", "3.6B"), ("C", "1B"), ("B", "1.5B"), ("B", "700M"))
        for batch in (1, 4)
    ),
    *(
        Case(f"Stage {stage}", size, "bf16", pixels)
        for stage, size in (("C", "3.6B"), ("B", "1.5B"))
        for pixels in (2048, 4096)
    ),
    *(Case("Stage A", "", dtype, 1024, batch) for dtype in ("fp32", "bf16") for batch in (1, 4)),
    *(Case("Stage A", "", "bf16", pixels, 1) for pixels in (2048, 4096)),
    *bench_counts.ALONE,
]


@pytest.mark.parametrize("case", PLANNED, ids=lambda case: case.name)
def test_the_plan_is_what_a_pass_holds(case):
    """Where weights lie in 8 bits, the layer that is cast counts as well."""
    held = count(case, host=False)["ours"].peak
    assert 0.85 * held <= plan_memory(case) <= 1.15 * held, f"{plan_memory(case) / held:.2f} of what is held"


SMALL = [
    (kind, name, dtype, pixels, batch)
    for kind in ("encoder", "previewer", "controlnet")
    for name in KINDS[kind].published
    for dtype, pixels, batch in (("fp32", 1024, 1), ("bf16", 1024, 4), ("bf16", 2048, 1), ("fp16", 4096, 1))
]


@pytest.mark.parametrize("kind, name, dtype, pixels, batch", SMALL)
def test_the_plan_of_the_small_nets_is_what_they_hold(kind, name, dtype, pixels, batch):
    held, planned = count_small(kind, name, dtype, pixels, batch)
    assert 0.85 * held <= planned <= 1.15 * held, f"{planned / held:.2f} of what is held"


def test_blocks_that_follow_each_other_hold_no_more():
    """So a thin one says what Stage B holds in pieces; what each block holds beside does not grow with the picture."""
    full, thin = (
        count_case(Case(bench_counts.PIECES, "1.5B", "bf16", 1024, thin=thin), host=False)["ours"]
        for thin in (False, True)
    )
    assert thin.kernels < full.kernels / 3
    assert 0 <= full.peak - thin.peak < 1.5e6


def test_8192_pixels_in_pieces_fit_into_12_gb():
    """Counted: what a pass with guidance holds in bf16, and the weights of Stage B beside it."""
    with torch.device("meta"):
        weights = sum(each.numel() for each in StageB(KINDS["stage_b"].published["1.5B"]).parameters()) * 2
    held = count(Case(bench_counts.PIECES, "1.5B", "bf16", 8192, thin=True), host=False)["ours"].peak
    assert weights + held <= 12e9, f"{(weights + held) / 1e9:.1f} GB"


def test_a_huge_picture_decodes_in_three_gibibytes():
    assert count_case(Case("Stage A", "", "bf16", 4096, 1), host=False)["ours"].peak < 3 * 2**30


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_nothing_rises_over_the_record(case):
    """``python3 dev.py bench --record`` writes the record anew, for a change that is meant."""
    recorded = json.loads(RECORD.read_text())
    assert case.name in recorded
    assert not check_rise(case.name, count(case)["ours"], recorded)


@pytest.mark.parametrize("card, preset, stays", [(4, "lite", False), (8, "lite", True), (10, "full", False)])
def test_nothing_is_streamed_or_put_out_where_it_fits(card, preset, stays):
    """By the host's own loading and our plan, for pictures of 1024 px; what ``stays`` is not moved again."""
    runs = bench_cards.simulate(card, preset, 1024)
    assert [each.name for each in runs[0]] == ["text", "Stage C", "Stage B", "Stage A"]
    assert sum(each.moved for each in runs[0]) > 3e9
    assert not [each for run in runs for each in run if each.streamed and each.name.startswith("Stage")]
    assert stays == (sum(each.moved for each in runs[2]) == 0)


def test_the_tour_of_a_card_runs(capsys):
    """All of ``dev.py bench --device cuda`` on tiny networks on the processor: no section fails, none is left out."""
    import bench_card

    bench_card.run_tour("cpu", tiny=True)
    told = capsys.readouterr().out
    assert told.count("## ") == len(bench_card.SECTIONS)
    assert "Error" not in told and "left out" not in told and "NOT compiled" not in told, told
