"""PNG files as the host saves them, with one more text of ours."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import Any

import folder_paths
from comfy.cli_args import args
from comfy_api.latest import io
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from ...checkpoints import disk
from ..latents import measure_picture
from .card import Reports, make_card

TEXT = "cascade_studio"
"""Name of our text in a PNG file; it holds JSON."""

COMPRESSION = 4


def save_png(
    images: Tensor, prefix: str, prompt: Any, extra: Mapping[str, Any] | None, reports: Reports | None, hashes: bool
) -> list[tuple[str, str, io.FolderType]]:
    """Save ``images`` (B, H, W, C) into the output folder; returns name, sub-folder and folder of each file.

    ``prefix`` is the start of their path below it; what Windows allows in no name becomes "-".
    ``prompt`` and the entries of ``extra`` (the workflow) are written as Save Image writes them and stay as they are.
    """
    folder, name, counter, subfolder, _ = folder_paths.get_save_image_path(
        disk.for_all_systems(prefix), folder_paths.get_output_directory(), images.shape[2], images.shape[1]
    )
    texts = collect_texts(prompt, extra, make_card(reports, hashes, measure_picture(images)) if reports else None)
    saved = []
    for index, image in enumerate(images):
        file = f"{name.replace('%batch_num%', str(index))}_{counter + index:05}_.png"
        pixels = (255.0 * image.float().cpu()).clamp(0, 255).byte().numpy()
        Image.fromarray(pixels).save(os.path.join(folder, file), pnginfo=texts, compress_level=COMPRESSION)
        saved.append((file, subfolder, io.FolderType.output))
    return saved


def collect_texts(prompt: Any, extra: Mapping[str, Any] | None, report: dict[str, Any] | None) -> PngInfo | None:
    """The texts of a file; none at all where the host was told to write no metadata."""
    if args.disable_metadata:
        return None
    texts = PngInfo()
    if prompt is not None:
        texts.add_text("prompt", json.dumps(prompt))
    for key, value in (extra or {}).items():
        texts.add_text(key, json.dumps(value))
    if report is not None:
        texts.add_text(TEXT, json.dumps(report))
    return texts
