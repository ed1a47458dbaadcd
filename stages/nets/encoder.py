"""The image encoder: EfficientNet-V2-S features and a projection to the 16 channels of the Stage C latent.

Tan and Le, "EfficientNetV2" (arXiv 2104.00298); key names as in the published ``effnet_encoder.safetensors``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..inputs.grids import COMPRESSION
from ..units import CARD_SLACK
from .backend import TORCH, Backend

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
CELL = 32
TRUNK_EPS = 1e-3


def normalise(image: Tensor) -> Tensor:
    """RGB (B, 3, H, W) in [0, 1] → what :class:`ImageEncoder` takes."""
    mean, std = (image.new_tensor(v).view(3, 1, 1) for v in (IMAGENET_MEAN, IMAGENET_STD))
    return (image - mean) / std


@dataclass(frozen=True)
class EncoderConfig:
    """One entry a stage; defaults are EfficientNet-V2-S. The strides and the stem's make 32 pixels to a cell.

    ``native_compression``: how many pixels of the picture itself are a cell in the Stage C that this is made for.
    """

    c_in: int = 3
    c_stem: int = 24
    widths: tuple[int, ...] = (24, 48, 64, 128, 160, 256)
    repeats: tuple[int, ...] = (2, 4, 4, 6, 9, 15)
    expansions: tuple[int, ...] = (1, 4, 4, 4, 6, 6)
    strides: tuple[int, ...] = (1, 2, 2, 2, 1, 2)
    fused: tuple[bool, ...] = (True, True, True, False, False, False)
    c_features: int = 1280
    c_latent: int = 16
    native_compression: float = COMPRESSION


class Layers:
    """Builds the convolutions of one network: every one is bias-free and followed by a batch norm."""

    def __init__(self, backend: Backend, dtype: torch.dtype | None, device: torch.device | str | None) -> None:
        self.backend, self.at = backend, {"dtype": dtype, "device": device}

    def conv(
        self,
        c_in: int,
        c_out: int,
        kernel: int = 1,
        stride: int = 1,
        groups: int = 1,
        act: bool = True,
        padding: int | None = None,
    ) -> nn.Sequential:
        """Convolution, batch norm, and SiLU where ``act``; padded to keep the size unless told."""
        padding = kernel // 2 if padding is None else padding
        conv = self.backend.Conv2d(
            c_in, c_out, kernel_size=kernel, stride=stride, padding=padding, groups=groups, bias=False, **self.at
        )
        norm = self.backend.BatchNorm2d(c_out, eps=TRUNK_EPS, **self.at)
        return nn.Sequential(conv, norm, Swish()) if act else nn.Sequential(conv, norm)

    def squeeze(self, c: int, c_squeeze: int) -> SqueezeExcitation:
        """A gate on every channel, through ``c_squeeze`` numbers."""
        fc1, fc2 = (self.backend.Conv2d(a, b, kernel_size=1, **self.at) for a, b in ((c, c_squeeze), (c_squeeze, c)))
        return SqueezeExcitation(fc1, fc2)


class Swish(nn.Module):
    """SiLU, in place where no gradient is asked for: its input is always a fresh tensor here."""

    def forward(self, x: Tensor) -> Tensor:
        return F.silu(x, inplace=not torch.is_grad_enabled())


class SqueezeExcitation(nn.Module):
    """Channel gates from the mean of the whole map (the one global operation of the trunk)."""

    def __init__(self, fc1: nn.Module, fc2: nn.Module) -> None:
        super().__init__()
        self.fc1, self.fc2 = fc1, fc2

    def forward(self, x: Tensor) -> Tensor:
        gate = torch.sigmoid(self.fc2(F.silu(self.fc1(x.mean((2, 3), keepdim=True)))))
        return x * gate if torch.is_grad_enabled() else x.mul_(gate)


class TrunkBlock(nn.Module):
    """Fused or plain inverted bottleneck; the residual exists where input and output have the same shape."""

    def __init__(self, layers: Layers, c_in: int, c_out: int, expansion: int, stride: int, fused: bool) -> None:
        super().__init__()
        c = c_in * expansion
        if fused and expansion == 1:
            parts: list[nn.Module] = [layers.conv(c_in, c_out, 3, stride)]
        elif fused:
            parts = [layers.conv(c_in, c, 3, stride), layers.conv(c, c_out, act=False)]
        else:
            parts = [
                layers.conv(c_in, c),
                layers.conv(c, c, 3, stride, groups=c),
                layers.squeeze(c, max(1, c_in // 4)),
                layers.conv(c, c_out, act=False),
            ]
        self.block = nn.Sequential(*parts)
        self.residual = stride == 1 and c_in == c_out

    def forward(self, x: Tensor) -> Tensor:
        y = self.block(x)
        if not self.residual:
            return y
        return x + y if torch.is_grad_enabled() else y.add_(x)


def trunk(config: EncoderConfig, layers: Layers, c_in: int, stem_padding: int = 1) -> nn.Sequential:
    """The features of EfficientNet-V2: (B, c_in, H, W) → (B, c_features, H/32, W/32)."""
    parts: list[nn.Module] = [layers.conv(c_in, config.c_stem, 3, 2, padding=stem_padding)]
    c = config.c_stem
    stages = zip(config.widths, config.repeats, config.expansions, config.strides, config.fused)
    for width, repeats, expansion, stride, fused in stages:
        blocks = []
        for index in range(repeats):
            blocks.append(TrunkBlock(layers, c, width, expansion, 1 if index else stride, fused))
            c = width
        parts.append(nn.Sequential(*blocks))
    parts.append(layers.conv(c, config.c_features))
    return nn.Sequential(*parts)


def trunk_peak(config: EncoderConfig) -> float:
    """The most values per input pixel that the trunk holds at once without gradients.

    That is the picture, the input of the stage and of the block, and an expanded map before and after its norm.
    """
    peak, c, area = 0.0, config.c_stem, 4
    for width, expansion, stride, fused in zip(config.widths, config.expansions, config.strides, config.fused):
        after = area * stride**2
        first = c / area + 2 * c * expansion / (after if fused else area)
        later = c / area + (1 + 2 * expansion) * width / after
        peak, c, area = max(peak, first, later), width, after
    return config.c_in + peak


class FrozenNorms(nn.Module):
    """A network whose batch norms keep to their running statistics, in training too."""

    def train(self, mode: bool = True) -> FrozenNorms:
        """As PyTorch's; batch norms keep their running statistics."""
        super().train(mode)
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()
        return self


