"""Drawn diagrams for the template browser: what the workflows do that Cascade Mini cannot paint.

They fill their square as painted cards do and say what they say without words, but for sizes and a name, in letters
that can be read at 250 pixels. The picture in them is one of those that workflows load (:mod:`tools.example_pictures`).
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable
from functools import lru_cache, partial

from PIL import Image, ImageDraw, ImageFont

from .example_pictures import draw_apple, draw_hills
from .icon import GROUND
from .titles import title_of

SIDE = 1024
"""Pixels of a diagram before it becomes a thumbnail."""

MARGIN = 40
INK, FLOW, SHADE = (250, 250, 250), (255, 196, 87), (70, 78, 92)
LARGE_LETTERS, LETTERS = 92, 66
"""Of 1024 pixels: 22 and 16 of 250."""

WIDE = 10
"""Pixels of a frame or a line."""

GUIDES = 4
"""UltraPixel's guide nets."""

Box = tuple[int, int, int, int]

HOUSE = (0.38, 0.30, 0.74, 0.74)
"""Where the house stands, in shares of the side: left, top, right, bottom."""

DETAILS = (HOUSE, (0.15, 0.32, 0.38, 0.74))
"""The house and the tree."""


@lru_cache(maxsize=1)
def _hills() -> Image.Image:
    return draw_hills().resize((SIDE, SIDE), Image.Resampling.LANCZOS)


@lru_cache(maxsize=1)
def _apple() -> Image.Image:
    return draw_apple().resize((SIDE, SIDE), Image.Resampling.LANCZOS)


def coarsen(picture: Image.Image, cells: int) -> Image.Image:
    """The picture in so many cells across, each of one colour."""
    return picture.resize((cells, cells), Image.Resampling.BOX).resize(picture.size, Image.Resampling.NEAREST)


