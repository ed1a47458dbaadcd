"""``python3 dev.py run -m tools.workflow_thumbnails [NAME ...]``: a picture of 512 pixels beside each workflow.

Every workflow runs on a real server with Cascade Mini, at the size that Mini paints and with a prompt that it knows;
what it saves becomes the template browser's picture. Workflows that need a part which Mini lacks are left alone.
"""
from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from typing import Any

from PIL import Image

from . import small
from .authoring.__main__ import WORKFLOWS, current_setup
from .edit import set_prompt, set_seed
from .env import REPOSITORY
from .messages import Stop, say, speak_plainly
from .prompt import convert
from .server import Base, Server, has_accelerator

SIDE, QUALITY, SEED = 512, 90, 7
FIRST, EXAMPLE = "text_to_image", "example.png"
PROMPTS = {
    "text_to_image": "a sunflower on a green background",
    "text_to_image_lite": "sailboat on a blue background", "text_to_image_all_in_one": "old man on a gray background",
    "text_to_image_core_ksampler": "a frog on a yellow background",
    "text_to_image_core_loaders": "locomotive on a green background",
    "text_to_image_custom_sampling": "tulip on a purple background", "low_memory": "house on a pink background",
    "image_to_image": "green apple on a yellow background", "image_variation": "",
    "canny": "tomato on a green background",
    "inpaint": "sunflower on a blue background", "outpaint": "red apple on a blue background",
    "high_resolution_2k": "castle on a blue background", "high_resolution_4k": "tropical fish on a blue background",
    "draft_board": "robot on a gray background", "lora_stack": "smiling cat with heart-eyes on a yellow background",
    "lora_schedule": "rocket on a purple background", "merge": "umbrella on a pink background",
    "lora_control_regional": "red apple on a blue background", "guidance": "owl on a brown background",
    "train_lora": "house on a green background",
}
"""Words that Mini was trained on, for each workflow that reads any."""


def thumbnail(data: bytes) -> bytes:
    """A JPEG of the picture, 512 pixels on its longer side, on white."""
    with Image.open(io.BytesIO(data)) as picture:
        picture = picture.convert("RGB")
        scale = SIDE / max(picture.size)
        size = tuple(max(1, round(side * scale)) for side in picture.size)
        made = io.BytesIO()
        picture.resize(size, Image.Resampling.LANCZOS).save(made, "JPEG", quality=QUALITY)
    return made.getvalue()


def with_hole(data: bytes) -> bytes:
    """The picture with a see-through part in the middle, which Load Image reads as a painted mask."""
    with Image.open(io.BytesIO(data)) as picture:
        picture = picture.convert("RGBA")
        width, height = picture.size
        picture.paste((0, 0, 0, 0), (width // 4, height // 4, 3 * width // 4, 3 * height // 4))
        made = io.BytesIO()
        picture.save(made, "PNG")
    return made.getvalue()


def prepared(name: str, workflow: dict[str, Any], definitions: dict[str, Any]) -> dict[str, Any] | None:
    """The prompt on Mini, or None where Mini lacks a part."""
    converted = convert(workflow, definitions)
    small.with_our_loaders(converted, definitions)
    kit = small.mini()
    if not kit.covers(small.roles_of(converted)):
        return None
    small.use(converted, kit)
    small.shrink(converted, steps=None, smallest=256)
    small.choose(converted)
    set_seed(converted, SEED)
    if name in PROMPTS:
        set_prompt(converted, PROMPTS[name])
    return converted.prompt


def run(server: Server, names: list[str]) -> int:
    """Write the picture of each; returns how many were left out."""
    definitions = server.client.get("/object_info")
    left_out = 0
    for name in sorted(names, key=lambda one: one != FIRST):
        path = WORKFLOWS / f"{name}.json"
        prompt = prepared(name, json.loads(path.read_text(encoding="utf-8")), definitions)
        if prompt is None:
            say(f"{name}: left out, Cascade Mini has not all of its parts.")
            left_out += 1
            continue
        images = server.client.run(prompt).images()
        if not images:
            say(f"{name}: left out, it saves no picture.")
            left_out += 1
            continue
        data = server.client.view(images[0])
        if name == FIRST:
            Path(server.base.path, "input", EXAMPLE).write_bytes(with_hole(data))
        path.with_suffix(".jpg").write_bytes(thumbnail(data))
        say(f"Written: {path.with_suffix('.jpg').relative_to(REPOSITORY)}")
    return left_out


def main(arguments: list[str]) -> int:
    """Write the pictures of all workflows, or of those that are named; returns the exit code."""
    known = sorted(path.stem for path in WORKFLOWS.glob("*.json"))
    unknown = sorted(set(arguments) - set(known))
    try:
        if unknown:
            raise Stop(f"There is no workflow {', '.join(unknown)}. There are {', '.join(known)}.")
        setup = current_setup()
        base = Base()
        try:
            with Server(setup, base, cpu=not has_accelerator(setup)) as server:
                run(server, list({FIRST, *(arguments or known)}))
        finally:
            base.close()
    except Stop as stop:
        say(str(stop))
        return 1
    return 0


if __name__ == "__main__":
    speak_plainly()
    sys.exit(main(sys.argv[1:]))
