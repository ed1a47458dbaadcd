"""python3 dev.py run -m training.mini STEP: see README.md beside this file."""

from __future__ import annotations

import argparse
import logging
import os
import signal
from collections.abc import Callable
from pathlib import Path

import torch

from cascade_studio.stages.training.distributed import Crew, join_crew

from . import data
from .autoencoders import EncoderPart, StageAPart
from .decoder import CriticPart, RefinePart, StageBPart
from .evaluate import evaluate, measure_previewer, measure_steps, paint_free
from .generators import StageCPart
from .guidance import measure_settings
from .language import LanguagePart
from .loop import Loop, Place
from .machine import choose_threads, has_fast_bfloat16
from .sizes import NEXT, PLANS
from .vocabulary import NewWordsPart, WordsPart

PARTS = {
    part.name: part
    for part in (
        StageAPart,
        EncoderPart,
        LanguagePart,
        CriticPart,
        StageBPart,
        StageCPart,
        RefinePart,
        WordsPart,
        NewWordsPart,
    )
}
MEASURES: dict[str, Callable[[Place], object]] = {
    "preview": measure_previewer,
    "settings": measure_settings,
    "steps": measure_steps,
    "evaluate": evaluate,
    "free": paint_free,
}
SHARES = {"stage_a": 10, "encoder": 20, "language": 15, "critic": 10, "stage_b": 170, "stage_c": 300, "words": 55}
"""Of the minutes of ``all``, about as the steps of the parts take them. What is not named is no part of it."""


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="training.mini", description=__doc__)
    parser.add_argument("step", choices=["split", "data", *PARTS, "all", "export", "restore", "judge", *MEASURES])
    parser.add_argument("--plan", choices=list(PLANS), default=NEXT.name, help="the sizes (sizes.py)")
    parser.add_argument(
        "--work", type=Path, help="where states and sheets are kept (default: mini/PLAN in the cache folder)"
    )
    parser.add_argument(
        "--minutes", type=float, help="the most that training may take (for all: the whole, shared out)"
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, help="CPU threads (default: all where they make it faster, else one)")
    parser.add_argument(
        "--float32", action="store_true", help="compute products in float32 even where bfloat16 is fast"
    )
    parser.add_argument(
        "--fresh", action="store_true", help="for all: learn Stage A and the encoder from nothing as well"
    )
    parser.add_argument("--rate", type=float, default=1.0, help="times this the learning rate (for trials)")
    parser.add_argument("--seed", type=int, default=data.SEED)
    return parser.parse_args()


def _place(options: argparse.Namespace, crew: Crew, device: torch.device) -> Place:
    sizes = PLANS[options.plan]
    if device.type == "cpu":
        choose_threads(options.threads)
    work = options.work or sizes.work
    work.mkdir(parents=True, exist_ok=True)
    bfloat16 = not options.float32 and has_fast_bfloat16(device)
    logging.info(
        "%s on %s, products in %s, plan %s in %s",
        options.step,
        device,
        "bfloat16" if bfloat16 else "float32",
        sizes.name,
        work,
    )
    return Place(work, device, bfloat16, options.seed, sizes, crew)


def _train(names: list[str], minutes: float | None, place: Place, rate: float = 1.0) -> None:
    whole = sum(SHARES.get(name, 1) for name in names)
    for name in names:
        Loop(PARTS[name](place), minutes and minutes * SHARES.get(name, 1) / whole, rate).run()


def _train_all(options: argparse.Namespace, place: Place) -> None:
    names = [name for name in PARTS if name in SHARES]
    if not options.fresh:
        from .export import restore_kept

        restore_kept(place)
        names.remove("stage_a")
    _train(names, options.minutes, place)


def _stop(number: int, _: object) -> None:
    """Ended from outside, the loop saves as it does on an interrupt."""
    raise SystemExit(128 + number)


def main() -> None:
    """Run one step of the recipe, or all of the training."""
    options = _options()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    signal.signal(signal.SIGTERM, _stop)
    if hasattr(os, "nice"):
        os.nice(max(0, 19 - os.nice(0)))
    with join_crew(options.device) as (crew, device):
        _run(options, _place(options, crew, device))


def _run(options: argparse.Namespace, place: Place) -> None:
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
        from .judge import train_judge

        train_judge(place, options.minutes)
    elif options.step in MEASURES:
        MEASURES[options.step](place)
    elif options.step == "all":
        _train_all(options, place)
    else:
        _train([options.step], options.minutes, place, options.rate)


if __name__ == "__main__":
    main()
