"""LoRA (Hu et al. 2021, arXiv 2106.09685): low-rank changes that learn beside frozen layers."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import WrongInput
from ..files.convert import QKV
from ..nets.blocks import AttnBlock
from .seeding import generator


class Adapter(nn.Module):
    """``base(x)`` plus scale · up · down · x, for a linear layer (..., C) or a 1x1 convolution (B, C, H, W)."""

    def __init__(self, base: nn.Module, down: nn.Parameter, up: nn.Parameter, scale: float) -> None:
        super().__init__()
        self.base, self.down, self.up, self.scale = base, down, up, scale

    def forward(self, x: Tensor) -> Tensor:
        down, up = self.down.to(x.dtype), self.up.to(x.dtype)
        if isinstance(self.base, nn.Conv2d):
            added = F.conv2d(F.conv2d(x, down[:, :, None, None]), up[:, :, None, None])
        else:
            added = F.linear(F.linear(x, down), up)
        return self.base(x) + self.scale * added


class Lora(nn.Module):
    """All adapters of a network: its parameters are what is learned, float32. Putting it in replaces the layers.

    ``blocks`` are parts of module names. ``shared`` gives query, key and value of a block one ``down`` of their own,
    as the official trainer's fused weight has. ``up`` starts at zero, so that nothing is changed at first.
    """

    def __init__(
        self, net: nn.Module, rank: int, alpha: float, blocks: tuple[str, ...], seed: int = 0, shared: bool = False
    ) -> None:
        super().__init__()
        self.rank, self.alpha = rank, alpha
        self.down, self.up = nn.ParameterDict(), nn.ParameterDict()
        self.layers: dict[str, str] = {}
        found = list(find_layers(net, blocks))
        if not found:
            raise WrongInput(
                f"No layer of this model has {' or '.join(blocks)} in its name, so there is nothing to "
                "train. Try .attn (attention), .kv_mapper (prompt), .channelwise (residual blocks) or "
                ".mapper (noise level)."
            )
        for name, layer in found:
            key, down_key = flatten_name(name), flatten_name(_fused(name) if shared else name)
            rows, columns = layer.weight.shape[:2]
            at = {"dtype": torch.float32, "device": layer.weight.device}
            if down_key not in self.down:
                start = torch.rand(rank, columns, generator=generator(seed, "down", down_key)) * 2 - 1
                self.down[down_key] = nn.Parameter((start / math.sqrt(columns)).to(**at))
            self.up[key] = nn.Parameter(torch.zeros(rows, rank, **at))
            self.layers[key] = down_key
            parent, _, last = name.rpartition(".")
            adapter = Adapter(layer, self.down[down_key], self.up[key], alpha / rank)
            net.get_submodule(parent)._modules[last] = adapter

    def pairs(self, weights: dict[str, Tensor] | None = None) -> Iterator[tuple[str, Tensor, Tensor]]:
        """(flat layer name, up (out, rank), down (rank, in)) of each layer, from ``weights`` or the present ones."""
        weights = self.state_dict() if weights is None else weights
        for key, down_key in self.layers.items():
            yield key, weights[f"up.{key}"], weights[f"down.{down_key}"]


def find_layers(net: nn.Module, blocks: tuple[str, ...]) -> Iterator[tuple[str, nn.Module]]:
    """Linear layers and 1x1 convolutions of ``net`` with a part of ``blocks`` in their name."""
    for name, module in net.named_modules():
        plain = isinstance(module, nn.Conv2d) and module.kernel_size == (1, 1) and module.groups == 1
        if (plain or isinstance(module, nn.Linear)) and any(part in f".{name}" for part in blocks):
            yield name, module


def flatten_name(name: str) -> str:
    """A module's name as LoRA files spell it."""
    return name.replace(".", "_")


def attention_names(net: nn.Module) -> list[str]:
    """Names of the attentions' projections in the official order."""
    return [f"{name}.attention.attn" for name, module in net.named_modules() if isinstance(module, AttnBlock)]


def _fused(name: str) -> str:
    parent, _, last = name.rpartition(".")
    return f"{parent}.in_proj" if last in QKV else name
