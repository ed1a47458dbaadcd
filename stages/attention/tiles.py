"""Stage B on pictures that are too large for one pass: in pieces, which is exact, or in overlapping tiles, which is
not.

Stage B looks at the whole picture in two places: its response norms measure every channel over it, and its deepest
levels attend to all of it. Pieces cut only the wide layers between those, so they change nothing but memory. Tiles run
the whole network on a part of the latent, with the part of the Stage C latent that belongs to it. What a tile cannot
see then comes from one more pass over the whole latent, thinned out to the size of a tile at the same noise level: its
response norms, and the keys and values of its attention outside the tile.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import WrongInput
from ..inputs.resize import crop_prior
from ..nets.blocks import FeedForwardBlock, ResBlock, channel_lengths
from ..nets.channels_last import nchw, nhwc
from ..nets.hooks import BlockHooks, Place
from ..nets.portable import sample_lines
from .layers import NO_CHANGES, Attend, AttentionLayer, Changes, log_weights

PIECES, SHARED, OWN = "pieces", "tiles, shared norms", "tiles, own norms"
METHODS = (PIECES, SHARED, OWN)


class PieceHooks(BlockHooks):
    """The wide layers in pieces of at most ``elements`` numbers; the result is the same but for rounding.

    A block's four-fold wide layer is computed twice, once for the lengths of its channels and once for its output.
    """

    def __init__(self, elements: int):
        self.elements = elements

    def rows(self, x: Tensor, width: int) -> int:
        """How many rows of ``x`` (B, H, W, C) may be ``width`` wide at once."""
        return max(1, self.elements // (x.shape[0] * x.shape[2] * width))

    def run_block(self, block: ResBlock | FeedForwardBlock, x: Tensor, skip: Tensor | None, scale: float) -> Tensor:
        mixer, step = block.channelwise, self.rows(x, block.channelwise.width)
        own = block.mixer_scale(skip, scale)
        if step >= x.shape[1]:
            return block(x, skip, scale)
        spans = [(first, min(first + step, x.shape[1])) for first in range(0, x.shape[1], step)]

        def wide(first: int, last: int) -> Tensor:
            return mixer.widen(block.mix_rows(x, skip, scale, first, last), own)

        length = sum(channel_lengths(wide(*span)).square() for span in spans).sqrt()
        out = torch.empty_like(x)
        for first, last in spans:
            change = mixer.narrow(wide(first, last), own, lambda _: length)
            torch.add(x[:, first:last], change, alpha=scale / own, out=out[:, first:last])
        return out

    def run_rowwise(self, layer: Callable[[Tensor], Tensor], x: Tensor, width: int) -> Tensor:
        step = max(2, self.rows(x, width) // 2 * 2)
        if step >= x.shape[1]:
            return layer(x)
        out, done = None, 0
        for first in range(0, x.shape[1], step):
            if first == x.shape[1] - 1 and out.shape[1] == done:
                break  # a single last row, which halving drops
            part = layer(x[:, first : first + step])
            if out is None:
                out = part.new_empty(part.shape[0], x.shape[1] * part.shape[1] // step, *part.shape[2:])
            out[:, done : done + part.shape[1]] = part
            done += part.shape[1]
        return out


class Whole(BlockHooks, AttentionLayer):
    """Keeps the response norms and the own keys and values of a pass over the whole picture."""

    order = 1

    def __init__(self) -> None:
        self.lengths: list[Tensor] = []
        self.tokens: list[tuple[Tensor, Tensor, tuple[int, int]]] = []

    def run_block(self, block: ResBlock | FeedForwardBlock, x: Tensor, skip: Tensor | None, scale: float) -> Tensor:
        def keep_lengths(h: Tensor) -> Tensor:
            self.lengths.append(channel_lengths(h))
            return self.lengths[-1]

        return block(x, skip, scale, keep_lengths)

    def attend(
        self, place: Place, q: Tensor, k: Tensor, v: Tensor, n_self: int, mask: Tensor | None, following: Attend
    ) -> Tensor:
        self.tokens.append((k[:, :n_self], v[:, :n_self], place.grid))
        return following(q, k, v, n_self, mask)

    @property
    def changes(self) -> Changes:
        return Changes((self,), self)


@dataclass(frozen=True)
class Tile:
    """A part of a latent, in latents."""

    top: int
    left: int
    height: int
    width: int

    def cut(self, x: Tensor) -> Tensor:
        return x[..., self.top : self.top + self.height, self.left : self.left + self.width]


class Surroundings(AttentionLayer):
    """Adds the whole picture's thinned-out tokens from outside a tile to the tile's own, each counted as often as the
    tokens that it stands for; ``tiles`` follow each other within every picture of the batch."""

    order = 1

    def __init__(self, whole: Whole, tiles: list[Tile], size: tuple[int, int], thinned: tuple[int, int]):
        self.whole, self.tiles, self.size = whole, tiles, size
        self.stands_for = size[0] * size[1] / (thinned[0] * thinned[1])
        self.calls = 0

    def attend(
        self, place: Place, q: Tensor, k: Tensor, v: Tensor, n_self: int, mask: Tensor | None, following: Attend
    ) -> Tensor:
        keys, values, grid = self.whole.tokens[self.calls]
        self.calls += 1
        count = len(self.tiles)
        outside = torch.stack([self.outside(tile, grid, k.device) for tile in self.tiles])
        outside = outside.repeat(q.shape[0] // count, 1)
        bias = torch.zeros((q.shape[0], k.shape[1] + outside.shape[1]), device=k.device, dtype=torch.float32)
        bias[:, n_self : n_self + outside.shape[1]] = log_weights(outside * self.stands_for)
        k, v = (
            torch.cat([own[:, :n_self], far.repeat_interleave(count, 0), own[:, n_self:]], dim=1)
            for own, far in ((k, keys), (v, values))
        )
        bias = bias.to(q.dtype)[:, None].expand(-1, q.shape[1], -1)
        if mask is not None:
            between = mask.new_zeros((*mask.shape[:2], outside.shape[1]))
            bias = bias + torch.cat([mask[..., :n_self], between, mask[..., n_self:]], dim=-1)
        return following(q, k, v, n_self, bias)

    def outside(self, tile: Tile, grid: tuple[int, int], device: torch.device) -> Tensor:
        """1 for every cell of ``grid`` (rows, columns; flat) whose centre lies outside of ``tile``, else 0."""
        inside = []
        for cells, first, length, full in (
            (grid[0], tile.top, tile.height, self.size[0]),
            (grid[1], tile.left, tile.width, self.size[1]),
        ):
            centre = (torch.arange(cells, device=device) + 0.5) * (full / cells)
            inside.append((centre >= first) & (centre < first + length))
        return 1.0 - (inside[0][:, None] & inside[1][None, :]).float().flatten()


class TileBlocks(BlockHooks):
    """The blocks of ``tiles`` as parts of a latent of ``size``, with the response norms of the ``whole`` if given."""

    def __init__(self, tiles: list[Tile], size: tuple[int, int], whole: Whole | None):
        self.tiles, self.size, self.whole, self.calls = tiles, size, whole, 0

    def run_block(self, block: ResBlock | FeedForwardBlock, x: Tensor, skip: Tensor | None, scale: float) -> Tensor:
        if self.whole is None:
            return block(x, skip, scale)
        length = self.whole.lengths[self.calls].repeat_interleave(len(self.tiles), 0)
        self.calls += 1
        return block(x, skip, scale, lambda _: length)

    def resize(self, x: Tensor, size: tuple[int, int]) -> Tensor:
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

    def cut(self, size: tuple[int, int], step: int) -> tuple[list[Tile], Tensor | None]:
        """The tiles of a latent of ``size`` and their weights (tiles, height, width)."""
        (height, tops), (width, lefts) = (place_tiles(side, self.tile, self.overlap, step) for side in size)
        down, across = feather(size[0], height, tops), feather(size[1], width, lefts)
        tiles = [Tile(top, left, height, width) for top in tops for left in lefts]
        return tiles, (down[:, None, :, None] * across[None, :, None, :]).flatten(0, 1)

    def overview_size(self, size: tuple[int, int], step: int) -> tuple[int, int]:
        """The size of the pass over the whole picture: about a tile's, in its aspect, a multiple of ``step``."""
        factor = min(1.0, self.tile / max(size))
        return tuple(min(side, max(step, round(side * factor / step) * step)) for side in size)

    def needs_tiles(self, size: tuple[int, int], step: int) -> bool:
        """Whether a latent of ``size`` is larger than a tile."""
        return any(len(place_tiles(side, self.tile, self.overlap, step)[1]) > 1 for side in size)


def thin_out(x: Tensor, size: tuple[int, int]) -> Tensor:
    """``x`` (B, C, H, W) at evenly spread cells: unlike an average, white noise stays white and as strong."""
    rows, columns = (
        ((torch.arange(new, device=x.device) + 0.5) * (old / new)).long() for old, new in zip(x.shape[-2:], size)
    )
    return x[..., rows[:, None], columns]


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
    whole, thinned = None, tiling.overview_size(size, step)
    if tiling.method == SHARED:
        whole = Whole()
        call(thin_out(x, thinned), prior, 1, whole.changes)
    out = torch.zeros(x.shape, device=x.device, dtype=torch.float32)
    for group, shares in batches(tiles, weights, tiling.batch):
        parts = interleave([tile.cut(x) for tile in group])
        priors = interleave([crop_prior(prior, size, (t.height, t.width, t.top, t.left), least) for t in group])
        layers = () if whole is None else (Surroundings(whole, group, size, thinned),)
        changes = Changes(layers, TileBlocks(group, size, whole))
        given = call(parts, priors, len(group), changes)
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
