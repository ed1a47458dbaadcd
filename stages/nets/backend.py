"""What a host lends to the networks: layer classes, attention and casting, as one frozen object.

The networks build every layer through a :class:`Backend`, so that a host can stream, quantise, patch and
place weights as it likes. ``TORCH`` is the plain PyTorch default; `nodes/host` builds the ComfyUI one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Tree = Any
"""ModuleLists and ModuleDicts in one another, under official key names: torch knows what they hold as Module alone."""


class AttentionFunction(Protocol):
    """Scaled dot-product attention: ``q`` (B, N, C), ``k`` and ``v`` (B, M, C) -> (B, N, C), in ``heads`` heads.

    ``options`` are whatever the caller of the network handed down (ComfyUI's ``transformer_options``, or None);
    ``mask`` (B, N, M) is added to the products of queries and keys of every head before the softmax.
    """

    def __call__(
        self, q: Tensor, k: Tensor, v: Tensor, heads: int, options: Any = None, mask: Tensor | None = None
    ) -> Tensor: ...


def torch_attention(
    q: Tensor, k: Tensor, v: Tensor, heads: int, options: Any = None, mask: Tensor | None = None
) -> Tensor:
    """:class:`AttentionFunction` by PyTorch."""
    batch, length, width = q.shape
    q, k, v = (x.view(batch, -1, heads, width // heads).transpose(1, 2) for x in (q, k, v))  # (B, heads, N, C / heads)
    bias = None if mask is None else mask[:, None]
    return F.scaled_dot_product_attention(q, k, v, bias).transpose(1, 2).reshape(batch, length, width)


def cast_like(parameter: Tensor, like: Tensor) -> Tensor:
    """``parameter`` on the device and in the dtype of ``like``."""
    return parameter.to(device=like.device, dtype=like.dtype)


class Weights(NamedTuple):
    """A layer's own tensors, ready for use until ``release`` is called.

    ``shared`` says that they lie in a buffer that the next layers which are lent or called may write over.
    """

    weight: Tensor
    bias: Tensor | None
    release: Callable[[], None] = lambda: None
    shared: bool = False

    def keep(self) -> Weights:
        """The same for as long as one likes, whatever is lent meanwhile."""
        if not self.shared:
            return self
        kept = Weights(self.weight.clone(), None if self.bias is None else self.bias.clone())
        self.release()
        return kept


def weight_of(layer: nn.Module) -> Tensor:
    """The weight of a layer of any class; torch takes what a Module holds for a tensor or a module."""
    return cast(Tensor, layer.weight)


def is_bare(layer: nn.Module) -> bool:
    """Whether nothing was hung on ``layer`` that has to see its input or its output."""
    own = getattr(layer.forward, "__func__", None) is type(layer).forward
    return own and not layer._forward_hooks and not layer._forward_pre_hooks


def lend_weights(layer: nn.Module, like: Tensor) -> Weights | None:
    """The tensors of a plain PyTorch ``layer`` for an input ``like``, or None if it has to be called."""
    if type(layer) not in (nn.Linear, nn.Conv2d) or not is_bare(layer) or layer.weight.dtype != like.dtype:
        return None
    return Weights(weight_of(layer), cast(Tensor | None, layer.bias))


def read_bias(layer: nn.Module, like: Tensor) -> Tensor | None:
    """The bias of a plain PyTorch ``layer`` for an input ``like``, or None if the layer has to be asked at its turn."""
    lent = lend_weights(layer, like)
    return None if lent is None else lent.bias


@dataclass(frozen=True)
class Backend:
    """The layer classes take the arguments of their ``torch.nn`` namesakes, ``dtype`` and ``device`` included.

    ``cast(parameter, like)`` returns a raw parameter ready for use beside ``like``; every raw ``nn.Parameter`` is read
    through it. ``lend_weights(layer, like)`` returns the tensors with which a layer would compute on ``like``, patches
    included, or None where only the layer itself knows how (quantised products, a replaced ``forward``).
    ``read_bias(layer, like)`` is the bias alone, given at any time of a pass: None where it is not at hand as it is.
    """

    Linear: type[nn.Module] = nn.Linear
    Conv2d: type[nn.Module] = nn.Conv2d
    ConvTranspose2d: type[nn.Module] = nn.ConvTranspose2d
    LayerNorm: type[nn.Module] = nn.LayerNorm
    BatchNorm2d: type[nn.Module] = nn.BatchNorm2d
    Embedding: type[nn.Module] = nn.Embedding
    attention: AttentionFunction = torch_attention
    cast: Callable[[Tensor, Tensor], Tensor] = cast_like
    lend_weights: Callable[[nn.Module, Tensor], Weights | None] = lend_weights
    read_bias: Callable[[nn.Module, Tensor], Tensor | None] = read_bias


TORCH = Backend()


def processor_has_bf16() -> bool:
    """Whether the processor has instructions for bf16: AVX512-BF16, AMX, or those of ARM."""
    capabilities: dict[str, bool] = getattr(torch.cpu, "get_capabilities", dict)()
    if any(capabilities.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16", "sve_bf16")):
        return True
    older = (getattr(torch.cpu, name, bool) for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"))
    return any(ask() for ask in older)
