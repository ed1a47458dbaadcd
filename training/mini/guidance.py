"""Which steps and which guidance suit Stage C, told on other pairs than the held-out prompts.

``settings`` paints up to three hundred subjects, each on a background that it was never learned on and that no held-out
prompt asks for, in a wording of the training, and reads them by the linear decoder of the code: Stage C alone.
"""

from __future__ import annotations

import logging
import random
from pathlib import Path

import torch

from .codes import load_code
from .evaluate import BATCH, Painter, format_shares
from .eyes import colour_names
from .judge import at_sight, first_five, load_judge, measure_told
from .loop import Place
from .scenes import Scenes
from .sizes import SHIPPED

log = logging.getLogger(__name__)

TABLE = Path(__file__).with_name("results_settings.md")
ASKED = 300
TRIED = ((8, 1.0), (8, 1.5), (8, 2.0), (8, 3.0), (8, 4.0), (6, 2.0), (20, 2.0), (20, 4.0))
"""Steps and guidance scales."""


def draw_pairs(scenes: Scenes, count: int = ASKED) -> list[tuple[int, str]]:
    """Different subjects, each on a background held out for it, no pair of which is a held-out prompt's."""
    asked = {(prompt["subject"], prompt["background"]) for prompt in scenes.prompts}
    chosen = scenes.rng.sample(range(len(scenes.subjects)), count)
    free = {i: [colour for colour in scenes.subjects[i].held if (i, colour) not in asked] for i in chosen}
    return [(i, scenes.rng.choice(colours)) for i, colours in free.items() if colours]


@torch.no_grad()
def measure_settings(place: Place) -> dict[str, dict[str, float]]:
    """Subjects and backgrounds told right, by steps and guidance scale; writes ``results_settings.md``."""
    scenes = Scenes(random.Random(place.seed + 12))
    painter, code, judge = Painter(place), load_code(place), load_judge(place, len(scenes.subjects))
    pairs = draw_pairs(scenes)
    subjects, colours = [index for index, _ in pairs], [colour for _, colour in pairs]
    prompts = [f"a {scenes.subjects[i].labels['en']} on a {colour} background" for i, colour in pairs]
    seeds, found = [scenes.rng.getrandbits(32) for _ in pairs], {}
    parts = [slice(i, i + BATCH) for i in range(0, len(pairs), BATCH)]
    for steps, cfg in TRIED:
        latent = [painter.sample_prior(prompts[part], seeds[part], steps=steps, cfg=cfg) for part in parts]
        seen = at_sight(code.decode(torch.cat(latent)).float().clamp(0, 1))
        grounds = sum(a == b for a, b in zip(colour_names(seen), colours)) / len(pairs)
        told = measure_told(first_five(judge, seen, place.device), subjects)
        found[f"{steps} steps, cfg {cfg:g}"] = {**told, "background": grounds}
        log.info("settings: %d steps, cfg %g: %s", steps, cfg, found[f"{steps} steps, cfg {cfg:g}"])
    path = TABLE if place.sizes is SHIPPED else place.work / TABLE.name
    lines = ["# Steps and guidance of Stage C", "", "Written by `python3 dev.py run -m training.mini settings`.", ""]
    lines += format_shares(f"{len(pairs)} pairs never learned, by the code's decoder", found)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    log.info("%s\n%s", path, "\n".join(lines))
    return found
