"""Measures Mini: held-out prompts with chance and ceiling, languages, decibels, eight bits, a sheet of free prompts.

``evaluate`` writes ``results.md``: beside this file for the files that ship, else into the work folder.
"""

from __future__ import annotations

import json
import logging
import random
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tools.small import MINI_DECODER_STEPS

from .autoencoders import psnr
from .captions import join_caption
from .compose import PAINTED, compose
from .data import OTHER_STYLES, read_split
from .eyes import Eyes
from .generators import settle_weights
from .judge import at_sight, first_five, load_judge, measure_told
from .loop import Place, grid, save_sheet
from .nets import TRAINING, decode, encode_prompts, load_code_reader, load_encoder, load_trained, paint
from .scenes import Scenes, for_encoder
from .sizes import SHIPPED
from .subjects import COLOURS, LANGUAGES
from .words import HELD_FOREIGN, P, colour_words, predicative

log = logging.getLogger(__name__)

TABLE = Path(__file__).with_name("results.md")
FREE = Path(__file__).with_name("free_prompts.json")
WORDINGS = Path(__file__).with_name("wordings.json")
"""How somebody who knew no caption of the training asks for a subject on a background, in six languages."""
BATCH, DECODED, FOREIGN, ROUNDED = 20, 96, 40, 12
"""Pictures at once; those whose decoding is measured in dB; prompts of each language; those painted in eight bits."""
STEPS = (4, 6, 10)
"""Of Stage B."""


class Painter:
    """All nets of a place, and what they make of prompts; Stage B and C in bfloat16 where the place computes in it."""

    def __init__(self, place: Place) -> None:
        self.place, self.canvas = place, place.sizes.canvas
        self.nets = {name: self.load(name) for name in ("stage_a", "text", "stage_b", "stage_c")}
        self.encode = (load_encoder if place.weights("encoder").is_file() else load_code_reader)(place)
        """Makes Stage C latents of pictures; while no encoder is trained, those that it is to give."""

    def load(self, name: str) -> nn.Module:
        """A net that may be used in bfloat16."""
        return load_trained(self.place, name, **({"backend": TRAINING} if name in ("stage_b", "stage_c") else {}))

    def through_b(
        self, latent: Tensor, prompts: list[str], seeds: list[int], steps: int = MINI_DECODER_STEPS
    ) -> Tensor:
        """Stage C latents → RGB (B, 3, 256, 256) in [0, 1] through Stage B and A."""
        said, empty = (encode_prompts(self.nets["text"], words)[1] for words in (prompts, [""]))
        with self.place.autocast():
            made = decode(self.nets["stage_b"], latent, said, empty, seeds, steps=steps).float()
        return self.nets["stage_a"].decode(made).float().clamp(0, 1).cpu()

    def sample_prior(self, prompts: list[str], seeds: list[int], **sampling: Any) -> Tensor:
        """Stage C latents of prompts; ``sampling``: see :func:`.nets.paint`."""
        grid_size = self.canvas.prior_height, self.canvas.prior_width
        with self.place.autocast():
            return paint(
                self.nets["stage_c"], self.nets["text"], prompts, seeds, grid_size=grid_size, **sampling
            ).float()

    def picture(self, prompts: list[str], seeds: list[int], **sampling: Any) -> Tensor:
        """Pictures of prompts, one seed each; ``sampling``: that of Stage C."""
        parts = []
        for start in range(0, len(prompts), BATCH):
            part = prompts[start : start + BATCH], seeds[start : start + BATCH]
            parts.append(self.through_b(self.sample_prior(*part, **sampling), *part))
            log.info("evaluate: painted %d of %d prompts", start + len(part[0]), len(prompts))
        return torch.cat(parts)


@torch.no_grad()
def evaluate(place: Place) -> None:
    """Paint the held-out prompts, judge them and write the table and sheets."""
    painter, scenes = Painter(place), Scenes(random.Random(place.seed + 7))
    eyes = Eyes(place, scenes)
    asked = scenes.prompts
    subjects, colours = [p["subject"] for p in asked], [p["background"] for p in asked]
    prompts, seeds = [p["prompt"] for p in asked], [p["seed"] for p in asked]
    real = _as_painted(scenes, subjects, colours)
    rows = {
        "prompts": painter.picture(prompts, seeds),
        "the same in a stranger's wordings": painter.picture(ask_as_strangers(scenes, asked, "en"), seeds),
        "ceiling: pictures as Stage C paints them, through encoder, B and A": torch.cat(
            [
                painter.through_b(painter.encode(real[i : i + BATCH]), prompts[i : i + BATCH], seeds[i : i + BATCH])
                for i in range(0, len(asked), BATCH)
            ]
        ),
    }
    measured = {name: eyes.measure(image, subjects, colours) for name, image in rows.items()}
    save_sheet(grid(rows["prompts"][:48], 12), place.work / "sheets" / "evaluate.png")
    tables = [format_shares("200 held-out prompts", {**measured, "chance": _chance(len(scenes.subjects))})]
    tables.append(format_shares(f"{FOREIGN} held-out prompts a language", measure_languages(painter, eyes)))
    tables.append(_decibel_table(measure_decoding(painter, scenes)))
    _write(place, tables)


