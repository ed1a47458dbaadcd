"""Stage C guided by features of a smaller run: where they are taken, where they act, and how strongly (UltraPixel)."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

import torch
from torch import Tensor

from ..errors import WrongInput
from ..nets.guide import GuideNet
from ..nets.hooks import NO_HOOKS, BlockHooks, Place
from ..nets.stage_c import StageCConfig

Features = tuple[Tensor, ...]
"""The four kept maps of a small run, (B, C, h, w), in the order of a pass: down 0, down 1, up 0 (the deeper), up 1."""

FEATURE_NOISE = 0.05
"""The noise level t of a small latent whose features are taken: that of the training, and of the last of 20 steps."""

DOWN = 2
"""How many of the four act on the way down."""

UP_GAINS = ((96**2, 0.7), (72**2, 0.5), (0, 0.3))
"""From so many cells of the large latent, the factor of corrections on the way up; on the way down it is 1."""


def choose_up_gain(cells: int) -> float:
    """The published factor of the corrections on the way up, for a large latent of ``cells``."""
    return next(gain for least, gain in UP_GAINS if cells >= least)


def find_guided_groups(config: StageCConfig) -> dict[tuple[str, int], int]:
    """The group of blocks in which each guide net acts, after its first attention: {(kind, number): which net}.

    It is the first group of every level. Raises :class:`~.errors.WrongInput` for a network of another shape.
    """
    if len(config.c_hidden) != 2 or any("A" not in level for level in config.level_config):
        raise WrongInput(
            "UltraPixel's guide needs a Stage C of two levels with attention in both, as the published 3.6B has them; "
            f"this one has {len(config.c_hidden)} levels. Load another Stage C."
        )
    firsts, totals = [], []
    for blocks, repeats in zip(config.blocks, config.block_repeat, strict=True):
        *before, total = accumulate((n * repeat for n, repeat in zip(blocks, repeats, strict=True)), initial=0)
        firsts.append(before)
        totals.append(total)
    down = [("middle", 0) if first == totals[0] - 1 else ("input", first) for first in firsts[0]]
    return {place: i for i, place in enumerate([*down, *(("output", first) for first in firsts[1])])}


class FeatureRecorder(BlockHooks):
    """Keeps the four maps of one pass for the ``rows`` of its batch; ``features`` has them once it is over.

    ``others`` are the hooks of another party, which are asked first.
    """

    def __init__(self, config: StageCConfig, rows: slice | Tensor = slice(None), others: BlockHooks = NO_HOOKS):
        super().__init__(others.options)
        self.groups, self.rows, self.others = find_guided_groups(config), rows, others
        self.kept: dict[int, Tensor] = {}

    def attention_block(self, place: Place, x: Tensor, time: Tensor) -> Tensor:
        x = self.others.attention_block(place, x, time)
        index = self.groups.get((place.kind, place.number)) if place.layer == 0 else None
        if index is not None:
            self.kept[index] = x[self.rows].clone()
        return x

    @property
    def features(self) -> Features:
        """The kept maps, in the order of their groups."""
        return tuple(self.kept[index] for index in sorted(self.kept))


class GuideHooks(BlockHooks):
    """Adds the corrections of the guide ``nets``, after what the hooks of another party did (``others``).

    ``read`` is by net what :meth:`~..nets.guide.GuideNet.read_features` made of its map for this size: whoever owns the
    run makes it once. ``strength`` scales all corrections; 0 is the unguided network, 1 the published one.
    """

    def __init__(
        self,
        config: StageCConfig,
        nets: Sequence[GuideNet],
        read: Sequence[Tensor],
        strength: float = 1.0,
        others: BlockHooks = NO_HOOKS,
    ):
        super().__init__(others.options)
        self.groups, self.nets, self.read = find_guided_groups(config), nets, read
        self.strength, self.others = strength, others

    def attention_block(self, place: Place, x: Tensor, time: Tensor) -> Tensor:
        x = self.others.attention_block(place, x, time)
        index = self.groups.get((place.kind, place.number)) if place.layer == 0 else None
        if index is None or self.strength == 0:
            return x
        gain = self.strength * (1.0 if index < DOWN else choose_up_gain(x.shape[2] * x.shape[3]))
        return torch.add(x, self.nets[index](x, self.read[index], time), alpha=gain)
