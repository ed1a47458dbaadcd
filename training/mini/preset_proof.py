"""What each preset of the trainer does on Mini: python3 dev.py run -m training.mini.preset_proof [PRESET ...]

Each learns from a small set of the recipe's pictures, by the preset's settings but for fewer steps. Three prompts that
were not shown, with three seeds each, are painted before and after, and compared with the latents of real pictures of
them; the Previewer shows by how much the pictures change. Writes results_presets.md beside this file. Stopped, the same
command goes on.
"""

from __future__ import annotations

import argparse
import json
import logging
import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from cascade_studio.commands.places import cache_root
from cascade_studio.commands.train import Config, TrainingProgress, prepare_run
from cascade_studio.stages.nets.stage_c import StageC
from cascade_studio.stages.training.distributed import ALONE
from cascade_studio.stages.training.run import Run
from cascade_studio.stages.training.settings import PRESETS, from_dict

from .captions import COLOUR_TEMPLATES, PLAIN_TEMPLATES, join_caption
from .compose import LARGE, PAINTED, compose, random_colour
from .data import SEED, is_there, pictures, read_split
from .export import FILES, FOLDER, PRIOR_CODER, read_shipped
from .loop import frozen
from .machine import has_fast_bfloat16
from .nets import build, paint
from .scenes import for_encoder
from .sizes import SHIPPED
from .subjects import COLOURS, PLAIN

log = logging.getLogger(__name__)

TABLE = Path(__file__).with_name("results_presets.md")
SEEDS, ASKED = (1, 2, 3), 3


@dataclass(frozen=True)
class Proof:
    """What a preset is shown: ``count`` pictures of ``style``, of one subject or of many; ``word`` begins captions."""

    style: str
    count: int
    steps: int
    one_subject: bool = False
    word: str = ""


PROOFS = {
    "style": Proof("noto", 40, 150),
    "subject": Proof("noto", 9, 100, one_subject=True, word="ohwx"),
    "concept": Proof("openmoji", 40, 150, word="openmoji"),
    "large set": Proof("twemoji", 200, 60),
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


def render(proof: Proof, shown: Sequence[Shown], placed: Mapping[str, Any]) -> Tensor:
    """The pictures, RGB (B, 3, 256, 256) in [0, 1]."""
    array = pictures(proof.style)
    chosen = np.stack([array[one.subject] for one in shown])
    return compose(chosen, [one.colour for one in shown], random.Random(SEED), **placed)[0]


def write_set(proof: Proof, shown: Sequence[Shown], folder: Path) -> None:
    """The folder that is learned from."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, (rgb, one) in enumerate(zip(render(proof, shown, {"sizes": LARGE, "mirrored": 0.0}), shown)):
        Image.fromarray((rgb * 255).round().byte().movedim(0, -1).numpy()).save(folder / f"{number:04d}.png")
        (folder / f"{number:04d}.txt").write_text(one.caption, encoding="utf-8")


@torch.no_grad()
def paint_asked(net: nn.Module, text: nn.Module, asked: Sequence[Shown]) -> Tensor:
    """Stage C latents (9, 16, h, w): each prompt that is asked for with each seed."""
    prompts = [one.caption for one in asked for _ in SEEDS]
    with torch.autocast("cpu", torch.bfloat16, enabled=has_fast_bfloat16(torch.device("cpu"))):
        return paint(cast(StageC, net), text, prompts, [*SEEDS] * len(asked)).float()


def measure_likeness(made: Tensor, wanted: Tensor) -> float:
    """Mean cosine of painted latents and those of the real pictures (3, 16, h, w) of their prompts."""
    target = wanted.repeat_interleave(len(SEEDS), 0)
    return float(F.cosine_similarity(made.flatten(1), target.flatten(1)).mean())


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
    nets = {}
    for part in ("encoder", "previewer", "text"):
        nets[part] = build(SHIPPED, part)
        nets[part].load_state_dict(read_shipped()[part])
        frozen(nets[part])
    with torch.no_grad():
        wanted = nets["encoder"](for_encoder(render(proof, asked, PAINTED), SHIPPED.canvas))
    settings = {
        **PRESETS[name],
        "name": name.replace(" ", "_"),
        "steps": proof.steps,
        "resolution": SHIPPED.canvas.encoder_size[0],
        "checkpointing": False,
        "save_every": 0,
        "sample_every": 0,
        "validate_every": 25,
        "loss_weight": "velocity",
    }
    config = Config(
        stage_c=str(FOLDER / f"{FILES['stage_c'][1]}.safetensors"),
        text_encoder=str(FOLDER / f"{FILES['text'][1]}.safetensors"),
        image_encoder=str(FOLDER / f"{PRIOR_CODER}.safetensors"),
        pictures=[{"folder": str(folder)}],
        output=str(work),
        settings=from_dict(settings),
    )
    run = Run(prepare_run(config, ALONE, torch.device("cpu")))
    before, clock = paint_asked(run.net, nets["text"], asked), time.process_time()
    run.train(
        work / "state" / run.identity, lambda: work / f"{settings['name']}.safetensors", TrainingProgress(proof.steps)
    )
    clock, after = time.process_time() - clock, paint_asked(run.net, nets["text"], asked)
    return {
        "before": measure_likeness(before, wanted),
        "after": measure_likeness(after, wanted),
        "change": measure_change(nets["previewer"], before, after),
        "losses": [run.trainer.judged[0][1], run.trainer.judged[-1][1]],
        "seconds": clock,
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
        "of which there are fewer, and the loss weight that suits Mini. Likeness is the mean cosine between Stage C",
        "latents painted for three prompts that were not shown, with three seeds each, and those of real pictures; the",
        "change is that of the same nine pictures, of 255, as the Previewer shows them. Loss: on the same noise.",
        "",
        "| Preset | Shown | Pictures | Steps (of) | Likeness before | after | Change | Loss before | after | Seconds |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name, one in found.items():
        proof = PROOFS[name]
        shown = f"one subject in {proof.style}'s style" if proof.one_subject else f"{proof.style}'s style"
        word = f", named by a word ({proof.word})" if proof.word else ""
        lines.append(
            f"| {name} | {shown}{word} | {one['pictures']} | {one['steps']} ({PRESETS[name]['steps']:,}) | "
            f"{one['before']:.3f} | {one['after']:.3f} | {one['change']:.0f} | {one['losses'][0]:.3f} | "
            f"{one['losses'][1]:.3f} | {one['seconds']:.0f} |"
        )
    TABLE.write_text("\n".join(lines) + "\n", encoding="utf-8")


def main() -> None:
    """Prove the presets that are named, or all, and write the record."""
    parser = argparse.ArgumentParser(prog="training.mini.preset_proof", description=__doc__.split("\n")[0])
    parser.add_argument("presets", nargs="*", choices=[*PROOFS, []], metavar="PRESET")
    parser.add_argument("--work", type=Path, default=cache_root() / "training-presets")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    record = options.work / "record.json"
    found = json.loads(record.read_text()) if record.is_file() else {}
    for name in options.presets or PROOFS:
        wanted = json.loads(json.dumps([PROOFS[name].steps, PRESETS[name]]))
        if [found.get(name, {}).get(key) for key in ("steps", "settings")] != wanted:
            found[name] = prove(name, options.work)
            options.work.mkdir(parents=True, exist_ok=True)
            record.write_text(json.dumps(found, indent=1))
        log.info("%s: %s", name, found[name])
    write_table({name: found[name] for name in PROOFS if name in found})


if __name__ == "__main__":
    main()
