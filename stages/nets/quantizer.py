"""The codebook of Stage A."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .backend import Backend

COMMITMENT = 0.25
SEARCH_ROWS = 4096  # rows of the distance table that is held at once: 128 MiB at 8192 codes


class Quantized(NamedTuple):
    """``vectors`` (B, C, H, W), straight-through for gradients; ``indices`` (B, H, W); ``loss`` scalar."""

    vectors: Tensor
    indices: Tensor
    loss: Tensor


class VectorQuantizer(nn.Module):
    """Nearest codebook vector (van den Oord et al., arXiv 1711.00937, with 0.25 as the weight of the commitment)."""

    def __init__(
        self, size: int, c: int, backend: Backend, dtype: torch.dtype | None, device: torch.device | str | None
    ) -> None:
        super().__init__()
        self.size = size
        self.codebook = backend.Embedding(size, c, dtype=dtype, device=device)

    def lookup(self, indices: Tensor) -> Tensor:
        """(B, H, W) indices → (B, C, H, W) vectors."""
        return self.codebook(indices).permute(0, 3, 1, 2)

    def forward(self, x: Tensor) -> Quantized:
        """(B, C, H, W) → the nearest vectors, their indices and vq + 0.25 · commitment loss."""
        rows = x.permute(0, 2, 3, 1)
        codes = self.codebook(torch.arange(self.size, device=x.device)).detach().float()
        half_norms = codes.square().sum(1) / 2
        flat = rows.detach().float().reshape(-1, codes.shape[1])
        nearest = [(half_norms - part @ codes.T).argmin(1) for part in flat.split(SEARCH_ROWS)]
        indices = torch.cat(nearest).view(rows.shape[:3])
        vectors = self.lookup(indices).to(x.dtype)
        loss = F.mse_loss(vectors, x.detach()) + COMMITMENT * F.mse_loss(x, vectors.detach())
        return Quantized(x + (vectors - x).detach(), indices, loss)
