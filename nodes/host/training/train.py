"""Training inside the host: encoders of the graph, a private copy of the network, progress, and the result applied.

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

import comfy.model_base
import comfy.model_management
import comfy.sd
import comfy.utils
import folder_paths
import torch
from PIL import Image
from server import PromptServer
from torch import Tensor

from ....stages.errors import OutOfMemory, WrongInput
from ....stages.files.durable import hash_file
from ....stages.training import export
from ....stages.training.cache import encode_caption, encode_set, fingerprint
from ....stages.training.captions import SUFFIXES as CAPTIONS
from ....stages.training.checkpoint import check_target
from ....stages.training.dataset import PictureFiles, TrainingSet
from ....stages.training.folders import SUFFIXES, FileMemory, FolderOptions, from_folder
from ....stages.training.memory import GB
from ....stages.training.pictures_io import draw_losses, read_picture, read_size
from ....stages.training.run import Lesson, Run, Sample, add_words, parse_prompts
from ....stages.training.settings import Settings
from ....stages.training.tasks import Ingredients
from ....stages.training.trainer import Trainer
from ....stages.training.words import count_tokens
from ..files import names
from ..models.use_vae import preview
from ..out_of_memory import explain_out_of_memory, make_room
from .weights import encoder_weights, encoders, prior_weights, text_weights

log = logging.getLogger(__name__)

WHERE = "Train Cascade"
FOLDER = "cascade_studio_training"
SAMPLE_SIDE = 512
PLACES = {
    "lora": "loras",
    "words": "loras",
    "text_lora": "loras",
    "stage_c": "diffusion_models",
    "stage_b": "diffusion_models",
    "controlnet": "controlnet",
}
"""The host's folders for what is learned."""
ADVICE = (
    "Raise accumulation, choose fp8 as the base in Cascade Training Settings, train fewer blocks or the lite "
    "model, or close other programs that use the graphics card."
)


OWN_SETS = {path.name: path for path in (Path(__file__).parents[3] / "mini" / "pictures").glob("*/")}
"""Sets of pictures that come with the pack, by name."""


@dataclass(frozen=True)
class Wired:
    """What is wired into a training node: the model that learns or guides, the encoders, and Stage A for Stage B."""

    model: Any
    clip: Any
    vae: Any
    stage_a: Any = None
    node: str = ""


@dataclass(frozen=True)
class Trained:
    """What a node gives: the MODEL and the CLIP with what was learned, the file's name, the plot of the losses, and
    what is to be told of the run."""

    model: Any
    clip: Any
    name: str
    plot: Tensor
    report: str


def home() -> Path:
    """Where all runs, and what was encoded for them, are kept."""
    return Path(folder_paths.get_output_directory()) / FOLDER


def list_loras() -> list[str]:
    """The LoRA files that a run may go on from."""
    return folder_paths.get_filename_list("loras")


def train_model(wired: Wired, pictures: TrainingSet, settings: Settings) -> Trained:
    """Train on ``pictures``, going on from where an interrupted or crashed run of the same settings was."""
    check_target(home())
    check_target(model_folder(PLACES[settings.what]))
    settings = replace(settings, resolution=pictures.resolution)
    lesson, report = prepare_run(wired, pictures, settings)
    check_memory(lesson)
    make_room()
    with explain_out_of_memory(WHERE, ADVICE), torch.inference_mode(False), torch.enable_grad():
        run = Run(lesson)
        name, identity = settings.name, run.identity
        folder = home() / name / identity
        show = Show(run, wired.vae, folder / "samples", wired.node)
        path = run.train(
            folder,
            lambda: export.find_free_path(model_folder(PLACES[settings.what]), name, identity),
            show.step,
            show.start,
        )
        for word, stem in run.save_words(model_folder("embeddings"), path.stem):
            report += f"\nLearned word {word}: write embedding:{stem} in prompts."
        result = {key: value.detach().cpu().clone() for key, value in run.comfyui().items()}
        losses, judged = run.trainer.losses, run.trainer.judged
    model, clip = put_on(wired, settings, result)
    del run, show
    comfy.model_management.soft_empty_cache()
    if judged:
        report += f"\nLoss on fixed noise: {judged[0][1]:.4f} before, {judged[-1][1]:.4f} after {len(losses)} steps."
    log.info("%s", report)
    return Trained(model, clip, path.name, draw_losses(losses, name), report)


def put_on(wired: Wired, settings: Settings, result: dict[str, Tensor]) -> tuple[Any, Any]:
    """The MODEL and the CLIP with what was learned on them, as the host's loader would put it there."""
    if settings.is_lora:
        lora = {
            key: value.half() if value.is_floating_point() and value.ndim else value for key, value in result.items()
        }
        clip = wired.clip if settings.what == "text_lora" else None
        model, taught = comfy.sd.load_lora_for_models(wired.model, clip, lora, 1.0, 1.0)
        return model, wired.clip if taught is None else taught
    if settings.what == "controlnet":
        return wired.model, wired.clip
    model = wired.model.clone()
    model.add_patches({key: ("set", (value,)) for key, value in result.items()})
    return model, wired.clip


