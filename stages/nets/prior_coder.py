"""Image encoder and Previewer in one, as ComfyUI's files and VAE objects hold them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from .backend import TORCH, Backend
from .encoder import EncoderConfig, ImageEncoder
from .previewer import Previewer, PreviewerConfig


@dataclass(frozen=True)
class PriorCoderConfig:
    """The Stage C VAE of ComfyUI's files: image encoder and Previewer in one; None for a half that is not there."""

    encoder: EncoderConfig | None = None
    previewer: PreviewerConfig | None = None


class PriorCoder(nn.Module):
    """Image encoder and Previewer under the keys of ComfyUI's Stage C VAE; a half without a config is None."""

    def __init__(
        self,
        config: PriorCoderConfig = PriorCoderConfig(),
        *,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        backend: Backend = TORCH,
    ) -> None:
        super().__init__()
        self.config, self.dtype = config, dtype
        at: dict[str, Any] = {"dtype": dtype, "device": device, "backend": backend}
        self.encoder = ImageEncoder(config.encoder, **at) if config.encoder else None
        self.previewer = Previewer(config.previewer, **at) if config.previewer else None
