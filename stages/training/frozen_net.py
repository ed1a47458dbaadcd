"""Networks whose own weights stay as they are while something else learns through them, and those that learn whole.

Weights are stored in few bits (bf16, or float8 with one scale to a row) and brought to the computing dtype where they
are used; the backward pass does so again instead of keeping the copy. Block groups can be computed twice instead of
keeping their activations.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from ..nets.backend import Backend, torch_attention
from ..nets.blocks import ResBlock
from ..nets.stage_b import StageB
from ..nets.stage_c import StageC
from ..nets.unet import CascadeUNet

MOST_SCORES = 1024
"""Cells up to which attention on a processor is plain products, which it keeps until the way back."""
FLOAT8 = torch.float8_e4m3fn
LARGEST = 448.0
"""The largest number of float8_e4m3fn."""


def computing_dtype(x: Tensor) -> torch.dtype:
    """The dtype that a product with ``x`` is computed in: autocast's where it is on, else that of ``x``."""
    kind = x.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype


class _Product(torch.autograd.Function):
    """x @ weight.T, keeping the stored weight alone for the way back."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(weight)
        return F.linear(x, weight.to(x.dtype))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (weight,) = ctx.saved_tensors
        return grad @ weight.to(grad.dtype), None


class FrozenLinear(nn.Linear):
    """A linear layer without gradients of its own; ``scale`` (rows,) multiplies what a float8 weight gives."""

    scale: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        x = x.to(computing_dtype(x))
        out = _Product.apply(x, self.weight)
        if self.scale is not None:
            out = out * self.scale.to(out.dtype)
        return out if self.bias is None else out + self.bias.to(out.dtype)

    @torch.no_grad()
    def store(self, weight: Tensor, base: str) -> None:
        """Take over ``weight`` in the format ``base``, on its device."""
        if base == "fp8":
            largest = weight.float().abs().amax(1).clamp(min=1e-12)
            self.scale = largest / LARGEST
            weight = (weight.float() / self.scale[:, None]).to(FLOAT8)
        self.weight = nn.Parameter(weight, requires_grad=False)


class LearningLinear(nn.Linear):
    """A linear layer that learns, stored in any dtype and brought to the computing one where it is used."""

    def forward(self, x: Tensor) -> Tensor:
        x = x.to(computing_dtype(x))
        return F.linear(x, self.weight.to(x.dtype), None if self.bias is None else self.bias.to(x.dtype))


class FrozenConv2d(nn.Conv2d):
    """A convolution without gradients of its own."""

    def forward(self, x: Tensor) -> Tensor:
        return self._conv_forward(x, self.weight.to(x.dtype), None if self.bias is None else self.bias.to(x.dtype))


class FrozenConvTranspose2d(nn.ConvTranspose2d):
    """A transposed convolution without gradients of its own."""

    def forward(self, x: Tensor, output_size: list[int] | None = None) -> Tensor:
        """``output_size`` is PyTorch's; no network of ours asks for one."""
        weight, bias = self.weight.to(x.dtype), None if self.bias is None else self.bias.to(x.dtype)
        padding = cast(tuple[int, ...], self.padding)  # never the word that other convolutions know
        return F.conv_transpose2d(
            x, weight, bias, self.stride, padding, self.output_padding, self.groups, self.dilation
        )


def attention(q: Tensor, k: Tensor, v: Tensor, heads: int, options: Any = None, mask: Tensor | None = None) -> Tensor:
    """Attention; by plain products on a processor, whose fused kernel trains slower on few tokens."""
    if q.device.type != "cpu" or q.shape[1] > MOST_SCORES:
        return torch_attention(q, k, v, heads, options, mask)
    q, k, v = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (q, k, v))
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)  # (B, heads, N, M)
    scores = scores if mask is None else scores + mask[:, None]
    return (scores.float().softmax(-1).to(v.dtype) @ v).transpose(1, 2).flatten(2)


FROZEN = Backend(Linear=FrozenLinear, Conv2d=FrozenConv2d, ConvTranspose2d=FrozenConvTranspose2d, attention=attention)
LEARNING = replace(FROZEN, Linear=LearningLinear)
"""For a network that learns itself: convolutions cast their weights, which gradients go back through."""


class Checkpointed(CascadeUNet):
    """Computes every block group again on the way back."""

    def run_group(self, group: list[nn.Module], x: Tensor, skip: Tensor | None, place: Any, run: Any) -> Tensor:
        if not torch.is_grad_enabled():
            return super().run_group(group, x, skip, place, run)
        first, above = run.res_blocks, super().run_group

        def once(x: Tensor, skip: Tensor | None) -> Tensor:
            return above(group, x, skip, place, replace(run, res_blocks=first))  # a count of its own for each time

        out = checkpoint(once, x, skip, use_reentrant=False)
        run.res_blocks = first + sum(isinstance(block, ResBlock) for block in group)
        return out


class CheckpointedStageC(Checkpointed, StageC):
    """Stage C that keeps the activations between its groups only."""


class CheckpointedStageB(Checkpointed, StageB):
    """Stage B that keeps the activations between its groups only."""


CLASSES = {
    ("stage_c", False): StageC,
    ("stage_c", True): CheckpointedStageC,
    ("stage_b", False): StageB,
    ("stage_b", True): CheckpointedStageB,
}


def frozen_net(
    kind: str,
    config: Any,
    tensors: Mapping[str, Tensor],
    *,
    base: str = "bf16",
    checkpointing: bool = True,
    device: torch.device | str = "cpu",
) -> StageB | StageC:
    """A private copy of a network ("stage_c", "stage_b") from its canonical ``tensors``, which are left as they are.

    Raises RuntimeError (PyTorch's own) where tensors are missing or do not fit.
    """
    net = CLASSES[kind, checkpointing](config, device="meta", backend=FROZEN)
    plain = torch.float32 if base == "fp32" else torch.bfloat16
    layers = {f"{name}.weight": module for name, module in net.named_modules() if isinstance(module, FrozenLinear)}
    copies = {}
    with torch.no_grad():
        for key, value in tensors.items():
            copies[key] = torch.empty(value.shape, dtype=plain, device=device).copy_(value)
            if key in layers and base == "fp8":
                layers[key].store(copies[key], base)
                copies[key] = layers[key].weight
    net.load_state_dict(copies, assign=True)
    return net.eval().requires_grad_(False)


def learning_net(
    kind: str,
    config: Any,
    tensors: Mapping[str, Tensor],
    *,
    weights: str = "bf16",
    checkpointing: bool = True,
    device: torch.device | str = "cpu",
) -> StageB | StageC:
    """As :func:`frozen_net`, of which every weight learns, stored in ``weights`` ("bf16", "fp32")."""
    net = CLASSES[kind, checkpointing](config, device="meta", backend=LEARNING)
    dtype = torch.bfloat16 if weights == "bf16" else torch.float32
    with torch.no_grad():
        copies = {key: torch.empty(v.shape, dtype=dtype, device=device).copy_(v) for key, v in tensors.items()}
    net.load_state_dict(copies, assign=True)
    return net.eval().requires_grad_(True)
