"""Train from the command line: ``studio.py train --config FILE``. See docs/training.md.

The file is JSON: "settings" are those of the nodes (stages/training/settings.py), the rest says where things lie.
Started by torchrun or accelerate launch, several processes share every batch and reach the same result.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch

from ..stages.errors import CascadeError, WrongInput
from ..stages.files.durable import hash_file
from ..stages.files.header import load_file, read_header
from ..stages.training import export
from ..stages.training.cache import encode_caption, encode_set, fingerprint
from ..stages.training.dataset import PictureFiles, TrainingSet, join_sets, show_ways
from ..stages.training.distributed import DEVICES, Crew, find_device, has_bfloat16, join_crew
from ..stages.training.folders import FileMemory, FolderOptions, check_hints, from_folder
from ..stages.training.pictures_io import draw_losses, read_picture, read_size
from ..stages.training.rates import choose_rate, try_rates
from ..stages.training.run import Lesson, Run, Sample, add_words, parse_prompts
from ..stages.training.settings import PRESETS, Settings, from_dict
from ..stages.training.tasks import Ingredients
from ..stages.training.words import count_tokens
from .encoders import Coders, check_network, load_tokenizer, read_network
from .train_checks import check_parts
from .train_watch import LOG_SECONDS, Samples, TrainingProgress, follow, log_every

log = logging.getLogger(__name__)

FILES = PictureFiles(read_size, read_picture)
MODELS = {
    "stage_c": ("stage_c",),
    "stage_b": ("stage_b",),
    "stage_a": ("stage_a",),
    "text_encoder": ("text_encoder",),
    "image_encoder": ("encoder", "stage_c_vae"),
}
"""Entries of the file that name models, and the kinds of network that each may be."""
PATHS = (*MODELS, "output")


@dataclass(frozen=True)
class Config:
    """The file. Paths are relative to it.

    stage_c or stage_b: the model that learns or guides, in any layout; with both, Stage C learns, and Stage B and
    stage_a paint its live samples. text_encoder, image_encoder: model files; stage_a too for Stage B. pictures: a
    folder with captions, or a list of folders, each with what :class:`.FolderOptions` knows. output: a folder for the
    result, the state and what was encoded. caption: for pictures without one. mirrored, crops, sizes: see
    :class:`.TrainingSet`. preset: settings to start from, by task.
    """

    text_encoder: str
    image_encoder: str
    pictures: Any
    output: str
    stage_c: str = ""
    stage_b: str = ""
    stage_a: str = ""
    caption: str = ""
    mirrored: bool = False
    crops: int = 1
    sizes: Sequence[int] = ()
    settings: Settings = Settings()

    def __post_init__(self) -> None:
        if not self.folders:
            raise WrongInput("'pictures' names no folder. Give a folder, or a list of folders.")
        if not isinstance(self.sizes, (list, tuple)):
            raise WrongInput(f"'sizes' is {self.sizes!r}. It needs a list of resolutions, such as [512, 1024].")
        check_parts(self.settings, self.kind, self.stage_a)

    @property
    def kind(self) -> str:
        """The stage that learns or guides: "stage_c", or "stage_b" where that is to learn or is the only one."""
        return "stage_b" if self.stage_b and (not self.stage_c or self.settings.what == "stage_b") else "stage_c"

    @property
    def folders(self) -> list[tuple[str, FolderOptions]]:
        """Each folder and how to read it."""
        given = self.pictures if isinstance(self.pictures, list) else [{"folder": self.pictures}]
        return [(one["folder"], FolderOptions(**{"caption": self.caption, **without(one, "folder")})) for one in given]


def without(values: dict[str, Any], *names: str) -> dict[str, Any]:
    """``values`` but for ``names``."""
    return {key: value for key, value in values.items() if key not in names}


def read_config(path: Path) -> Config:
    """The configuration in ``path``; :class:`WrongInput` for one that cannot be used."""
    try:
        values = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as error:
        raise WrongInput(
            f"The configuration {path.name} cannot be read ({error}). It has to be a JSON file, with / "
            "in its paths on Windows too."
        ) from error
    known = [*(field.name for field in fields(Config)), "preset"]
    if not isinstance(values, dict):
        raise WrongInput(f"The configuration {path.name} has to hold names with values. Names are: {', '.join(known)}.")
    needed = ["text_encoder", "image_encoder", "pictures", "output"]
    missing = [name for name in needed if values.get(name) in (None, "")]
    missing += [] if values.get("stage_c") or values.get("stage_b") else ["stage_c (or stage_b)"]
    unknown = sorted(set(values) - set(known))
    if missing or unknown:
        raise WrongInput(
            f"The configuration {path.name} lacks {', '.join(missing) or 'nothing'} and has "
            f"{', '.join(unknown) or 'nothing'} that is not known. Entries are: {', '.join(known)}."
        )
    given = values.pop("settings", {})
    preset = values.pop("preset", "")
    if preset and preset not in [*PRESETS]:
        raise WrongInput(f"The preset {preset!r} is not known. Presets are: {', '.join(PRESETS)}.")
    settings = from_dict(given, f"The settings in {path.name}")
    if preset:
        settings = from_dict({**PRESETS[preset], **given}, f"The settings in {path.name}")
    if settings.start_from:
        settings = replace(settings, start_from=place(path, settings.start_from, "start_from"))
    values.update({name: place(path, values[name], name) if values[name] else "" for name in PATHS if name in values})
    values["pictures"] = read_folders(path, values["pictures"])
    return Config(**values, settings=settings)


def place(config: Path, value: Any, name: str) -> str:
    """A path of the configuration, relative to its file."""
    if not isinstance(value, str) or not value.strip() or any(letter < " " for letter in value):
        raise WrongInput(f"'{name}' in {config.name} is {value!r}. It needs a path in quotes, with / between folders.")
    return str((config.parent / value).expanduser())


def read_folders(config: Path, given: Any) -> list[dict[str, Any]]:
    """The folders of pictures, each with its options checked."""
    known = [field.name for field in fields(FolderOptions)]
    found = []
    for one in given if isinstance(given, list) else [given]:
        one = dict(one) if isinstance(one, dict) else {"folder": one}
        unknown = sorted(set(one) - {"folder", *known})
        if unknown or "folder" not in one:
            raise WrongInput(
                f"A folder of pictures in {config.name} has {', '.join(unknown) or 'no folder'}. It needs 'folder' and "
                f"may have: {', '.join(known)}."
            )
        one["folder"] = place(config, one["folder"], "folder")
        if one.get("hints"):
            one["hints"] = Path(place(config, one["hints"], "hints"))
        found.append(one)
    return found


# The run


def prepare_run(config: Config, crew: Crew, device: torch.device) -> Lesson:
    """Check the pictures and encode what was not encoded before, each process its share."""
    settings, store = config.settings, Path(config.output) / "cache"
    for name, kinds in MODELS.items():
        if path := getattr(config, name):
            check_network(path, *kinds)
    if settings.start_from:
        read_header(settings.start_from)
    memory = FileMemory(store / f"files-{crew.rank}.json")
    sets = [
        from_folder(folder, FILES, options, settings.resolution, memory, log_every(LOG_SECONDS, "looking at pictures"))
        for folder, options in config.folders
    ]
    pictures = join_sets(sets) if len(sets) > 1 else sets[0]
    if settings.what == "controlnet" and settings.hint == "pictures":
        check_hints(pictures)
    pictures = show_ways(pictures, config.mirrored, config.crops, config.sizes)
    coders = Coders(
        config.image_encoder, config.text_encoder, config.stage_a if config.kind == "stage_b" else "", device
    )
    ways = coders.encoders(settings.hint if settings.what == "controlnet" else "")
    prompts = parse_prompts(settings.sample_prompt, settings.resolution, pictures.pictures[0].caption, ways.cell)
    if crew.rank == 0:
        log.info("%s", describe_pictures(pictures))
    rows, empty = encode_set(pictures, ways, store, log_every(LOG_SECONDS, "encoding pictures"), crew)
    samples = [Sample(prompt, dict(encode_caption(prompt, ways, store)), cells) for prompt, cells in prompts]
    given = read_ingredients(config, coders)
    facts = (fingerprint(given.weights), pictures.digest, ways.picture_mark, ways.text_mark, start_mark(settings))
    lesson = Lesson(
        settings,
        settings.identity(*facts),
        device,
        has_bfloat16(device),
        rows,
        empty,
        samples,
        given,
        [picture.repeats for picture, _ in pictures.shown],
        len(pictures.pictures),
    )
    if given.text is not None:
        captions = [picture.captions for picture, _ in pictures.shown]
        add_words(lesson, captions, [prompt for prompt, _ in prompts], load_tokenizer())
    coders.close()
    return lesson


def read_ingredients(config: Config, coders: Coders) -> Ingredients:
    """The models that the run needs beside its encoders."""
    settings, kind = config.settings, config.kind
    network, weights = read_network(getattr(config, kind), kind)
    given = Ingredients(kind, network, weights)
    if settings.tokens or settings.what == "text_lora":
        given.text = coders.text
    if settings.what == "controlnet":
        given.encoder = coders.image
    if settings.start_from:
        given.start, given.start_name = load_file(settings.start_from)[0], Path(settings.start_from).name
    return given


def start_mark(settings: Settings) -> str:
    """What tells the file that a run goes on from, for its identity."""
    return hash_file(settings.start_from) if settings.start_from else ""


def describe_pictures(pictures: TrainingSet) -> str:
    """The set's report, with the captions that are cut."""
    return "\n".join(filter(None, [pictures.report(), count_tokens(pictures.pictures, load_tokenizer())]))


