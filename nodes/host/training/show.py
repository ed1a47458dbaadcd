"""What a training node shows while it learns: the bar, the loss with the time left, and pictures of the prompts."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import comfy.model_management
import comfy.utils
import torch
from PIL import Image
from server import PromptServer
from torch import Tensor

from ....stages.diffusion.official import OFFICIAL
from ....stages.diffusion.sampling import Guidance
from ....stages.training.run import Run
from ....stages.training.trainer import Trainer
from .. import latents
from ..models import use_vae as vaes
from ..sampling import notes, sample

SAMPLE_SIDE = 512
WHERE = "A live sample"


@dataclass(frozen=True)
class Wired:
    """What is wired into a training node: the model that learns or guides, the encoders, Stage A for Stage B, and the
    Stage B that paints the live samples."""

    model: Any
    clip: Any
    vae: Any
    stage_a: Any = None
    node: str = ""
    decoder: Any = None


class Show:
    """Progress: the bar, the loss with the time left, and pictures that the network paints on the way."""

    def __init__(self, run: Run, wired: Wired, folder: Path) -> None:
        self.run, self.wired, self.folder, self.node = run, wired, folder, wired.node
        self.bar = comfy.utils.ProgressBar(run.settings.steps)
        self.started, self.first = 0.0, -1
        self.mean: float | None = None

    def start(self, trainer: Trainer) -> None:
        """Before the first step of a new run: what the network paints without it."""
        if self.run.settings.sample_every and trainer.step == 0:
            self.bar.update_absolute(0, self.run.settings.steps, self.sample(0))

    def prepare(self, done: int, of: int) -> None:
        """After every step of what comes before the first one; raises where the user has asked to stop."""
        PromptServer.instance.send_progress_text(f"trunk: step {done} of {of}", self.node)
        comfy.model_management.throw_exception_if_processing_interrupted()

    def step(self, trainer: Trainer) -> None:
        """After every update; raises where the user has asked to stop."""
        settings, done, loss, now = self.run.settings, trainer.step, trainer.losses[-1], time.monotonic()
        if self.mean is None:  # the first step warms up, and says nothing of the others
            self.first, self.started, self.mean = done, now, loss
        self.mean += 0.05 * (loss - self.mean)
        left = ""
        if done > self.first:
            seconds = int((now - self.started) / (done - self.first) * (settings.steps - done))
            left = f", {seconds // 60}:{seconds % 60:02d} left"
        fixed = f" ({trainer.judged[-1][1]:.4f} on fixed noise)" if trainer.judged else ""
        PromptServer.instance.send_progress_text(
            f"step {done} of {settings.steps}, loss {self.mean:.4f}{fixed}{left}", self.node
        )
        due = settings.sample_every and done % settings.sample_every == 0
        self.bar.update_absolute(done, settings.steps, self.sample(done) if due else None)
        comfy.model_management.throw_exception_if_processing_interrupted()

    def sample(self, step: int) -> tuple[str, Image.Image, int] | None:
        """What the network makes of the watched prompts now, kept in the run's folder; the first one is shown. None
        without a decoder and Previewer."""
        full = self.wired.decoder is not None and self.wired.stage_a is not None
        if not full and not hasattr(self.wired.vae.first_stage_model, "previewer"):
            return None
        shown = []
        for number, (latent, watched) in enumerate(zip(self.run.paint_latents(), self.run.lesson.samples)):
            with torch.inference_mode():
                if full:
                    pixels = paint_fully(self.wired, latent, watched.prompt, self.run.settings.seed)
                else:
                    pixels = vaes.preview(self.wired.vae, latent)[0]
            shown.append(Image.fromarray((pixels.float().cpu() * 255).round().byte().numpy()))
            self.folder.mkdir(parents=True, exist_ok=True)
            shown[-1].save(self.folder / f"step{step:06d}{f'-{number + 1}' if number else ''}.png")
        return ("PNG", shown[0], SAMPLE_SIDE) if shown else None


def paint_fully(wired: Wired, latent: Tensor, prompt: str, seed: int) -> Tensor:
    """The picture (H, W, 3) in [0, 1] of a Stage C latent (1, 16, h, w), by the wired Stage B and Stage A."""
    prior = {"samples": latent}
    compression, official = notes.read_native_compression(wired.decoder), OFFICIAL["stage_b"]
    canvas = latents.find_prior_canvas(prior, WHERE, compression)
    empty = latents.make_empty_decoder(canvas, 1)
    said, unsaid = (wired.clip.encode_from_tokens_scheduled(wired.clip.tokenize(text)) for text in (prompt, ""))
    run = sample.StageRun("Stage B", official.steps, official.shift, Guidance(official.cfg), seed, canvas=canvas)
    made = sample.run_stage(
        wired.decoder,
        latents.attach_prior(said, latent),
        latents.attach_prior(unsaid, torch.zeros_like(latent)),
        empty,
        run,
    )
    return latents.crop_padding(vaes.decode(wired.stage_a, made), canvas)[0]
