"""Training a LoRA inside the host: encoders of the graph, a private copy of Stage C, progress, and the result applied.

The host runs nodes under inference mode, whose tensors cannot be trained through: everything that learns is made
anew with that mode switched off.
"""

from __future__ import annotations

import errno
import logging
import os
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import comfy.model_management
import comfy.sd
import comfy.utils
import folder_paths
import torch
from PIL import Image
from server import PromptServer
from torch import Tensor

from ....stages.errors import OutOfMemory, WrongInput
from ....stages.training import export
from ....stages.training.cache import encode_caption, encode_set, fingerprint
from ....stages.training.dataset import SUFFIXES, TrainingSet
from ....stages.training.memory import GB
from ....stages.training.pictures_io import draw_losses
from ....stages.training.run import Lesson, Run, add_words
from ....stages.training.settings import Settings
from ....stages.training.trainer import Trainer
from ..files import names
from ..models.use_vae import preview
from ..out_of_memory import explain_out_of_memory, make_room
from .weights import encoders, prior_weights, text_weights

log = logging.getLogger(__name__)

WHERE = "Train Cascade LoRA"
FOLDER = "cascade_studio_training"
SAMPLE_SIDE = 512
ADVICE = (
    "Raise accumulation, choose fp8 as the base in Cascade Training Settings, train fewer blocks or the lite "
    "model, or close other programs that use the graphics card."
)


@dataclass(frozen=True)
class Trained:
    """What the node gives: the MODEL with the LoRA on it, the LoRA's file name, and the plot of its losses."""

    model: Any
    name: str
    plot: Tensor


def home() -> Path:
    """Where all runs, and what was encoded for them, are kept."""
    return Path(folder_paths.get_output_directory()) / FOLDER


def train_lora(model: Any, clip: Any, vae: Any, pictures: TrainingSet, settings: Settings, node: str = "") -> Trained:
    """Train on ``pictures``, going on from where an interrupted or crashed run of the same settings was."""
    lesson = prepare_run(model, clip, vae, pictures, replace(settings, resolution=pictures.resolution))
    check_memory(lesson)
    make_room()
    with explain_out_of_memory(WHERE, ADVICE), torch.inference_mode(False), torch.enable_grad():
        run = Run(lesson)
        folder = home() / settings.name / run.identity
        show = Show(run, vae, folder / "samples", node)
        path = run.train(
            folder, lambda: export.find_free_path(model_folder("loras"), settings.name, lesson.identity), show.step
        )
        for word, stem in run.save_words(model_folder("embeddings"), path.stem):
            log.info("Learned word %s: write embedding:%s in prompts", word, stem)
        lora = {key: value.half().cpu() for key, value in run.comfyui().items()}
    applied, _ = comfy.sd.load_lora_for_models(model, None, lora, 1.0, 0.0)
    losses = run.trainer.losses
    del run, show
    comfy.model_management.soft_empty_cache()
    return Trained(applied, path.name, draw_losses(losses, settings.name))


def prepare_run(model: Any, clip: Any, vae: Any, pictures: TrainingSet, settings: Settings) -> Lesson:
    """Encode what was not encoded before, and look at the model."""
    ways, cache = encoders(clip, vae), home() / "cache"
    bar = comfy.utils.ProgressBar(len(pictures.pictures))

    def on_item(done: int, total: int) -> None:
        comfy.model_management.throw_exception_if_processing_interrupted()
        bar.update_absolute(done, total)

    prompt = settings.sample_prompt or pictures.pictures[0].caption
    with explain_out_of_memory(f"{WHERE}, encoding the pictures,", "Close other programs that use the graphics card."):
        rows, empty = encode_set(pictures, ways, cache, on_item)
        sample = encode_caption(prompt, ways, cache)
    config, weights = prior_weights(model)
    identity = settings.identity(fingerprint(weights), pictures.digest, ways.picture_mark, ways.text_mark)
    device = comfy.model_management.get_torch_device()
    bfloat16 = device.type != "cpu" and comfy.model_management.should_use_bf16(device)
    lesson = Lesson(settings, identity, device, bfloat16, rows, empty, sample, config, weights)
    if settings.tokens:
        lesson.text = text_weights(clip)
        add_words(lesson, [picture.caption for picture in pictures.pictures], prompt, clip.tokenizer.clip_g.tokenizer)
    return lesson