class LatentNorm(nn.Module):
    """A batch norm with running statistics alone, read through ``backend.cast``.

    The host's castable BatchNorm2d takes its dtype from a weight, which a norm without an affine part has not.
    """

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, c: int, backend: Backend, dtype: torch.dtype | None, device: torch.device | str | None) -> None:
        super().__init__()
        self.cast = backend.cast
        self.register_buffer("running_mean", torch.zeros(c, dtype=dtype, device=device))
        self.register_buffer("running_var", torch.ones(c, dtype=dtype, device=device))
        self.register_buffer("num_batches_tracked", torch.zeros((), dtype=torch.long, device=device))

    def forward(self, x: Tensor) -> Tensor:
        return F.batch_norm(x, self.cast(self.running_mean, x), self.cast(self.running_var, x))


class ImageEncoder(FrozenNorms):
    """Pictures → Stage C latents, 32 pixels to a cell and about N(0, 1) in every channel.

    The input is :func:`normalise`\\ d RGB. Its sides should be multiples of 32 (the caller pads or resizes): others
    are taken, rounded up to whole cells by the zero padding of the convolutions.
    """

    def __init__(
        self,
        config: EncoderConfig = EncoderConfig(),
        *,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        backend: Backend = TORCH,
    ) -> None:
        super().__init__()
        self.config, self.dtype = config, dtype
        layers = Layers(backend, dtype, device)
        self.backbone = trunk(config, layers, config.c_in)
        self.mapper = nn.Sequential(
            backend.Conv2d(config.c_features, config.c_latent, kernel_size=1, bias=False, dtype=dtype, device=device),
            LatentNorm(config.c_latent, backend, dtype, device),
        )
        self.eval()

    def memory(self, shape: Sequence[int], dtype_size: int) -> int:
        """Bytes that encoding a picture (B, 3, H, W) needs without gradients."""
        return int(CARD_SLACK * shape[0] * shape[2] * shape[3] * trunk_peak(self.config) * dtype_size)

    def forward(self, x: Tensor) -> Tensor:
        """Normalised (B, 3, H, W) → (B, 16, H/32, W/32)."""
        return self.mapper(self.backbone(x.contiguous(memory_format=torch.channels_last)))
