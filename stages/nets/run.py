"""One pass through a U: what its blocks are handed, and how a host's hooks see the stream."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from ..errors import WrongInput
from .blocks import AttnBlock, Modulation
from .channels_last import nchw, nhwc, resize
from .hooks import BlockHooks, Place


@dataclass
class Pass:
    """What one pass hands to its blocks; ``res_blocks`` counts the ResBlocks that have run.

    The stream holds ``scale`` times its value. ``time`` is the embedded noise level, ``modulations`` are those of every
    TimestepBlock, ``mapped`` the conditions as the attentions of a level that repeats have mapped them. ``alone`` says
    that the stream may be written over (alone.py); ``held`` are ``scale`` times the biases of the convolutions.
    """

    scale: float
    time: Tensor
    modulations: dict[nn.Module, Modulation]
    cond: Tensor
    control: Sequence[Tensor | None]
    hooks: BlockHooks
    res_blocks: int = 0
    mapped: dict[nn.Module, Tensor] | None = None
    alone: bool = False
    held: dict[nn.Module, Tensor] = field(default_factory=dict)

    def add_control(self, x: Tensor) -> Tensor:
        """``x`` (B, H, W, C) plus the control map of the ResBlock that comes next, if there is one."""
        index, self.res_blocks = self.res_blocks, self.res_blocks + 1
        hint = self.control[index] if index < len(self.control) else None
        if hint is None:
            return x
        if hint.dim() != 4 or hint.shape[0] not in (1, x.shape[0]) or hint.shape[1] != x.shape[-1]:
            raise WrongInput(
                f"The control map of ResBlock {index} has the shape {tuple(hint.shape)}, but the model "
                f"needs {x.shape[-1]} channels and a batch of 1 or {x.shape[0]}. Use a ControlNet that "
                "was made for this model; the published ones belong to the 3.6B Stage C."
            )
        return torch.add(x, resize(nhwc(hint.to(x.device)), (x.shape[1], x.shape[2])).to(x.dtype), alpha=self.scale)

    def map_condition(self, block: AttnBlock) -> Tensor:
        """The condition tokens of ``block``, computed once where its level repeats."""
        if self.mapped is None or torch.is_grad_enabled():
            return block.map_condition(self.cond)
        if block not in self.mapped:
            self.mapped[block] = block.map_condition(self.cond)
        return self.mapped[block]

    def show(self, hook: str, place: Place, x: Tensor, *more: Tensor) -> Tensor:
        """``x`` (B, H, W, C) after a block hook, which sees (B, C, H, W) and the true values."""
        if hook in self.hooks.silent:
            return x
        if hook in self.hooks.passive:
            getattr(self.hooks, hook)(place, nchw(x), *more)
            return x
        shown = getattr(self.hooks, hook)(place, nchw(self.unscale(x)), *more)
        return self.rescale(nhwc(shown), x)

    def show_with_skip(self, place: Place, x: Tensor, skip: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """``x`` and the skip that it meets after the hook before an output group."""
        if "output_block" in self.hooks.silent:
            return x, skip
        if "output_block" in self.hooks.passive:
            self.hooks.output_block(place, nchw(x), None if skip is None else nchw(skip))
            return x, skip
        given = None if skip is None else nchw(self.unscale(skip))
        shown, with_skip = self.hooks.output_block(place, nchw(self.unscale(x)), given)
        return self.rescale(nhwc(shown), x), None if with_skip is None else self.rescale(nhwc(with_skip), x)

    def unscale(self, x: Tensor) -> Tensor:
        """The true values of ``x``, in float32 where it holds others."""
        return x if self.scale == 1 else x.float() / self.scale

    def rescale(self, true: Tensor, like: Tensor) -> Tensor:
        """What the stream holds of ``true``."""
        return true if self.scale == 1 else (true * self.scale).to(like.dtype)
