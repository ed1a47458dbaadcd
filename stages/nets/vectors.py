"""Products of few vectors, as times and pooled prompts are, that give each the same bits alone and in any batch."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

FEWEST_ROWS = 4
"""Vectors that a product on a processor needs at least: with fewer its library takes a kernel that rounds otherwise,
and a picture painted alone would differ from the same one in a batch in its last bits."""


def pad_rows(x: Tensor) -> Tensor:
    """Vectors (rows, C) for a product whose rounding must not depend on how many they are; its first rows are theirs.

    On graphics cards they stay as they are: there a batch is another picture in its last bits anyway.
    """
    missing = FEWEST_ROWS - x.shape[0]
    return x if missing <= 0 or x.device.type != "cpu" else torch.cat([x, x[:1].expand(missing, -1)])


def map_vectors(layer: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """``layer`` (C -> D) on vectors (..., C); on a processor each gets the same values alone and in any batch."""
    if x.device.type != "cpu":
        return layer(x)
    rows = x.flatten(0, -2)
    out = layer(pad_rows(rows))[: rows.shape[0]]
    return out.unflatten(0, x.shape[:-1])
