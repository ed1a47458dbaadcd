"""Picture files and drawings, by Pillow alone: nothing of the host, so that the command line can use it too."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageOps
from torch import Tensor

WHITE = (255, 255, 255)
WIDE, HIGH, MARGIN = 768, 384, 48
ORIENTATION = 0x0112
"""EXIF: 5 to 8 stand for pictures that lie on their side."""


SIXTEEN = 257
"""16-bit values to one 8-bit value: 65535 / 255."""
OPENED = (OSError, SyntaxError, ValueError, Image.DecompressionBombError, EOFError)
"""What Pillow raises for files that are no pictures, or not whole ones."""


def read_size(path: Path) -> tuple[int, int]:
    """Width and height of a picture file, upright, from its header alone; OSError for one that cannot be opened.

    A PNG's checksums are read too, so that a torn one is found before training.
    """
    try:
        with Image.open(path) as file:
            (width, height), exif = file.size, Image.Exif()
            exif.load(file.info.get("exif", b""))  # the file's own getexif decodes a whole PNG to look for one
            turned = exif.get(ORIENTATION, 1) >= 5
            if file.format == "PNG":
                file.verify()
    except OPENED as error:
        raise OSError(f"{path.name} cannot be opened ({error})") from error
    return (height, width) if turned else (width, height)


def read_picture(path: Path, least: tuple[int, int] | None = None) -> Tensor:
    """RGB (3, H, W) uint8 of a picture file, upright, transparency on white; OSError for one that is not whole.

    16-bit and float pictures are brought to 8 bits. ``least`` is the (width, height) that is needed: a picture more
    than four times as large is halved as often as leaves twice of it, while it is decoded where the format can.
    """
    try:
        with Image.open(path) as file:
            if least is not None and max(file.size) > 4 * max(least):
                file.draft("RGB", (2 * max(least), 2 * max(least)))
            image = scale_to_bytes(file)
            image = ImageOps.exif_transpose(image)
            if image.has_transparency_data:
                image = image.convert("RGBA")
                image = Image.alpha_composite(Image.new("RGBA", image.size, WHITE), image)
            image = image.convert("RGB")
            if least is not None and (times := min(image.size) // (2 * max(least))) > 1:
                image = image.reduce(times)
            pixels = np.array(image)
    except OPENED as error:
        raise OSError(f"{path.name} cannot be opened ({error})") from error
    return torch.from_numpy(pixels).movedim(-1, 0).contiguous()


def scale_to_bytes(image: Image.Image) -> Image.Image:
    """``image`` in a mode of 8 bits. Pillow's own conversion cuts 16-bit and float values off at 255.

    Whole numbers above 255 are taken as 16-bit, floats as 0 to 1 or, where they go further than 16, as 0 to 255.
    Raises ValueError for values that fit neither.
    """
    if image.mode not in ("I", "F") and not image.mode.startswith("I;16"):
        return image
    values = np.array(image).astype(np.float32)
    low, high = float(values.min()), float(values.max())
    if image.mode == "F":
        if not (np.isfinite(values).all() and low >= 0 and (high <= 1.001 or 16 < high <= 255)):
            raise ValueError(f"its values go from {low:.3g} to {high:.3g}; floats have to lie in 0 to 1 or 0 to 255")
        values = values * 255 if high <= 1.001 else values
    elif image.mode != "I" or high > 255:
        if low < 0 or high > 65535:
            raise ValueError(f"its values go from {low:.0f} to {high:.0f}; whole numbers have to lie in 0 to 65535")
        values /= SIXTEEN
    made = Image.fromarray(values.clip(0, 255).round().astype(np.uint8))
    made.info = {key: value for key, value in image.info.items() if key == "exif"}
    return made


def draw_losses(losses: Sequence[float], title: str) -> Tensor:
    """The losses of all steps (thin) and their running mean (bold) as a picture (1, H, W, 3) in [0, 1]."""
    image = Image.new("RGB", (WIDE, HIGH), WHITE)
    draw = ImageDraw.Draw(image)
    shown = [value for value in losses if math.isfinite(value)] or [0.0]
    smooth: list[float] = []
    mean = shown[0]
    for value in shown:
        mean += (value - mean) * max(0.02, 1 / (len(smooth) + 1))
        smooth.append(mean)
    top = max(sorted(shown)[int(0.99 * (len(shown) - 1))], *smooth, 1e-6) * 1.1

    def place(index: int, value: float) -> tuple[float, float]:
        x = MARGIN + (WIDE - 2 * MARGIN) * index / max(1, len(shown) - 1)
        return x, HIGH - MARGIN - (HIGH - 2 * MARGIN) * min(value / top, 1.0)

    for part in range(5):
        y = place(0, top * part / 4)[1]
        draw.line([(MARGIN, y), (WIDE - MARGIN, y)], fill=(225, 225, 225))
        draw.text((4, y - 6), f"{top * part / 4:.3g}", fill=(90, 90, 90))
    for values, colour, width in ((shown, (170, 200, 235), 1), (smooth, (20, 80, 180), 3)):
        points = [place(index, value) for index, value in enumerate(values)]
        draw.line(points if len(points) > 1 else points * 2, fill=colour, width=width)
    draw.text((MARGIN, 12), f"{title}: loss, {smooth[-1]:.4g} after {len(losses)} steps", fill=(30, 30, 30))
    draw.text((WIDE - MARGIN - 70, HIGH - MARGIN + 8), f"step {len(losses)}", fill=(90, 90, 90))
    return torch.from_numpy(np.array(image)).float()[None] / 255


def draw_rates(found: Mapping[float, float], chosen: float) -> Tensor:
    """What each learning rate reached on fixed noise, as a picture (1, H, W, 3) in [0, 1]; the chosen one is marked."""
    image = Image.new("RGB", (WIDE, HIGH), WHITE)
    draw = ImageDraw.Draw(image)
    rates = sorted(found)
    finite = [loss for loss in found.values() if math.isfinite(loss)] or [0.0, 1.0]
    low = min(finite)
    top = max(sorted(finite)[len(finite) // 2] * 2 - low, low * 1.1, low + 1e-6)

    def place(rate: float, loss: float) -> tuple[float, float]:
        along = (math.log(rate) - math.log(rates[0])) / max(1e-9, math.log(rates[-1]) - math.log(rates[0]))
        up = (min(loss, top) - low) / (top - low)
        return MARGIN + (WIDE - 2 * MARGIN) * along, HIGH - MARGIN - (HIGH - 2 * MARGIN) * up

    points = [place(rate, found[rate]) for rate in rates]
    draw.line(points if len(points) > 1 else points * 2, fill=(20, 80, 180), width=3)
    for rate, (x, y) in zip(rates, points):
        draw.ellipse([x - 4, y - 4, x + 4, y + 4], fill=(20, 80, 180))
        draw.text((x - 16, HIGH - MARGIN + 8), f"{rate:.1g}", fill=(90, 90, 90))
    at = place(min(max(chosen, rates[0]), rates[-1]), top)[0]
    draw.line([(at, MARGIN), (at, HIGH - MARGIN)], fill=(200, 60, 40), width=2)
    draw.text((MARGIN, 12), f"loss on fixed noise by learning rate; {chosen:.2g} to begin with", fill=(30, 30, 30))
    return torch.from_numpy(np.array(image)).float()[None] / 255
