"""A dozen drawings to learn a style from, with captions: python3 dev.py run -m tools.training_set

White chalk on blue paper, drawn here from lines and curves, so that the pictures are the pack's own. They ship in
mini/pictures, where Cascade Training Set finds them under the name "chalk".
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

from PIL import Image, ImageDraw, ImageFilter

FOLDER = Path(__file__).resolve().parent.parent / "mini" / "pictures" / "chalk"
SIDE, SCALE, WIDTH = 256, 4, 6
PAPER, CHALK, LINE = (28, 62, 128), (240, 244, 255), (44, 84, 156)

Points = list[tuple[float, float]]


class PaperSheet:
    """A sheet of blue paper; places are 0 to 1 from the upper left."""

    def __init__(self) -> None:
        side = SIDE * SCALE
        self.image = Image.new("RGB", (side, side), PAPER)
        self.draw, self.side = ImageDraw.Draw(self.image), side
        for step in range(1, 8):
            at = side * step // 8
            self.draw.line([(at, 0), (at, side)], LINE, SCALE)
            self.draw.line([(0, at), (side, at)], LINE, SCALE)

    def line(self, *points: tuple[float, float], closed: bool = False) -> None:
        """A stroke through ``points``, with round ends."""
        places = [(x * self.side, y * self.side) for x, y in (*points, *points[: 1 if closed else 0])]
        width = WIDTH * SCALE
        self.draw.line(places, CHALK, width, joint="curve")
        for x, y in places:
            self.draw.ellipse([x - width / 2, y - width / 2, x + width / 2, y + width / 2], CHALK)

    def curve(self, x: float, y: float, wide: float, high: float, start: float = 0, end: float = 360) -> None:
        """A part of an ellipse around (x, y), in degrees clockwise from the right."""
        steps = [math.radians(start + (end - start) * step / 60) for step in range(61)]
        self.line(*((x + wide * math.cos(a), y + high * math.sin(a)) for a in steps))

    def save(self, path: Path) -> None:
        """Write the picture as PNG."""
        path.parent.mkdir(parents=True, exist_ok=True)
        soft = self.image.filter(ImageFilter.GaussianBlur(SCALE / 2))
        soft.resize((SIDE, SIDE), Image.Resampling.LANCZOS).quantize(32).save(path, optimize=True)


def draw_apple(board: PaperSheet) -> None:
    """A round fruit with a stalk."""
    board.curve(0.41, 0.56, 0.17, 0.24, 60, 315)
    board.curve(0.59, 0.56, 0.17, 0.24, -135, 120)
    board.line((0.5, 0.38), (0.53, 0.22))
    board.curve(0.62, 0.24, 0.09, 0.05)


def draw_house(board: PaperSheet) -> None:
    """A wall, a roof, a door."""
    board.line((0.25, 0.45), (0.25, 0.8), (0.75, 0.8), (0.75, 0.45))
    board.line((0.18, 0.48), (0.5, 0.2), (0.82, 0.48))
    board.line((0.44, 0.8), (0.44, 0.6), (0.56, 0.6), (0.56, 0.8))


def draw_star(board: PaperSheet) -> None:
    """Five points."""
    corners = [(0.36 if n % 2 == 0 else 0.15, math.radians(36 * n - 90)) for n in range(10)]
    board.line(*((0.5 + r * math.cos(a), 0.52 + r * math.sin(a)) for r, a in corners), closed=True)


def draw_heart(board: PaperSheet) -> None:
    """Two arcs over a point."""
    turns = [math.radians(6 * n) for n in range(61)]
    shape = ((16 * math.sin(a) ** 3, 13 * math.cos(a) - 5 * math.cos(2 * a) - 2 * math.cos(3 * a)) for a in turns)
    board.line(*((0.5 + x / 48, 0.48 - y / 48) for x, y in shape))


def draw_fish(board: PaperSheet) -> None:
    """A body and a tail."""
    board.curve(0.44, 0.5, 0.26, 0.16)
    board.line((0.68, 0.46), (0.86, 0.34), (0.86, 0.66), (0.68, 0.54))
    board.curve(0.3, 0.46, 0.015, 0.015)


def draw_tree(board: PaperSheet) -> None:
    """A crown on a trunk."""
    board.curve(0.5, 0.38, 0.25, 0.22)
    board.line((0.45, 0.6), (0.45, 0.84), (0.55, 0.84), (0.55, 0.6))


def draw_cup(board: PaperSheet) -> None:
    """A cup with its handle."""
    board.line((0.26, 0.36), (0.3, 0.74), (0.6, 0.74), (0.64, 0.36), closed=True)
    board.curve(0.64, 0.53, 0.12, 0.12, -80, 100)
    board.line((0.38, 0.28), (0.36, 0.2))
    board.line((0.52, 0.28), (0.54, 0.2))


def draw_sun(board: PaperSheet) -> None:
    """A disc with rays."""
    board.curve(0.5, 0.5, 0.17, 0.17)
    for n in range(8):
        a = math.radians(45 * n)
        board.line(*((0.5 + r * math.cos(a), 0.5 + r * math.sin(a)) for r in (0.25, 0.36)))


def draw_moon(board: PaperSheet) -> None:
    """A crescent."""
    board.curve(0.48, 0.5, 0.32, 0.32, 55, 305)
    board.curve(0.62, 0.5, 0.26, 0.27, 98, 262)


def draw_flower(board: PaperSheet) -> None:
    """Petals around a middle."""
    for n in range(6):
        a = math.radians(60 * n)
        board.curve(0.5 + 0.14 * math.cos(a), 0.38 + 0.14 * math.sin(a), 0.075, 0.075)
    board.line((0.5, 0.56), (0.5, 0.86))
    board.curve(0.58, 0.72, 0.08, 0.04)


def draw_boat(board: PaperSheet) -> None:
    """A hull under a sail."""
    board.line((0.18, 0.62), (0.82, 0.62), (0.7, 0.78), (0.3, 0.78), closed=True)
    board.line((0.5, 0.62), (0.5, 0.2), (0.72, 0.54), (0.5, 0.54))


def draw_umbrella(board: PaperSheet) -> None:
    """A dome on a stick."""
    board.curve(0.5, 0.48, 0.34, 0.28, 180, 360)
    board.line((0.16, 0.48), (0.84, 0.48))
    board.line((0.5, 0.48), (0.5, 0.76))
    board.curve(0.57, 0.76, 0.07, 0.07, 0, 180)


DRAWINGS: dict[str, Callable[[PaperSheet], None]] = {
    name.removeprefix("draw_"): value for name, value in list(globals().items()) if name.startswith("draw_")
}


def main() -> None:
    """Write the drawings and their captions."""
    for name, draw in DRAWINGS.items():
        board = PaperSheet()
        draw(board)
        board.save(FOLDER / f"{name}.png")
        (FOLDER / f"{name}.txt").write_text(f"{name}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
