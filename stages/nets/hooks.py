"""What a host may do between and inside the blocks of Stage B and Stage C, and how it is told where."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

from torch import Tensor

from .channels_last import resize


class Place(NamedTuple):
    """Where in the U a hook is called.

    ``kind`` and ``number`` name the group: ("input", n), ("middle", 0) or ("output", n), in execution order, repeats
    counted. For the attention hooks ``layer`` counts the attention blocks of the group, ``heads`` is their heads and
    ``grid`` the height and width in which the picture's own tokens lie.
    """

    kind: str
    number: int
    layer: int = 0
    heads: int = 0
    grid: tuple[int, int] = (0, 0)


class Residual(Protocol):
    """A residual block as :mod:`.blocks` has them: a mixer behind a norm, or behind a convolution and a skip."""

    channelwise: Any

    def __call__(self, x: Tensor, skip: Tensor | None = None, scale: float = 1.0, lengths: Any = ..., /) -> Tensor: ...

    def mixer_scale(self, skip: Tensor | None, scale: float, /) -> float:
        """What the mixer's input holds of its value."""

    def mix_rows(self, x: Tensor, skip: Tensor | None, scale: float, first: int, last: int, /) -> Tensor:
        """Rows ``first`` to ``last`` (exclusive) of what the mixer reads."""


RunBlock = Callable[[Residual, Tensor, "Tensor | None", float], "Tensor | None"]


class BlockHooks:
    """Called by a forward pass; this default changes nothing.

    Block hooks see (B, C, H, W) views, attention hooks (B, tokens, C); they return what they were given, changed or
    not, and never write into it. ``options`` are what the backend's attention receives: whatever the caller of the
    network handed down (ComfyUI's ``transformer_options``), or None.
    """

    options: Any = None
    compiler: RunBlock | None = None
    """Runs a residual block compiled (compiled.py), or says by None that it has to run as it is."""
    silent: frozenset[str] = frozenset()
    """The hooks that change nothing, which need not be called."""
    passive: frozenset[str] = frozenset()
    """The hooks that are to be called, and give back what they were given without looking at it."""
    borrowed: frozenset[str] = frozenset()
    """The hooks that look at what they are given, and keep nothing of it: it may be written over behind them."""

    def __init_subclass__(cls) -> None:
        cls.silent = frozenset(name for name in HOOKS if getattr(cls, name) is getattr(BlockHooks, name))

    def __init__(self, options: Any = None, compiler: RunBlock | None = None):
        self.options = options
        self.compiler = compiler

    def input_block(self, place: Place, x: Tensor) -> Tensor:
        """``x`` after an input group, before it is kept as a skip."""
        return x

    def input_block_after_skip(self, place: Place, x: Tensor) -> Tensor:
        """``x`` after an input group, after it was kept as a skip."""
        return x

    def middle_block(self, place: Place, x: Tensor) -> Tensor:
        """``x`` after the last group of the down path."""
        return x

    def replaces_group(self, place: Place) -> bool:
        """Whether :meth:`replace_group` is to be asked instead of running the group at ``place``."""
        return False

    def replace_group(self, place: Place, x: Tensor, run: Callable[[Tensor], Tensor]) -> Tensor:
        """``x`` (B, H, W, C) after the group, which ``run`` would run."""
        return run(x)

    def output_block(self, place: Place, x: Tensor, skip: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """``x`` and the skip (None where the group has none) before an output group; both have the same H and W."""
        return x, skip

    def attention_tokens(
        self, place: Place, own: Tensor, cond: Tensor
    ) -> tuple[Tensor, tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
        """Tokens before the projections: query, (own keys, own values), (condition keys, condition values).

        A block without self-attention drops the own keys and values.
        """
        return own, (own, own), (cond, cond)

    def attention(self, place: Place, q: Tensor, k: Tensor, v: Tensor, n_self: int) -> Tensor | None:
        """Replace the joint attention, or None to leave it; the first ``n_self`` keys are the picture's own tokens."""
        return None

    def attention_output(self, place: Place, x: Tensor) -> Tensor:
        """What the attention adds, after its output projection and before the sum."""
        return x

    def attention_block(self, place: Place, x: Tensor, time: Tensor) -> Tensor:
        """``x`` after an attention block, its sum included; ``time`` (1 or B, c_r) is the embedded noise level."""
        return x

    def run_block(self, block: Residual, x: Tensor, skip: Tensor | None, scale: float) -> Tensor:
        """A residual ``block`` on x (B, H, W, C): its place to get other lengths for its norm, or to run in pieces."""
        compiled = self.compiler and self.compiler(block, x, skip, scale)
        return block(x, skip, scale) if compiled is None else compiled

    def resize(self, x: Tensor, size: Sequence[int]) -> Tensor:
        """``x`` (B, H, W, C) in the size of the skip that it meets."""
        return resize(x, size)

    def run_rowwise(self, layer: Callable[[Tensor], Tensor], x: Tensor, width: int) -> Tensor:
        """A ``layer`` on x (B, H, W, C) in which pairs of rows are apart; it needs ``width`` numbers a cell.

        It may have half or twice as many rows and columns as ``x``.
        """
        return layer(x)


BLOCKS = ("input_block", "input_block_after_skip", "middle_block", "output_block", "attention_block")
"""Hooks that see the stream."""
HOOKS = (*BLOCKS, "run_block", "attention_tokens", "attention_output")
BlockHooks.silent = frozenset(HOOKS)
NO_HOOKS = BlockHooks()
