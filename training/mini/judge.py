"""The judge: a classifier of subjects that learned from real renders only, and that nothing else learned from."""

from __future__ import annotations

import logging
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cascade_studio.stages.training.optimiser import EMA, Optimiser

from .autoencoders import settle_norms
from .loop import Loop, Part, Place, frozen, grid
from .scenes import Scenes

log = logging.getLogger(__name__)

SIGHT = 128
JUDGE_MINUTES, JUDGE_NEEDS = 25.0, 0.95


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


def load_judge(place: Place, classes: int) -> nn.Module:
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


def measure_told(order: list[list[int]], subjects: list[int]) -> dict[str, float]:
    """Shares of pictures whose subject is the first, and one of the five, of :func:`first_five`."""
    pairs = list(zip(order, subjects, strict=True))
    return {
        "top-1": sum(top[0] == subject for top, subject in pairs) / len(pairs),
        "top-5": sum(subject in top for top, subject in pairs) / len(pairs),
    }
