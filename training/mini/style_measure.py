"""What a style LoRA does, in numbers: python3 dev.py run -m training.mini.style_measure [--style noto | ink | chalk]

A linear judge of the style is fitted to latents of real pictures in both styles, and tried on those of other subjects.
Then the held-out prompts are painted with and without the LoRA: how often the judge says the new style, and how often
the judge of subjects (``training.mini judge``) still finds the asked one. All networks but that judge are those that
ship. Writes results_lora.md beside this file, or results_lora_STYLE.md for another style than Noto's.
"""

from __future__ import annotations

import argparse
import logging
import random
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from cascade_studio.stages.lora.match import match_lora
from cascade_studio.stages.nets.stage_c import StageC

from .compose import LARGE, compose, random_colour
from .data import MAIN, SEED, SIDE, read_split
from .export import FOLDER, load_shipped
from .ink import find_subjects, pick_pictures
from .judge import at_sight, first_five, load_judge
from .loop import Place, frozen, grid, save_sheet
from .nets import decode, encode_prompts, paint
from .scenes import for_encoder
from .sizes import SHIPPED
from .style_lora import STYLES, Style

log = logging.getLogger(__name__)

RENDERS, PROMPTS, RIDGE = 800, 48, 10.0
MOVED = (-8, 0, 8)
"""Pixels by which drawings are moved, so that a few are seen in many ways."""


def features(latent: Tensor) -> Tensor:
    """Stage C latents (B, 16, h, w) → (B, 81): mean, spread and roughness of every channel, with those between them."""
    mean, spread = latent.mean((2, 3)), latent.std((2, 3))
    across = (latent[..., 1:] - latent[..., :-1]).abs().mean((2, 3))
    down = (latent[..., 1:, :] - latent[..., :-1, :]).abs().mean((2, 3))
    peak = latent.abs().amax((2, 3))
    return torch.cat([mean, spread, across, down, peak, torch.ones(len(latent), 1)], 1)


@dataclass
class StyleJudge:
    """Scores above 0 mean the new style."""

    weight: Tensor

    @classmethod
    def fit(cls, latent: Tensor, new: Tensor) -> StyleJudge:
        """By ridge regression on +1 (``new``) and -1."""
        x = features(latent).double()
        wanted = new.double() * 2 - 1
        return cls(torch.linalg.solve(x.T @ x + RIDGE * torch.eye(x.shape[1], dtype=x.dtype), x.T @ wanted).float())

    def share(self, latent: Tensor) -> float:
        """How many of the latents show the new style."""
        return float((features(latent) @ self.weight > 0).float().mean())


@torch.no_grad()
def renders(style: str, chosen: list[int], encoder: torch.nn.Module) -> Tensor:
    """Latents of composed pictures of these subjects in a style."""
    subjects, _ = read_split()
    rng = random.Random(SEED)
    found = []
    for start in range(0, len(chosen), 32):
        part = chosen[start : start + 32]
        colours = [random_colour(subjects[i], rng) for i in part]
        rgb, _ = compose(pick_pictures(style, part), colours, rng, SIDE, sizes=LARGE)
        found.append(encoder(for_encoder(rgb, SHIPPED.canvas)))
    return torch.cat(found)


@torch.no_grad()
def drawings(folder: Path, encoder: torch.nn.Module) -> Tensor:
    """Latents of the pictures in a folder, each moved and mirrored; all ways of one stand together."""
    found = []
    for path in sorted(folder.glob("*.png")):
        rgb = torch.from_numpy(np.array(Image.open(path).convert("RGB"))).movedim(-1, 0).float() / 255
        ways = [
            torch.roll(rgb.flip(2) if mirrored else rgb, (down, across), (1, 2))
            for mirrored, down, across in product((False, True), MOVED, MOVED)
        ]
        found.append(encoder(for_encoder(torch.stack(ways), SHIPPED.canvas)))
    return torch.cat(found)


