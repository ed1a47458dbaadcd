"""Drawn diagrams for the template browser: how the pictures come about that Cascade Mini cannot paint."""

from __future__ import annotations

import io
from functools import partial

from PIL import Image, ImageDraw, ImageFont

from .icon import GROUND
from .titles import title_of

SIDE = 1024
"""Pixels of a diagram before it becomes a thumbnail."""

INK, FADED, FRAME = (240, 240, 240), (150, 158, 170), (86, 96, 112)
SMALL, LARGE, FLOW = (232, 150, 60), (78, 148, 214), (226, 186, 90)
NETS = 4


def draw_guided(small: tuple[int, int], large: tuple[int, int]) -> bytes:
    """A PNG: a small grid of cells, four guide nets that read it, and the large grid that they correct.

    ``small`` and ``large`` are width and height of the two pictures in pixels.
    """
    picture = Image.new("RGB", (SIDE, SIDE), GROUND)
    drawn = ImageDraw.Draw(picture)
    aspect = large[1] / large[0]
    left = (60, 400, 270, 400 + round(210 * aspect))
    right = (520, 250, 964, 250 + round(444 * aspect))
    grids = [tuple(max(1, round(side * 24 / 1024)) for side in size) for size in (small, large)]
    draw_grid(drawn, left, grids[0], SMALL)
    draw_grid(drawn, right, grids[1], LARGE)
    middle = (left[1] + left[3]) // 2
    for net in range(NETS):
        down = middle - 120 + 80 * net
        box = (350, down - 24, 440, down + 24)
        drawn.line([(left[2] + 8, middle), (box[0], down)], fill=FLOW, width=4)
        drawn.line([(box[2], down), (right[0] - 8, (right[1] + right[3]) // 2 - 90 + 60 * net)], fill=FLOW, width=4)
        drawn.rounded_rectangle(box, 12, fill=FRAME, outline=FLOW, width=3)
    texts = (
        ("UltraPixel", SIDE // 2, 90, 76, INK),
        ("a small picture guides a large one", SIDE // 2, 165, 38, FADED),
        (f"{small[0]} x {small[1]}", (left[0] + left[2]) // 2, left[3] + 40, 36, INK),
        (f"{grids[0][0]} x {grids[0][1]} cells", (left[0] + left[2]) // 2, left[3] + 82, 28, FADED),
        ("guide nets", 395, middle + 190, 28, FADED),
        (f"{large[0]} x {large[1]}", (right[0] + right[2]) // 2, right[3] + 46, 48, INK),
        (f"{grids[1][0]} x {grids[1][1]} cells", (right[0] + right[2]) // 2, right[3] + 98, 32, FADED),
        ("needs the full Stage C and UltraPixel's file", SIDE // 2, SIDE - 70, 32, FADED),
    )
    for text, across, down, size, colour in texts:
        drawn.text((across, down), text, fill=colour, font=ImageFont.load_default(size), anchor="mm")
    made = io.BytesIO()
    picture.save(made, "PNG")
    return made.getvalue()


def draw_grid(
    drawn: ImageDraw.ImageDraw, box: tuple[int, int, int, int], cells: tuple[int, int], colour: tuple
) -> None:
    """A frame with the cells of a latent in it."""
    left, top, right, bottom = box
    thin = tuple(part * 2 // 5 for part in colour)
    for number in range(1, cells[0]):
        across = left + (right - left) * number / cells[0]
        drawn.line([(across, top), (across, bottom)], fill=thin, width=1)
    for number in range(1, cells[1]):
        down = top + (bottom - top) * number / cells[1]
        drawn.line([(left, down), (right, down)], fill=thin, width=1)
    drawn.rectangle(box, outline=colour, width=5)


DIAGRAMS = {
    title_of("ultrapixel_2k"): partial(draw_guided, (1024, 1024), (2048, 2048)),
    title_of("ultrapixel_4k"): partial(draw_guided, (1280, 720), (3840, 2160)),
}
"""By workflow: what draws its diagram."""
