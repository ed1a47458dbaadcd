"""``python3 dev.py run -m tools.workflow_thumbnails [NAME ...]``: a picture of 512 pixels beside each workflow.

Every workflow runs on a real server with Cascade Mini, at the size that Mini paints and with a prompt that it knows;
what it saves becomes the template browser's picture, beside what was before where it changes something
(:mod:`tools.cards`). A workflow that Mini cannot show, since it lacks a part of it or
is lost at its size, has a drawn diagram (:mod:`tools.diagrams`), which takes no server.
"""

from __future__ import annotations

import copy
import io
import json
import sys
from pathlib import Path
from typing import Any

from PIL import Image, ImageOps

from cascade_studio.commands.messages import Stop, say, speak_plainly
from cascade_studio.commands.workflow.api_prompt import convert

from . import cards, small
from .authoring.__main__ import WORKFLOWS, current_setup
from .diagrams import DIAGRAMS, as_png, draw_diagram
from .edit import set_prompt, set_seed
from .env import REPOSITORY
from .scenes import FIRST, SCENES, SILENT
from .server import Base, HostServer, has_accelerator
from .titles import title_of

SIDE, QUALITY, SEED = 512, 90, 7
SOURCE, EXAMPLE = title_of("text_to_image"), "cascade_mini_example.png"
"""The workflow that paints the picture which other workflows load, and that picture's name."""


def thumbnail(data: bytes) -> bytes:
    """A JPEG of the picture's middle square, 512 pixels wide and high."""
    with Image.open(io.BytesIO(data)) as picture:
        made = io.BytesIO()
        ImageOps.fit(picture.convert("RGB"), (SIDE, SIDE), Image.Resampling.LANCZOS).save(made, "JPEG", quality=QUALITY)
    return made.getvalue()


def with_hole(data: bytes) -> bytes:
    """The picture with a see-through part in the middle, which Load Image reads as a painted mask."""
    with Image.open(io.BytesIO(data)) as picture:
        picture = picture.convert("RGB")
        width, height = picture.size
        alpha = Image.new("L", picture.size, 255)
        alpha.paste(0, (width // 4, height // 4, 3 * width // 4, 3 * height // 4))
        picture.putalpha(alpha)  # what is see-through keeps its colours for workflows that look at the whole picture
        return as_png(picture)


def prepare_prompt(name: str, definitions: dict[str, Any]) -> dict[str, Any] | None:
    """The prompt on Mini, or None where Mini lacks a part."""
    converted = convert(json.loads((WORKFLOWS / f"{name}.json").read_text(encoding="utf-8")), definitions)
    scene = None if name in SILENT else SCENES.get(name)
    whole = copy.deepcopy(converted.prompt)
    if not small.for_mini(converted, definitions, scene, EXAMPLE):
        return None
    set_seed(converted, cards.SEEDS.get(name, SEED))
    cards.keep_training(converted.prompt, whole)
    return converted.prompt


def give_example(server: HostServer, definitions: dict[str, Any]) -> None:
    """Paint the picture that workflows load: the first scene, with a see-through part for those that repaint one."""
    converted = convert(json.loads((WORKFLOWS / f"{SOURCE}.json").read_text(encoding="utf-8")), definitions)
    small.for_mini(converted, definitions, None)
    set_prompt(converted, FIRST.prompt)
    set_seed(converted, SEED)
    data = server.client.view(server.client.run(converted.prompt).images()[0])
    Path(server.base.path, "input", EXAMPLE).write_bytes(with_hole(data))


def write_thumbnail(name: str, data: bytes) -> None:
    """The picture in ``data`` beside the workflow ``name``."""
    path = WORKFLOWS / f"{name}.jpg"
    path.write_bytes(thumbnail(data))
    say(f"Written: {path.relative_to(REPOSITORY)}")


def paint_card(server: HostServer, name: str, prompt: dict[str, Any]) -> bytes | None:
    """What the card of ``name`` shows, or None where the workflow saves no picture."""
    saved: dict[str, list[Image.Image]] = {}
    for image in server.client.run(cards.save_more(name, prompt)).images():
        if image["type"] == "output":  # and not what a node only shows
            kind = next((prefix for prefix in (cards.BEFORE, cards.DRAFTS) if is_saved_as(image, prefix)), "result")
            saved.setdefault(kind, []).append(open_picture(server, image))
    if name in cards.WITHOUT:
        saved[cards.BEFORE] = [open_picture(server, server.client.run(cards.take_off(name, prompt)).images()[0])]
    if cards.DRAFTS in saved:
        return as_png(cards.draw_sheet(saved[cards.DRAFTS]))
    if "result" not in saved:
        return None
    result = saved["result"][-1]
    return as_png(cards.draw_pair(saved[cards.BEFORE][0], result) if cards.BEFORE in saved else result)


def is_saved_as(image: dict[str, Any], prefix: str) -> bool:
    """Whether the host saved ``image`` under ``prefix``."""
    return f"{image['subfolder']}/{image['filename']}".startswith(prefix)


def open_picture(server: HostServer, image: dict[str, Any]) -> Image.Image:
    """One picture that the server saved."""
    return Image.open(io.BytesIO(server.client.view(image))).convert("RGB")


def run(server: HostServer, names: list[str]) -> int:
    """Write the picture of each beside its workflow; returns how many were left out."""
    definitions = server.client.get("/object_info")
    give_example(server, definitions)
    left_out = 0
    for name in sorted(names):
        prompt = prepare_prompt(name, definitions)
        card = paint_card(server, name, prompt) if prompt else None
        if card:
            write_thumbnail(name, card)
        else:
            say(f"{name}: left out, {'it saves no picture' if prompt else 'Cascade Mini has not all of its parts'}.")
            left_out += 1
    return left_out


def main(arguments: list[str]) -> int:
    """Write the pictures of all workflows, or of those that are named; returns the exit code."""
    known = sorted(path.stem for path in WORKFLOWS.glob("*.json"))
    names = arguments or known
    unknown = sorted(set(names) - set(known))
    try:
        if unknown:
            raise Stop(f"There is no workflow {', '.join(unknown)}. There are {', '.join(known)}.")
        for name in sorted(set(names) & set(DIAGRAMS)):
            write_thumbnail(name, draw_diagram(name))
        painted = [name for name in names if name not in DIAGRAMS]
        if not painted:
            return 0
        if not small.mini().covers(small.PAINTS):
            raise Stop(f"Cascade Mini is not whole in {small.MINI_FOLDER}, and it paints these pictures.")
        setup = current_setup()
        base = Base()
        try:
            with HostServer(setup, base, cpu=not has_accelerator(setup)) as server:
                run(server, painted)
        finally:
            base.close()
    except Stop as stop:
        say(str(stop))
        return 1
    return 0


if __name__ == "__main__":
    speak_plainly()
    sys.exit(main(sys.argv[1:]))
