"""The Previewer: Stage C latents to small RGB pictures, 8 pixels to a cell.

Key names as in the published ``previewer.safetensors``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..units import CARD_SLACK
from .backend import TORCH, Backend

CELL = 8


@dataclass(frozen=True)
class PreviewerConfig:
    """Defaults are the published model; ``c_hidden`` is halved twice on the way to the picture."""

    c_in: int = 16
    c_hidden: int = 512
    c_out: int = 3


class Previewer(nn.Module):
    """Built in eval mode: the batch norms use their running statistics."""

    def __init__(
        self,
        config: PreviewerConfig = PreviewerConfig(),
        *,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        backend: Backend = TORCH,
    ) -> None:
        super().__init__()
        self.config, self.dtype = config, dtype
        at = {"dtype": dtype, "device": device}
        c, half, quarter = config.c_hidden, config.c_hidden // 2, config.c_hidden // 4
        blocks: list[nn.Module] = [backend.Conv2d(config.c_in, c, kernel_size=1, **at), *_after(c, backend, at)]
        blocks += [backend.Conv2d(c, c, kernel_size=3, padding=1, **at), *_after(c, backend, at)]
        for c_in, c_out in ((c, half), (half, quarter), (quarter, quarter)):
            blocks += [backend.ConvTranspose2d(c_in, c_out, kernel_size=2, stride=2, **at), *_after(c_out, backend, at)]
            blocks += [backend.Conv2d(c_out, c_out, kernel_size=3, padding=1, **at), *_after(c_out, backend, at)]
        self.blocks = nn.Sequential(*blocks, backend.Conv2d(quarter, config.c_out, kernel_size=1, **at))
        self.eval()

    def memory(self, shape: Sequence[int], dtype_size: int) -> int:
        """Bytes that previewing a latent (B, 16, H, W) needs without gradients.

        A layer's input and output at full size are held at once.
        """
        return int(CARD_SLACK * 2 * shape[0] * shape[2] * shape[3] * CELL**2 * (self.config.c_hidden // 4) * dtype_size)

    def forward(self, latent: Tensor) -> Tensor:
        """(B, 16, H, W) → (B, 3, 8H, 8W), about [0, 1] and unclamped."""
        return self.blocks(latent.contiguous(memory_format=torch.channels_last))


def _after(c: int, backend: Backend, at: dict) -> tuple[nn.Module, nn.Module]:
    """What follows every convolution but the last: the activation comes before the norm."""
    return nn.GELU(), backend.BatchNorm2d(c, **at)
