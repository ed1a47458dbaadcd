"""Stage B on pictures that are too large for one pass: in pieces, which is exact, or in overlapping tiles, which paint
another picture.

Stage B looks at the whole picture in two places: its response norms measure every channel over it, and its deepest
levels attend to all of it. Pieces cut only the wide layers between those, so they change nothing but memory. Tiles run
the whole network on a part of the latent, with the part of the Stage C latent that belongs to it: each is a picture of
its own for the network, which may be what it was trained on where the whole is not, and they are blended at each step.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import reduce

import torch
from torch import Tensor

from ..errors import WrongInput
from ..inputs.resize import crop_prior
from ..nets.blocks import channel_lengths
from ..nets.channels_last import nchw, nhwc
from ..nets.hooks import BlockHooks, Residual
from ..nets.memory import limit_piece
from ..nets.portable import sample_lines
from .layers import NO_CHANGES, Changes

PIECES, TILES = "pieces", "tiles"


class PieceHooks(BlockHooks):
    """The wide layers in pieces of at most ``elements`` numbers, or of a small share of what they read where that is
    more; the result is the same but for rounding.

    A block's four-fold wide layer is computed twice, once for the lengths of its channels and once for its output.
    """

    def __init__(self, elements: int):
        self.elements = elements

    def rows(self, x: Tensor, width: int) -> int:
        """How many rows of ``x`` (B, H, W, C) may be ``width`` wide at once."""
        return max(1, limit_piece(self.elements, x.numel()) // (x.shape[0] * x.shape[2] * width))

    def run_block(self, block: Residual, x: Tensor, skip: Tensor | None, scale: float) -> Tensor:
        mixer, step = block.channelwise, self.rows(x, block.channelwise.width)
        own = block.mixer_scale(skip, scale)
        if step >= x.shape[1]:
            return block(x, skip, scale)
        spans = [(first, min(first + step, x.shape[1])) for first in range(0, x.shape[1], step)]

        def wide(first: int, last: int) -> Tensor:
            return mixer.widen(block.mix_rows(x, skip, scale, first, last), own)

        length = reduce(torch.add, (channel_lengths(wide(*span)).square() for span in spans)).sqrt()
        out = torch.empty_like(x)
        for first, last in spans:
            change = mixer.narrow(wide(first, last), own, lambda _: length)
            torch.add(x[:, first:last], change, alpha=scale / own, out=out[:, first:last])
        return out

    def run_rowwise(self, layer: Callable[[Tensor], Tensor], x: Tensor, width: int) -> Tensor:
        step = max(2, self.rows(x, width) // 2 * 2)
        if step >= x.shape[1]:
            return layer(x)
        part = layer(x[:, :step])
        out = part.new_empty(part.shape[0], x.shape[1] * part.shape[1] // step, *part.shape[2:])
        done = part.shape[1]
        out[:, :done] = part
        for first in range(step, x.shape[1], step):
            if first == x.shape[1] - 1 and out.shape[1] == done:
                break  # a single last row, which halving drops
            part = layer(x[:, first : first + step])
            out[:, done : done + part.shape[1]] = part
            done += part.shape[1]
        return out


@dataclass(frozen=True)
class Tile:
    """A part of a latent, in latents."""

    top: int
    left: int
    height: int
    width: int

    def cut(self, x: Tensor) -> Tensor:
        """This part of ``x`` (..., H, W)."""
        return x[..., self.top : self.top + self.height, self.left : self.left + self.width]


class TileBlocks(BlockHooks):
    """The blocks of ``tiles`` as parts of a latent of ``size``."""

    def __init__(self, tiles: list[Tile], size: tuple[int, int]):
        self.tiles, self.size = tiles, size

    def resize(self, x: Tensor, size: Sequence[int]) -> Tensor:
        """A level of odd size is stretched on its way back up: each tile has to take its part of the whole stretch."""
        if tuple(x.shape[1:3]) == tuple(size):
            return x
        tile = self.tiles[0]
        rows, columns = (
            torch.stack([self.positions(full, side, cells, start) for start in starts])
            for full, side, cells, starts in (
                (self.size[0], tile.height, size[0], [each.top for each in self.tiles]),
                (self.size[1], tile.width, size[1], [each.left for each in self.tiles]),
            )
        )
        repeats = x.shape[0] // len(self.tiles), 1
        return nhwc(
            sample_lines(nchw(x).float(), rows.to(x.device).repeat(repeats), columns.to(x.device).repeat(repeats))
        ).to(x.dtype)

    @staticmethod
    def positions(full: int, side: int, cells: int, start: int) -> Tensor:
        """Where the ``cells`` of a tile's level lie on the level below it, doubled, counted from the tile's own start;
        ``full``, ``side`` and ``start`` are the latent, the tile and its start in latents."""
        level, own, stride = -(-full // 2), -(-side // 2), 2
        while own > cells:
            level, own, stride = level // 2, own // 2, stride * 2
        index = start // stride + torch.arange(cells, dtype=torch.float32)
        return index * ((level // 2 * 2 - 1) / max(level - 1, 1)) - start // stride


def place_tiles(length: int, tile: int, overlap: int, step: int) -> tuple[int, list[int]]:
    """One side cut into the fewest equal tiles: their size and where they begin, at multiples of ``step``.

    Neighbours share at least ``overlap`` cells. Multiples of ``step`` keep the levels of every tile in line with those
    of the whole picture, and the sides of all have the same remainder, so that all levels are rounded alike. A tile is
    a little larger than ``tile`` where there is one.
    """
    size = max(step, tile // step * step) + length % step
    if length <= size:
        return length, [0]
    advance = (size - max(overlap, 1)) // step
    if advance < 1:
        raise WrongInput(
            f"Tiles of {tile * 4} px were asked for with an overlap of {overlap * 4} px, which leaves "
            f"nothing to go on by. The overlap has to be at least {step * 4} px smaller than the tile: "
            "use larger tiles or a smaller overlap."
        )
    room = (length - size) // step
    further = -(-room // advance)
    return size, [room * index // further * step for index in range(further + 1)]


def feather(length: int, size: int, begins: list[int]) -> Tensor:
    """Weights (tiles, size) of the tiles of one side: a raised cosine over what neighbours share,
    1 in all at each cell.
    """
    weights = torch.ones(len(begins), size, dtype=torch.float64)
    for index in range(len(begins) - 1):
        shared = begins[index] + size - begins[index + 1]
        ramp = torch.sin((torch.arange(shared, dtype=torch.float64) + 0.5) / shared * math.pi / 2).square()
        weights[index + 1, :shared] *= ramp
        weights[index, size - shared :] *= 1 - ramp
    total = torch.zeros(length, dtype=torch.float64)
    for begin, row in zip(begins, weights):
        total[begin : begin + size] += row
    return torch.stack([row / total[begin : begin + size] for begin, row in zip(begins, weights)]).float()


@dataclass(frozen=True)
class Tiling:
    """How Stage B runs on a large latent. Sizes are in latents (4 px); ``batch`` tiles go through it at once."""

    method: str = PIECES
    tile: int = 256
    overlap: int = 64
    batch: int = 1

    def cut(self, size: tuple[int, int], step: int) -> tuple[list[Tile], Tensor]:
        """The tiles of a latent of ``size`` and their weights (tiles, height, width)."""
        (height, tops), (width, lefts) = (place_tiles(side, self.tile, self.overlap, step) for side in size)
        down, across = feather(size[0], height, tops), feather(size[1], width, lefts)
        tiles = [Tile(top, left, height, width) for top in tops for left in lefts]
        return tiles, (down[:, None, :, None] * across[None, :, None, :]).flatten(0, 1)


Call = Callable[[Tensor, Tensor, int, Changes], Tensor]
"""``call(x, prior, count, changes)`` runs the network on ``x`` (count B, 4, h, w): the tiles of a picture follow each
other, so its other conditions have to be repeated ``count`` times each."""


def run_in_tiles(call: Call, x: Tensor, prior: Tensor, tiling: Tiling, step: int, least: int = 1) -> Tensor:
    """The noise in ``x`` (B, 4, H, W), from tiles; ``prior`` (B, 16, h, w) is the whole Stage C latent.

    ``step`` is the number of latents in a cell of the deepest level, ``least`` the fewest cells that the network takes.
    """
    size = (x.shape[-2], x.shape[-1])
    tiles, weights = tiling.cut(size, step)
    if len(tiles) == 1:
        return call(x, prior, 1, NO_CHANGES)
    out = torch.zeros(x.shape, device=x.device, dtype=torch.float32)
    for group, shares in batches(tiles, weights, tiling.batch):
        parts = interleave([tile.cut(x) for tile in group])
        priors = interleave([crop_prior(prior, size, (t.height, t.width, t.top, t.left), least) for t in group])
        given = call(parts, priors, len(group), Changes(blocks=TileBlocks(group, size)))
        for index, (tile, share) in enumerate(zip(group, shares)):
            tile.cut(out).add_(given[index :: len(group)].float() * share.to(out.device))
    return out.to(x.dtype)


def batches(tiles: list[Tile], weights: Tensor, count: int) -> Iterator[tuple[list[Tile], Tensor]]:
    """``count`` tiles at a time, with their weights."""
    for first in range(0, len(tiles), count):
        yield tiles[first : first + count], weights[first : first + count]


def interleave(parts: list[Tensor]) -> Tensor:
    """Several (B, ...) as one (B n, ...), the parts of a batch entry side by side."""
    return torch.stack(parts, dim=1).flatten(0, 1)


def count_piece_elements(tiling: Tiling, width: int) -> int:
    """How many numbers a wide layer may hold in pieces: what a quarter tile of a level ``width`` wide needs."""
    return max(1, tiling.tile // 4) ** 2 * 4 * width
