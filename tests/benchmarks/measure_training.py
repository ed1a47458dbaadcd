"""What a training run takes on a processor, beside its plan: python3 dev.py run tests/benchmarks/measure_training.py

Each row is a process of its own that makes two steps on random weights of a middle size; its peak is what the system
counts beyond the libraries, the weights' source and the rows. ``--check`` exits with 1 where plan and peak are further
apart than a quarter of the larger.
"""

from __future__ import annotations

import argparse
import json
import logging
import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(REPOSITORY))
from studio import load_pack  # noqa: E402

load_pack()

import torch  # noqa: E402

from cascade_studio.stages.nets.stage_b import StageBConfig  # noqa: E402
from cascade_studio.stages.nets.stage_c import StageCConfig  # noqa: E402
from cascade_studio.stages.training.frozen_net import CLASSES  # noqa: E402
from cascade_studio.stages.training.run import Lesson, Run  # noqa: E402
from cascade_studio.stages.training.settings import Settings  # noqa: E402
from cascade_studio.stages.training.tasks import Ingredients  # noqa: E402

log = logging.getLogger("measure_training")

C = StageCConfig(c_cond=768, c_hidden=(768, 768), nhead=(12, 12), blocks=((2, 4), (4, 2)))
B = StageBConfig(
    c_cond=512,
    c_hidden=(128, 256, 512, 512),
    nhead=(-1, -1, 8, 8),
    blocks=((1, 2, 4, 2), (2, 4, 2, 1)),
    block_repeat=((1, 1, 1, 1), (2, 2, 1, 1)),
)
ROWS = {
    "LoRA": {"what": "lora"},
    "LoRA, everything kept": {"what": "lora", "checkpointing": False},
    "LoRA, bf16": {"what": "lora", "base": "bf16"},
    "Stage C, adamw": {"what": "stage_c", "weights": "fp32"},
    "Stage C, adamw_8bit": {"what": "stage_c", "optimiser": "adamw_8bit"},
    "Stage C, adafactor": {"what": "stage_c", "optimiser": "adafactor"},
    "Stage B, LoRA": {"what": "lora", "rank": 8},
}
QUARTER = 0.25


def read_peak() -> int:
    """The most bytes that this process has held so far."""
    status = Path("/proc/self/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1]) * 1024


def reset_peak() -> None:
    """Begin to count anew from what is held now."""
    Path("/proc/self/clear_refs").write_text("5")


def measure(name: str) -> dict[str, float]:
    """Plan and peak of one row, in bytes; both without the libraries."""
    torch.set_num_threads(2)
    kind, config = ("stage_b", B) if name.startswith("Stage B") else ("stage_c", C)
    settings = Settings(batch_size=4, validate_every=0, **ROWS[name])
    net = CLASSES[kind, False](config, dtype=torch.bfloat16)
    weights = {key: value.detach() for key, value in net.state_dict().items()}
    for value in weights.values():
        value.normal_(std=0.02)
    side = 24 if kind == "stage_c" else 64
    rows = [
        {"latent": torch.randn(16, side, side), "text": torch.randn(77, 1280), "pooled": torch.randn(1, 1280)}
        if kind == "stage_c"
        else {"latent": torch.randn(4, side, side), "effnet": torch.randn(16, 6, 6), "pooled": torch.randn(1, 1280)}
        for _ in range(4)
    ]
    given = Ingredients(kind, config, weights)
    lesson = Lesson(settings, "x", torch.device("cpu"), False, rows, rows[0], [], given)
    plan = lesson.plan()
    reset_peak()
    before = read_peak()
    run = Run(lesson)
    for _ in range(2):
        run.trainer.update()
    return {"plan": plan.total - plan.parts["overhead"], "peak": read_peak() - before}


def main() -> int:
    """Measure every row."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--one", help="measure this row alone and print it as JSON")
    parser.add_argument("--check", action="store_true")
    options = parser.parse_args()
    if options.one:
        sys.stdout.write(json.dumps(measure(options.one)))
        return 0
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    far = False
    log.info("| Run | plan MB | peak MB | plan / peak |\n| --- | --- | --- | --- |")
    for name in ROWS:
        done = subprocess.run([sys.executable, __file__, "--one", name], capture_output=True, text=True, check=True)
        found = json.loads(done.stdout.splitlines()[-1])
        plan, peak = found["plan"], found["peak"]
        far |= abs(plan - peak) > QUARTER * max(plan, peak)
        log.info("| %s | %.0f | %.0f | %.2f |", name, plan / 1e6, peak / 1e6, plan / peak)
    return int(options.check and far)


if __name__ == "__main__":
    sys.exit(main())
