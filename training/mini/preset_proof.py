"""What each preset of the trainer does on Mini: python3 dev.py run -m training.mini.preset_proof [PRESET ...]

Each learns from a small set of the recipe's pictures, by the preset's settings but for fewer steps. Three prompts that
were not shown, with three seeds each, are painted before and after. How far they have come is measured on the way from
the latent of the picture that Mini learned from to that of the same picture in the new style; the Previewer shows by
how much they change. Stage B takes no part. Writes results_presets.md beside this file. Stopped, the same command goes
on.
"""

from __future__ import annotations

import argparse
import json
import logging
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from cascade_studio.commands.places import cache_root
from cascade_studio.commands.train import TrainingProgress, prepare_run
from cascade_studio.stages.nets.stage_c import StageC
from cascade_studio.stages.training.distributed import ALONE
from cascade_studio.stages.training.run import Run
from cascade_studio.stages.training.settings import PRESETS, from_dict

from .captions import COLOUR_TEMPLATES, PLAIN_TEMPLATES, join_caption
from .compose import LARGE, PAINTED, compose, random_colour
from .data import MAIN, SEED, is_there, pictures, read_split
from .export import configure_training, load_shipped
from .machine import has_fast_bfloat16
from .nets import paint
from .scenes import for_encoder
from .sizes import SHIPPED
from .subjects import COLOURS, PLAIN

log = logging.getLogger(__name__)

TABLE = Path(__file__).with_name("results_presets.md")
SEEDS, ASKED, LONG = (1, 2, 3), 3, 100_000


@dataclass(frozen=True)
class Proof:
    """What a preset is shown: ``count`` pictures of ``style``, of one subject or of many; ``word`` begins captions."""

    style: str
    count: int
    steps: int
    one_subject: bool = False
    word: str = ""


PROOFS = {
    "style": Proof("noto", 40, 120),
    "subject": Proof("noto", 9, 80, one_subject=True, word="ohwx"),
    "concept": Proof("openmoji", 40, 120, word="openmoji"),
    "large set": Proof("twemoji", 100, 40),
}


@dataclass(frozen=True)
class Shown:
    """A picture to paint: its subject's number, its background, and its caption."""

    subject: int
    colour: str
    caption: str


def choose(proof: Proof) -> tuple[list[Shown], list[Shown]]:
    """What is learned, and the three that are asked for afterwards: other subjects, or other backgrounds of the one."""
    rng, (subjects, _) = random.Random(SEED + 11), read_split()
    there = np.flatnonzero(is_there(pictures(proof.style))).tolist()

    def say(subject: int, colour: str) -> Shown:
        template = rng.choice(PLAIN_TEMPLATES if colour == PLAIN else COLOUR_TEMPLATES)
        words = join_caption(template, subjects[subject].labels["en"], colour)
        return Shown(subject, colour, f"{proof.word}, {words}" if proof.word else words)

    if proof.one_subject:
        subject = rng.choice(there)
        colours = rng.sample(list(COLOURS), len(COLOURS))
        found = [say(subject, colour) for colour in colours]
    else:
        chosen = rng.sample(there, proof.count + ASKED)
        found = [say(subject, random_colour(subjects[subject], rng)) for subject in chosen]
    return found[ASKED : ASKED + proof.count], found[:ASKED]


def render(style: str, shown: Sequence[Shown], placed: Mapping[str, Any]) -> Tensor:
    """The pictures in a style, RGB (B, 3, 256, 256) in [0, 1]; in another they lie in the same places."""
    array = pictures(style)
    chosen = np.stack([array[one.subject] for one in shown])
    return compose(chosen, [one.colour for one in shown], random.Random(SEED), **placed)[0]


