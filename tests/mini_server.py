"""Workflows on a running server with Cascade Mini, and what their pictures show."""

from __future__ import annotations

import io
import json
from functools import lru_cache
from typing import Any

import eyes
import numpy
import psutil
from harness import REPOSITORY
from PIL import Image
from torch import Tensor

from cascade_studio.commands.workflow.api_prompt import Converted, convert
from mini import Mini
from tools import small
from tools.client import PromptRun
from tools.edit import set_seed
from tools.scenes import FIRST, SCENES, SILENT, Scene
from tools.workflow_thumbnails import with_hole

WORKFLOWS = REPOSITORY / "workflows"
EXAMPLE = "cascade_mini_example.png"


@lru_cache(maxsize=1)
def towers() -> Mini:
    """Mini's nets, for its eyes."""
    return Mini()


def on_mini(server: Any, name: str, picture: str = "", seed: int = 1) -> Converted:
    """A bundled workflow at Mini's size with words that Mini knows; fails where Mini lacks a part."""
    definitions = server.client.get("/object_info")
    workflow = json.loads((WORKFLOWS / f"{name}.json").read_text(encoding="utf-8"))
    converted = convert(workflow, definitions)
    fitting = small.for_mini(converted, definitions, None if name in SILENT else SCENES[name], picture)
    assert fitting, f"Mini lacks a part of {name}"
    set_seed(converted, seed)
    return converted


def node_of(converted: Converted, kind: str) -> str:
    (found,) = [name for name, node in converted.prompt.items() if node["class_type"] == kind]
    return found


def pictures(server: Any, run: PromptRun) -> list[Tensor]:
    """RGB (1, 3, H, W) of every picture that the run saved."""
    found = []
    for image in run.images():
        with Image.open(io.BytesIO(server.client.view(image))) as picture:
            found.append(eyes.as_rgb(numpy.asarray(picture.convert("RGB"))))
    return found


def shows(rgb: Tensor, scene: Scene) -> bool:
    """Whether one eye names the subject first among 24 and the outlines have it among the first three.

    Either alone would call some blob a frog or a tree; for both, chance is below one in fifteen.
    """
    outlines = eyes.outlines().order(rgb, scene.background)[0][:3]
    return scene.subject in outlines and scene.subject in (outlines[0], towers().subject(rgb, scene.background)[0])


def check_shows(rgb: Tensor, scene: Scene) -> None:
    """The picture shows the subject on the named background."""
    seen = eyes.outlines().order(rgb, scene.background)[0][:3], towers().subject(rgb, scene.background)[0]
    assert shows(rgb, scene), f"{scene.prompt}: the eyes see {seen}"
    assert eyes.has_ground(rgb, scene.background), f"{scene.prompt}: the rim is {eyes.colour(rgb)[0]}"


def processor_seconds(server: Any) -> float:
    """Seconds of processor time that the server's process and its children have taken so far."""
    root = psutil.Process(server.process.pid)
    times = [process.cpu_times() for process in (root, *root.children(recursive=True))]
    return sum(time.user + time.system for time in times)


def give_example(server: Any) -> None:
    """Put Mini's own picture of the first scene, painted by the server, among its input pictures, with a mask."""
    target = server.base.path / "input" / EXAMPLE
    if not target.is_file():
        converted = on_mini(server, "Stable Cascade - text to image")
        for node, entry in converted.prompt.items():
            if entry["class_type"] == "CLIPTextEncode" and entry["inputs"]["text"]:
                converted.set(node, "text", FIRST.prompt)
        run = server.run(converted.prompt)
        target.write_bytes(with_hole(server.client.view(run.images()[0])))
