"""A run of every kind of training on Cascade Mini: python3 dev.py run -m tools.training_runs [KIND ...]

Each learns from nine of the twelve chalk drawings; docs/training_runs.md gets the loss on fixed noise of the other
three before and after, which the run's own judge takes. The state is kept in the cache folder, so that a stopped
command goes on.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import time
from pathlib import Path
from typing import Any

from cascade_studio.commands.places import cache_root
from cascade_studio.commands.train import Config, TrainingProgress, prepare_run
from cascade_studio.stages.errors import BadValues
from cascade_studio.stages.training.distributed import from_environment
from cascade_studio.stages.training.run import Run
from cascade_studio.stages.training.settings import from_dict

from .env import REPOSITORY

log = logging.getLogger("training_runs")

MINI, RECORD = REPOSITORY / "mini", REPOSITORY / "docs" / "training_runs.md"
SETTINGS: dict[str, dict[str, Any]] = {
    "LoRA": {"what": "lora", "rank": 8, "alpha": 8.0, "learning_rate": 2e-4},
    "DoRA": {"what": "lora", "method": "dora", "rank": 8, "alpha": 8.0, "learning_rate": 2e-4},
    "LoHa": {"what": "lora", "method": "loha", "rank": 8, "alpha": 8.0, "learning_rate": 5e-4},
    "LoKr": {"what": "lora", "method": "lokr", "rank": 8, "alpha": 8.0, "learning_rate": 5e-4},
    "LoRA, 8-bit moments": {"what": "lora", "optimiser": "adamw_8bit", "rank": 8, "alpha": 8.0, "learning_rate": 2e-4},
    "LoRA, falling rate": {"what": "lora", "schedule": "cosine", "rank": 8, "alpha": 8.0, "learning_rate": 4e-4},
    "LoRA, going on from another": {
        "what": "lora",
        "start_from": str(MINI / "loras" / "cascade_mini_noto.safetensors"),
        "rank": 12,
        "alpha": 12.0,
        "blocks": [".attn", ".channelwise"],
        "learning_rate": 2e-4,
    },
    "LoRA on Stage B": {"what": "lora", "rank": 8, "alpha": 8.0, "learning_rate": 2e-4},
    "LoRA on the text encoder": {"what": "text_lora", "rank": 8, "alpha": 8.0, "learning_rate": 2e-4},
    "words alone": {"what": "words", "tokens": [["[chalk]", "star"]], "learning_rate": 2e-3},
    "whole Stage C, adafactor": {"what": "stage_c", "optimiser": "adafactor", "learning_rate": 2e-4},
    "whole Stage C, 8-bit": {"what": "stage_c", "optimiser": "adamw_8bit", "learning_rate": 1e-4},
    "whole Stage B, 8-bit": {"what": "stage_b", "optimiser": "adamw_8bit", "learning_rate": 1e-4},
    "ControlNet, canny": {"what": "controlnet", "hint": "canny", "learning_rate": 3e-4},
    "ControlNet, inpainting": {"what": "controlnet", "hint": "inpaint", "learning_rate": 3e-4},
    "ControlNet, super-resolution": {"what": "controlnet", "hint": "super_resolution", "learning_rate": 3e-4},
    "ControlNet, a second folder": {"what": "controlnet", "hint": "pictures", "learning_rate": 3e-4},
    "ControlNet, canny, trunk first": {
        "what": "controlnet",
        "hint": "canny",
        "learning_rate": 3e-4,
        "trunk_steps": 100,
    },
}
COMMON = {
    "batch_size": 4,
    "resolution": 384,
    "save_every": 0,
    "sample_every": 0,
    "held_out": 3,
    "validate_every": 20,
    "checkpointing": False,
    "loss_weight": "velocity",
}


def make_config(name: str, work: Path, steps: int) -> Config:
    """The configuration of one run, as a user's file would say it."""
    given = SETTINGS[name]
    settings = from_dict({**COMMON, **given, "steps": steps, "name": name.replace(",", "").replace(" ", "_")})
    on_b = name.endswith("Stage B") or given["what"] == "stage_b"
    chalk: dict[str, Any] = {"folder": str(MINI / "pictures" / "chalk")}
    if given["what"] == "words":
        chalk["trigger"] = "[chalk]"
    if given.get("hint") == "pictures":
        chalk["hints"] = Path(chalk["folder"])
    return Config(
        stage_b=str(MINI / "diffusion_models" / "cascade_mini_stage_b.safetensors") if on_b else "",
        stage_c="" if on_b else str(MINI / "diffusion_models" / "cascade_mini_stage_c.safetensors"),
        stage_a=str(MINI / "vae" / "cascade_mini_stage_a.safetensors"),
        text_encoder=str(MINI / "text_encoders" / "cascade_mini_text.safetensors"),
        image_encoder=str(MINI / "vae" / "cascade_mini_stage_c_vae.safetensors"),
        pictures=[chalk],
        output=str(work),
        settings=settings,
    )


