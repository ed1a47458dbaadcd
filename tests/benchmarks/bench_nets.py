"""Time our Stage C and Stage B against the host's nets and diffusers', on the same random weights.

    python3 dev.py bench [--quick] [--dtypes fp32 bf16] [--modes eager compiled] [--minutes 9] [--json FILE]

``dev.py bench --times --minutes 9`` leaves the counts out and times all eight pairs (two networks, two formats, eager
and compiled) in about nine minutes, with as many repetitions as fit. Run it on a machine that does nothing else.

Every repetition runs each network once, in turn, so that what else the machine does falls on all of them; a ratio is
the median over repetitions of our time by theirs in the same repetition, once by the clock and once by processor time.
"products" is the share of our eager processor time that matrix products, attention and convolutions take: they are the
same in all networks. "compiled" is ours with Compile Cascade. All use PyTorch's attention.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import json
import math
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from counter import PRODUCTS
from reference_nets import diffusers_net, host_net, reference
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from cascade_studio.stages.nets.compiled import BlockCompiler
from cascade_studio.stages.nets.hooks import BlockHooks
from cascade_studio.stages.nets.stage_b import StageB, StageBConfig
from cascade_studio.stages.nets.stage_c import StageC, StageCConfig

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
LEAST = 3
TARGETS = {"eager": 1.03, "compiled": 0.95}
Net = Callable[..., Tensor]


@dataclass(frozen=True)
class Case:
    """One network and the inputs to time it with."""

    name: str
    net: type
    config: StageCConfig | StageBConfig
    shapes: dict[str, tuple[int, ...]]


def cases(quick: bool) -> list[Case]:
    """The lite networks at 1024 x 1024 pixels; for a quick look, with fewer blocks and smaller pictures."""
    c_blocks, c_side = (((2, 4), (4, 2)), 16) if quick else (((4, 12), (12, 4)), 24)
    b_blocks, b_side = (((1, 2, 4, 2), (2, 4, 2, 1)), 128) if quick else (((2, 4, 14, 4), (4, 14, 4, 2)), 256)
    stage_c = StageCConfig(c_cond=1536, c_hidden=(1536, 1536), nhead=(24, 24), blocks=c_blocks)
    stage_b = StageBConfig(
        c_hidden=(320, 576, 1152, 1152),
        nhead=(-1, 9, 18, 18),
        blocks=b_blocks,
        block_repeat=((1, 1, 1, 1), (2, 2, 2, 2)),
    )
    return [
        Case(
            "Stage C",
            StageC,
            stage_c,
            {
                "x": (2, 16, c_side, c_side),
                "r": (2,),
                "clip_text": (2, 77, 1280),
                "clip_text_pooled": (2, 1, 1280),
                "clip_img": (2, 1, 768),
            },
        ),
        Case(
            "Stage B",
            StageB,
            stage_b,
            {"x": (1, 4, b_side, b_side), "r": (1,), "effnet": (1, 16, c_side, c_side), "clip": (1, 1, 1280)},
        ),
    ]


def build(case: Case, dtype: torch.dtype, device: torch.device) -> StageC | StageB:
    """Our network with small random weights."""
    torch.manual_seed(0)
    net = case.net(case.config, dtype=dtype, device=device).eval().requires_grad_(False)
    for parameter in net.parameters():
        fan = parameter[0].numel() if parameter.dim() > 1 and parameter.shape[0] > 1 else 1000
        parameter.uniform_(-1, 1).mul_(fan**-0.5)
    return net


Seconds = tuple[float, float]
"""By the clock, and of the processor."""


def timed(net: Net, inputs: list[Tensor]) -> Seconds:
    """What one call takes."""
    if inputs[0].is_cuda:
        torch.cuda.synchronize()
    started = time.perf_counter(), time.process_time()
    net(*inputs)
    if inputs[0].is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - started[0], time.process_time() - started[1]


class ProductsClock(TorchDispatchMode):
    """Adds up the processor time that products take inside its context."""

    seconds = 0.0

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        name = func._schema.name.split("::")[1].rstrip("_")  # in place it is the same product
        product = name in PRODUCTS or "convolution" in name or "attention" in name
        started = time.process_time()
        out = func(*args, **(kwargs or {}))
        self.seconds += (time.process_time() - started) * product
        return out


def share_of_products(net: Net, inputs: list[Tensor]) -> float:
    """The products' part of the processor time of one eager call."""
    with ProductsClock() as clock:
        _, whole = timed(net, inputs)
    return clock.seconds / whole


