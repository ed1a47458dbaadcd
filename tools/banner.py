"""``python3 dev.py run -m tools.banner DIR [--output FILE]``: the registry's banner (21:9) from a folder of PNGs.

Seven squares wide and three high: the mark with the name takes three by three of them, the pictures take the other
twelve, in the order of their names. Fewer pictures come again from the start, more than twelve are left out.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont, ImageOps, UnidentifiedImageError

from cascade_studio.commands.messages import Stop, say, speak_plainly

from .icon import GROUND, icon

TILE, COLUMNS, ROWS, MARK = 180, 7, 3, 3
"""Pixels of a square; squares across, down, and those across that the mark takes."""

NAME, LINE = "Cascade Studio", "Stage C, Stage B, Stage A"
INK, FADED = (240, 240, 240), (150, 158, 170)


def pictures_in(folder: Path) -> list[Path]:
    """The PNG files of a folder by name. Raises ``Stop`` where there are none."""
    found = sorted(path for path in folder.glob("*") if path.suffix.lower() == ".png") if folder.is_dir() else []
    if not found:
        raise Stop(
            f"{folder} holds no PNG files. Give a folder with the pictures of the banner, best "
            f"{(COLUMNS - MARK) * ROWS} of them."
        )
    return found


def tile(path: Path) -> Image.Image:
    """The middle of a picture as a square."""
    try:
        with Image.open(path) as picture:
            return ImageOps.fit(picture.convert("RGB"), (TILE, TILE), Image.Resampling.LANCZOS)
    except (UnidentifiedImageError, OSError) as error:
        raise Stop(
            f"{path} cannot be read as a picture ({error}). Take it out of the folder, or save it again."
        ) from None


def banner(paths: list[Path]) -> Image.Image:
    """The banner of these pictures: RGB, 1260 x 540 pixels."""
    picture = Image.new("RGB", (COLUMNS * TILE, ROWS * TILE), GROUND)
    places = [(column, row) for row in range(ROWS) for column in range(MARK, COLUMNS)]
    tiles = [tile(path) for path in paths[: len(places)]]
    for number, (column, row) in enumerate(places):
        picture.paste(tiles[number % len(tiles)], (column * TILE, row * TILE))
    side, middle = 2 * TILE, MARK * TILE // 2
    mark = icon(side)
    picture.paste(mark, (middle - side // 2, TILE // 6), mark)
    drawn = ImageDraw.Draw(picture)
    for text, down, size, colour in ((NAME, ROWS * TILE - 92, 52, INK), (LINE, ROWS * TILE - 42, 22, FADED)):
        drawn.text((middle, down), text, fill=colour, font=ImageFont.load_default(size), anchor="mm")
    return picture


def main(arguments: list[str]) -> int:
    """Write the banner; returns the exit code."""
    parser = argparse.ArgumentParser(prog="tools.banner", description=__doc__.partition(":")[2].strip())
    parser.add_argument("folder", type=Path, help="the folder with the pictures")
    parser.add_argument("--output", type=Path, default=Path("banner.png"), help="the file to write (banner.png)")
    options = parser.parse_args(arguments)
    try:
        banner(pictures_in(options.folder)).save(options.output, optimize=True)
    except Stop as stop:
        say(str(stop))
        return 1
    say(f"Written: {options.output}")
    return 0


if __name__ == "__main__":
    speak_plainly()
    sys.exit(main(sys.argv[1:]))
