"""Time a live preview against one guided step of the lite Stage C at 1024 x 1024 pixels, both with random weights.

    python3 dev.py run tests/benchmarks/bench_preview.py [--device cuda] [--dtype bf16] [--repetitions 5]

Previews come with every step, or every 0.1 s for steps that are faster, or so that they take 5 % of the time if they
are slow. The last figure is the share that follows. The exit status is 1 where a preview alone takes more than 5 % of a
step that is slower than 0.1 s, so that the limit and not the network keeps the promise.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable

import torch
from bench_nets import DTYPES, build, cases
from torch import Tensor, nn

from cascade_studio.stages.nets.previewer import Previewer

SHARE, INTERVAL = 0.05, 0.1
"""As in ``nodes/host/models/preview.py``, which needs the host."""


def previewer(dtype: torch.dtype, device: torch.device) -> nn.Module:
    """The published size with small random weights."""
    torch.manual_seed(0)
    net = Previewer(dtype=dtype, device=device).requires_grad_(False)
    for parameter in net.parameters():
        parameter.normal_(0, 0.02)
    return net


def seconds(call: Callable[[], Tensor], repetitions: int) -> float:
    """The median time of ``call`` until its result is on the CPU, after one call to warm up."""
    call().cpu()
    taken = []
    for _ in range(repetitions):
        start = time.perf_counter()
        call().cpu()
        taken.append(time.perf_counter() - start)
    return statistics.median(taken)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu", help="where to run (default: cpu)")
    parser.add_argument("--dtype", choices=DTYPES, default="fp32")
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="a smaller Stage C, which makes the share look larger")
    options = parser.parse_args()
    device, dtype = torch.device(options.device), DTYPES[options.dtype]
    case = cases(options.quick)[0]
    with torch.inference_mode():
        stage_c, preview = build(case, dtype, device), previewer(dtype, device)
        inputs = {
            name: torch.rand(shape, device=device) if name == "r" else torch.randn(shape, device=device).to(dtype)
            for name, shape in case.shapes.items()
        }
        step = seconds(lambda: stage_c(**inputs), options.repetitions)
        cost = seconds(lambda: preview(inputs["x"][:1]).float(), options.repetitions)
    period = max(step, INTERVAL, cost / SHARE)
    sys.stdout.write(
        f"torch {torch.__version__}, {device}, {options.dtype}: step {1000 * step:.1f} ms, preview "
        f"{1000 * cost:.1f} ms ({cost / step:.1%} of a step), share of a run {cost / (period + cost):.1%}\n"
    )
    return 1 if step > INTERVAL and cost > SHARE * step else 0


if __name__ == "__main__":
    sys.exit(main())