def interleaved(
    nets: dict[str, Net], inputs: list[Tensor], repetitions: int, until: float = math.inf
) -> dict[str, list[Seconds]]:
    """What every call takes after a first one to warm up; the order turns with every repetition.

    No repetition begins that would not end by ``until`` (of ``time.monotonic``), beyond the first ``LEAST``.
    """
    names = list(nets)
    for name in names:
        nets[name](*inputs)
    seconds: dict[str, list[Seconds]] = {name: [] for name in names}
    longest = 0.0
    for i in range(repetitions):
        started = time.monotonic()
        if i >= LEAST and started + longest > until:
            break
        for name in names[i % len(names) :] + names[: i % len(names)]:
            seconds[name].append(timed(nets[name], inputs))
        longest = max(longest, time.monotonic() - started)
    return seconds


def compare(
    case: Case, dtype: str, modes: list[str], device: torch.device, repetitions: int, until: float = math.inf
) -> list[dict]:
    """For each mode the networks' times in milliseconds, and our ratio to the faster of the other two."""
    ours = build(case, DTYPES[dtype], device)
    nets: dict[str, Net] = {
        "ours": ours,
        "host": reference(host_net, ours),
        "diffusers": reference(diffusers_net, ours),
    }
    inputs = [
        torch.rand(shape, device=device) if name == "r" else torch.randn(shape, device=device).to(DTYPES[dtype])
        for name, shape in case.shapes.items()
    ]
    expected = nets["host"](*inputs).float()
    if "compiled" in modes:
        nets["compiled"] = partial(ours, hooks=BlockHooks(compiler=BlockCompiler()))
        if "eager" not in modes:
            del nets["ours"]
    seconds = interleaved(nets, inputs, repetitions, until)
    fastest = min(("host", "diffusers"), key=lambda name: statistics.median(seconds[name]))
    rows, share = [], share_of_products(ours, inputs)
    for mode in modes:
        mine = "compiled" if mode == "compiled" else "ours"
        ratios, of_processor = (
            [a[which] / b[which] for a, b in zip(seconds[mine], seconds[fastest], strict=True)] for which in (0, 1)
        )
        difference = (nets[mine](*inputs).float() - expected).abs().max() / expected.std()
        rows.append(
            {
                "network": case.name,
                "dtype": dtype,
                "mode": mode,
                "device": str(device),
                "repetitions": len(seconds[mine]),
                **{name: 1000 * statistics.median(each[0] for each in values) for name, values in seconds.items()},
                "faster": fastest,
                "ratio": statistics.median(ratios),
                "ratio of processor time": statistics.median(of_processor),
                "spread": [min(of_processor), max(of_processor)],
                "products": share,
                "difference": float(difference),
            }
        )
    return rows


def line(row: dict) -> str:
    times = "".join(f"{row.get(name, float('nan')):10.1f}" for name in ("ours", "compiled", "host", "diffusers"))
    verdict = "ok" if row["ratio"] <= TARGETS[row["mode"]] else f"above {TARGETS[row['mode']]}"
    return (
        f"{row['network']:8} {row['dtype']:5} {row['mode']:9}{times}{row['ratio']:8.3f} of {row['faster']:10}"
        f"processor {row['ratio of processor time']:.3f} ({row['spread'][0]:.2f} to {row['spread'][1]:.2f}), "
        f"products {row['products']:.0%}  {verdict:12} differs {row['difference']:.1e}\n"
    )


def run_times(arguments: list[str]) -> int:
    """Print the times; returns 1 if one is above its target."""
    parser = argparse.ArgumentParser(prog="dev.py bench")
    parser.add_argument("--quick", action="store_true", help="fewer blocks and smaller pictures")
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=["fp32", "bf16"])
    parser.add_argument("--modes", nargs="+", choices=TARGETS, default=list(TARGETS))
    parser.add_argument("--networks", nargs="+", choices=["C", "B"], default=["C", "B"])
    parser.add_argument("--repetitions", type=int, default=7)
    parser.add_argument("--minutes", type=float, default=math.inf, help="how long all may take, compiling included")
    parser.add_argument("--json", type=Path, help="also write the results to this file")
    options = parser.parse_args(arguments)
    rows = []
    sys.stdout.write(
        f"torch {torch.__version__}, {torch.get_num_threads()} threads, milliseconds\n"
        f"{'':24}{'ours':>10}{'compiled':>10}{'host':>10}{'diffusers':>10}   ratio\n"
    )
    chosen = [case for case in cases(options.quick) if case.name[-1] in options.networks]
    pairs, started = list(itertools.product(chosen, options.dtypes)), time.monotonic()
    with torch.inference_mode():
        for done, (case, dtype) in enumerate(pairs, 1):
            until = started + 60 * options.minutes * done / len(pairs)
            found = compare(case, dtype, options.modes, torch.device("cpu"), options.repetitions, until)
            sys.stdout.write("".join(map(line, found)))
            sys.stdout.flush()
            rows += found
            gc.collect()
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1) + "\n")
    return 0 if all(row["ratio"] <= TARGETS[row["mode"]] for row in rows) else 1
