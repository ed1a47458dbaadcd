"""A style LoRA for Mini: python3 dev.py run -m training.mini.style_lora [--style noto | ink | chalk]

"noto" and "ink" (training/mini/ink.py) ship, and go into mini/loras. "chalk" learns from the drawings that ship
(mini/pictures/chalk). Any other style is one of the recipe's emoji: 60 of its pictures with captions are written into a
folder, but none of the held-out prompts' subjects. The trainer is that of the nodes. Stopped, the same command goes on.
"""

from __future__ import annotations

import argparse
import logging
import random
import shutil
import time
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from PIL import Image

from cascade_studio.commands.places import cache_root
from cascade_studio.commands.train import Config, TrainingProgress, prepare_run
from cascade_studio.stages.training.distributed import ALONE
from cascade_studio.stages.training.run import Run
from cascade_studio.stages.training.settings import Settings
from cascade_studio.stages.training.trainer import Trainer
from tools.small import MINI_FILES

from .captions import COLOUR_TEMPLATES, PLAIN_TEMPLATES, join_caption
from .compose import PAINTED, compose, random_colour
from .data import SEED, read_split
from .export import FILES, FOLDER, PRIOR_CODER, put_on_record
from .ink import INK, find_subjects, pick_pictures
from .sizes import SHIPPED
from .subjects import PLAIN

log = logging.getLogger(__name__)

COUNT = 60
SETTINGS = Settings(
    steps=400,
    batch_size=16,
    accumulation=1,
    learning_rate=2e-4,
    warm_up=20,
    rank=12,
    alpha=12.0,
    blocks=(".attn", ".channelwise"),
    resolution=SHIPPED.canvas.encoder_size[0],
    ema=0.99,
    checkpointing=False,
    loss_weight="velocity",
    save_every=0,
    sample_every=0,
    seed=SEED,
)


@dataclass(frozen=True)
class Style:
    """How a named style is learned; ``drawn``: from a folder that ships. ``most``: bytes of its file."""

    settings: Settings = SETTINGS
    most: int = 1_000_000
    drawn: Path | None = None


SHIPS = {name: Path(MINI_FILES[role]).name for name, role in (("noto", "lora"), (INK, "another lora"))}
"""The styles that ship, and their files."""
STYLES = {
    INK: Style(replace(SETTINGS, steps=300)),
    "chalk": Style(
        replace(SETTINGS, steps=120, batch_size=8, warm_up=10, rank=6, alpha=6.0),
        500_000,
        FOLDER / "pictures" / "chalk",
    ),
}
"""Those with settings of their own; the others have those of :class:`Style`."""


class OutOfTime(Exception):
    """The minutes are used up."""


def write_set(style: str, folder: Path, count: int = COUNT) -> None:
    """``count`` pictures of ``style`` with captions, chosen and composed from the recipe's seed."""
    subjects, prompts = read_split()
    held = {prompt["subject"] for prompt in prompts}
    rng = random.Random(SEED)
    there = [i for i in find_subjects(style) if i not in held]
    folder.mkdir(parents=True, exist_ok=True)
    for index in sorted(rng.sample(there, count)):
        subject, colour = subjects[index], random_colour(subjects[index], rng)
        rgb, _ = compose(pick_pictures(style, [index]), [colour], rng, **PAINTED)
        template = rng.choice(PLAIN_TEMPLATES if colour == PLAIN else COLOUR_TEMPLATES)
        pixels = (rgb[0] * 255).round().byte().movedim(0, -1).numpy()
        Image.fromarray(pixels).save(folder / f"{index:04d}.png")
        (folder / f"{index:04d}.txt").write_text(join_caption(template, subject.labels["en"], colour), encoding="utf-8")


def limit_minutes(minutes: float | None, progress: TrainingProgress):
    """``progress``, and an end after ``minutes``."""
    started = time.monotonic()

    def on_step(trainer: Trainer) -> None:
        progress(trainer)
        if minutes and time.monotonic() - started > 60 * minutes:
            raise OutOfTime

    return on_step


def train(models: Path, work: Path, style: str, settings: Settings, minutes: float | None, device: str) -> Path:
    """Train; returns the file in the work folder."""
    drawn = STYLES.get(style, Style()).drawn
    folder = drawn or work / "pictures"
    if not folder.is_dir():
        write_set(style, work / "pictures.new")
        (work / "pictures.new").rename(folder)
    files = {
        name: str(models / f"{path}.safetensors")
        for name, path in (
            ("stage_c", FILES["stage_c"][1]),
            ("text_encoder", FILES["text"][1]),
            ("image_encoder", PRIOR_CODER),
        )
    }
    lesson = prepare_run(
        Config(**files, pictures=str(folder), mirrored=drawn is not None, output=str(work), settings=settings),
        ALONE,
        torch.device(device),
    )
    log.info("%s", lesson.plan().describe())
    run, path = Run(lesson), work / f"{settings.name}.safetensors"
    try:
        run.train(work / "state", lambda: path, limit_minutes(minutes, TrainingProgress(settings.steps)))
    except OutOfTime:
        run.save(path)
    return path


def main() -> None:
    """Train one; that which ships is put into mini/loras."""
    parser = argparse.ArgumentParser(prog="training.mini.style_lora", description=__doc__.split("\n")[0])
    parser.add_argument("--style", default="noto", help="the style of the pictures (default: noto)")
    parser.add_argument("--models", type=Path, default=FOLDER, help="Mini's files (default: mini/)")
    parser.add_argument("--work", type=Path, default=cache_root() / "mini-lora", help="where the state is kept")
    parser.add_argument("--steps", type=int, help="other than the style's own")
    parser.add_argument("--minutes", type=float, default=14.0, help="the most that training may take")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    style = STYLES.get(options.style, Style())
    settings = replace(style.settings, name=f"cascade_mini_{options.style}")
    settings = replace(settings, steps=options.steps or settings.steps)
    path = train(options.models, options.work / options.style, options.style, settings, options.minutes, options.device)
    if path.stat().st_size > style.most:
        raise SystemExit(f"{path.name} takes {path.stat().st_size:,} bytes, more than {style.most:,}. Lower the rank.")
    if options.style not in SHIPS:
        log.info("%s, %d bytes", path, path.stat().st_size)
        return
    target = FOLDER / "loras" / path.name
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(path, target)
    put_on_record()
    log.info("%s, %d bytes", target, target.stat().st_size)


if __name__ == "__main__":
    main()
