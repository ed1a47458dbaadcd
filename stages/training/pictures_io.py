"""Picture files and drawings, by Pillow alone: nothing of the host, so that the command line can use it too."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageOps
from torch import Tensor

WHITE = (255, 255, 255)
WIDE, HIGH, MARGIN = 768, 384, 48


def read_picture(path: Path) -> Tensor:
    """RGB (3, H, W) uint8 of a picture file, upright, transparency on white; OSError for one that is not whole."""
    try:
        with Image.open(path) as file:
            image = ImageOps.exif_transpose(file)
            if image.has_transparency_data:
                image = image.convert("RGBA")
                image = Image.alpha_composite(Image.new("RGBA", image.size, WHITE), image)
            pixels = np.array(image.convert("RGB"))
    except (SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise OSError(f"{path.name} cannot be opened ({error})") from error
    return torch.from_numpy(pixels).movedim(-1, 0).contiguous()


def draw_losses(losses: Sequence[float], title: str) -> Tensor:
    """The losses of all steps (thin) and their running mean (bold) as a picture (1, H, W, 3) in [0, 1]."""
    image = Image.new("RGB", (WIDE, HIGH), WHITE)
    draw = ImageDraw.Draw(image)
    shown = [value for value in losses if math.isfinite(value)] or [0.0]
    smooth, mean = [], shown[0]
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
