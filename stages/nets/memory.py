"""What one pass of Stage B or Stage C needs beside its weights: what it holds at its peak, counted.

tests/host/test_counts.py holds it against the live bytes of a pass, which ``dev.py bench --counts`` tells as well.
"""

from __future__ import annotations

import math

from ..units import CARD_SLACK
from .guide import GuideConfig
from .unet import UNetConfig

SKIPPED_BLOCK = 8
"""What a ResBlock with a skip holds at its peak, in units of its stream: the stream and the skip, both behind each
other, and the four-fold hidden layer, whose result is added to the stream at once (alone.py)."""

PLAIN_BLOCK = 6
"""The same without a skip, as on the deepest level: the stream, its norm and the hidden layer."""

NARROW_BLOCK = 3
"""The same in pieces: the stream before and after the block, and the skip."""

PIECE_SHARE = 16
"""A piece may hold this part of the stream whatever was asked for: less would save next to nothing, and take a large
picture that many more operations."""

GUIDES = 4
"""Guide nets of a Stage C."""


def activation_memory(
    config: UNetConfig,
    batch: int,
    height: int,
    width: int,
    dtype_size: int,
    level_strides: tuple[int, ...],
    cast: bool = False,
) -> int:
    """Peak bytes of one forward pass on a (batch, c_in, height, width) latent.

    ``level_strides`` are the cells of the embedded grid to one cell of each level (1 everywhere where nothing is
    downscaled). ``cast`` says that weights lie in another format and are cast layer by layer.
    """
    return _peak(config, batch, height, width, dtype_size, level_strides, math.inf, cast)


def guide_memory(config: GuideConfig, batch: int, height: int, width: int, dtype_size: int) -> int:
    """Bytes that the four guide nets keep over a run of ``batch`` pictures on a latent of ``height`` x ``width``.

    What they hold while a block of Stage C waits for them is less than the block itself holds at its peak.
    """
    return GUIDES * batch * height * width * (config.c // 4) * dtype_size


def pieces_memory(
    config: UNetConfig,
    batch: int,
    height: int,
    width: int,
    dtype_size: int,
    level_strides: tuple[int, ...],
    elements: int,
) -> int:
    """Peak bytes where the wide layers run in pieces of ``elements`` numbers (tiles.PieceHooks)."""
    return _peak(config, batch, height, width, dtype_size, level_strides, elements)


def limit_piece(elements: int, stream: int) -> int:
    """How many numbers a wide layer may hold at once where ``elements`` were asked for and it reads ``stream``."""
    return max(elements, stream // PIECE_SHARE)


def _peak(
    config: UNetConfig,
    batch: int,
    height: int,
    width: int,
    dtype_size: int,
    level_strides: tuple[int, ...],
    elements: float,
    cast: bool = False,
) -> int:
    cells = batch * -(-height // config.patch_size) * -(-width // config.patch_size)
    peak = above = 0.0  # above: the skips of the shallower levels, which are held until the way back reaches them
    for index, (channels, stride) in enumerate(zip(config.c_hidden, level_strides, strict=True)):
        level = cells * channels // stride**2
        plain = index == len(level_strides) - 1
        block = PLAIN_BLOCK if plain else SKIPPED_BLOCK
        wide = 2 * max(elements, level / PIECE_SHARE)
        weights = cast * (4 if plain else 8) * channels**2  # of the layer before the hidden one
        peak = max(peak, above + weights + min(block * level, NARROW_BLOCK * level + wide))
        above += level
    return int(CARD_SLACK * peak * dtype_size)  # the modulations of all blocks are within it
