"""Measures Mini: a judge trained on real renders only, 200 held-out prompts, and a table with chance and ceiling.

``judge`` trains the judge (its state in the work folder), ``evaluate`` writes ``results.md`` beside this file.
"""

from __future__ import annotations

import logging
import random
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cascade_studio.stages.training.optimiser import EMA, Optimiser

from .autoencoders import psnr, settle_norms
from .compose import compose
from .data import COLOURS, OTHER_STYLES, SIDE, pictures
from .loop import Loop, Part, Place, frozen, grid, save_sheet
from .nets import decode, paint, told, trained
from .scenes import Scenes, for_encoder

log = logging.getLogger(__name__)

TABLE = Path(__file__).with_name("results.md")
SIGHT = 128
JUDGE_MINUTES, JUDGE_NEEDS = 25.0, 0.95
BATCH = 20


class Judge(nn.Sequential):
    """A plain convolutional classifier: RGB at 128 px → one score for each subject."""

    def __init__(self, classes: int, widths: tuple[int, ...] = (32, 64, 128, 192, 256)) -> None:
        layers: list[nn.Module] = []
        for c_in, c_out in zip((3, *widths), widths):
            layers += [nn.Conv2d(c_in, c_out, 3, 2, 1, bias=False), nn.BatchNorm2d(c_out), nn.ReLU()]
            if c_out >= 64:
                layers += [nn.Conv2d(c_out, c_out, 3, 1, 1, bias=False), nn.BatchNorm2d(c_out), nn.ReLU()]
        super().__init__(*layers, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(4 * widths[-1], classes))


class JudgePart(Part):
    """The judge on real renders, on every background, softened and re-exposed a little as a decoder might do."""

    name = "judge"
    LR, BATCH = 2e-3, 96

    def __init__(self, place: Place) -> None:
        super().__init__(place)
        torch.manual_seed(place.seed + 9)
        self.scenes = Scenes(self.rng, side=SIGHT)
        self.net = Judge(len(self.scenes.subjects)).to(place.device)
        self.ema = EMA(self.net, 0.995)
        self.state = {"net": self.net, "ema": self.ema, "optimiser": Optimiser(self.net.parameters(), self.LR)}

    def batch(self) -> tuple[Tensor, Tensor]:
        """Softened pictures, half of them on the subject's held-out backgrounds, and their subjects."""
        batch = self.scenes.batch(self.BATCH, held=self.rng.random() < 0.5)
        rgb = batch.rgb.to(self.place.device)
        if self.rng.random() < 0.5:
            small = F.interpolate(rgb, scale_factor=self.rng.uniform(0.45, 1.0), mode="area")
            rgb = F.interpolate(small, size=(SIGHT, SIGHT), mode="bilinear")
        gain = 1 + 0.1 * (torch.rand(len(rgb), 3, 1, 1, device=rgb.device) - 0.5)
        noise = 0.03 * self.rng.random() * torch.randn_like(rgb)
        return rgb * gain + noise, torch.tensor(batch.subjects, device=self.place.device)

    def step(self, factor: float) -> dict[str, float]:
        settle_norms(self.net, self.progress < 0.9)
        image, subject = self.batch()
        with self.place.autocast():
            scores = self.net(image).float()
        loss = F.cross_entropy(scores, subject, label_smoothing=0.05)
        self.state["optimiser"].step(loss, factor)
        self.ema.update(self.net)
        return {"loss": loss.item(), "right": float((scores.argmax(1) == subject).float().mean())}

    def sheet(self) -> Tensor:
        return grid(self.batch()[0][:16].clamp(0, 1), 8)

    def result(self) -> dict[str, Any]:
        return self.ema.copy_of(self.net).state_dict()


def train_judge(place: Place, minutes: float | None = None) -> None:
    """Train the judge and print how often it is right on fresh renders."""
    part = JudgePart(place)
    Loop(part, minutes or JUDGE_MINUTES).run()
    judge = frozen(part.ema.copy_of(part.net))
    with torch.no_grad():
        right = [
            float((judge(image).argmax(1) == subject).float().mean())
            for image, subject in (part.batch() for _ in range(20))
        ]
    share = 100 * sum(right) / len(right)
    log.info("judge: right on %.1f %% of held-out renders (needs %.0f %%)", share, 100 * JUDGE_NEEDS)


