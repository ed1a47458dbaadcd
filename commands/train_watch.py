"""What a run from a terminal shows: how far it is, and pictures of the watched prompts, kept beside its state."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..stages.files.kinds import KINDS
from ..stages.training.paint import decode_latent
from ..stages.training.run import Run, Sample
from ..stages.training.trainer import Trainer
from .encoders import read_network

log = logging.getLogger(__name__)

LOG_SECONDS = 10


def log_every(seconds: float, what: str) -> Callable[[int, int], None]:
    """A callback that logs now and then."""
    last = [time.monotonic()]

    def tell(done: int, total: int) -> None:
        if time.monotonic() - last[0] > seconds or done == total:
            last[0] = time.monotonic()
            log.info("%s: %d of %d", what, done, total)

    return tell


class TrainingProgress:
    """Logs the loss and the time left, which is counted from the second step on: the first one warms up."""

    def __init__(self, steps: int) -> None:
        self.steps, self.first, self.started, self.told = steps, -1, 0.0, time.monotonic()

    def __call__(self, trainer: Trainer) -> None:
        now = time.monotonic()
        if self.first < 0:
            self.first, self.started = trainer.step, now
        if now - self.told > LOG_SECONDS or trainer.step == self.steps:
            self.told = now
            left = (now - self.started) / max(1, trainer.step - self.first) * (self.steps - trainer.step)
            recent = trainer.losses[-100:]
            log.info(
                "step %d of %d, loss %.4f%s, rate %.3g, %d:%02d left",
                trainer.step,
                self.steps,
                sum(recent) / len(recent),
                f" ({trainer.judged[-1][1]:.4f} on fixed noise)" if trainer.judged else "",
                trainer.optimiser.rate,
                left // 60,
                left % 60,
            )


def follow(*watchers: Callable[[Trainer], None]) -> Callable[[Trainer], None]:
    """One callback that calls all."""

    def call(trainer: Trainer) -> None:
        for watcher in watchers:
            watcher(trainer)

    return call


class Samples:
    """Paints every ``sample_every`` steps, the first before training: by Stage B and Stage A where both are given, else
    by the Previewer where the image encoder's file holds one, else not at all. Their networks wait on the processor.
    """

    def __init__(self, run: Run, folder: Path, image_encoder: str, stage_b: str = "", stage_a: str = "") -> None:
        self.run, self.folder, self.nets = run, folder, {}
        if not run.settings.sample_every or run.lesson.given.kind != "stage_c":
            return
        if stage_b and stage_a:
            self.nets = {name: load_net(path, name) for name, path in (("stage_b", stage_b), ("stage_a", stage_a))}
            return
        config, tensors = read_network(image_encoder, "encoder", "stage_c_vae")
        if getattr(config, "previewer", None) is not None:
            self.nets = {"previewer": build_net("previewer", config.previewer, take_part(tensors, "previewer."))}

    def start(self, trainer: Trainer) -> None:
        """Before the first step of a new run."""
        if trainer.step == 0:
            self.paint(0)

    def step(self, trainer: Trainer) -> None:
        """After every update."""
        if self.nets and trainer.step % self.run.settings.sample_every == 0:
            self.paint(trainer.step)

    def paint(self, step: int) -> None:
        """The picture of each watched prompt as the network paints it now."""
        if not self.nets:
            return
        from PIL import Image

        for number, (latent, watched) in enumerate(zip(self.run.paint_latents(), self.run.lesson.samples)):
            pixels = (self.decode(latent, watched) * 255).round().byte().movedim(0, -1)
            self.folder.mkdir(parents=True, exist_ok=True)
            path = self.folder / f"step{step:06d}{f'-{number + 1}' if number else ''}.png"
            Image.fromarray(pixels.numpy()).save(path)
        log.info("samples of step %d: %s", step, self.folder)

    @torch.no_grad()
    def decode(self, latent: Tensor, watched: Sample) -> Tensor:
        """RGB (3, H, W) in [0, 1] of a Stage C latent (1, 16, h, w)."""
        lesson = self.run.lesson
        if "previewer" in self.nets:
            return self.nets["previewer"](latent.float())[0].clamp(0, 1)
        for net in self.nets.values():
            net.to(lesson.device)
        picture = decode_latent(
            self.nets["stage_b"],
            self.nets["stage_a"],
            latent,
            self.run.task.encode_sample(watched.row)["pooled"],
            lesson.empty["pooled"],
            seed=self.run.settings.seed,
            device=lesson.device,
            bfloat16=lesson.bfloat16,
        )
        for net in self.nets.values():
            net.to("cpu")
        return picture[0].cpu()


def load_net(path: str, kind: str) -> nn.Module:
    """The network of ``kind`` in a file, float32, without gradients."""
    return build_net(kind, *read_network(path, kind))


def build_net(kind: str, config: Any, tensors: dict[str, Tensor]) -> nn.Module:
    """A network with these weights."""
    net = KINDS[kind].module(config, dtype=torch.float32)
    net.load_state_dict({key: tensors[key] for key in net.state_dict() if key in tensors}, strict=False)
    return net.eval().requires_grad_(False)


def take_part(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors whose names begin with ``prefix``, without it."""
    return {key[len(prefix) :]: value for key, value in tensors.items() if key.startswith(prefix)}