def check_memory(lesson: Lesson) -> None:
    """Log the memory plan; refuse a run that cannot fit, before anything is built."""
    planned = lesson.plan()
    log.info("%s: %s", lesson.settings.name, planned.describe())
    there = comfy.model_management.get_total_memory(lesson.device)
    if planned.total > there:
        raise OutOfMemory(
            f"{WHERE} needs about {planned.total / GB:.1f} GB, but this device has {there / GB:.1f} GB. "
            f"{planned.describe()} {ADVICE}"
        )


def model_folder(kind: str) -> Path:
    """Where new files of a kind ("loras", "embeddings") go."""
    return Path(folder_paths.get_folder_paths(kind)[0])


class Show:
    """Progress: the bar, the loss with the time left, and pictures that the network paints on the way."""

    def __init__(self, run: Run, vae: Any, folder: Path, node: str) -> None:
        self.run, self.vae, self.folder, self.node = run, vae, folder, node
        self.bar = comfy.utils.ProgressBar(run.settings.steps)
        self.started, self.first = time.monotonic(), 0
        self.mean: float | None = None

    def step(self, trainer: Trainer) -> None:
        """After every update; raises where the user has asked to stop."""
        settings, done, loss = self.run.settings, trainer.step, trainer.losses[-1]
        if self.mean is None:
            self.first, self.mean = done - 1, loss
        self.mean += 0.05 * (loss - self.mean)
        left = int((time.monotonic() - self.started) / (done - self.first) * (settings.steps - done))
        PromptServer.instance.send_progress_text(
            f"step {done} of {settings.steps}, loss {self.mean:.4f}, {left // 60}:{left % 60:02d} left", self.node
        )
        due = settings.sample_every and done % settings.sample_every == 0
        self.bar.update_absolute(done, settings.steps, self.sample(done) if due else None)
        comfy.model_management.throw_exception_if_processing_interrupted()

    def sample(self, step: int) -> tuple[str, Image.Image, int] | None:
        """What the network makes of the samples' prompt now; kept in the run's folder. None without Previewer."""
        if not hasattr(self.vae.first_stage_model, "previewer"):
            return None
        latent = self.run.paint_latent()
        with torch.inference_mode():
            pixels = preview(self.vae, latent)[0]
        image = Image.fromarray((pixels.float().cpu() * 255).round().byte().numpy())
        self.folder.mkdir(parents=True, exist_ok=True)
        image.save(self.folder / f"step{step:06d}.png")
        return "PNG", image, SAMPLE_SIDE


def training_folder(name: str) -> Path:
    """The folder ``name`` below the host's input folder; WrongInput for one outside of it."""
    home = os.path.abspath(folder_paths.get_input_directory())
    path = os.path.abspath(os.path.join(home, name.strip()))
    if not name.strip():
        raise WrongInput(
            "No folder is named and no images are wired in. Write the name of a folder with pictures "
            "and captions that lies in ComfyUI's input folder, or wire images into this node."
        )
    if not is_possible(path):
        raise WrongInput(
            f"The folder name {name[:80]!r} is none that this system can hold. Write the name of a folder that lies in "
            "ComfyUI's input folder."
        )
    if path == home or not Path(path).is_relative_to(home):
        raise WrongInput(
            f"'{name}' does not lie in ComfyUI's input folder. Put the pictures into a folder there, or "
            "a link to their folder, and give its name."
        )
    return Path(path)


def is_possible(path: str) -> bool:
    """Whether the system could hold ``path``, whether or not it does: no part too long, no character that is none."""
    try:
        os.stat(path)
    except OSError as error:
        return error.errno != errno.ENAMETOOLONG
    except ValueError:
        return False
    return True


def stamp_folder(name: str) -> str:
    """Changes with every file of a training folder."""
    try:
        folder = training_folder(name)
        entries = [
            (entry.name, entry.stat())
            for entry in sorted(os.scandir(folder), key=lambda entry: entry.name)
            if os.path.splitext(entry.name)[1].lower() in {*SUFFIXES, ".txt"}
        ]
    except (OSError, WrongInput):
        return names.digest(name, "absent")
    return names.digest(name, *(f"{entry}:{status.st_size}:{status.st_mtime_ns}" for entry, status in entries))
