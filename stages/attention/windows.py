"""Self-attention in windows: a cell attends to the cells of its own window and to all condition tokens.

Attention costs the square of the number of tokens, so n windows make it n times cheaper, and each window sees as many
tokens as a small picture has. Windows are shifted by half their size at every second attention, so that no border stays
(the shifted windows of Swin, arXiv 2103.14030, section 3.2, with partial windows at the edges instead of a roll).
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..nets.hooks import Place
from .layers import Attend, AttentionLayer


def cut_side(length: int, window: int, shifted: bool) -> list[tuple[int, int]]:
    """One side in equal parts of at most ``window`` cells, or moved by half of one; (first,
    last) with last exclusive.
    """
    count = -(-length // window)
    edges = [round(length * index / count) for index in range(count + 1)]
    if shifted and count > 1:
        half = length / count / 2
        edges = [0, *(round(edge + half) for edge in edges[:-1]), length]
    return [(first, last) for first, last in zip(edges, edges[1:]) if last > first]


class WindowLayer(AttentionLayer):
    """Windows of at most ``window`` cells a side on grids that are larger than that; smaller grids stay whole."""

    order = 2
    yields = True

    def __init__(self, window: int, shift: bool = True):
        self.window, self.shift = window, shift

    def attend(
        self, place: Place, q: Tensor, k: Tensor, v: Tensor, n_self: int, mask: Tensor | None, following: Attend
    ) -> Tensor:
        height, width = place.grid
        if max(place.grid) <= self.window or q.shape[1] != height * width or n_self < q.shape[1]:
            return following(q, k, v, n_self, mask)
        shifted = self.shift and place.number % 2 == 1
        cells = torch.arange(height * width, device=q.device).view(height, width)
        out = torch.empty_like(q)
        beyond = torch.arange(q.shape[1], k.shape[1], device=q.device)
        for top, bottom in cut_side(height, self.window, shifted):
            for left, right in cut_side(width, self.window, shifted):
                own = cells[top:bottom, left:right].flatten()
                seen = torch.cat([own, beyond])
                part = None if mask is None else mask[:, own][:, :, seen]
                count = len(own) + n_self - q.shape[1]
                out[:, own] = following(q[:, own], k[:, seen], v[:, seen], count, part)
        return out
