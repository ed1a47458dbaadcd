"""What a training run takes on a processor, beside its plan: python3 dev.py run tests/benchmarks/measure_training.py

Each row is a process of its own that reads a file of random weights of a middle size and makes two steps by the way of
every run, the saving of its state and its result with it; its peak is all that the system counts for the process while
it trains. ``--check`` exits with 1 where plan and peak are further apart than a quarter of the peak. In the last column
the plan's share for Python and PyTorch themselves is taken off both; what these really take differs by some 50 MB.
"""

from __future__ import annotations

import argparse
import json
import logging
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(REPOSITORY), *(str(REPOSITORY / "tests" / name) for name in (".", "unit"))]
from studio import load_pack  # noqa: E402

load_pack()

import torch  # noqa: E402
from letters import Letters  # noqa: E402
from own_memory import read_status, reset_peak  # noqa: E402
from safetensors.torch import save_file  # noqa: E402
from torch import nn  # noqa: E402

from cascade_studio.stages.files.clip import TextConfig  # noqa: E402
from cascade_studio.stages.files.header import load_file  # noqa: E402
from cascade_studio.stages.nets.encoder import EncoderConfig, ImageEncoder  # noqa: E402
from cascade_studio.stages.nets.stage_b import StageBConfig  # noqa: E402
from cascade_studio.stages.nets.stage_c import StageCConfig  # noqa: E402
from cascade_studio.stages.training.distributed import has_bfloat16  # noqa: E402
from cascade_studio.stages.training.frozen_net import CLASSES  # noqa: E402
from cascade_studio.stages.training.heap import return_memory  # noqa: E402
from cascade_studio.stages.training.memory import FIXED  # noqa: E402
from cascade_studio.stages.training.run import Lesson, Run, add_words  # noqa: E402
from cascade_studio.stages.training.settings import Settings  # noqa: E402
from cascade_studio.stages.training.tasks import Ingredients  # noqa: E402
from cascade_studio.stages.training.words import TextTower, Words  # noqa: E402

log = logging.getLogger("measure_training")

WIDTH = 512
TEXT = TextConfig(
    hidden_size=WIDTH, intermediate_size=4 * WIDTH, num_hidden_layers=8, num_attention_heads=8, projection_dim=WIDTH
)
C = StageCConfig(
    c_cond=384, c_hidden=(384, 384), nhead=(6, 6), blocks=((1, 1), (1, 1)), c_clip_text=WIDTH, c_clip_text_pooled=WIDTH
)
B = StageBConfig(
    c_cond=256,
    c_hidden=(128, 192, 256, 256),
    nhead=(-1, -1, 4, 4),
    blocks=((1, 1, 1, 1), (1, 1, 1, 1)),
    block_repeat=((1, 1, 1, 1), (1, 1, 1, 1)),
    c_clip=WIDTH,
)
ROWS: dict[str, dict[str, Any]] = {
    "LoRA": {"what": "lora"},
    "LoRA, products in float32": {"what": "lora", "plain": True},
    "LoRA, everything kept": {"what": "lora", "checkpointing": False},
    "LoRA on Stage B": {"what": "lora", "stage": "stage_b"},
    "words": {"what": "words", "tokens": (("[x]", "a dog"),)},
    "LoRA on the text encoder": {"what": "text_lora"},
    "Stage C, adamw": {"what": "stage_c", "weights": "fp32"},
    "Stage C, adamw_8bit": {"what": "stage_c", "optimiser": "adamw_8bit"},
    "Stage B, adafactor": {"what": "stage_b", "optimiser": "adafactor", "stage": "stage_b"},
    "ControlNet, canny": {"what": "controlnet", "side": 12},
}
SIDE, SIDE_B, BATCH = 20, 96, 4
QUARTER = 0.25


def write_weights(net: nn.Module, path: Path) -> None:
    """Random weights of the shapes of ``net`` as a file in bfloat16, as most are."""
    chance, tensors = torch.Generator().manual_seed(0), {}
    with return_memory():  # so that nothing of this is left in the process
        for key, value in net.state_dict().items():
            tensors[key] = (0.02 * torch.randn(value.shape, generator=chance)).to(torch.bfloat16)
            if key.endswith("running_var"):
                tensors[key].clamp_(min=1e-3)
        save_file(tensors, path)
        tensors.clear()