def prepare_run(wired: Wired, pictures: TrainingSet, settings: Settings) -> tuple[Lesson, str]:
    """Encode what was not encoded before, and look at the model; with what is to be told of the pictures."""
    clip, kind = wired.clip, "stage_b" if isinstance(wired.model.model, comfy.model_base.StableCascade_B) else "stage_c"
    if kind == "stage_b" and wired.stage_a is None:
        raise WrongInput(f"{WHERE} is to train Stage B, which needs Stage A too: wire its VAE into 'stage_a'.")
    ways = encoders(
        clip,
        wired.vae,
        wired.stage_a if kind == "stage_b" else None,
        settings.hint if settings.what == "controlnet" else "",
    )
    bar, cache = comfy.utils.ProgressBar(len(pictures.pictures)), home() / "cache"

    def on_item(done: int, total: int) -> None:
        comfy.model_management.throw_exception_if_processing_interrupted()
        bar.update_absolute(done, total)

    prompts = parse_prompts(settings.sample_prompt, pictures.resolution, pictures.pictures[0].caption)
    with explain_out_of_memory(f"{WHERE}, encoding the pictures,", "Close other programs that use the graphics card."):
        rows, empty = encode_set(pictures, ways, cache, on_item)
        samples = [Sample(prompt, dict(encode_caption(prompt, ways, cache)), cells) for prompt, cells in prompts]
    given = Ingredients(kind, *prior_weights(wired.model, kind))
    if settings.tokens or settings.what == "text_lora":
        given.text = text_weights(clip)
    if settings.what == "controlnet":
        given.encoder = encoder_weights(wired.vae)
    start = ""
    if settings.start_from:
        path = Path(folder_paths.get_full_path_or_raise("loras", settings.start_from))
        given.start, given.start_name, start = comfy.utils.load_torch_file(str(path)), path.name, hash_file(path)
    facts = (fingerprint(given.weights), pictures.digest, ways.picture_mark, ways.text_mark, start)
    device = comfy.model_management.get_torch_device()
    bfloat16 = device.type != "cpu" and comfy.model_management.should_use_bf16(device)
    repeats = [picture.repeats for picture in pictures.pictures]
    lesson = Lesson(settings, settings.identity(*facts), device, bfloat16, rows, empty, samples, given, repeats)
    tokenizer = clip.tokenizer.clip_g.tokenizer
    if given.text is not None:
        add_words(lesson, [p.captions for p in pictures.pictures], [prompt for prompt, _ in prompts], tokenizer)
    return lesson, "\n".join(filter(None, [pictures.report(), count_tokens(pictures.pictures, tokenizer)]))


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
    places = [Path(place) for place in folder_paths.get_folder_paths(kind)]
    return next((place for place in places if place.name == kind), places[0])  # older hosts name "unet" first


class Show:
    """Progress: the bar, the loss with the time left, and pictures that the network paints on the way."""

    def __init__(self, run: Run, vae: Any, folder: Path, node: str) -> None:
        self.run, self.vae, self.folder, self.node = run, vae, folder, node
        self.bar = comfy.utils.ProgressBar(run.settings.steps)
        self.started, self.first = 0.0, -1
        self.mean: float | None = None

    def start(self, trainer: Trainer) -> None:
        """Before the first step of a new run: what the network paints without it."""
        if self.run.settings.sample_every and trainer.step == 0:
            self.bar.update_absolute(0, self.run.settings.steps, self.sample(0))

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
        without Previewer."""
        if not hasattr(self.vae.first_stage_model, "previewer"):
            return None
        shown = []
        for number, latent in enumerate(self.run.paint_latents()):
            with torch.inference_mode():
                pixels = preview(self.vae, latent)[0]
            shown.append(Image.fromarray((pixels.float().cpu() * 255).round().byte().numpy()))
            self.folder.mkdir(parents=True, exist_ok=True)
            shown[-1].save(self.folder / f"step{step:06d}{f'-{number + 1}' if number else ''}.png")
        return ("PNG", shown[0], SAMPLE_SIDE) if shown else None


def read_folder(name: str, options: FolderOptions, hints: str, resolution: int) -> TrainingSet:
    """The training set in a folder of the host's input folder, with a bar; Cancel stops."""
    place, bar = training_folder(name), None

    def on_item(done: int, total: int) -> None:
        nonlocal bar
        bar = bar or comfy.utils.ProgressBar(total)
        comfy.model_management.throw_exception_if_processing_interrupted()
        bar.update_absolute(done, total)

    options = replace(options, hints=training_folder(hints) if hints.strip() else None)
    files = PictureFiles(read_size, read_picture)
    return from_folder(place, files, options, resolution, FileMemory(home() / "cache" / "files.json"), on_item)


def training_folder(name: str) -> Path:
    """The folder ``name`` below the host's input folder, or one of :data:`OWN_SETS`; WrongInput for one outside."""
    home = os.path.abspath(folder_paths.get_input_directory())
    path = os.path.abspath(os.path.join(home, name.strip()))
    if not os.path.exists(path) and name.strip() in OWN_SETS:
        return OWN_SETS[name.strip()]
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
    """Changes with every file of a training folder and its sub-folders."""
    try:
        folder = training_folder(name)
        entries = [
            (os.path.relpath(entry.path, folder), entry.stat())
            for place in (folder, *sorted(path for path in folder.iterdir() if path.is_dir()))
            for entry in sorted(os.scandir(place), key=lambda entry: entry.name)
            if os.path.splitext(entry.name)[1].lower() in {*SUFFIXES, *CAPTIONS}
        ]
    except (OSError, WrongInput):
        return names.digest(name, "absent")
    return names.digest(name, *(f"{entry}:{status.st_size}:{status.st_mtime_ns}" for entry, status in entries))
