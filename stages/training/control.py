"""New ControlNets: their sizes for a Stage C of any size, and what they start from."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
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
TRUNK_SHARE = 0.3
"""The trunk's learning rate, of that of the projections, which start from nothing."""
HANDED = 256.0
"""Root mean square of what the last layer of a projection is handed, times how many numbers those are."""
LATENT = 16
"""Channels of a Stage C latent."""


def plan_control(config: Any, settings: Settings, trunk: EncoderConfig) -> ControlNetConfig:
    """The ControlNet for a Stage C of ``config``: the published widths and places, in proportion to the model's.

    The published nets feed the first and the last eighth, every sixteenth ResBlock: 0, 4, 8, 12, 51, 55, 59, 63 of 64.
    """
    widths = config.res_block_widths
    blocks = tuple(int(block) for block in settings.control_blocks) or spread_control(widths)
    if max(blocks) >= len(widths):
        raise WrongInput(
            f"This Stage C has the ResBlocks 0 to {len(widths) - 1}, but {max(blocks)} is to be fed. Name others."
        )
    width = widths[blocks[0]]
    other = next((block for block in blocks if widths[block] != width), None)
    if other is not None:
        raise WrongInput(
            f"A ControlNet's maps have one width, but of this Stage C ResBlock {blocks[0]} has {width} channels and "
            f"ResBlock {other} has {widths[other]}. Name ResBlocks of one width."
        )
    channels = CONTROL_CHANNELS[settings.hint]
    if settings.hint == "super_resolution":
        wide = {"c_large": (8 * width, width // 2), "c_embed": width * 5 // 8}
        return ControlNetConfig(channels, width, blocks, "large", **wide)
    return ControlNetConfig(channels, width, blocks, trunk=replace(trunk, c_in=channels))


def spread_control(widths: Sequence[int]) -> tuple[int, ...]:
    """Where a new ControlNet feeds ResBlocks of ``widths`` channels: among those of the commonest width, four from the
    beginning and four from the end, a sixteenth of them apart."""
    width = Counter(widths).most_common(1)[0][0]
    able = [block for block, its in enumerate(widths) if its == width]
    apart = max(1, len(able) // 16)
    return tuple(sorted({*able[: 4 * apart : apart], *able[::-1][: 4 * apart : apart]}))


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


class LearningControl(nn.Module):
    """A ControlNet as it learns: each channel of its maps is multiplied by a gain of its own, which :meth:`fold` puts
    into the last layers when the file is written.

    What a map changes in the end differs by orders of magnitude from channel to channel and from block to block, while
    an optimiser like Adam moves all weights by the same amount. With gains that are the smaller the more the loss hangs
    on a channel, one learning rate suits them all.
    """

    gains: Tensor

    def __init__(self, control: ControlNet) -> None:
        super().__init__()
        self.control = control
        self.register_buffer("gains", torch.ones(len(control.projections), control.config.c_proj))

    def forward(self, hint: Tensor) -> dict[int, Tensor]:
        """As :meth:`.ControlNet.forward`, in float32."""
        maps = self.control(hint)
        return {index: values * gain[:, None, None] for (index, values), gain in zip(maps.items(), self.gains)}

    @torch.no_grad()
    def set_gains(self, gains: Tensor) -> None:
        """Take these gains (projections, channels) and leave the maps as they are."""
        for projection, gain in zip(self.control.projections, (gains / self.gains.cpu()).to(self.gains)):
            weight_of(cast(Tree, projection)[2]).div_(gain[:, None, None, None])
        self.gains.copy_(gains)

    def fold(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The ControlNet's own tensors of a state of this module."""
        found = {key.removeprefix("control."): value for key, value in tensors.items() if key != "gains"}
        for number, gain in enumerate(tensors["gains"]):
            key = f"projections.{number}.2.weight"
            found[key] = found[key] * gain[:, None, None, None]
        return found


MOST_GAIN, SHARPNESS = 2.0, 2.0
"""The largest gain of a channel, and the power of the median pull to its own that its gain is."""


def choose_gains(pulls: Tensor) -> Tensor:
    """Gains (projections, channels) from how much the loss hangs on each: the root mean square of its gradient."""
    return (pulls.median() / pulls.clamp(min=1e-30)).pow(SHARPNESS).clamp(1e-6, MOST_GAIN)


@torch.no_grad()
def fit_norms(control: ControlNet, hints: Iterable[Tensor]) -> None:
    """Give the trunk's batch norms the means and variances that they see in ``hints``: those of the image encoder are
    of pictures, whose features are of other sizes."""
    norms = [module for module in control.backbone.modules() if isinstance(module, nn.BatchNorm2d)]
    kept = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum, norm.training = None, True
    try:
        for hint in hints:
            control.backbone(hint)
    finally:
        for norm, momentum in zip(norms, kept):
            norm.momentum, norm.training = momentum, False


@torch.no_grad()
def measure_hidden(control: ControlNet, hints: Iterable[Tensor]) -> list[float]:
    """Root mean square of what the first layer of each projection hands to its last one, over ``hints``
    (1, c, H, W)."""
    found, count = torch.zeros(len(control.projections)), 0
    for hint in hints:
        features = control.backbone(hint.contiguous(memory_format=torch.channels_last))
        for number, projection in enumerate(control.projections):
            parts = cast(Tree, projection)
            found[number] += parts[1](parts[0](features)).float().square().mean().cpu()
        count += 1
    return (found / max(1, count)).sqrt().tolist()


@torch.no_grad()
def even_out(control: ControlNet, sizes: Sequence[float]) -> None:
    """Bring what each first layer hands on from these ``sizes`` to :data:`HANDED` over its width.

    The last layers start at nothing and grow by the learning rate a step, times the sum of what they are handed: from
    a trunk whose features are small, a hint would be heeded that much later.
    """
    for projection, size in zip(control.projections, sizes):
        weight = weight_of(cast(Tree, projection)[0])
        if size > 0:
            weight.mul_(HANDED / len(weight) / size)


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
