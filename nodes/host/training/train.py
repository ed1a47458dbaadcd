"""Training inside the host: encoders of the graph, a private copy of the network, progress, and the result applied.

The host runs nodes under inference mode, whose tensors cannot be trained through: everything that learns is made
anew with that mode switched off.
"""

from __future__ import annotations

import errno
import logging
import math
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import comfy.model_base
import comfy.model_management
import comfy.sd
import comfy.utils
import folder_paths
import torch
from torch import Tensor

from ....stages.errors import OutOfMemory, WrongInput
from ....stages.files.durable import hash_file
from ....stages.training import export
from ....stages.training.cache import encode_caption, encode_set, fingerprint
from ....stages.training.captions import SUFFIXES as CAPTIONS
from ....stages.training.checkpoint import check_target
from ....stages.training.dataset import PictureFiles, TrainingSet
from ....stages.training.folders import SUFFIXES, FileMemory, FolderOptions, check_hints, from_folder
from ....stages.training.pictures_io import draw_losses, draw_rates, read_picture, read_size
from ....stages.training.rates import RATES, choose_rate, try_rates
from ....stages.training.run import Lesson, Run, Sample, add_words, parse_prompts
from ....stages.training.settings import Settings
from ....stages.training.tasks import Ingredients
from ....stages.training.trainer import Trainer
from ....stages.training.words import count_tokens
from ....stages.units import GB
from ..files import stamps
from ..machine import describe_machine
from ..out_of_memory import explain_out_of_memory, make_room
from .show import Show, Wired
from .weights import encoder_weights, encoders, prior_weights, text_weights

log = logging.getLogger(__name__)

WHERE = "Train Cascade"
FOLDER = "cascade_studio_training"
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
        show = Show(run, wired, folder / "samples")
        path = run.train(
            folder,
            lambda: export.find_free_path(model_folder(PLACES[settings.what]), name, identity),
            show.step,
            show.start,
            show.prepare,
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


def find_rate(wired: Wired, pictures: TrainingSet, settings: Settings, steps: int) -> tuple[float, Tensor, str]:
    """A learning rate to begin with, the plot of those that were tried for ``steps`` steps each, and what they did."""
    settings = replace(settings, resolution=pictures.resolution)
    lesson, _ = prepare_run(wired, pictures, settings)
    check_memory(lesson)
    make_room()
    bar, lines = comfy.utils.ProgressBar(len(RATES)), []

    def on_rate(rate: float, loss: float) -> None:
        lines.append(f"rate {rate:.2g}: " + (f"loss {loss:.4f}" if math.isfinite(loss) else "went wrong"))
        bar.update(1)

    def on_step(_: Trainer) -> None:
        comfy.model_management.throw_exception_if_processing_interrupted()

    with explain_out_of_memory(WHERE, ADVICE), torch.inference_mode(False), torch.enable_grad():
        found = try_rates(Run(lesson).trainer, steps, on_rate=on_rate, on_step=on_step)
    comfy.model_management.soft_empty_cache()
    chosen = choose_rate(found)
    return chosen, draw_rates(found, chosen), "\n".join([*lines, f"A learning rate to begin with: {chosen:.2g}"])


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
    bar, cache = comfy.utils.ProgressBar(len(pictures.shown)), home() / "cache"

    def on_item(done: int, total: int) -> None:
        comfy.model_management.throw_exception_if_processing_interrupted()
        bar.update_absolute(done, total)

    if settings.what == "controlnet" and settings.hint == "pictures":
        check_hints(pictures)
    prompts = parse_prompts(settings.sample_prompt, pictures.resolution, pictures.pictures[0].caption, ways.cell)
    with explain_out_of_memory(f"{WHERE}, encoding the pictures,", "Close other programs that use the graphics card."):
        rows, empty = encode_set(pictures, ways, cache, on_item)
        samples = [Sample(prompt, dict(encode_caption(prompt, ways, cache)), cells) for prompt, cells in prompts]
    given = Ingredients(kind, *prior_weights(wired.model, kind))
    if settings.tokens or settings.what == "text_lora":
        given.text, given.text_layer = text_weights(clip), -1 if clip.layer_idx is None else clip.layer_idx
    if settings.what == "controlnet":
        given.encoder = encoder_weights(wired.vae)
    start = ""
    if settings.start_from:
        path = Path(folder_paths.get_full_path_or_raise("loras", settings.start_from))
        given.start, given.start_name, start = comfy.utils.load_torch_file(str(path)), path.name, hash_file(path)
    facts = (fingerprint(given.weights), pictures.digest, ways.picture_mark, ways.text_mark, start)
    device = comfy.model_management.get_torch_device()
    bfloat16 = describe_machine().bf16
    repeats = [picture.repeats for picture, _ in pictures.shown]
    lesson = Lesson(settings, settings.identity(*facts), device, bfloat16, rows, empty, samples, given, repeats)
    lesson.pictures = len(pictures.pictures)
    tokenizer = clip.tokenizer.clip_g.tokenizer
    if given.text is not None:
        add_words(
            lesson, [picture.captions for picture, _ in pictures.shown], [prompt for prompt, _ in prompts], tokenizer
        )
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
        return stamps.digest(name, "absent")
    return stamps.digest(name, *(f"{entry}:{status.st_size}:{status.st_mtime_ns}" for entry, status in entries))
