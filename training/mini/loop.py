"""The loop that every part of the recipe runs in: a budget of minutes, a state that survives, losses and sheets."""

from __future__ import annotations

import csv
import logging
import math
import random
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from cascade_studio.stages.files import durable
from cascade_studio.stages.training.distributed import ALONE, Crew

from .sizes import SHIPPED, Sizes

log = logging.getLogger(__name__)

SAVE_SECONDS, SHEET_SECONDS, LOG_SECONDS = 300, 300, 20
WARM_UP, FINAL = 0.02, 0.03
"""Shares of the budget and of the learning rate: linear up, then a cosine down to ``FINAL``."""


@dataclass(frozen=True)
class Place:
    """Where, what and how to train: the work folder, the device, whether products are computed in bfloat16, the seed,
    the sizes of the nets, and the processes that take a batch each.
    """

    work: Path
    device: torch.device
    bfloat16: bool = True
    seed: int = 0
    sizes: Sizes = SHIPPED
    crew: Crew = ALONE

    def autocast(self) -> torch.autocast:
        """Products in bfloat16, sums and weights in float32."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.bfloat16)

    def weights(self, name: str) -> Path:
        """The finished tensors of a part."""
        return self.work / f"{name}.pt"

    def start(self, name: str) -> Path:
        """The tensors of an earlier one that a part begins with, if they are there."""
        return self.work / f"{name}.start.pt"

    def read_start(self, name: str) -> dict[str, Any]:
        """Those by net; nothing where the part begins from nothing."""
        return torch.load(self.start(name), map_location=self.device) if self.start(name).is_file() else {}


class Part:
    """One thing to train, for at most ``STEPS`` steps. ``state`` names everything with a state_dict that a resumed run
    needs.
    """

    name, STEPS = "", 1_000_000

    def __init__(self, place: Place) -> None:
        self.place = place
        self.rng = random.Random(place.seed)
        self.state: dict[str, Any] = {}
        self.progress = 0.0

    def step(self, factor: float) -> dict[str, float]:
        """One update at ``factor`` of the learning rate; returns what to log."""
        raise NotImplementedError

    def sheet(self) -> Tensor:
        """Samples as one picture (3, H, W) in [0, 1]."""
        raise NotImplementedError

    def find_again(self) -> None:
        """What is no part of ``state`` but hangs on it, after a saved one was read."""

    def result(self) -> dict[str, Any]:
        """What the next parts need; written when the budget is used, and with every save."""
        raise NotImplementedError


def factor_at(progress: float) -> float:
    """The learning rate's factor when a share ``progress`` of the budget is used."""
    if progress < WARM_UP:
        return progress / WARM_UP + 1e-3
    return FINAL + (1 - FINAL) * (1 + math.cos(math.pi * min(1.0, (progress - WARM_UP) / (1 - WARM_UP)))) / 2


def write_atomically(value: Any, path: Path) -> None:
    """``torch.save`` that leaves the old file alone until the new one is whole."""
    durable.write_atomically(path, lambda draft: torch.save(value, draft))


def make_once(place: Place, path: Path, make: Callable[[], Any]) -> Any:
    """What the file at ``path`` holds, which the first process makes where it is not there; the others wait for it."""
    if place.crew.rank == 0 and not path.is_file():
        write_atomically(make(), path)
    place.crew.wait()
    return torch.load(path, weights_only=False)


