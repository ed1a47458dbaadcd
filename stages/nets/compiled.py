"""Residual blocks through PyTorch's compiler, as functions of tensors alone.

What is compiled holds no weights and no layers: the host lends a block its weights at every step, cast, patched and
streamed as it likes, and the compiled function gets them as arguments. So LoRAs, hooks, merges and streaming act as
ever, and nothing of them is compiled anew. Sizes and widths are symbols. One network needs two graphs, with a skip and
without, and all networks of one number format share them.

The depthwise convolution stays a layer: it is one kernel of the device's library, compiled or not, and its number of
groups would tie a graph to one width.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from .blocks import FeedForwardBlock, ResBlock
from .channels_last import convolve
from .response import response_factors
from .scaled import activate, choose_stream_scale, multiply, run_scaled

log = logging.getLogger(__name__)

SYMBOLIC = {"use_duck_shape": False, "backed_size_oblivious": True}
"""Settings of PyTorch's symbolic shapes: sizes that are equal by chance stay apart, and a size of 1 is like any."""

MOST_GRAPHS = 64
"""Graphs of one process, for all its networks, number formats and devices; PyTorch itself stops at eight, as if more
were a mistake."""


def finish_block(
    x: Tensor,
    read: Tensor,
    skip: Tensor | None,
    widen: Tensor,
    widen_bias: Tensor | None,
    gamma: Tensor,
    beta: Tensor,
    narrow: Tensor,
    narrow_bias: Tensor | None,
) -> Tensor:
    """x (B, N, C) after a residual block whose convolution gave ``read`` (B, N, C); see :class:`ResBlock`.

    ``skip`` is (B, N, c_skip) or None; the others are the tensors of the block's mixer, ``gamma`` and ``beta`` (4C).
    What the stream holds of its value follows from its dtype.
    """
    x, read = x[:, :, None], read[:, :, None]  # N tokens as a column
    skip = None if skip is None else skip[:, :, None]
    scale = choose_stream_scale(x.dtype)
    own = ResBlock.mixer_scale(skip, scale)
    h = activate(multiply(ResBlock.join_skip(read, skip, scale), widen, widen_bias, own), own)
    shift = beta if own == 1 else beta * own
    h = torch.addcmul(shift, h, response_factors(h, gamma, own))
    return torch.add(x, multiply(h, narrow, narrow_bias, own), alpha=scale / own)[:, :, 0]


@cache
def compile_function(backend: str) -> Callable[..., Tensor]:
    """:func:`finish_block` compiled by ``backend``, once a process; it compiles a format when it first sees one."""
    return torch.compile(finish_block, backend=backend, dynamic=True, fullgraph=True)


@contextmanager
def symbolic_sizes() -> Iterator[None]:
    """Compile for all sizes at once, and for as many networks as there are; a PyTorch without these settings compiles
    some sizes apart."""
    try:
        from torch._dynamo import config
        from torch.fx.experimental import _config

        both: tuple[tuple[Any, dict[str, Any]], ...] = ((_config, SYMBOLIC), (config, {"recompile_limit": MOST_GRAPHS}))
        patches = [
            settings.patch(**{name: value for name, value in wanted.items() if hasattr(settings, name)})
            for settings, wanted in both
        ]
    except (ImportError, AttributeError):
        yield
        return
    with patches[0], patches[1]:
        yield


def find_obstacle(device: torch.device) -> str | None:
    """Why PyTorch cannot compile for ``device`` here, as the end of a sentence; None where it can."""
    if device.type not in ("cuda", "xpu", "cpu"):
        return f"PyTorch's compiler is not used on devices of the kind '{device.type}'"
    try:
        import torch._dynamo as dynamo
        from torch.utils._triton import has_triton

        if not dynamo.is_dynamo_supported():
            return "this PyTorch has no compiler for this version of Python"
        if device.type != "cpu":
            return None if has_triton() else "Triton is not installed (on Windows: 'pip install triton-windows')"
        from torch._inductor.cpp_builder import get_cpp_compiler

        get_cpp_compiler()
    except Exception as error:  # whatever it is, there is no compiler
        return f"PyTorch's compiler does not start: {summarise(error)}"
    return None


def summarise(error: BaseException) -> str:
    """The first line of what an error says, or the one inside it that made a compiler fail."""
    error = getattr(error, "inner_exception", error)
    return (str(error).strip() or type(error).__name__).splitlines()[0]


class BlockCompiler:
    """Runs residual blocks compiled, and says no, once and in one sentence, where that cannot be done."""

    def __init__(self, backend: str = "inductor"):
        self.backend = backend
        self.asked: dict[torch.device, bool] = {}
        self.ready: set[tuple[Any, ...]] = set()

    def __call__(self, block: nn.Module, x: Tensor, skip: Tensor | None, scale: float) -> Tensor | None:
        """``block`` on ``x`` and ``skip``, or None where it has to run uncompiled."""
        if torch.compiler.is_compiling() or torch.is_grad_enabled() or not self.works_on(x.device):
            return None
        if not isinstance(block, (ResBlock, FeedForwardBlock)) or scale != choose_stream_scale(x.dtype):
            return None
        mixer: Any = block.channelwise
        first, second = mixer.backend.lend_weights(mixer[0], x), None
        try:
            if first is None:
                return None  # quantised products, or a replaced layer: only the layer knows how
            norm, read, first = mixer[2], x, first.keep()
            if isinstance(block, ResBlock):
                read = run_scaled(block.depthwise, x, scale, block.backend, convolve)
            second = mixer.backend.lend_weights(mixer[4], x)
            if second is None:
                return None
            vectors = (norm.cast(each, x).flatten() for each in (norm.gamma, norm.beta))
            tensors = (first.weight, first.bias, *vectors, second.weight, second.bias)
            # A parameter is a type of its own with a fixed shape to the compiler; what it holds is a tensor like any.
            weights = (None if tensor is None else tensor.detach() for tensor in tensors)
            below = None if skip is None else skip.flatten(1, 2)
            out = self.run(x.flatten(1, 2), read.flatten(1, 2), below, *weights)
            return None if out is None else out.unflatten(1, x.shape[1:3])
        finally:
            for lent in filter(None, (first, second)):
                lent.release()

    def works_on(self, device: torch.device) -> bool:
        """Whether blocks can be compiled for ``device``, as far as is known; a reason against it is told once."""
        if device not in self.asked:
            obstacle = find_obstacle(device) if self.backend == "inductor" else None
            self.asked[device] = obstacle is None
            if obstacle:
                self.tell(obstacle)
        return self.asked[device]

    def run(self, x: Tensor, read: Tensor, skip: Tensor | None, *tensors: Tensor | None) -> Tensor | None:
        """:func:`finish_block` compiled, or None if that fails."""
        function, key = compile_function(self.backend), (x.device, x.dtype, skip is None)
        from torch._dynamo import exc

        refused = exc.TorchDynamoException, getattr(exc, "FailOnRecompileLimitHit", exc.TorchDynamoException)
        if key in self.ready:  # what symbolic_sizes costs, a call on a fast card would wait for
            with suppress(*refused):  # where it needs another graph, as for another stride, and they are too many
                return function(x, read, skip, *tensors)
        try:
            with symbolic_sizes():
                out = function(x, read, skip, *tensors)
        except refused as error:
            self.asked[x.device] = False
            self.tell(f"compiling failed: {summarise(error)}")
            return None
        self.ready.add(key)
        return out

    @staticmethod
    def tell(reason: str) -> None:
        """One line in the log."""
        log.warning("Compile Cascade has no effect here, and the picture is the same: %s.", reason)
