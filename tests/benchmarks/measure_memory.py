"""Measures what one pass of Stage B or Stage C holds beside its weights, against the estimate.

    python3 dev.py run tests/benchmarks/measure_memory.py {b,c} SIDE {float32,bfloat16}

The networks have the widths of the lite models and few blocks, which changes the weights but not the peak.
"""

from __future__ import annotations

import argparse
import sys
import threading
import time
from pathlib import Path

import torch

from cascade_studio.stages.nets.memory import activation_memory
from cascade_studio.stages.nets.stage_b import StageB, StageBConfig
from cascade_studio.stages.nets.stage_c import StageC, StageCConfig

B = StageBConfig(
    c_hidden=(320, 576, 1152, 1152),
    nhead=(-1, -1, 18, 18),
    blocks=((1,) * 4, (1,) * 4),
    block_repeat=((1,) * 4, (2,) * 4),
)
C = StageCConfig(c_cond=1536, c_hidden=(1536, 1536), nhead=(24, 24), blocks=((1, 1), (1, 1)))


def resident() -> int:
    """Bytes of this process in memory (Linux)."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def peak_of(work) -> int:
    """Bytes above the start that ``work()`` holds at most, sampled every 2 ms."""
    start, highest, running = resident(), [0], True

    def watch() -> None:
        while running:
            highest[0] = max(highest[0], resident() - start)
            time.sleep(0.002)

    thread = threading.Thread(target=watch)
    thread.start()
    work()
    running = False
    thread.join()
    return highest[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("stage", choices=("b", "c"))
    parser.add_argument("side", type=int)
    parser.add_argument("dtype", choices=("float32", "bfloat16"))
    options = parser.parse_args()
    dtype, side = getattr(torch, options.dtype), options.side
    if options.stage == "b":
        net, strides, x = StageB(B, dtype=dtype), (1, 2, 4, 8), torch.randn(1, 4, side, side, dtype=dtype)
        rest = (torch.rand(1), torch.randn(1, 16, 24, 24, dtype=dtype), torch.randn(1, 1, 1280, dtype=dtype))
    else:
        net, strides, x = StageC(C, dtype=dtype), (1, 1), torch.randn(2, 16, side, side, dtype=dtype)
        rest = (torch.rand(2), torch.randn(2, 77, 1280, dtype=dtype), torch.randn(2, 1, 1280, dtype=dtype))
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, std=0.02)
    with torch.inference_mode():
        measured = peak_of(lambda: net(x, *rest))
    estimate = activation_memory(net.config, *(x.shape[i] for i in (0, 2, 3)), x.element_size(), strides)
    sys.stdout.write(
        f"Stage {options.stage.upper()} {side}x{side} {options.dtype}: measured {measured / 2**20:.0f} MiB, "
        f"estimated {estimate / 2**20:.0f} MiB\n"
    )


if __name__ == "__main__":
    main()
