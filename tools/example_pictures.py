"""Draws the pictures that bundled workflows load: ``python3 dev.py run -m tools.example_pictures``.

They are shapes of our own on 1024 pixels, large enough for the published models: hills with a house, the same with a
see-through part that Load Image reads as a painted mask, and an apple on a plain ground.
"""

from __future__ import annotations

import math
import sys
from pathlib import Path

from PIL import Image, ImageDraw, ImageFilter

from cascade_studio.commands.messages import say

from .env import REPOSITORY

FOLDER = REPOSITORY / "mini" / "input"
SIDE, SCALE, QUALITY = 1024, 2, 82
"""Pixels, how many times finer it is drawn, and WebP's quality."""

LARGE = SIDE * SCALE


def fade(top: tuple[int, int, int], bottom: tuple[int, int, int]) -> Image.Image:
    """A ground that changes from top to bottom."""
    ramp = Image.linear_gradient("L").resize((LARGE, LARGE))
    return Image.composite(Image.new("RGB", ramp.size, bottom), Image.new("RGB", ramp.size, top), ramp)


def scale_points(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """Points given in hundredths of the picture."""
    return [(x * LARGE / 100, y * LARGE / 100) for x, y in points]


def draw_hill(
    draw: ImageDraw.ImageDraw, height: float, swing: float, start: float, colour: tuple[int, int, int]
) -> None:
    """A wavy ground that begins at ``height``."""
    line = [(x, height + swing * math.sin(start + x / 16)) for x in range(0, 101)]
    draw.polygon(scale_points([*line, (100, 100), (0, 100)]), fill=colour)


def draw_hills() -> Image.Image:
    """A house with a tree on green hills, under a sun."""
    picture = fade((92, 156, 226), (214, 232, 246))
    draw = ImageDraw.Draw(picture)
    draw.ellipse(scale_points([(74, 10), (88, 24)]), fill=(255, 226, 130))
    for x, y, wide in ((14, 16, 16), (22, 13, 14), (30, 17, 15), (54, 24, 14), (60, 22, 12)):
        draw.ellipse(scale_points([(x, y), (x + wide, y + 7)]), fill=(248, 250, 252))
    draw_hill(draw, 52, 6, 0.4, (112, 158, 122))
    draw_hill(draw, 63, 5, 2.1, (104, 170, 88))
    draw.rectangle(scale_points([(47, 49), (65, 68)]), fill=(240, 226, 202))
    draw.polygon(scale_points([(44, 50), (56, 37), (68, 50)]), fill=(176, 62, 48))
    draw.rectangle(scale_points([(60, 38), (63, 46)]), fill=(150, 78, 60))
    draw.rectangle(scale_points([(53, 57), (58, 68)]), fill=(122, 82, 54))
    for x in (48.5, 60):
        draw.rectangle(scale_points([(x, 54), (x + 3.6, 59)]), fill=(126, 178, 214), outline=(250, 248, 240), width=6)
    draw.rectangle(scale_points([(24.5, 56), (27.5, 72)]), fill=(112, 78, 50))
    for x, y, wide in ((16, 42, 20), (20, 36, 14), (23, 46, 15), (14, 48, 14)):
        draw.ellipse(scale_points([(x, y), (x + wide, y + 14)]), fill=(62, 128, 62))
    draw_hill(draw, 74, 4, 4.4, (126, 190, 92))
    path = [(54, 68), (58, 68), (66, 82), (78, 100), (52, 100), (56, 82)]
    draw.polygon(scale_points(path), fill=(222, 202, 160))
    return finish(picture)


def draw_apple() -> Image.Image:
    """A red apple with a leaf on a plain blue ground, as Cascade Mini knows it."""
    picture = fade((66, 140, 222), (58, 126, 206))
    draw = ImageDraw.Draw(picture)
    draw.ellipse(scale_points([(30, 78), (70, 84)]), fill=(46, 104, 176))
    for x in (24, 44):
        draw.ellipse(scale_points([(x, 34), (x + 32, 80)]), fill=(212, 42, 46))
    draw.ellipse(scale_points([(30, 44), (40, 58)]), fill=(238, 110, 104))
    draw.line(scale_points([(50, 40), (53, 24)]), fill=(98, 62, 38), width=int(1.8 * LARGE / 100))
    draw.pieslice(scale_points([(52, 20), (72, 40)]), 180, 290, fill=(84, 168, 72))
    return finish(picture)


def finish(picture: Image.Image) -> Image.Image:
    """The picture at its size, without steps at slanted edges."""
    return picture.filter(ImageFilter.GaussianBlur(1)).resize((SIDE, SIDE), Image.Resampling.LANCZOS)


def cut_hole(picture: Image.Image) -> Image.Image:
    """See-through where the house stands; what is there keeps its colours."""
    alpha = Image.new("L", picture.size, 255)
    ImageDraw.Draw(alpha).ellipse([int(0.40 * SIDE), int(0.33 * SIDE), int(0.72 * SIDE), int(0.72 * SIDE)], fill=0)
    found = picture.copy()
    found.putalpha(alpha)
    return found


def draw_all() -> dict[str, Image.Image]:
    """Every picture by its file's name."""
    hills = draw_hills()
    return {"cascade_hills": hills, "cascade_hills_hole": cut_hole(hills), "cascade_apple": draw_apple()}


def main() -> int:
    """Write the pictures; returns the exit code."""
    FOLDER.mkdir(exist_ok=True)
    for name, picture in draw_all().items():
        path = Path(FOLDER, f"{name}.webp")
        picture.save(path, "WEBP", quality=QUALITY, method=6, exact=True)
        say(f"Written: {path.relative_to(REPOSITORY)}, {path.stat().st_size} bytes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
