"""python3 dev.py run -m training.mini STEP: see README.md beside this file."""

from __future__ import annotations

import argparse
import logging
import os
from pathlib import Path

import torch

from cascade_studio.commands.places import cache_root

from . import data
from .autoencoders import EncoderPart, StageAPart
from .generators import StageBPart, StageCPart
from .language import LanguagePart
from .loop import Loop, Place

PARTS = {part.name: part for part in (StageAPart, EncoderPart, LanguagePart, StageBPart, StageCPart)}
MINUTES = {"stage_a": 10.0, "encoder": 11.0, "language": 9.0, "stage_b": 62.0, "stage_c": 180.0}


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="training.mini", description=__doc__)
    parser.add_argument("step", choices=["split", "data", *PARTS, "all", "export", "restore", "judge", "evaluate"])
    parser.add_argument(
        "--work", type=Path, default=cache_root() / "mini-work", help="where states and sheets are kept"
    )
    parser.add_argument("--minutes", type=float, help="training time of this part (for all: of the whole, shared out)")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, help="CPU threads (default: all)")
    parser.add_argument("--float32", action="store_true", help="compute products in float32 instead of bfloat16")
    parser.add_argument("--seed", type=int, default=data.SEED)
    parser.add_argument(
        "--warm", action="store_true", help="start Stage B or Stage C from its result in the work folder (see restore)"
    )
    return parser.parse_args()


def _train(names: list[str], options: argparse.Namespace, place: Place) -> None:
    share = options.minutes / sum(MINUTES[name] for name in names) if options.minutes else 1.0
    for name in names:
        Loop(PARTS[name](place), MINUTES[name] * share).run()


def main() -> None:
    """Run one step of the recipe, or all of the training."""
    options = _options()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    if hasattr(os, "nice"):
        os.nice(max(0, 19 - os.nice(0)))
    if options.threads:
        torch.set_num_threads(options.threads)
    options.work.mkdir(parents=True, exist_ok=True)
    place = Place(options.work, torch.device(options.device), not options.float32, options.seed, options.warm)
    if options.step == "split":
        data.write_split()
    elif options.step == "data":
        for style in (data.MAIN, *data.OTHER_STYLES):
            data.pictures(style)
    elif options.step == "export":
        from .export import export, put_on_record

        export(place)
        put_on_record()
    elif options.step == "restore":
        from .export import restore

        restore(place)
    elif options.step == "judge":
        from .evaluate import train_judge

        train_judge(place, options.minutes)
    elif options.step == "evaluate":
        from .evaluate import evaluate

        evaluate(place)
    else:
        _train(list(PARTS) if options.step == "all" else [options.step], options, place)


if __name__ == "__main__":
    main()
