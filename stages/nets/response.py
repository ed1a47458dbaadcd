"""Global response normalisation, on activations that are the largest of the networks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from .backend import TORCH, Backend
from .channels_last import EPS

TINY = 1e-30  # keeps the gradient of a root at 0 finite
CPU_TILE = 1 << 21  # elements: a few megabytes, which stay in a cache
TRAINING_TILE = 1 << 17  # the same for the many float32 copies that a backward pass makes


def channel_lengths(x: Tensor) -> Tensor:
    """L2 norm of every channel over the picture: (B, H, W, C) -> (B, 1, 1, C) in float32."""
    if not _eager_on_cpu(x):
        return torch.linalg.vector_norm(x, dim=(1, 2), keepdim=True, dtype=torch.float32)
    # Eager on a CPU: PyTorch's norm over leading axes is scalar code, forwards and backwards.
    if torch.is_grad_enabled():
        return (x.float().square().sum((1, 2), keepdim=True) + TINY).sqrt()
    tokens = x.flatten(1, 2)  # squares of the whole would not fit a cache
    rows = max(1, CPU_TILE // (tokens.shape[0] * tokens.shape[2]))
    return sum(part.float().square().sum(1) for part in tokens.split(rows, dim=1)).sqrt()[:, None, None]


def _eager_on_cpu(x: Tensor) -> bool:
    return x.device.type == "cpu" and not torch.compiler.is_compiling()


class GlobalResponseNorm(nn.Module):
    """Global response normalisation on (B, H, W, C), ConvNeXt V2 (arXiv 2301.00808), section 3.

    G is the L2 norm of a channel over the picture, N = G / (mean of G over channels + 1e-6), and the result
    gamma x N + beta + x is computed as beta + x (1 + gamma N). Without gradients it is written over ``x``. ``lengths``
    gives G where ``x`` is only a part of the picture, and ``scale`` says what ``x`` holds of its value (scaled.py).
    """

    def __init__(self, width: int, *, dtype=None, device=None, backend: Backend = TORCH):
        super().__init__()
        self.cast = backend.cast
        self.gamma = nn.Parameter(torch.empty(1, 1, 1, width, dtype=dtype, device=device))
        self.beta = nn.Parameter(torch.empty(1, 1, 1, width, dtype=dtype, device=device))

    def forward(self, x: Tensor, scale: float = 1.0, lengths: Callable[[Tensor], Tensor] = channel_lengths) -> Tensor:
        if lengths is channel_lengths and torch.is_grad_enabled() and _eager_on_cpu(x) and scale == 1:
            wide = x.new_empty(0, dtype=torch.float32)
            return SampleBySample.apply(x, self.cast(self.gamma, wide), self.cast(self.beta, wide))
        out = None if torch.is_grad_enabled() else x
        return torch.addcmul(self.shift(x, scale), x, self.factors(x, scale, lengths), out=out)

    def shift(self, x: Tensor, scale: float = 1.0) -> Tensor:
        """What is added to every cell of ``x``, (1, 1, 1, C)."""
        beta = self.cast(self.beta, x)
        return beta if scale == 1 else beta * scale

    def factors(self, x: Tensor, scale: float = 1.0, lengths: Callable[[Tensor], Tensor] = channel_lengths) -> Tensor:
        """What every channel of ``x`` is multiplied by, (B, 1, 1, C)."""
        return response_factors(x, self.cast(self.gamma, x), scale, lengths)


def response_factors(
    x: Tensor, gamma: Tensor, scale: float = 1.0, lengths: Callable[[Tensor], Tensor] = channel_lengths
) -> Tensor:
    """1 + gamma N = (m + gamma G) / m with m = (mean of G) + 1e-6, for x (B, H, W, C): (B, 1, 1, C) in its dtype."""
    norm = lengths(x)  # (B, H, W, C) -> (B, 1, 1, C), in float32
    mean = norm.mean(dim=-1, keepdim=True) + EPS * scale
    if x.dtype == norm.dtype:
        return 1 + gamma * (norm / mean)
    above = torch.addcmul(mean, gamma, norm)  # in one formula with the cast that a narrower format needs
    if torch.is_grad_enabled():
        return (above / mean).to(x.dtype)
    return torch.div(above, mean, out=x.new_empty(above.shape))  # cast as it is written


class SampleBySample(torch.autograd.Function):
    """The norm with gradients on a CPU: a few samples at a time, so that what it computes in float32 stays in a cache.

    With s = 1 + gamma N, m = (mean of G) + 1e-6 and u = gamma (sum of grad x over the picture), the gradients are

        beta: sum of grad;   gamma: sum of N (sum of grad x over the picture)
        x: grad s + x / G (u / m - (mean over channels of u G) / m^2)
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, gamma: Tensor, beta: Tensor) -> Tensor:
        out, norms = torch.empty_like(x), gamma.new_empty(len(x), 1, 1, x.shape[-1])
        for part, made, norm in zip(*_pieces(x, x, out, norms)):
            wide = part.float()
            torch.sqrt(wide.square().sum((1, 2), keepdim=True), out=norm)
            made.copy_(torch.addcmul(beta, wide, 1 + gamma * norm / (norm.mean(-1, keepdim=True) + EPS)))
        ctx.save_for_backward(x, gamma, norms)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Gradients of x, gamma and beta, a few samples at a time."""
        x, gamma, norms = ctx.saved_tensors
        for_x, for_gamma, for_beta = torch.empty_like(x), torch.zeros_like(gamma), torch.zeros_like(gamma)
        for part, given, made, norm in zip(*_pieces(x, x, grad, for_x, norms)):
            wide, given = part.float(), given.float()
            mean = norm.mean(-1, keepdim=True) + EPS
            shared = (given * wide).sum((1, 2), keepdim=True)
            for_gamma += (shared * norm / mean).sum(0, keepdim=True)
            for_beta += given.sum((0, 1, 2), keepdim=True)
            u = shared * gamma
            towards = torch.where(norm > 0, (u / mean - (u * norm).mean(-1, keepdim=True) / mean.square()) / norm, 0)
            made.copy_(torch.addcmul(given * (1 + gamma * norm / mean), wide, towards))
        return for_x, for_gamma, for_beta


def _pieces(x: Tensor, *tensors: Tensor) -> list[tuple[Tensor, ...]]:
    """``tensors`` split along the batch into pieces in which ``x`` has about ``TRAINING_TILE`` elements."""
    count = max(1, TRAINING_TILE // max(1, x[0].numel()))
    return [tensor.split(count) for tensor in tensors]
