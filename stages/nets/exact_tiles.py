"""Exact tiles: a network without global operations gives the same picture in pieces, so no seam needs blending.

Every output cell of such a network depends on the input cells within a fixed radius. A window that reaches that far
beyond a tile, or to the picture's own border, holds all the tile needs; the rest of the window's output is dropped.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import WrongInput


@dataclass(frozen=True)
class Span:
    """One tile along one axis, in cells: it is computed from ``[first, last)`` and keeps ``[start, stop)``."""

    start: int
    stop: int
    first: int
    last: int


def spans(length: int, window: int, margin: int) -> tuple[Span, ...]:
    """Cover ``length`` cells by the fewest equal windows of at most ``window`` cells that overlap by 2 ``margin``.

    Raises :class:`WrongInput` if the window is not wider than its two margins.
    """
    if length <= window:
        return (Span(0, length, 0, length),)
    if window <= 2 * margin:
        raise WrongInput(
            f"A tile of {window} cells was asked for, but each tile needs {margin} cells of context on both sides. "
            f"Use at least {2 * margin + 1} cells."
        )
    count = -(-(length - 2 * margin) // (window - 2 * margin))
    size = -(-(length + 2 * margin * (count - 1)) // count)
    found, start = [], 0
    for index in range(count):
        first = min(index * (size - 2 * margin), length - size)
        last = first + size
        stop = length if index == count - 1 else last - margin
        found.append(Span(start, stop, first, last))
        start = stop
    return tuple(found)


@dataclass(frozen=True)
class Grid:
    """How a picture is cut: the spans of both axes and the size of one cell before and after the network."""

    rows: tuple[Span, ...]
    columns: tuple[Span, ...]
    cell_in: int = 1
    cell_out: int = 1

    @classmethod
    def cut(cls, size: Sequence[int], window: tuple[int, int], margin: int, cell_in: int, cell_out: int) -> Grid:
        """Cut ``size`` (height, width) cells into windows of at most ``window`` (height, width) cells."""
        return cls(spans(size[0], window[0], margin), spans(size[1], window[1], margin), cell_in, cell_out)

    def __len__(self) -> int:
        return len(self.rows) * len(self.columns)

    def __iter__(self) -> Iterator[tuple[Span, Span]]:
        return ((row, column) for row in self.rows for column in self.columns)


def run_tiled(
    network: Callable[[Tensor], Tensor],
    source: Tensor,
    out: Tensor,
    grid: Grid,
    *,
    device: torch.device | str | None = None,
    on_tile: Callable[[int, int], None] | None = None,
    together: int = 1,
) -> Tensor:
    """Fill ``out`` with ``network(source)``, ``together`` images of the batch and one tile at a time.

    ``source`` is (B, C, H·cell_in, W·cell_in), ``out`` is (B, C', H·cell_out, W·cell_out) and may have another dtype or
    live on another device. Windows move to ``device`` where one is given. ``on_tile(done, total)`` follows every tile;
    what it raises (an interrupt) ends the work.
    """
    total, done = len(grid) * -(-source.shape[0] // together), 0
    for picture, target in zip(source.split(together), out.split(together), strict=True):
        for row, column in grid:
            window = _crop(picture, row.first, row.last, column.first, column.last, grid.cell_in)
            result = network(window if device is None else window.to(device))
            kept = _crop(
                result,
                row.start - row.first,
                row.stop - row.first,
                column.start - column.first,
                column.stop - column.first,
                grid.cell_out,
            )
            _crop(target, row.start, row.stop, column.start, column.stop, grid.cell_out).copy_(kept)
            done += 1
            if on_tile is not None:
                on_tile(done, total)
    return out


def largest_window(budget: int, cost: Callable[[int], int], smallest: int, largest: int = 2048) -> int:
    """The largest square window, in cells, whose ``cost(side)`` in bytes stays within ``budget``.

    ``cost`` must grow with the side. Never below ``smallest``: what does not fit then is for the caller to refuse.
    """
    low, high = smallest, largest
    while low < high:
        middle = (low + high + 1) // 2
        if cost(middle) <= budget:
            low = middle
        else:
            high = middle - 1
    return low


def _crop(x: Tensor, top: int, bottom: int, left: int, right: int, cell: int) -> Tensor:
    return x[:, :, top * cell : bottom * cell, left * cell : right * cell]
