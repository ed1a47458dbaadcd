"""New ControlNets: their sizes for a Stage C of any size, and what they start from."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import WrongInput
from ..inputs.canny import make_hint as make_canny
from ..nets.backend import Tree, weight_of
from ..nets.controlnet import ControlNet, ControlNetConfig
from ..nets.encoder import EncoderConfig
from .settings import Settings

CONTROL_CHANNELS = {"canny": 1, "pictures": 3, "inpaint": 4, "super_resolution": 16}
"""Channels of each hint, as published."""
LATENT = 16
"""Channels of a Stage C latent."""


def plan_control(config: Any, settings: Settings, trunk: EncoderConfig) -> ControlNetConfig:
    """The ControlNet for a Stage C of ``config``: the published widths and places, in proportion to the model's.

    The published nets feed the first and the last eighth, every sixteenth ResBlock: 0, 4, 8, 12, 51, 55, 59, 63 of 64.
    """
    count, width = config.res_blocks, config.c_hidden[0]
    step = max(1, count // 16)
    spread = sorted({*(step * i for i in range(4)), *(count - 1 - step * i for i in range(4))} & set(range(count)))
    blocks = tuple(int(block) for block in settings.control_blocks) or tuple(spread)
    if max(blocks) >= count:
        raise WrongInput(
            f"This Stage C has the ResBlocks 0 to {count - 1}, but {max(blocks)} is to be fed. Name others."
        )
    channels = CONTROL_CHANNELS[settings.hint]
    if settings.hint == "super_resolution":
        wide = {"c_large": (8 * width, width // 2), "c_embed": width * 5 // 8}
        return ControlNetConfig(channels, width, blocks, "large", **wide)
    return ControlNetConfig(channels, width, blocks, trunk=replace(trunk, c_in=channels))


def start_control(
    config: ControlNetConfig,
    encoder: tuple[EncoderConfig, Mapping[str, Tensor]] | None,
    start: Mapping[str, Tensor] | None,
    start_name: str,
    seed: int,
) -> ControlNet:
    """A ControlNet that changes nothing yet. Its trunk is the image encoder's, whose stem is summed over the colours
    for one channel and empty for those that are no colours; going on, it is the one given."""
    net = ControlNet(config)
    state = torch.random.get_rng_state()
    torch.manual_seed(seed)
    try:
        for module in net.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_uniform_(module.weight, a=5**0.5)
        for projection in net.projections:
            nn.init.zeros_(weight_of(cast(Tree, projection)[2]))
    finally:
        torch.random.set_rng_state(state)
    if encoder is not None and config.bottleneck_mode == "effnet":
        trunk = {key[9:]: value.float() for key, value in encoder[1].items() if key.startswith("backbone.")}
        stem = trunk["0.0.weight"]
        if config.c_in == 1:
            trunk["0.0.weight"] = stem.sum(1, keepdim=True)
        elif config.c_in > 3:
            trunk["0.0.weight"] = torch.cat([stem, torch.zeros_like(stem[:, :1])], 1)
        net.backbone.load_state_dict(trunk, strict=False)
    if start is not None:
        missing = set(net.state_dict()) - set(start)
        if missing or any(start[key].shape != value.shape for key, value in net.state_dict().items()):
            raise WrongInput(
                f"{start_name} is another ControlNet than the one that is to learn. Give its hint and blocks."
            )
        net.load_state_dict({key: start[key].float() for key in net.state_dict()})
    return net.requires_grad_(True)


def start_head(config: ControlNetConfig, seed: int) -> nn.Conv2d:
    """The layer that tells a latent's 16 channels from what the trunk sees; it is thrown away later."""
    width = config.trunk.c_features if config.bottleneck_mode == "effnet" else config.c_embed
    head = nn.Conv2d(width, LATENT, 1)
    chance = torch.Generator().manual_seed(seed)
    nn.init.normal_(head.weight, std=width**-0.5, generator=chance)
    nn.init.zeros_(cast(Tensor, head.bias))
    return head


def plan_trunk(settings: Settings) -> Settings:
    """How the trunk learns before the ControlNet does: twice its rate, falling to nothing."""
    return replace(
        settings,
        steps=max(1, settings.trunk_steps),
        learning_rate=min(1.0, 2 * settings.learning_rate),
        warm_up=min(20, settings.trunk_steps),
        schedule="linear",
        optimiser="adamw",
        loss_weight="constant",
        ema=0.0,
        validate_every=0,
    )


def make_hint_maker(hint: str, encode: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """What turns a picture (1, 3, h, w) in [0, 1] into a ControlNet's hint. ``encode`` is the image encoder's work.

    An inpainting hint is the picture, which is masked anew at each step; that of super-resolution is the latent of the
    picture at half its size. "pictures" come as they are.
    """
    if hint == "canny":
        return make_canny
    if hint == "super_resolution":
        return lambda image: encode(F.interpolate(image, scale_factor=0.5, mode="bilinear", antialias=True))
    return lambda image: image