def train_one(name: str, work: Path, steps: int) -> dict[str, Any]:
    """Train one kind; returns what is put on record."""
    started = time.monotonic()
    config = make_config(name, work, steps)
    run = Run(prepare_run(config, *from_environment()))
    path = work / f"{run.settings.name}.safetensors"
    run.train(work / "state" / run.identity, lambda: path, TrainingProgress(steps))
    judged = run.trainer.judged
    return {
        "name": name,
        "steps": steps,
        "settings": config.settings.identity(),
        "before": judged[0][1],
        "after": judged[-1][1],
        "seconds": time.monotonic() - started,
        "bytes": path.stat().st_size,
    }


def write_record(found: dict[str, dict[str, Any]]) -> None:
    """The table."""
    lines = [
        "# Runs of every kind on Cascade Mini",
        "",
        "Written by `python3 dev.py run -m tools.training_runs` in a clone: nine of the twelve chalk drawings, batches "
        "of 4, on a",
        "processor that did other things too, so that the seconds are upper bounds. The loss is that of the other",
        "three drawings, on 16 samples with the same noise: it says that what a kind learns holds for pictures that it",
        "was not shown, not how they look.",
        "",
        "| What learns | Steps | Loss before | after | Seconds | File |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    lines += [
        f"| {one['name']} | {one['steps']} | {one['before']:.4f} | {one['after']:.4f} | {one['seconds']:.0f} | "
        f"{one['bytes'] / 1e6:.2f} MB |"
        for one in (found[name] for name in SETTINGS if name in found)
    ]
    RECORD.write_text("\n".join(lines) + "\n", encoding="utf-8")


def main() -> int:
    """Train the kinds that are named, or all, and write the record; 1 where a run was stopped."""
    parser = argparse.ArgumentParser(prog="tools.training_runs", description=__doc__.split("\n")[0])
    parser.add_argument("kinds", nargs="*", choices=[*SETTINGS, []], metavar="KIND")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--work", type=Path, default=cache_root() / "training-runs")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    record = options.work / "record.json"
    found = json.loads(record.read_text()) if record.is_file() else {}
    stopped: list[str] = []
    for name in options.kinds or SETTINGS:
        wanted = make_config(name, options.work, options.steps).settings
        if (found.get(name, {}).get("steps"), found.get(name, {}).get("settings")) != (
            options.steps,
            wanted.identity(),
        ):
            try:
                found[name] = train_one(name, options.work, options.steps)
            except BadValues as error:
                log.error("%s: %s", name, error)
                stopped.append(name)
                continue
            record.parent.mkdir(parents=True, exist_ok=True)
            record.write_text(json.dumps(found, indent=1))
        log.info("%s", found[name])
    write_record(found)
    return int(bool(stopped))


if __name__ == "__main__":
    sys.exit(main())