def make_rows(stage: str, side: int, hint: bool) -> list[dict[str, torch.Tensor]]:
    """Encoded pictures."""
    rows: list[dict[str, torch.Tensor]] = []
    for _ in range(BATCH):
        row = {"pooled": torch.randn(1, WIDTH)}
        if stage == "stage_b":
            row |= {"latent": torch.randn(4, SIDE_B, SIDE_B), "effnet": torch.randn(16, 6, 6)}
        else:
            row |= {"latent": torch.randn(16, side, side), "text": torch.randn(77, WIDTH)}
        if hint:
            row["hint"] = (torch.rand(1, 32 * side, 32 * side) > 0.9).byte() * 255
        rows.append(row)
    return rows


def make_lesson(name: str, folder: Path) -> Lesson:
    """What a run of the row ``name`` needs; its weights lie in ``folder``."""
    asked = dict(ROWS[name])
    stage, side, plain = asked.pop("stage", "stage_c"), asked.pop("side", SIDE), asked.pop("plain", False)
    settings = Settings(name="measured", steps=2, batch_size=BATCH, save_every=0, sample_every=0, **asked)
    config: Any = B if stage == "stage_b" else C
    write_weights(CLASSES[stage, False](config, device="meta"), folder / "net.safetensors")
    given = Ingredients(stage, config, load_file(folder / "net.safetensors")[0])
    if settings.what == "controlnet":
        write_weights(ImageEncoder(EncoderConfig(), device="meta"), folder / "encoder.safetensors")
        given.encoder = EncoderConfig(), load_file(folder / "encoder.safetensors")[0]
    rows, device = make_rows(stage, side, settings.what == "controlnet"), torch.device("cpu")
    bfloat16 = has_bfloat16(device) and not plain
    lesson = Lesson(settings, "measured", device, bfloat16, rows, rows[0], [], given)
    if settings.what in ("words", "text_lora"):
        write_weights(TextTower(TEXT, Words([], torch.zeros(1, WIDTH))), folder / "text.safetensors")
        given.text = TEXT, load_file(folder / "text.safetensors")[0]
        add_words(lesson, [("the [x] runs",)] * BATCH, [], Letters())
    return lesson


def measure(name: str) -> dict[str, float]:
    """Plan and peak of one row, in bytes."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        lesson = make_lesson(name, folder)
        plan, run = lesson.plan(), Run(lesson)
        reset_peak()  # now that the files are let go of
        run.train(folder / "state", lambda: folder / "result.safetensors")
    return {"plan": plan.total, "peak": read_status()["VmHWM"]}


def main() -> int:
    """Measure every row, or those that are named."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("rows", nargs="*", help="some of the rows alone")
    parser.add_argument("--one", help="measure this row in this process and print it as JSON")
    parser.add_argument("--check", action="store_true")
    options = parser.parse_args()
    if options.one:
        sys.stdout.write(json.dumps(measure(options.one)))
        return 0
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    far, own = False, FIXED[True]
    log.info("| What learns | plan MB | peak MB | plan / peak | without the process itself |")
    log.info("| --- | --- | --- | --- | --- |")
    for name in options.rows or ROWS:
        done = subprocess.run([sys.executable, __file__, "--one", name], capture_output=True, text=True)
        if done.returncode:
            log.error("%s: %s", name, done.stderr)
            return done.returncode
        found = json.loads(done.stdout.splitlines()[-1])
        plan, peak = found["plan"], found["peak"]
        far |= abs(plan - peak) > QUARTER * peak
        parts = plan / 1e6, peak / 1e6, plan / peak, (plan - own) / 1e6, (peak - own) / 1e6
        log.info("| %s | %.0f | %.0f | %.2f | %.0f and %.0f |", name, *parts)
    return int(options.check and far)


if __name__ == "__main__":
    sys.exit(main())
