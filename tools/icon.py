"""``python3 dev.py run -m tools.icon``: draws the pack's mark, three nested squares C, B and A, as ``web/icon.png``.

Each square is the picture at one stage: C in the few large cells of its latent, B in more of them, A as a whole. They
share a corner and grow by the same factor, as a picture does on its way through the stages.
"""

from __future__ import annotations

import sys
from pathlib import Path

from PIL import Image, ImageDraw

from cascade_studio.commands.messages import say, speak_plainly

from .env import REPOSITORY

SIDE = 400
"""Pixels; the registry takes no larger icon."""

FINE = 4
"""It is drawn so many times as large, for smooth edges."""

FILE = REPOSITORY / "web" / "icon.png"
GROUND = (20, 24, 31)
SQUARES = (("A", 1.0, (52, 92, 196), 0), ("B", 0.6, (38, 168, 178), 10), ("C", 0.36, (255, 196, 87), 3))
"""Stage, side as a share of A's, colour, and cells across that are shown; outermost first."""


def icon(side: int = SIDE) -> Image.Image:
    """The mark on its dark ground with round corners, see-through outside: RGBA, ``side`` pixels square."""
    large = side * FINE
    picture = Image.new("RGBA", (large, large), (0, 0, 0, 0))
    drawn = ImageDraw.Draw(picture)
    drawn.rounded_rectangle((0, 0, large - 1, large - 1), large * 0.16, fill=GROUND)
    margin, whole = large * 0.13, large * 0.74
    left, bottom = margin, large - margin
    for _, share, colour, cells in SQUARES:
        length = whole * share
        box = (left, bottom - length, left + length, bottom)
        drawn.rectangle(box, fill=colour, outline=GROUND, width=round(large * 0.014))
        for line in range(1, cells):
            step = length * line / cells
            upright = (left + step, box[1], left + step, bottom)
            level = (left, box[1] + step, left + length, box[1] + step)
            for ends in (upright, level):
                drawn.line(ends, fill=GROUND, width=round(large * 0.006))
    return picture.resize((side, side), Image.Resampling.LANCZOS)


def main(arguments: list[str]) -> int:
    """Write the icon, to another file if one is named; returns the exit code."""
    file = Path(arguments[0]) if arguments else FILE
    icon().save(file, optimize=True)
    say(f"Written: {file}")
    return 0


if __name__ == "__main__":
    speak_plainly()
    sys.exit(main(sys.argv[1:]))