def ask_as_strangers(scenes: Scenes, asked: list[dict[str, Any]], language: str) -> list[str]:
    """The subjects and backgrounds of prompts in the wordings of :data:`WORDINGS`, one after the other."""
    wordings, said = json.loads(WORDINGS.read_text(encoding="utf-8"))[language], []
    for row, prompt in enumerate(asked):
        colour = colour_words(prompt["background"], language)[0]
        subject = scenes.subjects[prompt["subject"]].labels[language]
        wording = wordings[row % len(wordings)].replace(P, predicative(colour))
        said.append(wording.replace("{colour}", colour).replace("{subject}", subject))
    return said


def measure_languages(painter: Painter, eyes: Eyes) -> dict[str, dict[str, float]]:
    """Subjects and backgrounds told right in a wording of each language that no caption has, and in a stranger's."""
    found, scenes = {}, eyes.scenes
    asked = scenes.prompts[:: len(scenes.prompts) // FOREIGN][:FOREIGN]
    subjects, colours = [p["subject"] for p in asked], [p["background"] for p in asked]
    for language in LANGUAGES[1:]:
        held = [
            join_caption(
                HELD_FOREIGN[language],
                scenes.subjects[p["subject"]].labels[language],
                colour_words(p["background"], language)[0],
            )
            for p in asked
        ]
        strange = ask_as_strangers(scenes, asked, language)
        for name, prompts in ((language, held), (f"{language}, a stranger's wordings", strange)):
            image = painter.picture(prompts, [p["seed"] for p in asked])
            found[name] = eyes.measure(image, subjects, colours)
    return found


def measure_decoding(painter: Painter, scenes: Scenes) -> dict[str, float]:
    """Decibels inside the subject: pictures as Stage C paints them, through what decodes latents; and eight bits."""
    found = _measure_stage_a(painter.nets["stage_a"], painter.place)
    rng = random.Random(painter.place.seed + 8)
    batch = Scenes(rng, **PAINTED).batch(DECODED, held=True)
    prompts = [f"{scenes.subjects[i].labels['en']} on {colour}" for i, colour in zip(batch.subjects, batch.colours)]
    latent = torch.cat([painter.encode(part) for part in batch.rgb.split(BATCH)])
    previewer = load_trained(painter.place, "previewer")
    ways: dict[str, Callable[..., Tensor]] = {
        "encoder, Previewer": lambda part, *_: F.interpolate(
            previewer(part).float().clamp(0, 1).cpu(), size=batch.rgb.shape[2:], mode="bilinear"
        )
    }
    ways |= {f"encoder, Stage B in {steps} steps, A": partial(painter.through_b, steps=steps) for steps in STEPS}
    for name, way in ways.items():
        made = [
            way(latent[i : i + BATCH], prompts[i : i + BATCH], list(range(i, min(i + BATCH, DECODED))))
            for i in range(0, DECODED, BATCH)
        ]
        found[name] = psnr(torch.cat(made), batch.rgb, batch.alpha)
    found["float8 storage against float32, whole picture"] = measure_eight_bits(painter, prompts[:ROUNDED])
    return found


@torch.no_grad()
def measure_previewer(place: Place) -> dict[str, float]:
    """What the image encoder keeps: the Previewer's dB inside the subject, and the judge's top-1 and top-5."""
    batch = Scenes(random.Random(place.seed + 8), **PAINTED).batch(DECODED, held=True)
    encoder, previewer = load_trained(place, "encoder"), load_trained(place, "previewer")
    parts = [
        previewer(encoder(for_encoder(part.to(place.device), place.sizes.canvas))) for part in batch.rgb.split(BATCH)
    ]
    small = torch.cat(parts).float().clamp(0, 1).cpu()
    order = first_five(load_judge(place, len(read_split()[0])), at_sight(small), place.device)
    found = {
        "dB inside the subject": psnr(
            F.interpolate(small, size=batch.rgb.shape[2:], mode="bilinear"), batch.rgb, batch.alpha
        ),
        **measure_told(order, batch.subjects),
    }
    log.info("encoder, Previewer: %s", ", ".join(f"{name} {value:.3f}" for name, value in found.items()))
    return found


@torch.no_grad()
def measure_steps(place: Place) -> dict[int, dict[str, float]]:
    """What Stage B makes of encoded pictures in one step and in more, as :func:`measure_previewer` measures it."""
    painter, scenes, found = Painter(place), Scenes(random.Random(place.seed + 8), **PAINTED), {}
    batch, eyes = scenes.batch(DECODED, held=True), Eyes(place, scenes)
    prompts = [f"{scenes.subjects[i].labels['en']} on {colour}" for i, colour in zip(batch.subjects, batch.colours)]
    latent = torch.cat([painter.encode(part) for part in batch.rgb.split(BATCH)])
    for steps in (1, *STEPS):
        parts = [slice(i, min(i + BATCH, DECODED)) for i in range(0, DECODED, BATCH)]
        made = torch.cat([painter.through_b(latent[p], prompts[p], [*range(DECODED)][p], steps) for p in parts])
        order = first_five(eyes.judge, at_sight(made), place.device)
        found[steps] = {
            "dB inside the subject": psnr(made, batch.rgb, batch.alpha),
            **measure_told(order, batch.subjects),
        }
        log.info("Stage B in %d steps: %s", steps, ", ".join(f"{n} {value:.3f}" for n, value in found[steps].items()))
    return found


def measure_eight_bits(painter: Painter, prompts: list[str]) -> float:
    """PSNR in dB between pictures of the same prompts with the weights of B, C and text as they are and in float8."""
    seeds, exact, place = list(range(len(prompts))), dict(painter.nets), painter.place
    painter.place = replace(place, bfloat16=False)
    wanted = painter.picture(prompts, seeds)
    for name in ("stage_b", "stage_c", "text"):
        painter.nets[name] = settle_weights(painter.load(name))
    made = painter.picture(prompts, seeds)
    painter.nets, painter.place = exact, place
    return psnr(made, wanted, torch.ones_like(wanted[:, :1]))


@torch.no_grad()
def paint_free(place: Place) -> None:
    """The sheet of sixty free prompts, numbered in an order of its own, for somebody who does not know it.

    Writes ``free.png``, the names by the alphabet (``free_names.txt``) and the answers (``free_key.json``) into the
    work folder's ``free``.
    """
    asked = json.loads(FREE.read_text(encoding="utf-8"))
    random.Random(place.seed + 10).shuffle(asked)
    image = Painter(place).picture([p["prompt"] for p in asked], [p["seed"] for p in asked])
    folder = place.work / "free"
    save_sheet(grid(_number(image), 10), folder / "free.png")
    (folder / "free_names.txt").write_text("\n".join(sorted(p["name"] for p in asked)) + "\n", encoding="utf-8")
    key = {str(number): p["name"] for number, p in enumerate(asked, 1)}
    (folder / "free_key.json").write_text(json.dumps(key, indent=1) + "\n", encoding="utf-8")
    log.info("%s: a sheet, its names and its key", folder)


def _number(image: Tensor) -> Tensor:
    """Pictures with their number, from 1, on a strip above each."""
    from PIL import Image, ImageDraw

    strips = []
    for number in range(1, len(image) + 1):
        strip = Image.new("RGB", (image.shape[-1], 24), "white")
        ImageDraw.Draw(strip).text((6, 6), str(number), fill="black")
        strips.append(torch.from_numpy(np.array(strip)).movedim(-1, 0) / 255)
    return torch.cat([torch.stack(strips), image], 2)


def _as_painted(scenes: Scenes, subjects: list[int], colours: list[str]) -> Tensor:
    """Real pictures in the place where Stage C paints them."""
    return compose(np.stack([scenes.picture(i) for i in subjects]), colours, scenes.rng, **PAINTED)[0]


def _chance(classes: int) -> dict[str, float]:
    return {"top-1": 1 / classes, "top-5": 5 / classes, "feature top-5": 5 / classes, "background": 1 / len(COLOURS)}


def _measure_stage_a(net: nn.Module, place: Place) -> dict[str, float]:
    """PSNR inside the subject on fresh pictures, of the main style on held-out backgrounds and of the others."""
    out = {}
    for name, others in (("Stage A alone, Fluent 3D", 0.0), (f"Stage A alone, {', '.join(OTHER_STYLES)}", 1.0)):
        batch = Scenes(random.Random(place.seed + 8), others).batch(48, held=True)
        made = [net.decode(net.encode(part.to(place.device))).cpu() for part in batch.rgb.split(8)]
        out[name] = psnr(torch.cat(made), batch.rgb, batch.alpha)
    return out


def format_shares(title: str, rows: dict[str, dict[str, float]]) -> list[str]:
    """A table of shares by row."""
    names = list(next(iter(rows.values())))
    lines = [f"| {title} | " + " | ".join(names) + " |", "| --- " * (len(names) + 1) + "|"]
    return lines + [
        f"| {name} | " + " | ".join(f"{100 * values[key]:.1f} %" for key in names) + " |"
        for name, values in rows.items()
    ]


def _decibel_table(values: dict[str, float]) -> list[str]:
    lines = ["| PSNR inside the subject | dB |", "| --- | --- |"]
    return lines + [f"| {name} | {value:.1f} |" for name, value in values.items()]


def _write(place: Place, tables: list[list[str]]) -> None:
    path = TABLE if place.sizes is SHIPPED else place.work / TABLE.name
    lines = ["# Cascade Mini, measured", "", "Written by `python3 dev.py run -m training.mini evaluate`."]
    for table in tables:
        lines += ["", *table]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    log.info("%s\n%s", path, "\n".join(lines))
