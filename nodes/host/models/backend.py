"""ComfyUI's layer classes, attention and casting, as the networks' :class:`Backend`."""

from __future__ import annotations

from functools import partial
from typing import Any

import comfy.ops
import torch
from comfy.ldm.modules.attention import optimized_attention
from torch import Tensor
from torch.nn import functional as F

from ....stages.nets.backend import Backend, Weights, is_bare


def attention(q: Tensor, k: Tensor, v: Tensor, heads: int, options: Any = None, mask: Tensor | None = None) -> Tensor:
    """The attention that the host chose, overrides included; ``options`` are its ``transformer_options``."""
    return optimized_attention(q, k, v, heads, mask=mask, transformer_options=options or {})


def cast(parameter: Tensor, like: Tensor) -> Tensor:
    """A raw parameter on the device and in the dtype of ``like``."""
    return comfy.ops.cast_to_input(parameter, like, copy=False)


def may_lend(layer: Any) -> bool:
    """Whether ``layer`` computes with tensors that the host can give, and with nothing else."""
    ops = (comfy.ops.disable_weight_init, comfy.ops.manual_cast)
    return type(layer) in (kind for each in ops for kind in (each.Linear, each.Conv2d)) and is_bare(layer)


def lies_ready(layer: Any) -> bool:
    """Whether the tensors of ``layer`` are used as they lie: not streamed, cast or patched at use."""
    return not (layer.comfy_cast_weights or layer.weight_function or layer.bias_function)


def read_bias(layer: Any, like: Tensor) -> Tensor | None:
    """The bias of a layer of the host where it lies ready for an input ``like``, else None."""
    if not may_lend(layer) or not lies_ready(layer) or layer.bias is None:
        return None
    return layer.bias if layer.bias.dtype == like.dtype and layer.bias.device == like.device else None


def lend_weights(layer: torch.nn.Module, like: Tensor) -> Weights | None:
    """The tensors with which a layer of the host computes on ``like``: streamed, cast and patched by the host itself.

    None for layers that have products of their own (quantised ones) or whose ``forward`` was replaced.
    """
    if not may_lend(layer):
        return None
    if lies_ready(layer):
        return Weights(layer.weight, layer.bias)
    weight, bias, stream = comfy.ops.cast_bias_weight(layer, like, offloadable=True)
    streamed = stream is not None and stream[0] is not None  # the host has one buffer a stream, and few streams
    return Weights(weight, bias, partial(comfy.ops.uncast_bias_weight, layer, weight, bias, stream), streamed)


class CastBatchNorm2d(torch.nn.BatchNorm2d):
    """BatchNorm2d in evaluation mode that casts its tensors at use, for hosts whose ops do not have one."""

    comfy_cast_weights = True
    weight_function: list = []
    bias_function: list = []

    def reset_parameters(self) -> None:
        """Nothing: a loader fills them."""
        return None

    def forward(self, x: Tensor) -> Tensor:
        tensors = (self.running_mean, self.running_var, self.weight, self.bias)
        mean, var, weight, bias = (None if t is None else cast(t, x) for t in tensors)
        return F.batch_norm(x, mean, var, weight, bias, False, 0.0, self.eps)


def backend_for(operations: Any) -> Backend:
    """The backend that builds layers from a ``comfy.ops`` class."""
    return Backend(
        Linear=operations.Linear,
        Conv2d=operations.Conv2d,
        ConvTranspose2d=operations.ConvTranspose2d,
        LayerNorm=operations.LayerNorm,
        BatchNorm2d=getattr(operations, "BatchNorm2d", CastBatchNorm2d),
        Embedding=operations.Embedding,
        attention=attention,
        cast=cast,
        lend_weights=lend_weights,
        read_bias=read_bias,
    )