def save_sheet(sheet: Tensor, path: Path) -> None:
    """A picture (3, H, W) in [0, 1] as PNG."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray((sheet.detach().float().cpu().clamp(0, 1) * 255).byte().permute(1, 2, 0).numpy()).save(path)


def grid(images: Tensor, columns: int) -> Tensor:
    """(B, 3, H, W) → one picture with ``columns`` across; rows are filled up with black."""
    rows = -(-len(images) // columns)
    padded = torch.cat([images, images.new_zeros(rows * columns - len(images), *images.shape[1:])])
    return torch.cat([torch.cat(list(row), dim=2) for row in padded.split(columns)], dim=1)


class Speed:
    """How many steps a second a part takes, and once a warning where its minutes are too few for half of its steps."""

    def __init__(self, name: str, steps: int, seconds: float) -> None:
        self.name, self.wanted, self.seconds = name, steps, seconds
        self.warned, self.last = False, None

    def describe(self, steps: int, used: float) -> str:
        """The rate since the last call, "0.91 steps a second", after ``steps`` steps and ``used`` seconds."""
        before, self.last = self.last or (0, 0.0), (steps, used)
        rate = (steps - before[0]) / max(1e-9, used - before[1])
        fit = steps + rate * max(0.0, self.seconds - used)
        if not self.warned and fit < self.wanted / 2:
            self.warned = True
            log.warning(
                "%s: %.2f steps a second are slow: its %.0f minutes will see %.0f of the %d steps that it is "
                "planned for. Give it more minutes, a faster processor or a GPU.",
                self.name,
                rate,
                self.seconds / 60,
                fit,
                self.wanted,
            )
        return f"{rate:.2f} steps a second"


class Loop:
    """Runs one part until its steps are done or ``minutes`` of training are used up, over any number of starts.

    ``rate`` is a factor of the learning rate.

    On a CPU those are minutes of a calm machine, processor time over threads, so that other work beside the training
    makes it longer but not worse. What of the two is nearer to its end sets the learning rate. With several processes
    the minutes are the mean of theirs, and the first writes what is written.
    """

    def __init__(self, part: Part, minutes: float | None = None, rate: float = 1.0) -> None:
        self.part, self.rate, self.seconds = part, rate, math.inf if minutes is None else minutes * 60
        self.used, self.steps, self.taken = 0.0, 0, defaultdict(list)
        self.speed = Speed(part.name, part.STEPS, self.seconds)
        self.path = part.place.work / f"{part.name}.state.pt"

    def now(self) -> float:
        """Seconds of training."""
        if self.part.place.device.type == "cpu":
            return time.process_time() / torch.get_num_threads()
        return time.monotonic()

    @property
    def progress(self) -> float:
        """The share of the steps or of the minutes that is used up."""
        return max(self.used / self.seconds, self.steps / self.part.STEPS)

    def load(self) -> None:
        """Continue from the last save, if there is one."""
        if self.path.is_file():
            saved = torch.load(self.path, map_location="cpu", weights_only=False)
            for name, value in saved["state"].items():
                self.part.state[name].load_state_dict(value)
            self.part.find_again()
            self.used, self.steps = saved["used"], saved["steps"]
            self.part.rng.setstate(saved["random"])
            torch.set_rng_state(saved["torch"])
            self._part_ways()
            self.speed.last = self.steps, self.used
            log.info("%s: continues after %d steps and %.1f minutes", self.part.name, self.steps, self.used / 60)

    def _part_ways(self) -> None:
        """Each process but the first draws other numbers than that."""
        if rank := self.part.place.crew.rank:
            self.part.rng.seed(f"{rank} {self.steps}")
            torch.manual_seed(self.part.rng.getrandbits(63))

    def save(self) -> None:
        """Everything that :meth:`load` needs, and the result so far."""
        if self.part.place.crew.rank:
            return
        state = {name: value.state_dict() for name, value in self.part.state.items()}
        write_atomically(
            {
                "state": state,
                "used": self.used,
                "steps": self.steps,
                "random": self.part.rng.getstate(),
                "torch": torch.get_rng_state(),
            },
            self.path,
        )
        write_atomically(self.part.result(), self.part.place.weights(self.part.name))

    def run(self) -> None:
        """Train. An interrupt saves first."""
        self._part_ways()
        self.load()
        if self.progress >= 1:
            log.info("%s: done, after %d steps and %.0f minutes", self.part.name, self.steps, self.used / 60)
            return
        crew, saved = self.part.place.crew, time.monotonic()
        sheet = logged = saved
        try:
            while self.progress < 1:
                started = self.now()
                self.part.progress = self.progress
                for name, value in self.part.step(self.rate * factor_at(self.part.progress)).items():
                    self.taken[name].append(value)
                taken = torch.tensor([self.now() - started], dtype=torch.float64)
                self.used += float(crew.sum(taken)) / crew.size
                self.steps += 1
                now = time.monotonic()
                if now - logged > LOG_SECONDS:
                    self._log()
                    logged = now
                if now - saved > SAVE_SECONDS:
                    self.save()
                    saved = time.monotonic()
                if now - sheet > SHEET_SECONDS:
                    self._sheet()
                    sheet = time.monotonic()
        finally:
            self._log()
            self.save()
        self._sheet()

    def _log(self) -> None:
        if not self.taken or self.part.place.crew.rank:
            return
        means = {name: sum(values) / len(values) for name, values in self.taken.items()}
        self.taken.clear()
        path = self.part.place.work / "losses.csv"
        fresh = not path.is_file()
        with open(path, "a", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            if fresh:
                writer.writerow(["part", "step", "minutes", "name", "value"])
            writer.writerows(
                [self.part.name, self.steps, f"{self.used / 60:.2f}", name, f"{value:.6f}"]
                for name, value in means.items()
            )
        text = ", ".join(f"{name} {value:.4g}" for name, value in means.items())
        log.info(
            "%s: step %d, %.1f min, %s, %s",
            self.part.name,
            self.steps,
            self.used / 60,
            self.speed.describe(self.steps, self.used),
            text,
        )

    def _sheet(self) -> None:
        if self.part.place.crew.rank:
            return
        with torch.no_grad():
            save_sheet(self.part.sheet(), self.part.place.work / "sheets" / f"{self.part.name}-{self.steps:06d}.png")


def frozen(net: nn.Module) -> nn.Module:
    """``net`` in eval mode without gradients."""
    return net.eval().requires_grad_(False)