def write_label(drawn: ImageDraw.ImageDraw, text: str, at: tuple[int, int], size: int, anchor: str) -> Box:
    """Letters on a dark plate whose corner or middle, by ``anchor`` of Pillow, lies at ``at``; returns the plate."""
    font = ImageFont.load_default(size)
    left, top, right, bottom = (round(edge) for edge in drawn.textbbox((0, 0), text, font=font, anchor="lt"))
    width, height = right - left + size // 2, bottom - top + size // 2
    x = at[0] - {"l": 0, "m": width // 2, "r": width}[anchor[0]]
    y = at[1] - {"t": 0, "m": height // 2, "b": height}[anchor[1]]
    plate = (x, y, x + width, y + height)
    drawn.rounded_rectangle(plate, size // 4, fill=GROUND)
    drawn.text((x + width / 2, y + height / 2), text, fill=INK, font=font, anchor="mm")
    return plate


def draw_arrow(drawn: ImageDraw.ImageDraw, start: tuple[float, float], end: tuple[float, float]) -> None:
    """A line with a head."""
    angle = math.atan2(end[1] - start[1], end[0] - start[0])
    head = 5 * WIDE
    neck = (end[0] - 0.8 * head * math.cos(angle), end[1] - 0.8 * head * math.sin(angle))
    drawn.line([start, neck], fill=FLOW, width=round(1.4 * WIDE))
    sides = [(end[0] - head * math.cos(angle + way), end[1] - head * math.sin(angle + way)) for way in (-0.5, 0.5)]
    drawn.polygon([end, *sides], fill=FLOW)


def draw_enlarged(small: tuple[int, int], large: tuple[int, int], name: str = "") -> Image.Image:
    """A small picture, to scale in a corner of the large one that is made of it; with ``name``, guide nets lead it."""
    whole = _hills().copy()
    drawn = ImageDraw.Draw(whole)
    side = round(SIDE * small[0] / large[0] * 0.8)
    corner = (MARGIN, SIDE - MARGIN - side)
    whole.paste(coarsen(_hills(), 32).resize((side, side), Image.Resampling.NEAREST), corner)
    inset = (corner[0], corner[1], corner[0] + side, corner[1] + side)
    drawn.rectangle(inset, outline=INK, width=WIDE)
    begin = (inset[2] + 2 * WIDE, inset[1] - 2 * WIDE)
    if name:
        write_label(drawn, name, (SIDE - MARGIN, SIDE - MARGIN), LETTERS, "rb")
        for number in range(GUIDES):
            angle = math.radians(18 + 54 * number / (GUIDES - 1))
            reach = 0.42 * SIDE
            draw_arrow(drawn, begin, (begin[0] + reach * math.cos(angle), begin[1] - reach * math.sin(angle)))
    else:
        draw_arrow(drawn, begin, (begin[0] + 0.3 * SIDE, begin[1] - 0.3 * SIDE))
    middle = ((inset[0] + inset[2]) // 2, (inset[1] + inset[3]) // 2)
    write_label(drawn, str(small[0]), middle, LETTERS, "mm")
    write_label(drawn, f"{large[0]} x {large[1]}", (SIDE - MARGIN, MARGIN), LARGE_LETTERS, "rt")
    return whole


def join_halves(before: Image.Image, after: Image.Image) -> Image.Image:
    """``before`` at the left and below, ``after`` at the right and above, a line between them."""
    mask = Image.new("L", (SIDE, SIDE), 0)
    ImageDraw.Draw(mask).polygon([(0, 0), (SIDE, 0), (SIDE, SIDE)], fill=255)
    whole = Image.composite(after, before, mask)
    ImageDraw.Draw(whole).line([(0, 0), (SIDE, SIDE)], fill=INK, width=WIDE)
    return whole


def draw_upscaled(
    small: int, large: int, tiles: int = 0, name: str = "", draw: Callable[[], Image.Image] = _hills
) -> Image.Image:
    """Coarse below, fine above, with both sizes; ``tiles`` across, where the fine one is painted in tiles."""
    whole = draw()
    fine = whole.copy()
    draw_tiles(ImageDraw.Draw(fine), tiles)
    whole = join_halves(coarsen(whole, 32), fine)
    drawn = ImageDraw.Draw(whole)
    write_label(drawn, str(small), (MARGIN, SIDE - MARGIN), LARGE_LETTERS, "lb")
    write_label(drawn, str(large), (SIDE - MARGIN, MARGIN), LARGE_LETTERS, "rt")
    if name:
        write_label(drawn, name, (SIDE - MARGIN, SIDE - MARGIN), LETTERS, "rb")
    return whole


def draw_tiles(drawn: ImageDraw.ImageDraw, across: int) -> None:
    """Lines between so many tiles a side."""
    for number in range(1, across):
        at = SIDE * number // across
        for ends in ([(at, 0), (at, SIDE)], [(0, at), (SIDE, at)]):
            drawn.line(ends, fill=INK, width=WIDE // 2)


def draw_board(size: tuple[int, int], square: int = 32) -> Image.Image:
    """What image programs show where nothing is: a board of two greys."""
    small = Image.new("L", (-(-size[0] // square), -(-size[1] // square)))
    small.putdata([150 if (x + y) % 2 else 205 for y in range(small.height) for x in range(small.width)])
    return small.resize((small.width * square, small.height * square), Image.Resampling.NEAREST).crop((0, 0, *size))


def draw_inpainted() -> Image.Image:
    """A hole in the picture, and the same place painted."""
    hole = Image.new("L", (SIDE, SIDE), 0)
    place = measure(HOUSE)
    ImageDraw.Draw(hole).ellipse(place, fill=255)
    before = Image.composite(draw_board((SIDE, SIDE)).convert("RGB"), _hills(), hole)
    whole = join_halves(before, _hills())
    ImageDraw.Draw(whole).ellipse(place, outline=FLOW, width=WIDE)
    return whole


def measure(box: tuple[float, ...]) -> Box:
    """A box in shares of the side, in pixels."""
    left, top, right, bottom = (round(part * SIDE) for part in box)
    return left, top, right, bottom


def draw_detailed() -> Image.Image:
    """Two marked parts of a coarse picture, and both of them fine; the rest stays as it is."""
    coarse, marked = coarsen(_hills(), 40), Image.new("L", (SIDE, SIDE), 0)
    for place in DETAILS:
        ImageDraw.Draw(marked).ellipse(measure(place), fill=255)
    whole = Image.composite(_hills(), coarse, marked)
    drawn = ImageDraw.Draw(whole)
    for place in DETAILS:
        drawn.ellipse(measure(place), outline=FLOW, width=WIDE)
    return whole


def draw_salient() -> Image.Image:
    """What stands out keeps its colours while the rest loses them, and the same picture painted anew there."""
    standing, place = Image.new("L", (SIDE, SIDE), 0), measure(HOUSE)
    ImageDraw.Draw(standing).ellipse(place, fill=255)
    grey = Image.blend(_hills().convert("L").convert("RGB"), Image.new("RGB", (SIDE, SIDE), SHADE), 0.6)
    whole = join_halves(Image.composite(coarsen(_hills(), 40), grey, standing), _hills())
    ImageDraw.Draw(whole).ellipse(place, outline=FLOW, width=WIDE)
    return whole


def draw_tile_by_tile(across: int = 3, done: int = 5) -> Image.Image:
    """A coarse picture of which the first tiles are fine already, and the one that is at work."""
    whole = coarsen(_hills(), 32)
    side = SIDE / across
    for number in range(done):
        x, y = number % across * side, number // across * side
        box = tuple(round(edge) for edge in (x, y, x + side, y + side))
        whole.paste(_hills().crop(box), box[:2])
    drawn = ImageDraw.Draw(whole)
    draw_tiles(drawn, across)
    x, y = (done - 1) % across * side, (done - 1) // across * side
    drawn.rectangle((x, y, x + side, y + side), outline=FLOW, width=WIDE)
    return whole


def draw_outpainted() -> Image.Image:
    """The picture as it was in the middle, what is painted beyond its borders paler, and the ways that it grows."""
    whole = Image.blend(_hills(), Image.new("RGB", (SIDE, SIDE), INK), 0.45)
    start, end = round(0.25 * SIDE), round(0.75 * SIDE)
    whole.paste(_hills().crop((start, start, end, end)), (start, start))
    drawn = ImageDraw.Draw(whole)
    drawn.rectangle((start, start, end, end), outline=INK, width=WIDE)
    middle, near, far = SIDE / 2, 2 * WIDE, start - MARGIN
    for x, y in ((1, 0), (-1, 0), (0, 1), (0, -1)):
        half = (end - start) / 2
        begin, reach = half + near, half + far
        draw_arrow(drawn, (middle + x * begin, middle + y * begin), (middle + x * reach, middle + y * reach))
    return whole


def draw_diagram(name: str) -> bytes:
    """The diagram of the workflow ``name`` as a PNG."""
    return as_png(DIAGRAMS[name]())


def as_png(picture: Image.Image) -> bytes:
    """The bytes of a PNG."""
    made = io.BytesIO()
    picture.save(made, "PNG")
    return made.getvalue()


DIAGRAMS: dict[str, Callable[[], Image.Image]] = {
    title_of("high_resolution_2k"): partial(draw_enlarged, (1024, 768), (2048, 1536)),
    title_of("high_resolution_4k"): partial(draw_enlarged, (1024, 576), (3840, 2160)),
    title_of("ultrapixel_2k"): partial(draw_enlarged, (1024, 1024), (2048, 2048), "UltraPixel"),
    title_of("ultrapixel_4k"): partial(draw_enlarged, (1280, 720), (3840, 2160), "UltraPixel"),
    title_of("super_resolution"): partial(draw_upscaled, 768, 2048),
    title_of("upscale_steered"): partial(draw_upscaled, 1024, 2048, 3, "ControlNet"),
    title_of("upscale"): partial(draw_upscaled, 1024, 2048, 2, draw=_apple),
    title_of("detailer"): draw_detailed,
    title_of("saliency"): draw_salient,
    title_of("other_tools"): draw_tile_by_tile,
    title_of("inpaint"): draw_inpainted,
    title_of("outpaint"): draw_outpainted,
}
"""By workflow: what draws its diagram."""
