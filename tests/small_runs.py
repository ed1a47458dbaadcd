"""Workflows on a test server with small weights, at a quarter of their size, and the pictures that they save."""

from __future__ import annotations

import io
from typing import Any

import numpy
from PIL import Image

from cascade_studio.commands.workflow.api_prompt import Converted, convert
from tools import small


def prepared(server: Any, workflow: dict[str, Any]) -> Converted:
    """The workflow on the tiny family, at a quarter of its size; test_mini_workflows runs it on Cascade Mini."""
    info = server.client.get("/object_info")
    converted = convert(workflow, info)
    small.with_our_loaders(converted, info)
    small.use(converted, small.FAMILY)
    leaves_out_steps = any(entry["class_type"] == "CascadeStudio_Cache" for entry in converted.prompt.values())
    small.shrink(converted, steps=None if leaves_out_steps else 2)
    small.choose(converted)
    return converted


def check_pictures(server: Any, run: Any) -> None:
    """Pictures came out, and none is of one colour, which is also what NaN would be saved as."""
    images = run.images()
    assert images
    for image in images:
        with Image.open(io.BytesIO(server.client.view(image))) as picture:
            assert numpy.asarray(picture.convert("RGB"), float).std() > 2, image["filename"]


def saved_pictures(server: Any, run: Any) -> list[numpy.ndarray]:
    """RGB (H, W, 3) of every picture that the run saved; of those it only showed where it saved none."""
    images, found = run.images(), []
    for image in [image for image in images if image["type"] == "output"] or images:
        with Image.open(io.BytesIO(server.client.view(image))) as picture:
            found.append(numpy.asarray(picture.convert("RGB"), float))
    return found
