"""Low-rank changes that learn beside frozen layers, under the names that the host's adapters read.

LoRA (Hu et al. 2021, arXiv 2106.09685), DoRA (Liu et al. 2024, 2402.09353), LoHa (Hyeon-Woo et al. 2021, 2108.06098)
and LoKr (Yeh et al. 2023, 2309.14859). What an adapter does to a weight is what the host computes when the file is
loaded, so that what was trained is what is seen.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import WrongInput
from ..files.convert import QKV
from ..nets.backend import weight_of
from ..nets.blocks import AttnBlock
from .seeding import generator

LARGEST_FACTOR = 8
"""The most rows and columns of LoKr's small factor."""


class Adapter(nn.Module):
    """``base(x)`` plus scale · up · down · x, for a linear layer (..., C) or a 1x1 convolution (B, C, H, W)."""

    PARTS = {"down": "lora_down.weight", "up": "lora_up.weight"}
    """What is learned, and its name in a file."""
    base: Any
    down: Tensor
    up: Tensor

    def __init__(self, base: nn.Module, parts: dict[str, nn.Parameter], scale: float) -> None:
        super().__init__()
        self.base, self.scale = base, scale
        for name, parameter in parts.items():
            self.register_parameter(name, parameter)

    @classmethod
    def start(cls, base: nn.Module, rank: int, key: tuple[int, str], down_key: str) -> dict[str, Tensor]:
        """First values of the parts, which change nothing. ``key`` is the seed and the layer's name."""
        rows, columns = weight_of(base).shape[:2]
        return {"down": _uniform((rank, columns), key[0], "down", down_key), "up": torch.zeros(rows, rank)}

    def apply_to(self, x: Tensor, matrix: Tensor) -> Tensor:
        """``matrix`` (out, in) times the channels of ``x``, in its dtype."""
        matrix = matrix.to(x.dtype)
        return F.conv2d(x, matrix[:, :, None, None]) if isinstance(self.base, nn.Conv2d) else F.linear(x, matrix)

    def change(self, x: Tensor) -> Tensor:
        """What is added to the layer's result."""
        return self.scale * self.apply_to(self.apply_to(x, self.down), self.up)

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + self.change(x)


class Dora(Adapter):
    """As LoRA, with a magnitude of its own for each row: m / |W| · (W + change) · x. |W| is that of the frozen rows, as
    the host has it.

    What is learned is m / |W| - 1: a step of m itself would be a thousandfold change of a row that is nearly empty.
    """

    PARTS = {**Adapter.PARTS, "stretch": "dora_scale"}
    stretch: Tensor

    @classmethod
    def start(cls, base: nn.Module, rank: int, key: tuple[int, str], down_key: str) -> dict[str, Tensor]:
        return {**super().start(base, rank, key, down_key), "stretch": torch.zeros(len(weight_of(base)), 1)}

    def forward(self, x: Tensor) -> Tensor:
        shape = (1, -1, 1, 1) if isinstance(self.base, nn.Conv2d) else (-1,)
        ratio = (1 + self.stretch).to(x.dtype).view(shape)
        bias = 0 if self.base.bias is None else self.base.bias.to(x.dtype).view(shape)
        return (self.base(x) - bias + self.change(x)) * ratio + bias


class Loha(Adapter):
    """The change is a product, element by element, of two low-rank matrices."""

    PARTS = {name: f"hada_{name}" for name in ("w1_a", "w1_b", "w2_a", "w2_b")}
    w1_a: Tensor
    w1_b: Tensor
    w2_a: Tensor
    w2_b: Tensor

    @classmethod
    def start(cls, base: nn.Module, rank: int, key: tuple[int, str], down_key: str) -> dict[str, Tensor]:
        (rows, columns), (seed, name) = weight_of(base).shape[:2], key
        return {
            "w1_a": _uniform((rows, rank), seed, "w1_a", name),
            "w1_b": _uniform((rank, columns), seed, "w1_b", name, width=1),
            "w2_a": torch.zeros(rows, rank),
            "w2_b": _uniform((rank, columns), seed, "w2_b", name, width=1),
        }

    def change(self, x: Tensor) -> Tensor:
        return self.apply_to(x, (self.w1_a @ self.w1_b) * (self.w2_a @ self.w2_b) * self.scale)


