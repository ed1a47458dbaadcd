"""PNG files as the host saves them, with one more text of ours."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import folder_paths
from comfy.cli_args import args
from comfy_api.latest import io
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from ....stages.errors import WrongInput
from ... import CARD
from ...checkpoints import disk
from ...checkpoints.addresses import describe_problem
from ..files.write import check_writable
from ..latents import measure_picture
from .card import ModelFile, Reports, list_model_files, make_card
from .facts import NO_FACTS, Facts
from .parameters import write_parameters

PARAMETERS = "parameters"
COMPRESSION = 4


@dataclass(frozen=True)
class Story:
    """What is told of a batch of pictures: the stages' reports, the facts of the prompt, and whether to hash files."""

    reports: Reports
    facts: Facts = NO_FACTS
    hashes: bool = True


def save_png(
    images: Tensor, prefix: str, prompt: Any, extra: Mapping[str, Any] | None, story: Story | None
) -> list[tuple[str, str, io.FolderType]]:
    """Save ``images`` (B, H, W, C) into the output folder; returns name, sub-folder and folder of each file.

    ``prefix`` is the start of their path below it; what Windows allows in no name becomes "-".
    ``prompt`` and the entries of ``extra`` (the workflow) are written as Save Image writes them and stay as they are.
    Each file is told what is true of its own picture.
    """
    folder, name, counter, subfolder = find_place(prefix, int(images.shape[2]), int(images.shape[1]))
    told = story is not None and not args.disable_metadata
    files = list_model_files(story.reports, story.hashes, story.facts) if told else {}
    saved = []
    for index, image in enumerate(images):
        file = f"{name.replace('%batch_num%', str(index))}_{counter + index:05}_.png"
        texts = collect_texts(
            prompt, extra, collect_own_texts(story, files, measure_picture(images), index) if told else {}
        )
        pixels = (255.0 * image.float().cpu()).clamp(0, 255).byte().numpy()
        picture = Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)
        picture.save(os.path.join(folder, file), pnginfo=texts, compress_level=COMPRESSION)
        saved.append((file, subfolder, io.FolderType.output))
    return saved


def find_place(prefix: str, width: int = 0, height: int = 0) -> tuple[str, str, int, str]:
    """Folder, start of the name, next number and sub-folder for pictures; the folder is made if it is not there."""
    place = folder_paths.get_save_image_path(
        disk.for_all_systems(prefix), folder_paths.get_output_directory(), width, height
    )
    return place[0], place[1], place[2], place[3]


def check_place(prefix: str, where: str) -> None:
    """Raises :class:`WrongInput` where no picture can be written under ``prefix``, before any work is done for it."""
    *folders, name = disk.for_all_systems(prefix).replace("\\", "/").split("/")
    parts = [*(folder for folder in folders if folder not in ("", ".")), f"{name}_00001_.png"]
    problem = next((found for found in map(describe_problem, parts) if found), "")
    try:
        if not problem:
            check_writable(Path(find_place(prefix)[0]))
    except Exception as error:  # the host raises a plain Exception for a folder that leads outside
        problem = str(error)
    if problem:
        raise WrongInput(
            f"{where} cannot write to {prefix[:80]!r} below the output folder: {problem}. Free the place, give "
            "yourself the right to write there, or choose another filename_prefix."
        )


def collect_own_texts(
    story: Story, files: Mapping[str, ModelFile], size: tuple[int, int, int] | None, index: int
) -> dict[str, str]:
    """Our texts for picture ``index``: the card, and the parameters as other tools read them."""
    card = make_card(story.reports, size, story.facts, files, index)
    return {CARD: json.dumps(card), PARAMETERS: write_parameters(story.reports, size, story.facts, files, index)}


def collect_texts(prompt: Any, extra: Mapping[str, Any] | None, own: Mapping[str, str]) -> PngInfo | None:
    """The texts of a file; none at all where the host was told to write no metadata."""
    if args.disable_metadata:
        return None
    texts = PngInfo()
    if prompt is not None:
        texts.add_text("prompt", json.dumps(prompt))
    for key, value in (extra or {}).items():
        texts.add_text(key, json.dumps(value))
    for key, text in own.items():
        if key not in (extra or {}):
            texts.add_text(key, text)
    return texts
