"""Counts what a call would do on a graphics card, exactly and on any machine: FakeTensor on a pretended CUDA device.

Kernels are the operations that compute or copy (views and bare allocations are none), one for an attention. Bytes are
what they read and write; products are matrix products, attention and convolutions that are not depthwise. Live bytes
are the storages that the call makes and still holds.
"""

from __future__ import annotations

import contextlib
import math
import weakref
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten
from torch.utils.flop_counter import flop_registry

VIEWS = {
    *("view", "_unsafe_view", "permute", "transpose", "t", "expand", "slice", "select", "unsqueeze", "squeeze"),
    *("detach", "alias", "split", "split_with_sizes", "chunk", "as_strided", "unbind", "_reshape_alias", "unfold"),
    *("lift_fresh", "diagonal", "narrow"),
}
EMPTY = {"empty", "empty_like", "new_empty", "empty_strided", "new_empty_strided"}
ADDING = {"addmm", "baddbmm"}
PRODUCTS = {"addmm", "mm", "bmm", "baddbmm", "convolution", "attention"}

_library = torch.library.Library("cascade_count", "FRAGMENT")
_library.define("attention(Tensor q, Tensor k, Tensor v, Tensor? mask) -> Tensor")
_library.impl(
    "attention",
    lambda q, k, v, mask: q.new_empty(*q.shape[:1], q.shape[2], q.shape[1], q.shape[3]).transpose(1, 2),
    "Meta",
)


@dataclass(frozen=True)
class Counts:
    """Of one call."""

    kernels: int
    bytes_outside: int
    bytes_products: int
    flops: int
    peak: int


class Counter(TorchDispatchMode):
    """Counts the operations inside its context; what holds ``keep`` is not counted as live."""

    def __init__(self, keep: Iterable[Tensor] = ()):
        super().__init__()
        self.kernels = self.outside = self.products = self.flops = self.live = self.peak = 0
        self.known: dict[int, Any] = {tensor.untyped_storage()._cdata: None for tensor in keep}

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        name = func._schema.name.split("::")[1]
        if name == "convolution" and args[0].is_contiguous(memory_format=torch.channels_last):
            out = out.contiguous(memory_format=torch.channels_last)  # as cuDNN has it; this PyTorch may be without
        outs = [each for each in tree_flatten(out)[0] if isinstance(each, Tensor)]
        for each in outs:
            self.hold(each)
        if name in VIEWS or name in EMPTY or not outs:
            return out
        written = [each for each in tree_flatten(kwargs.get("out"))[0] if isinstance(each, Tensor)]
        given = list(tree_flatten((args, {k: v for k, v in kwargs.items() if k != "out"}))[0])
        given = [] if name.startswith("new_") else given  # which only looks at its shape
        moved = sum(map(span, (each for each in given if isinstance(each, Tensor)))) + sum(map(span, written or outs))
        if name == "copy_":
            moved -= span(args[0])  # which is only written
        self.kernels += 1
        if name in ADDING and not written and given[0].dim() == outs[0].dim():  # a product onto a copy of its own
            self.kernels += 1
            self.outside += span(given[0]) + span(outs[0])
        name = name.removesuffix("_")
        if name in PRODUCTS and not (name == "convolution" and args[8] == args[1].shape[0] > 1):
            self.products += moved
        else:
            self.outside += moved
        if name == "attention":
            q, k = args[:2]
            self.flops += 4 * math.prod(q.shape) * k.shape[2]
        else:
            # Of the form that does not write over a tensor.
            packet = getattr(torch.ops.aten, name, func._overloadpacket)
            if packet in flop_registry:
                self.flops += flop_registry[packet](*args, **kwargs, out_val=out)
        return out

    def hold(self, tensor: Tensor) -> None:
        """Count the storage of ``tensor`` as live until nobody holds it."""
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key in self.known:
            return

        def free(_: Any) -> None:
            del self.known[key]
            self.live -= size

        self.known[key] = weakref.ref(storage, free)
        self.live += size
        self.peak = max(self.peak, self.live)


def span(tensor: Tensor) -> int:
    """Bytes of ``tensor``, each counted once where it is expanded."""
    sizes = (size for size, stride in zip(tensor.shape, tensor.stride(), strict=True) if stride)
    return math.prod(sizes) * tensor.element_size()


@contextlib.contextmanager
def one_kernel_attention() -> Iterator[None]:
    """PyTorch's attention as one operation, whoever calls it."""
    import comfy.ops

    def attention(
        q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor | None = None, *args: Any, **kwargs: Any
    ) -> Tensor:
        return torch.ops.cascade_count.attention(q, k, v, attn_mask)

    places = [place for place in (F, comfy.ops) if hasattr(place, "scaled_dot_product_attention")]
    before = [place.scaled_dot_product_attention for place in places]
    for place in places:
        place.scaled_dot_product_attention = attention
    try:
        yield
    finally:
        for place, real in zip(places, before, strict=True):
            place.scaled_dot_product_attention = real


def count_call(call: Callable[[], Any], keep: Iterable[Tensor] = ()) -> Counts:
    """What ``call`` does, inside a FakeTensorMode and without gradients."""
    counter = Counter(keep)
    with torch.no_grad(), one_kernel_attention(), counter:
        call()
    return Counts(counter.kernels, counter.outside, counter.products, counter.flops, counter.peak)