def with_lora(net: StageC, path: Path) -> StageC:
    """A copy of ``net`` with the LoRA at strength 1."""
    tensors = net.state_dict()
    lora = match_lora(load_file(path), {"stage_c": {name: value.shape for name, value in tensors.items()}})
    changed = {name: value.clone() for name, value in tensors.items()}
    for module, parts in lora.unet.items():
        up, down = parts["lora_up.weight"].float(), parts["lora_down.weight"].float()
        change = up.flatten(1) @ down.flatten(1) * (float(parts.get("alpha", len(down))) / len(down))
        changed[f"{module}.weight"] += change.reshape(changed[f"{module}.weight"].shape)
    copy = StageC(net.config)
    copy.load_state_dict(changed)
    return frozen(copy)


@torch.no_grad()
def measure(place: Place, path: Path, style: str) -> list[str]:
    """The table as lines of Markdown."""
    drawn = STYLES.get(style, Style()).drawn
    nets: dict[str, Any] = {**load_shipped("stage_a", "encoder", "text", "stage_b", "stage_c")}
    subjects, prompts = read_split()
    there = find_subjects(MAIN if drawn else style)
    random.Random(SEED).shuffle(there)
    latents = {style: drawings(drawn, nets["encoder"]) if drawn else renders(style, there[:RENDERS], nets["encoder"])}
    count = len(latents[style])
    latents[MAIN] = renders(MAIN, there[:count], nets["encoder"])
    fit = count * 3 // 4
    judge = StyleJudge.fit(torch.cat([latents[MAIN][:fit], latents[style][:fit]]), torch.arange(2 * fit) >= fit)
    right = [1 - judge.share(latents[MAIN][fit:]), judge.share(latents[style][fit:])]
    eyes = load_judge(place, len(subjects))
    asked = prompts[:: max(1, len(prompts) // PROMPTS)][:PROMPTS]
    words, seeds = [prompt["prompt"] for prompt in asked], [prompt["seed"] for prompt in asked]
    said, empty = encode_prompts(nets["text"], words)[1], encode_prompts(nets["text"], [""])[1]
    rows, shown = [], []
    for name, net in (("without the LoRA", nets["stage_c"]), ("with the LoRA", with_lora(nets["stage_c"], path))):
        latent = paint(net, nets["text"], words, seeds)
        image = nets["stage_a"].decode(decode(nets["stage_b"], latent, said, empty, seeds)).float().clamp(0, 1)
        order = first_five(eyes, at_sight(image), place.device)
        kept = sum(prompt["subject"] in found for prompt, found in zip(asked, order)) / len(asked)
        rows.append(f"| {name} | {100 * judge.share(latent):.1f} % | {100 * kept:.1f} % |")
        shown.append(image[:12])
    save_sheet(grid(torch.cat(shown), 12), place.work / "sheets" / f"style_lora_{style}.png")
    return [
        f"# {path.stem}, measured",
        "",
        f"Written by `python3 dev.py run -m training.mini.style_measure --style {style}`.",
        "",
        f"The judge of styles is right on {100 * sum(right) / 2:.1f} % of {2 * (count - fit)} pictures of other "
        "subjects than it was fitted to.",
        "",
        f"| {len(asked)} held-out prompts | {style} style | subject in the top 5 |",
        "| --- | --- | --- |",
        *rows,
    ]


def main() -> None:
    """Measure, print and write the table."""
    parser = argparse.ArgumentParser(prog="training.mini.style_measure", description=__doc__.split("\n")[0])
    parser.add_argument("--style", default="noto")
    parser.add_argument("--lora", type=Path, help="the file (default: that of the style in mini/loras)")
    parser.add_argument("--mini", type=Path, default=SHIPPED.work, help="the recipe's work folder")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    place = Place(options.mini, torch.device("cpu"))
    path = options.lora or FOLDER / "loras" / f"cascade_mini_{options.style}.safetensors"
    lines = measure(place, path, options.style)
    table = Path(__file__).with_name(
        "results_lora.md" if options.style == "noto" else f"results_lora_{options.style}.md"
    )
    table.write_text("\n".join(lines) + "\n", encoding="utf-8")
    log.info("\n%s", "\n".join(lines))


if __name__ == "__main__":
    main()
