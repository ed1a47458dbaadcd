"""Initial weights of networks that are to be trained from the start, as the official constructors set them.

The networks are built without them (a loader fills the tensors). Biases are 0; matrices and convolutions are Xavier
uniform (Glorot & Bengio 2010), transposed convolutions keep what PyTorch gives them.
"""

from __future__ import annotations

import math
from typing import cast

import torch
from torch import Tensor, nn

from .backend import weight_of
from .blocks import GlobalResponseNorm, Projections, ResBlock, TimestepBlock
from .stage_a import StageA
from .stage_a_blocks import StageAResBlock
from .stage_b import StageB
from .stage_c import StageC

MAPPER_STD = 0.02
EMBEDDING_GAIN = 0.02


def _xavier(net: nn.Module, gain: float = 1.0) -> None:
    for module in net.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            nn.init.xavier_uniform_(module.weight, gain)
            if module.bias is not None:
                nn.init.zeros_(module.bias)


@torch.no_grad()
def initialise_unet(net: StageB | StageC) -> None:
    """Stage B or Stage C: the last layer and the time mappers start at 0, residuals shrink with the depth."""
    _xavier(net)
    depth = sum(net.config.blocks[0])
    for module in net.modules():
        if isinstance(module, GlobalResponseNorm):
            nn.init.zeros_(module.gamma)
            nn.init.zeros_(module.beta)
        elif isinstance(module, ResBlock):
            weight_of(module.channelwise[4]).mul_(math.sqrt(1 / depth))
        elif isinstance(module, TimestepBlock):
            for name in module.names:
                nn.init.zeros_(getattr(module, name).weight)
        elif isinstance(module, Projections):
            _init_fused(module)
    mappers = (
        [net.clip_mapper, net.effnet_mapper[0], net.effnet_mapper[2], net.pixels_mapper[0], net.pixels_mapper[2]]
        if isinstance(net, StageB)
        else [net.clip_txt_mapper, net.clip_txt_pooled_mapper, net.clip_img_mapper]
    )
    for mapper in mappers:
        nn.init.normal_(weight_of(mapper), std=MAPPER_STD)
    nn.init.xavier_uniform_(weight_of(net.embedding[1]), EMBEDDING_GAIN)
    nn.init.zeros_(weight_of(net.clf[1]))


def _init_fused(attention: Projections) -> None:
    """Query, key and value are rows of one official matrix (3C, C), whose fan-out is 3C."""
    for projection in (attention.to_q, attention.to_k, attention.to_v):
        c = projection.weight.shape[1]
        bound = math.sqrt(6 / (c + 3 * c))
        nn.init.uniform_(projection.weight, -bound, bound)


@torch.no_grad()
def initialise_stage_a(net: StageA) -> None:
    """Stage A: gates at 0, so that every block starts as the identity; latents start with the variance of scale²."""
    _xavier(net)
    for module in net.modules():
        if isinstance(module, StageAResBlock):
            nn.init.zeros_(module.gammas)
    norm = cast(nn.Sequential, net.down_blocks[-1])[1]
    nn.init.constant_(weight_of(norm), net.config.scale_factor)
    nn.init.zeros_(cast(Tensor, norm.bias))
    nn.init.normal_(weight_of(net.vquantizer.codebook), std=net.config.scale_factor)
