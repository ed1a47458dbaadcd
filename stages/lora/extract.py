"""A LoRA from the difference of two networks: the best low-rank approximation of each layer's change.

The truncated singular value decomposition is the best approximation of its rank in the Frobenius norm (Eckart and
Young 1936). Its energy is the share of the squared change that it keeps.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from .names import ATTENTION

ATTENTION_ONLY, MATRICES, EVERYTHING = "attention", "all layers", "all layers, biases and norms"
SCOPES = (ATTENTION_ONLY, MATRICES, EVERYTHING)
SMALL = 512
"""Up to this many rows or columns the decomposition is exact; beyond, a randomised one (arXiv 0909.4061) is used."""


class KeptChange(NamedTuple):
    """What was kept of one parameter's change."""

    module: str
    rank: int
    energy: float


@dataclass(frozen=True)
class Extraction:
    """The layers that differ, and how many do not."""

    layers: tuple[KeptChange, ...]
    same: int

    def text(self, shown: int = 8) -> str:
        """For people: the share of the change that is kept, and the layers that lose most."""
        if not self.layers:
            return "The two models are the same in these layers"
        worst = sorted(self.layers, key=lambda layer: layer.energy)[:shown]
        mean = sum(layer.energy for layer in self.layers) / len(self.layers)
        ranks = [layer.rank for layer in self.layers if layer.rank]
        span = f", rank {min(ranks)} to {max(ranks)}" if ranks else ""
        lines = [
            f"{len(self.layers)} layers differ, {self.same} are the same",
            f"{mean:.1%} of the change kept on average{span}",
            "Layers that lose most:",
        ]
        return "\n".join(
            lines + [f"  {layer.module}: {layer.energy:.1%} kept at rank {layer.rank or 'full'}" for layer in worst]
        )


def in_scope(name: str, shape: tuple[int, ...], scope: str) -> bool:
    """Whether the parameter ``name`` (canonical, with ``.weight`` or ``.bias``) is to be extracted."""
    if scope == EVERYTHING:
        return True
    matrix = name.endswith(".weight") and len(shape) >= 2
    return matrix and (scope == MATRICES or ATTENTION in name)


def extract_layer(
    name: str, delta: Tensor, rank: int, energy: float = 1.0, dtype: torch.dtype = torch.float32
) -> tuple[dict[str, Tensor], KeptChange] | None:
    """``(parts, layer)`` for the change ``delta`` of the parameter ``name``; None where nothing changed.

    rank: the most that is kept; energy: the least share of the squared change to keep, with as low a rank as does.
    Vectors, and matrices whose factors would be larger than themselves, are kept whole as a difference.
    """
    delta = delta.float()
    if not delta.abs().max() > 0:
        return None
    if name.endswith(".bias"):
        return {"diff_b": delta.to(dtype)}, KeptChange(name, 0, 1.0)
    module, matrix = name.removesuffix(".weight"), delta.flatten(1) if delta.ndim > 1 else delta[None]
    rows, columns = matrix.shape
    whole = {"diff": delta.to(dtype)}, KeptChange(module, 0, 1.0)
    most = (rows * columns - 1) // (rows + columns)
    if not name.endswith(".weight") or delta.ndim < 2 or most == 0 or (rank > most and energy >= 1):
        return whole
    up, down, kept = low_rank(matrix, rank, energy)
    if len(down) > most:
        return whole
    kernel = delta.shape[2:]
    up, down = up.to(dtype).reshape(rows, -1, *[1] * len(kernel)), down.to(dtype).reshape(-1, *delta.shape[1:])
    parts = {
        "lora_up.weight": up.contiguous(),
        "lora_down.weight": down.contiguous(),
        "alpha": torch.tensor(float(down.shape[0])),
    }
    return parts, KeptChange(module, down.shape[0], kept)


def low_rank(matrix: Tensor, rank: int, energy: float = 1.0) -> tuple[Tensor, Tensor, float]:
    """``(up, down, energy)`` with up @ down near ``matrix`` (m, n): up (m, r) and down (r, n) share the scale."""
    if min(matrix.shape) <= SMALL:
        u, s, vh = torch.linalg.svd(matrix, full_matrices=False)
    else:
        with torch.random.fork_rng(devices=[matrix.device] if matrix.device.type == "cuda" else []):
            torch.manual_seed(0)
            u, s, v = torch.svd_lowrank(matrix, q=min(rank + 16, *matrix.shape), niter=4)
        vh = v.T
    shares = (s.square().cumsum(0) / matrix.square().sum()).clamp(max=1.0)
    enough = int((shares < energy).sum()) + 1 if energy < 1 else rank
    keep = max(1, min(rank, enough, len(s)))
    root = s[:keep].sqrt()
    return u[:, :keep] * root, root[:, None] * vh[:keep], float(shares[keep - 1])