class Lokr(Adapter):
    """The change is the Kronecker product of a small matrix and a low-rank one."""

    PARTS = {"w1": "lokr_w1", "w2_a": "lokr_w2_a", "w2_b": "lokr_w2_b"}
    w1: Tensor
    w2_a: Tensor
    w2_b: Tensor

    @classmethod
    def start(cls, base: nn.Module, rank: int, key: tuple[int, str], down_key: str) -> dict[str, Tensor]:
        (rows, columns), (seed, name) = weight_of(base).shape[:2], key
        small = [max(f for f in range(1, LARGEST_FACTOR + 1) if side % f == 0) for side in (rows, columns)]
        return {
            "w1": _uniform((small[0], small[1]), seed, "w1", name, width=1),
            "w2_a": torch.zeros(rows // small[0], rank),
            "w2_b": _uniform((rank, columns // small[1]), seed, "w2_b", name),
        }

    def change(self, x: Tensor) -> Tensor:
        return self.apply_to(x, torch.kron(self.w1, self.w2_a @ self.w2_b) * self.scale)


ADAPTERS: dict[str, type[Adapter]] = {"lora": Adapter, "dora": Dora, "loha": Loha, "lokr": Lokr}


class Lora(nn.Module):
    """All adapters of a network: its parameters are what is learned, float32. Putting it in replaces the layers.

    ``blocks`` are parts of module names. ``shared`` gives query, key and value of a block one ``down`` of their own,
    as the official trainer's fused weight has. Nothing is changed at first.
    """

    def __init__(
        self,
        net: nn.Module,
        rank: int,
        alpha: float,
        blocks: tuple[str, ...],
        seed: int = 0,
        shared: bool = False,
        method: str = "lora",
    ) -> None:
        super().__init__()
        self.rank, self.alpha, self.method = rank, alpha, method
        kind = ADAPTERS[method]
        for part in kind.PARTS:
            self.add_module(part, nn.ParameterDict())
        self.layers: dict[str, str] = {}
        self.norms: dict[str, Tensor] = {}
        found = list(find_layers(net, blocks))
        if not found:
            raise WrongInput(
                f"No layer of this model has {' or '.join(blocks)} in its name, so there is nothing to "
                "train. Try .attn (attention), .kv_mapper (prompt), .channelwise (residual blocks) or "
                ".mapper (noise level)."
            )
        for name, layer in found:
            key, down_key = flatten_name(name), flatten_name(_join_projections(name) if shared else name)
            parts = {}
            for part, value in kind.start(layer, rank, (seed, key), down_key).items():
                table, place = self.table(part), down_key if part == "down" else key
                if place not in table:
                    table[place] = nn.Parameter(value.to(torch.float32).to(weight_of(layer).device))
                parts[part] = table[place]
            self.layers[key] = down_key
            if method == "dora":
                self.norms[key] = row_norms(layer)[:, None]
            parent, _, last = name.rpartition(".")
            net.get_submodule(parent)._modules[last] = kind(layer, parts, alpha / rank)

    def table(self, part: str) -> nn.ParameterDict:
        """What ``part`` of every layer has learned, by the layer's flat name."""
        return cast(nn.ParameterDict, self.get_submodule(part))

    def pairs(self, weights: Mapping[str, Tensor] | None = None) -> Iterator[tuple[str, Tensor, Tensor]]:
        """(flat layer name, up (out, rank), down (rank, in)) of each layer, from ``weights`` or the present ones."""
        weights = self.state_dict() if weights is None else weights
        for key, down_key in self.layers.items():
            yield key, weights[f"up.{key}"], weights[f"down.{down_key}"]

    def name_parts(self, weights: Mapping[str, Tensor]) -> Iterator[tuple[str, dict[str, Tensor]]]:
        """(flat layer name, its tensors under the names that the host's adapters read), ``alpha`` among them."""
        for key, down_key in self.layers.items():
            parts = {
                name: weights[f"{part}.{down_key if part == 'down' else key}"]
                for part, name in ADAPTERS[self.method].PARTS.items()
            }
            if "dora_scale" in parts:
                norms = self.norms[key]
                parts["dora_scale"] = norms * (1 + parts["dora_scale"].to(norms))
            yield key, {**parts, "alpha": torch.tensor(float(self.alpha))}

    @torch.no_grad()
    def take_over(self, tensors: Mapping[str, Tensor], prefix: str, name: str) -> None:
        """Go on from the LoRA in ``tensors``, named as :func:`.export.comfyui_names` does; ``name`` is its file's.

        A layer that the file does not have starts from nothing. Its own alpha is kept in what it does.
        """
        kind, used = ADAPTERS[self.method], set()
        for key in self.layers:
            parts = {part: f"{prefix}{key}.{said}" for part, said in kind.PARTS.items()}
            if not set(parts.values()) <= set(tensors):
                continue
            alpha = tensors.get(f"{prefix}{key}.alpha")
            for number, (part, full) in enumerate(parts.items()):
                own = self.table(part)[self.layers[key] if part == "down" else key]
                given = tensors[full].float().reshape(-1) if tensors[full].numel() == own.numel() else None
                if given is None:
                    raise WrongInput(
                        f"{name} has the shape {tuple(tensors[full].shape)} for {key}, but this run learns "
                        f"{tuple(own.shape)}. Give its rank, its method and a model of its size in the settings."
                    )
                if number == len(kind.PARTS) - (2 if self.method == "dora" else 1) and alpha is not None:
                    given = given * (float(alpha) / self.alpha)
                if part == "stretch":
                    given = given / self.norms[key].flatten().to(given) - 1
                own.copy_(given.view_as(own))
                used.add(full)
        left = [key for key in tensors if key not in used and not key.endswith(".alpha") and key.startswith(prefix)]
        if not used or left:
            first = next(iter(left or tensors), "nothing")
            raise WrongInput(
                f"{name} holds {first}, which is no part of a {self.method} of {', '.join(self.layers) or 'nothing'}"[
                    :300
                ]
                + ". Give its method and its blocks in the settings, or convert it with Convert Cascade LoRA first."
            )


def row_norms(layer: nn.Module) -> Tensor:
    """Length of each row of a layer's weight, float32, with the smallest number added as the host does."""
    weight = weight_of(layer).detach().float().flatten(1)
    scale = getattr(layer, "scale", None)
    norms = weight.norm(dim=1) if scale is None else weight.norm(dim=1) * scale
    return norms + torch.finfo(torch.float32).eps


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


def _uniform(shape: tuple[int, int], seed: int, part: str, name: str, width: int = 0) -> Tensor:
    start = torch.rand(shape, generator=generator(seed, part, name)) * 2 - 1
    return start / math.sqrt(width or shape[1])


def _join_projections(name: str) -> str:
    parent, _, last = name.rpartition(".")
    return f"{parent}.in_proj" if last in QKV else name
