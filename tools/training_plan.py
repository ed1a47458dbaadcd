"""The memory plans of all kinds of training for the published sizes: python3 dev.py run -m tools.training_plan

Predicted from shapes (stages/training/memory.py), for a card, at the defaults but for what the rows say; in brackets
what the computer's own memory holds beside it.
"""

from __future__ import annotations

import logging

from cascade_studio.stages.files.clip import TextConfig
from cascade_studio.stages.files.kinds import KINDS
from cascade_studio.stages.training.memory import plan
from cascade_studio.stages.training.settings import Settings
from cascade_studio.stages.units import GB

log = logging.getLogger("training_plan")

ROWS = (
    ("LoRA, rank 4, bf16", "lora", {}),
    ("LoRA, rank 4, fp8", "lora", {"base": "fp8"}),
    ("LoRA on the text encoder", "text_lora", {}),
    ("ControlNet, canny", "controlnet", {}),
    ("whole stage, adafactor", "stage", {"optimiser": "adafactor"}),
    ("whole stage, adamw_8bit", "stage", {"optimiser": "adamw_8bit"}),
    ("whole stage, adamw_cpu", "stage", {"optimiser": "adamw_cpu"}),
    ("whole stage, adamw, fp32", "stage", {"weights": "fp32"}),
)


def make_table() -> list[str]:
    """The lines of the table, in GB."""
    sizes = [("stage_c", "3.6B"), ("stage_c", "1B"), ("stage_b", "1.5B"), ("stage_b", "700M")]
    names = " | ".join(f"Stage {kind[-1].upper()} {size}" for kind, size in sizes)
    lines = [f"| Batch of 4, checkpointing | {names} |", "| --- |" + " --- |" * len(sizes)]
    for title, what, changes in ROWS:
        cells = []
        for kind, size in sizes:
            if kind == "stage_b" and what in ("text_lora", "controlnet"):
                cells.append("–")
                continue
            settings = Settings(what=kind if what == "stage" else what, **changes)
            text = TextConfig() if what == "text_lora" else None
            made = plan(kind, KINDS[kind].published[size], settings, text=text)
            beside = f" (+ {made.host / GB:.1f})" if made.host else ""
            cells.append(f"{made.total / GB:.1f} GB{beside}")
        lines.append(f"| {title} | {' | '.join(cells)} |")
    return lines


def main() -> None:
    """Print the table."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    for line in make_table():
        log.info("%s", line)


if __name__ == "__main__":
    main()
