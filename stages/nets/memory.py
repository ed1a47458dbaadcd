"""What one pass of Stage B or Stage C needs beside its weights."""

from __future__ import annotations

import math

from .unet import UNetConfig

WIDEST_BLOCK = 10
"""Activations of a ResBlock at its peak, in units of its width: the stream, its norm, and the 4x hidden layer before
and after its activation."""

SLACK, FIXED = 1.25, 64 * 1024**2
"""What allocators and libraries hold beyond that (measured by tests/benchmarks/measure_memory.py)."""


def activation_memory(
    config: UNetConfig, batch: int, height: int, width: int, dtype_size: int, level_strides: tuple[int, ...]
) -> int:
    """Peak bytes of one forward pass on a (batch, c_in, height, width) latent.

    ``level_strides`` are the cells of the embedded grid to one cell of each level (1 everywhere where nothing is
    downscaled).
    """
    return _peak(config, batch, height, width, dtype_size, level_strides, math.inf)


NARROW_BLOCK = 4
"""Activations of a ResBlock in pieces, in units of its width: the stream before and after it, the skip, and what a
change of levels or a repetition holds beside them."""


def pieces_memory(
    config: UNetConfig,
    batch: int,
    height: int,
    width: int,
    dtype_size: int,
    level_strides: tuple[int, ...],
    elements: int,
) -> int:
    """Peak bytes where no wide layer holds more than ``elements`` numbers at once (tiled_decoder.PieceHooks)."""
    return _peak(config, batch, height, width, dtype_size, level_strides, 2 * elements)


def _peak(
    config: UNetConfig,
    batch: int,
    height: int,
    width: int,
    dtype_size: int,
    level_strides: tuple[int, ...],
    wide: float,
) -> int:
    cells = batch * -(-height // config.patch_size) * -(-width // config.patch_size)
    peak = skips = 0
    for channels, stride in zip(config.c_hidden, level_strides):
        level = cells * channels // stride**2
        peak = max(peak, skips + min(WIDEST_BLOCK * level, NARROW_BLOCK * level + wide))
        skips += level
    return int(SLACK * (peak + skips) * dtype_size) + FIXED
