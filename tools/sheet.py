"""``python3 dev.py run -m tools.sheet [FILE]``: pictures of Cascade Mini with their prompts, as the README shows them.

Every picture is painted by the shipped files on a real server. The subjects are some that Mini paints well; the seed is
the first, none is picked.
"""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from cascade_studio.commands.messages import Stop, say, speak_plainly
from cascade_studio.commands.workflow.api_prompt import convert

from . import small
from .authoring.__main__ import WORKFLOWS, current_setup
from .edit import set_prompt, set_seed
from .env import REPOSITORY
from .scenes import SHEET, Scene
from .server import Base, HostServer, has_accelerator
from .titles import title_of

TARGET = REPOSITORY / "docs" / "pictures" / "mini_sheet.jpg"
WORKFLOW, SEED, MOST = title_of("text_to_image"), 1, 300_000
COLUMNS, SIDE, GAP, CAPTION = 4, 256, 12, 28
PAPER, INK = (255, 255, 255), (30, 30, 30)


def paint(server: HostServer, scene: Scene) -> Image.Image:
    """One picture by the workflow that every newcomer uses."""
    definitions = server.client.get("/object_info")
    converted = convert(json.loads((WORKFLOWS / f"{WORKFLOW}.json").read_text(encoding="utf-8")), definitions)
    small.for_mini(converted, definitions, None)
    set_prompt(converted, scene.prompt)
    set_seed(converted, SEED)
    data = server.client.view(server.client.run(converted.prompt).images()[0])
    return Image.open(io.BytesIO(data)).convert("RGB")


def sheet(pictures: list[tuple[str, Image.Image]]) -> Image.Image:
    """Pictures in rows, each with its caption below."""
    rows = -(-len(pictures) // COLUMNS)
    whole = Image.new("RGB", (COLUMNS * (SIDE + GAP) + GAP, rows * (SIDE + CAPTION + GAP) + GAP), PAPER)
    pen, font = ImageDraw.Draw(whole), ImageFont.load_default(size=13)
    for number, (caption, picture) in enumerate(pictures):
        x = GAP + number % COLUMNS * (SIDE + GAP)
        y = GAP + number // COLUMNS * (SIDE + CAPTION + GAP)
        whole.paste(picture.resize((SIDE, SIDE), Image.Resampling.LANCZOS), (x, y))
        pen.text((x + SIDE / 2, y + SIDE + CAPTION / 2), caption, INK, font, "mm")
    return whole


def compress(whole: Image.Image) -> bytes:
    """JPEG of the best quality that stays below :data:`MOST` bytes."""
    for quality in range(92, 40, -4):
        made = io.BytesIO()
        whole.save(made, "JPEG", quality=quality, optimize=True)
        if made.tell() <= MOST:
            return made.getvalue()
    raise Stop(f"The sheet does not fit into {MOST:,} bytes. Take fewer scenes.")


def main(arguments: list[str]) -> int:
    """Paint the scenes and write the sheet; returns the exit code."""
    target = Path(arguments[0]).expanduser() if arguments else TARGET
    base = Base()
    try:
        if not small.mini().covers(small.PAINTS):
            raise Stop(f"Cascade Mini is not whole in {small.MINI_FOLDER}, and it paints the sheet.")
        setup = current_setup()
        with HostServer(setup, base, cpu=not has_accelerator(setup)) as server:
            pictures = [(scene.prompt, paint(server, scene)) for scene in SHEET]
    except Stop as stop:
        say(str(stop))
        return 1
    finally:
        base.close()
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(compress(sheet(pictures)))
    say(f"Written: {target}")
    return 0


if __name__ == "__main__":
    speak_plainly()
    sys.exit(main(sys.argv[1:]))