def write_set(proof: Proof, shown: Sequence[Shown], folder: Path) -> None:
    """The folder that is learned from."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, (rgb, one) in enumerate(zip(render(proof.style, shown, {"sizes": LARGE, "mirrored": 0.0}), shown)):
        Image.fromarray((rgb * 255).round().byte().movedim(0, -1).numpy()).save(folder / f"{number:04d}.png")
        (folder / f"{number:04d}.txt").write_text(one.caption, encoding="utf-8")


@torch.no_grad()
def paint_asked(net: nn.Module, text: nn.Module, asked: Sequence[Shown]) -> Tensor:
    """Stage C latents (9, 16, h, w): each prompt that is asked for with each seed."""
    prompts = [one.caption for one in asked for _ in SEEDS]
    with torch.autocast("cpu", torch.bfloat16, enabled=has_fast_bfloat16(torch.device("cpu"))):
        return paint(cast(StageC, net), text, prompts, [*SEEDS] * len(asked)).float()


def measure_way(made: Tensor, plain: Tensor, wanted: Tensor) -> Tensor:
    """How far each painted latent (9, 16, h, w) lies on the way from ``plain`` (3, 16, h, w), 0, to ``wanted``, 1."""
    plain, wanted = (each.repeat_interleave(len(SEEDS), 0).flatten(1) for each in (plain, wanted))
    way = wanted - plain
    return ((made.flatten(1) - plain) * way).sum(1) / way.square().sum(1)


@torch.no_grad()
def measure_change(previewer: nn.Module, before: Tensor, after: Tensor) -> float:
    """By how much pictures change, of 255, on average over their pixels, as the Previewer shows them."""
    shown = [cast(Tensor, previewer(latents)).float().clamp(0, 1) for latents in (before, after)]
    return 255 * float((shown[1] - shown[0]).abs().mean())


def prove(name: str, work: Path) -> dict[str, Any]:
    """Train with one preset; what goes on record."""
    proof = PROOFS[name]
    learned, asked = choose(proof)
    folder = work / name.replace(" ", "_")
    write_set(proof, learned, folder)
    nets = load_shipped("encoder", "previewer", "text")
    with torch.no_grad():
        plain, wanted = (
            nets["encoder"](for_encoder(render(style, asked, PAINTED), SHIPPED.canvas)) for style in (MAIN, proof.style)
        )
    settings = {
        **PRESETS[name],
        "name": name.replace(" ", "_"),
        "steps": proof.steps,
        "resolution": SHIPPED.canvas.encoder_size[0],
        "checkpointing": False,
        "save_every": 0,
        "sample_every": 0,
        "validate_every": LONG,
        "loss_weight": "velocity",
    }
    config = configure_training(folder, work, from_dict(settings))
    run = Run(prepare_run(config, ALONE, torch.device("cpu")))
    before = paint_asked(run.net, nets["text"], asked)
    run.train(
        work / "state" / run.identity, lambda: work / f"{settings['name']}.safetensors", TrainingProgress(proof.steps)
    )
    run.trainer.settings = replace(run.settings, validate_every=1)  # the last of the losses on fixed noise is due now
    run.trainer.judge()
    after = paint_asked(run.net, nets["text"], asked)
    way = [measure_way(made, plain, wanted) for made in (before, after)]
    return {
        "before": float(way[0].mean()),
        "after": float(way[1].mean()),
        "nearer": int((way[1] > way[0]).sum()),
        "change": measure_change(nets["previewer"], before, after),
        "losses": [run.trainer.judged[0][1], run.trainer.judged[-1][1]],
        "steps": proof.steps,
        "pictures": len(learned),
        "settings": dict(PRESETS[name]),
    }


def write_table(found: Mapping[str, Mapping[str, Any]]) -> None:
    """The record."""
    lines = [
        "# The presets, measured",
        "",
        "Written by `python3 dev.py run -m training.mini.preset_proof`: by each preset's settings but for the steps,",
        "of which there are fewer, and the loss weight that suits Mini. Painted for three prompts that were not shown,",
        "with three seeds each. The way: how far these nine lie, as latents of Stage C, between the real picture in",
        "the style that Mini learned first (0) and the same picture in the new one (1); farther: how many of the nine",
        "have come on. The change is that of the nine pictures, of 255, as the Previewer shows them. Loss: on the same",
        "noise.",
        "",
        "| Preset | Shown | Pictures | Steps (of) | Way before | after | Farther | Change | Loss before | after |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name, one in found.items():
        proof = PROOFS[name]
        shown = f"one subject in {proof.style}'s style" if proof.one_subject else f"{proof.style}'s style"
        word = f", named by a word ({proof.word})" if proof.word else ""
        lines.append(
            f"| {name} | {shown}{word} | {one['pictures']} | {one['steps']} ({PRESETS[name]['steps']:,}) | "
            f"{one['before']:.2f} | {one['after']:.2f} | {one['nearer']} of {ASKED * len(SEEDS)} | "
            f"{one['change']:.0f} | {one['losses'][0]:.3f} | {one['losses'][1]:.3f} |"
        )
    TABLE.write_text("\n".join(lines) + "\n", encoding="utf-8")


def read_record(path: Path) -> dict[str, Any]:
    """What one preset did, nothing where it has not been proved yet."""
    return json.loads(path.read_text()) if path.is_file() else {}


def main() -> None:
    """Prove the presets that are named, or all, and write the record."""
    parser = argparse.ArgumentParser(prog="training.mini.preset_proof", description=__doc__.split("\n")[0])
    parser.add_argument("presets", nargs="*", choices=[*PROOFS, []], metavar="PRESET")
    parser.add_argument("--work", type=Path, default=cache_root() / "training-presets")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    torch.set_num_threads(1)
    records = {name: options.work / f"{name.replace(' ', '_')}.json" for name in PROOFS}
    for name in options.presets or PROOFS:
        wanted = json.loads(json.dumps([PROOFS[name].steps, PRESETS[name]]))
        found = read_record(records[name])
        if [found.get(key) for key in ("steps", "settings")] != wanted:
            found = prove(name, options.work)
            options.work.mkdir(parents=True, exist_ok=True)
            records[name].write_text(json.dumps(found, indent=1))
        log.info("%s: %s", name, found)
    write_table({name: read_record(path) for name, path in records.items() if path.is_file()})


if __name__ == "__main__":
    main()