def trained_judge(place: Place, classes: int) -> nn.Module:
    """The finished judge."""
    judge = Judge(classes).to(place.device)
    judge.load_state_dict(torch.load(place.weights("judge"), map_location="cpu"))
    return frozen(judge)


def at_sight(image: Tensor) -> Tensor:
    """RGB of any size as the judge sees it."""
    return F.interpolate(image, size=(SIGHT, SIGHT), mode="bilinear", antialias=True)


def first_five(judge: nn.Module, seen: Tensor, device: torch.device) -> list[list[int]]:
    """The five subjects that the judge finds likeliest in each picture of :func:`at_sight`."""
    scores = torch.cat([judge(part.to(device)).float().cpu() for part in seen.split(50)])
    return scores.topk(5).indices.tolist()


# Hand-made features


def background(image: Tensor) -> Tensor:
    """The median colour of the picture's rim, (B, 3, H, W) → (B, 3)."""
    rim = max(2, image.shape[-1] // 32)
    parts = image[:, :, :rim], image[:, :, -rim:], image[..., :rim], image[..., -rim:]
    return torch.cat([part.flatten(2) for part in parts], 2).median(2).values


def colour_names(image: Tensor) -> list[str]:
    """The nearest background colour of each picture."""
    table = torch.tensor(list(COLOURS.values())).float() / 255
    return [list(COLOURS)[int(i)] for i in torch.cdist(background(image), table).argmin(1)]


def silhouettes(image: Tensor, side: int = 24) -> Tensor:
    """What stands out, cut to its bounding box, with its mask: (B, 3, H, W) → (B, 4, side, side)."""
    ground = background(image)[:, :, None, None]
    mask = ((image - ground).abs().amax(1, keepdim=True) > 0.12).float()
    cut = []
    for picture, shape in zip(torch.cat([(image - ground) * mask, mask], 1), mask[:, 0]):
        rows, columns = (torch.nonzero(shape.mean(axis) > 0.01).flatten() for axis in (1, 0))
        if len(rows) and len(columns):
            picture = picture[:, rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        cut.append(F.interpolate(picture[None], size=(side, side), mode="area")[0])
    return torch.stack(cut)


def feature_ranks(image: Tensor, subjects: list[int], colours: list[str], scenes: Scenes) -> list[int]:
    """The rank of the asked subject among all, by distance of silhouettes, gallery on the same background."""
    ranks = []
    everything = list(range(len(scenes.subjects)))
    galleries: dict[str, Tensor] = {}
    for picture, subject, colour in zip(silhouettes(image), subjects, colours):
        if colour not in galleries:
            galleries[colour] = torch.cat(
                [silhouettes(_real(scenes, everything[i : i + 128], colour)) for i in range(0, len(everything), 128)]
            )
        both = picture, picture.flip(-1)
        distances = torch.minimum(*((galleries[colour] - way).square().flatten(1).mean(1) for way in both))
        ranks.append(int((distances < distances[subject]).sum()))
    return ranks


def _real(scenes: Scenes, subjects: list[int], colour: str) -> Tensor:
    """Upright renders in the middle of the canvas."""
    source = pictures()
    chosen = np.stack([source[i] for i in subjects])
    return compose(chosen, [colour] * len(subjects), scenes.rng, SIGHT, centred=True)[0]


# The table


@torch.no_grad()
def evaluate(place: Place) -> None:
    """Paint the held-out prompts, judge them and write the table and a sheet."""
    nets = {name: trained(place, name) for name in ("stage_a", "encoder", "text", "stage_b", "stage_c")}
    scenes = Scenes(random.Random(place.seed + 7))
    judge = trained_judge(place, len(scenes.subjects))
    subjects = [p["subject"] for p in scenes.prompts]
    colours = [p["background"] for p in scenes.prompts]
    empty = told(nets["text"], [""])[1]

    def through_b(latent: Tensor, prompts: list[str], seeds: list[int]) -> Tensor:
        made = decode(nets["stage_b"], latent, told(nets["text"], prompts)[1], empty, seeds)
        return nets["stage_a"].decode(made).float().clamp(0, 1).cpu()

    painted, ceiling = [], []
    for start in range(0, len(scenes.prompts), BATCH):
        part = scenes.prompts[start : start + BATCH]
        prompts, seeds = [p["prompt"] for p in part], [p["seed"] for p in part]
        painted.append(through_b(paint(nets["stage_c"], nets["text"], prompts, seeds), prompts, seeds))
        real = _at_full_size(scenes, subjects[start : start + BATCH], colours[start : start + BATCH])
        ceiling.append(through_b(nets["encoder"](for_encoder(real.to(place.device))), prompts, seeds))
        log.info("evaluate: %d of %d prompts", start + len(part), len(scenes.prompts))
    rows = {"prompts": torch.cat(painted), "ceiling: real pictures through encoder, B and A": torch.cat(ceiling)}
    measured = {name: _measure(judge, image, subjects, colours, scenes, place) for name, image in rows.items()}
    _write(measured, _stage_a_psnr(nets["stage_a"], place), len(scenes.subjects))
    save_sheet(grid(rows["prompts"][:48], 12), place.work / "sheets" / "evaluate.png")


def _at_full_size(scenes: Scenes, subjects: list[int], colours: list[str]) -> Tensor:
    return compose(np.stack([scenes.picture(i) for i in subjects]), colours, scenes.rng, SIDE)[0]


def _measure(
    judge: nn.Module, image: Tensor, subjects: list[int], colours: list[str], scenes: Scenes, place: Place
) -> dict[str, float]:
    seen = at_sight(image)
    order = first_five(judge, seen, place.device)
    ranks = feature_ranks(seen, subjects, colours, scenes)
    count = len(subjects)
    return {
        "top-1": sum(top[0] == s for top, s in zip(order, subjects)) / count,
        "top-5": sum(s in top for top, s in zip(order, subjects)) / count,
        "feature top-5": sum(rank < 5 for rank in ranks) / count,
        "background": sum(a == b for a, b in zip(colour_names(seen), colours)) / count,
    }


def _stage_a_psnr(net: nn.Module, place: Place) -> dict[str, float]:
    """PSNR inside the subject on fresh pictures, of the main style on held-out backgrounds and of the others."""
    out = {}
    for name, others in (("Fluent 3D", 0.0), (", ".join(OTHER_STYLES), 1.0)):
        batch = Scenes(random.Random(place.seed + 8), others).batch(48, held=True)
        made = [net.decode(net.encode(part.to(place.device))).cpu() for part in batch.rgb.split(8)]
        out[name] = psnr(torch.cat(made), batch.rgb, batch.alpha)
    return out


def _write(measured: dict[str, dict[str, float]], quality: dict[str, float], classes: int) -> None:
    names = list(next(iter(measured.values())))
    chance = {"top-1": 1 / classes, "top-5": 5 / classes, "feature top-5": 5 / classes, "background": 1 / len(COLOURS)}
    lines = [
        "# Cascade Mini, measured",
        "",
        "Written by `python3 dev.py run -m training.mini evaluate`.",
        "",
        "| 200 held-out prompts | " + " | ".join(names) + " |",
        "| --- " * (len(names) + 1) + "|",
    ]
    for name, values in {**measured, "chance": chance}.items():
        lines.append(f"| {name} | " + " | ".join(f"{100 * values[key]:.1f} %" for key in names) + " |")
    lines += ["", "| Stage A, PSNR inside the subject | dB |", "| --- | --- |"]
    lines += [f"| {name} | {value:.1f} |" for name, value in quality.items()]
    TABLE.write_text("\n".join(lines) + "\n", encoding="utf-8")
    log.info("\n%s", "\n".join(lines))