def run(config: Config, device: str | None = None) -> Path:
    """Train as ``config`` says; returns the result's file."""
    with join_crew(device or find_device()) as (crew, here):
        lesson = prepare_run(config, crew, here)
        if crew.rank == 0:
            log.info("%s %d process%s.", lesson.plan(crew.size).describe(), crew.size, "es" if crew.size > 1 else "")
        output, name = Path(config.output), config.settings.name
        training = Run(lesson, crew)
        state, watch = output / "state" / training.identity, {}
        if crew.rank == 0:
            samples = Samples(training, state / "samples", config.image_encoder, config.stage_b, config.stage_a)
            watch = {
                "on_step": follow(TrainingProgress(config.settings.steps), samples.step),
                "on_start": samples.start,
                "on_prepare": log_every(LOG_SECONDS, "teaching the trunk"),
            }
        path = training.train(state, lambda: export.find_free_path(output, name, training.identity), **watch)
        if crew.rank == 0:
            for word, stem in training.save_words(output, path.stem):
                log.info("Learned word %s: %s.safetensors", word, stem)
            save_plot(training.trainer.losses, name, path.with_suffix(".loss.png"))
            log.info("%s, %d steps", path, training.trainer.step)
    return path


def look_ahead(config: Config, device: str | None, rates: bool) -> None:
    """Check everything and print the memory plan; with ``rates`` try learning rates too."""
    with join_crew(device or find_device()) as (crew, here):
        lesson = prepare_run(config, crew, here)
        log.info("%s", lesson.plan(crew.size).describe())
        if rates:
            find_rate(lesson)


