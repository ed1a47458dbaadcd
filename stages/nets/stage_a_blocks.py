"""The blocks of Stage A, and how much of a picture they work on at once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..units import MIB
from .backend import Backend
from .channels_last import EPS


@dataclass(frozen=True)
class Bands:
    """Bytes that a block works on at once: of its hidden layer, and of one picture's map.

    ``hidden`` is the most of a hidden layer; a map of up to ``whole`` is convolved in one go, a larger one in bands
    with the rest of the block; the wide layers behind the bottleneck run in bands whose map has up to ``map``.
    """

    hidden: int
    whole: int
    map: int

    def memory(self, size: int) -> int:
        """Bytes that a block needs beside a map of ``size`` bytes: of its convolution, or around its hidden layer."""
        return int(max(3 * size if size <= self.whole else 0, 1.5 * min(self.hidden, 4 * size)))


PROCESSOR = Bands(24 * MIB, 0, 24 * MIB)  # what stays in a cache; measured best from 24 to 32 MiB
CARD = Bands(96 * MIB, 64 * MIB, 32 * MIB)  # enough to be busy with; counted: a quarter of the memory of no bands


def choose_bands(device: torch.device | str) -> Bands:
    """How much to work on at once on ``device``."""
    return PROCESSOR if torch.device(device).type == "cpu" else CARD


class Gelu(nn.Module):
    """Exact GELU, in place where no gradient is asked for: its input is always a fresh tensor here."""

    def forward(self, x: Tensor) -> Tensor:
        return F.gelu(x) if torch.is_grad_enabled() else torch.ops.aten.gelu_(x)


class StageAResBlock(nn.Module):
    """Depthwise 3×3 and pointwise MLP, each after a layer norm, scaled by six scalar gates."""

    def __init__(self, c: int, backend: Backend, dtype: torch.dtype | None, device: torch.device | str | None) -> None:
        super().__init__()
        at: dict[str, Any] = {"dtype": dtype, "device": device}
        self.c, self.cast = c, backend.cast
        self.gammas = nn.Parameter(torch.empty(6, **at))
        self.depthwise = nn.Sequential(nn.ReplicationPad2d(1), backend.Conv2d(c, c, kernel_size=3, groups=c, **at))
        self.channelwise = nn.Sequential(backend.Linear(c, 4 * c, **at), Gelu(), backend.Linear(4 * c, c, **at))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) → the same shape."""
        gates = self.cast(self.gammas, x)
        more = 1 + gates
        y = self._norm(x.permute(0, 2, 3, 1), more[0], gates[1]).permute(0, 3, 1, 2)
        x = x + self.depthwise(y) * gates[2]
        y = self.channelwise(self._norm(x.permute(0, 2, 3, 1), more[3], gates[4])).permute(0, 3, 1, 2)
        return x + y * gates[5]

    def update_(self, x: Tensor, bands: Bands) -> Tensor:
        """The same as ``forward``, in place: ``x`` (B, C, H, W), channels last, is the only full-size tensor kept."""
        gates = self.cast(self.gammas, x)
        more = 1 + gates
        rows = x.permute(0, 2, 3, 1)  # (B, H, W, C)
        cells = max(1, bands.hidden // (4 * self.c * x.element_size()))  # of one picture
        if x[0].numel() * x.element_size() <= bands.whole:
            self._convolve_(rows, gates, more)
            for part in rows.flatten(0, 2).split(cells * x.shape[0]):
                part.addcmul_(self.channelwise(self._norm(part, more[3], gates[4])), gates[5])
        else:
            self._update_rows_(rows, gates, more, max(1, cells // x.shape[3]))
        return x

    def _convolve_(self, rows: Tensor, gates: Tensor, more: Tensor) -> None:
        """The depthwise half on ``rows`` (B, H, W, C) as a whole."""
        batch, height, width = rows.shape[:3]
        padded = rows.new_empty(batch, height + 2, width + 2, self.c)
        padded[:, 1:-1, 1:-1] = self._norm(rows, more[0], gates[1])
        padded[:, 0], padded[:, -1] = padded[:, 1], padded[:, -2]
        _repeat_edges(padded)
        y = self.depthwise[1](padded.permute(0, 3, 1, 2))
        del padded
        rows.addcmul_(y.permute(0, 2, 3, 1), gates[2])

    def _update_rows_(self, rows: Tensor, gates: Tensor, more: Tensor, step: int) -> None:
        """Both halves, ``step`` rows of (B, H, W, C) at a time."""
        batch, height, width = rows.shape[:3]
        padded = rows.new_empty(batch, min(step, height) + 2, width + 2, self.c)
        padded[:, 0, 1:-1] = self._norm(rows[:, 0], more[0], gates[1])
        for top in range(0, height, step):
            band = rows[:, top : top + step]
            count = band.shape[1]
            _fill(padded, self._norm(rows[:, top : top + step + 1], more[0], gates[1]), count)
            y = self.depthwise[1](padded[:, : count + 2].permute(0, 3, 1, 2))
            band.addcmul_(y.permute(0, 2, 3, 1), gates[2])
            padded[:, 0] = padded[:, count]  # the row above the next band, as it was before this one changed
            del y
            band.addcmul_(self.channelwise(self._norm(band, more[3], gates[4])), gates[5])

    def _norm(self, x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
        """Layer norm over the last axis, then ``· scale + shift``."""
        return F.layer_norm(x, (self.c,), scale.expand(self.c), shift.expand(self.c), EPS)


def _fill(padded: Tensor, y: Tensor, count: int) -> None:
    """Put ``count`` rows of ``y`` (B, rows, W, C), and the one below if there is one, under row 0; repeat the edges."""
    padded[:, 1 : 1 + y.shape[1], 1:-1] = y
    if y.shape[1] == count:
        padded[:, count + 1] = padded[:, count]
    _repeat_edges(padded)


def _repeat_edges(padded: Tensor) -> None:
    """The first and last column of (B, rows, W + 2, C) as their neighbours are."""
    width = padded.shape[2] - 2
    inner = padded[:, :, 1:2] if width == 1 else padded[:, :, 1 : width + 1 : width - 1]
    padded[:, :, :: width + 1] = inner
