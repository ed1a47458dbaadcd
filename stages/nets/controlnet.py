"""ControlNets of Stage C: a hint picture to maps that are added before some of its ResBlocks.

Key names as in the published ``controlnet/*.safetensors``.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from ..errors import WrongInput
from ..units import CARD_SLACK
from .backend import TORCH, Backend
from .encoder import EncoderConfig, FrozenNorms, Layers, trunk, trunk_peak

SLOPE = 0.2
MODES = ("effnet", "simple", "large")


@dataclass(frozen=True)
class ControlNetConfig:
    """Defaults are the published Canny ControlNet.

    ``bottleneck_mode`` is "effnet" (32 pixels to a cell), "simple" or "large" (one hint cell to a cell). ``trunk``
    is used by "effnet"; ``c_large`` (wide, narrow), ``blocks_large`` and ``c_embed`` by "large".
    """

    c_in: int = 1
    c_proj: int = 2048
    proj_blocks: tuple[int, ...] = (0, 4, 8, 12, 51, 55, 59, 63)
    bottleneck_mode: str = "effnet"
    trunk: EncoderConfig = field(default_factory=EncoderConfig)
    c_large: tuple[int, int] = (16384, 1024)
    blocks_large: int = 8
    c_embed: int = 1280

    @property
    def cell(self) -> int:
        """Hint pixels to a cell of the maps."""
        return 32 if self.bottleneck_mode == "effnet" else 1


class LargeBlock(nn.Module):
    """Two 3×3 convolutions, each after an affine layer norm over the channels and GELU, and a residual."""

    def __init__(self, c: int, backend: Backend, at: dict) -> None:
        super().__init__()
        parts: list[nn.Module] = []
        for _ in range(2):
            parts += [backend.LayerNorm(c, **at), nn.GELU(), backend.Conv2d(c, c, kernel_size=3, padding=1, **at)]
        self.blocks = nn.ModuleList(parts)

    def forward(self, x: Tensor) -> Tensor:
        y = x
        for norm, act, conv in (self.blocks[:3], self.blocks[3:]):
            y = conv(act(norm(y.permute(0, 2, 3, 1))).permute(0, 3, 1, 2))
        return x + y


def _simple(c: int, backend: Backend, at: dict) -> nn.Sequential:
    wide = backend.Conv2d(c, 4 * c, kernel_size=3, padding=1, **at)
    return nn.Sequential(wide, nn.LeakyReLU(SLOPE), backend.Conv2d(4 * c, c, kernel_size=3, padding=1, **at))


def _large(config: ControlNetConfig, backend: Backend, at: dict) -> nn.Sequential:
    wide, narrow = config.c_large
    return nn.Sequential(
        backend.Conv2d(config.c_in, wide, kernel_size=1, **at),
        nn.LeakyReLU(SLOPE),
        backend.Conv2d(wide, narrow, kernel_size=1, **at),
        *(LargeBlock(narrow, backend, at) for _ in range(config.blocks_large)),
        backend.Conv2d(narrow, config.c_embed, kernel_size=1, **at),
    )


class ControlNet(FrozenNorms):
    """A hint in [0, 1], without ImageNet normalisation, → ``{ResBlock index: (B, c_proj, h, w)}``."""

    def __init__(
        self,
        config: ControlNetConfig = ControlNetConfig(),
        *,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        backend: Backend = TORCH,
    ) -> None:
        super().__init__()
        self.config, self.dtype = config, dtype
        at = {"dtype": dtype, "device": device}
        if config.bottleneck_mode == "effnet":
            # The published files were trained with an unpadded stem wherever the hint is not RGB.
            stem_padding = 1 if config.c_in == 3 else 0
            self.backbone = trunk(config.trunk, Layers(backend, dtype, device), config.c_in, stem_padding)
            c = config.trunk.c_features
        elif config.bottleneck_mode == "simple":
            self.backbone, c = _simple(config.c_in, backend, at), config.c_in
        elif config.bottleneck_mode == "large":
            self.backbone, c = _large(config, backend, at), config.c_embed
        else:
            raise WrongInput(
                f"A ControlNet of mode {config.bottleneck_mode!r} was asked for; known modes are {', '.join(MODES)}."
            )
        self.projections = nn.ModuleList(
            nn.Sequential(
                backend.Conv2d(c, c, kernel_size=1, bias=False, **at),
                nn.LeakyReLU(SLOPE),
                backend.Conv2d(c, config.c_proj, kernel_size=1, bias=False, **at),
            )
            for _ in config.proj_blocks
        )
        self.eval()

    def memory(self, batch: int, pixels: int, dtype_size: int) -> int:
        """Bytes that the maps of ``batch`` hints of ``pixels`` pixels each need without gradients."""
        config = self.config
        cells = pixels / config.cell**2
        if config.bottleneck_mode == "effnet":
            c, backbone = config.trunk.c_features, pixels * trunk_peak(config.trunk)
        elif config.bottleneck_mode == "simple":
            c, backbone = config.c_in, cells * 9 * config.c_in
        else:
            c, backbone = config.c_embed, cells * (config.c_in + 2 * config.c_large[0])
        maps = cells * (3 * c + config.c_proj * len(config.proj_blocks))
        return int(CARD_SLACK * batch * max(backbone, maps) * dtype_size)

    def forward(self, hint: Tensor) -> dict[int, Tensor]:
        """Hint (B, c_in, H, W) → one map for each of ``config.proj_blocks``."""
        if hint.shape[1] != self.config.c_in:
            raise WrongInput(
                f"This ControlNet needs a hint of {self.config.c_in} channels, but {hint.shape[1]} were given. "
                "Use the hint that belongs to it."
            )
        features = self.backbone(hint.contiguous(memory_format=torch.channels_last))
        return {index: project(features) for index, project in zip(self.config.proj_blocks, self.projections)}