def find_rate(lesson: Lesson) -> float:
    """Try learning rates on fixed noise, tell what each does, and return the one to take."""
    found = try_rates(Run(lesson).trainer, on_rate=lambda rate, loss: log.info("rate %.2g: loss %.4f", rate, loss))
    log.info("A learning rate to begin with: %.2g", choose_rate(found))
    return choose_rate(found)


def save_plot(losses: Sequence[float], name: str, path: Path) -> None:
    """The losses as a PNG file."""
    from PIL import Image

    plot = draw_losses(losses, name)[0]
    Image.fromarray((plot * 255).round().byte().numpy()).save(path)


def main(arguments: Sequence[str]) -> int:
    """Read the command line and train; returns the exit code."""
    parser = argparse.ArgumentParser(prog="studio.py train", description=__doc__.split("\n")[0])
    parser.add_argument("--config", type=Path, required=True, help="the JSON file")
    parser.add_argument(
        "--device", help=f"{', '.join(DEVICES)}, or one with a number such as cuda:1 (default: the fastest there is)"
    )
    parser.add_argument("--threads", type=positive, help="CPU threads of a process (default: all)")
    parser.add_argument("--steps", type=positive, help="other than in the file")
    parser.add_argument("--rates", action="store_true", help="try learning rates on fixed noise, and stop")
    parser.add_argument("--plan", action="store_true", help="check everything, print the memory plan, and stop")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    if options.threads:
        torch.set_num_threads(options.threads)
    if "ACCELERATE_MIXED_PRECISION" in os.environ and "WORLD_SIZE" not in os.environ:
        log.info("accelerate has started one process. For several on a processor use torchrun (docs/training.md).")
    try:
        check_device(options.device)
        config = read_config(options.config)
        if options.steps:
            config = replace(config, settings=replace(config.settings, steps=options.steps))
        if options.plan or options.rates:
            look_ahead(config, options.device, options.rates)
            return 0
        run(config, options.device)
    except CascadeError as error:
        log.error("%s", error)
        return 1
    except KeyboardInterrupt:
        log.info("Stopped. The same command goes on from here.")
        return 130
    return 0


def positive(text: str) -> int:
    """A whole number from 1 on, of the command line."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} is no whole number from 1 on")
    return int(text)


def check_device(name: str | None) -> None:
    """Raise :class:`WrongInput` for a device that PyTorch does not know or that is not here."""
    if name is None:
        return
    kind, colon, number = name.partition(":")
    there = kind == "cpu" or (kind == "mps" and torch.backends.mps.is_available())
    there = there or (kind in ("cuda", "xpu") and getattr(torch, kind).is_available())
    count = getattr(torch, kind).device_count() if there and kind in ("cuda", "xpu") else 1
    numbered = not colon or (number.isdecimal() and int(number) < count)
    if kind not in DEVICES or not there or not numbered:
        raise WrongInput(
            f"There is no device '{name}' here. Devices are {', '.join(DEVICES)}; {find_device()} is here."
        )
