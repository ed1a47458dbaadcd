"""UltraPixel's guide nets: features of a small Stage C run become corrections of a large one (arXiv 2407.02158).

A guide net makes of a small feature map the weights of a coordinate network and evaluates that at any size (an
implicit neural representation); the result is fused with the large run's own features. Names of modules are those of
the published file, its ``toout.0`` split in the halves that read the upsampled map and the large run: the first half
does not depend on the step, and is a quarter as wide as the map. The file's ``hr_norm.alpha`` and ``hr_norm.gamma`` act
nowhere and have no place here.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import WrongInput
from .backend import TORCH, Backend, Tree
from .blocks import timestep_embedding
from .channels_last import channel_norm, nchw, nhwc, run_linear

POSITION_ROWS = 1024  # learned rows of the tokenizer: the most cells of a small map
FREQUENCIES, HIGHEST_FREQUENCY = 64, 1024.0
C_ENCODING = 4 * FREQUENCIES  # a sine and a cosine of every frequency, down and across
SMALL_CELLS = 24**2  # cells of the size at which the scale-aware norm counts 1
PIECE = 4096  # cells whose hidden values exist at once


@dataclass(frozen=True, kw_only=True)
class GuideConfig:
    """Sizes of one guide net: ``c`` is the width of Stage C, ``c_inner`` that of the tokens and of the coordinate net,
    ``groups`` how many tokens modulate each of its two layers."""

    c: int = 2048
    c_inner: int = 1024
    nhead: int = 32
    groups: int = 64
    c_r: int = 64


def encode_grid(height: int, width: int, device=None, *, rounded: bool = False) -> Tensor:
    """Cosines and sines of a grid's cell centres, (height * width, 256), rows one after another.

    Both axes span [-1, 1] whatever their length. ``rounded`` forms products and angles in bfloat16, as the published
    training and its default inference do under autocast; above a frequency of 128 the two have nothing in common.
    """
    exact = {"dtype": torch.float32, "device": device}
    frequencies = torch.linspace(0, math.log(HIGHEST_FREQUENCY), FREQUENCIES, **exact).exp()
    dtype = torch.bfloat16 if rounded else torch.float32

    def scale(cells: int) -> Tensor:
        centres = -1 + 2 * ((torch.arange(cells, **exact) + 0.5) / cells)
        return centres.to(dtype)[:, None] * frequencies.to(dtype)  # (cells, 64)

    down = scale(height)[:, None].expand(-1, width, -1)
    across = scale(width)[None].expand(height, -1, -1)
    angles = math.pi * torch.cat([down, across], dim=-1).flatten(0, 1)
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


def check_small_grid(height: int, width: int) -> None:
    """Raises :class:`~.errors.WrongInput` for a small map with more cells than the tokenizer has rows."""
    if height * width > POSITION_ROWS:
        raise WrongInput(
            f"The small picture has {width} x {height} cells (width x height), but the guide of UltraPixel reads at "
            f"most {POSITION_ROWS}. Paint the small picture at about 1024 x 1024 pixels."
        )


class FeatureTokens(nn.Module):
    """A feature map as tokens: (B, h w, c) -> (B, h w, c), with a learned row for every cell in raster order."""

    def __init__(self, c: int, layer_args: dict, backend: Backend):
        super().__init__()
        self.prefc = backend.Linear(c, c, **layer_args)
        self.posemb = nn.Parameter(torch.empty(POSITION_ROWS, c, **layer_args))
        self.backend = backend

    def forward(self, x: Tensor) -> Tensor:
        return self.prefc(x) + self.backend.cast(self.posemb, x)[: x.shape[1]]


class GuideNet(nn.Module):
    """One guide net. :meth:`read_features` needs the small map alone, ``forward`` runs at every step."""

    def __init__(self, config: GuideConfig, *, dtype=None, device=None, backend: Backend = TORCH):
        super().__init__()
        self.config, self.backend = config, backend
        args = {"dtype": dtype, "device": device}
        c, inner, hidden = config.c, config.c_inner, config.c // 4

        def linear(c_in: int, c_out: int, **more) -> nn.Module:
            return backend.Linear(c_in, c_out, **more, **args)

        def norm() -> nn.Module:
            return backend.LayerNorm(inner, **args)

        def raw(rows: int) -> nn.Parameter:
            return nn.Parameter(torch.empty(rows, inner, **args))

        self.input_layer = backend.Conv2d(c, inner, kernel_size=1, **args)
        self.tokenizer = FeatureTokens(inner, args, backend)
        self.wtokens = raw(2 * config.groups)
        attention = {
            "to_q": nn.Sequential(nn.SiLU(), linear(inner, inner)),
            "to_kv": nn.Sequential(nn.SiLU(), linear(inner, 2 * inner)),
        }
        mlp = nn.Sequential(linear(inner, inner), nn.GELU(), nn.Identity(), linear(inner, inner))
        layer = nn.ModuleList(
            nn.ModuleDict({"norm": norm(), "fn": nn.ModuleDict(parts)}) for parts in (attention, {"net": mlp})
        )
        self.transformer_encoder = nn.ModuleDict({"layers": nn.ModuleList([layer])})
        self.base_params = nn.ParameterDict({"wb0": raw(C_ENCODING + 1), "wb1": raw(inner + 1)})
        self.wtoken_postfc = nn.ModuleDict(
            {f"wb{i}": nn.Sequential(norm(), linear(inner, rows)) for i, rows in enumerate((C_ENCODING, inner))}
        )
        self.output_layer = backend.Conv2d(inner, c, kernel_size=1, **args)
        halves = nn.ModuleDict({"features": linear(c, hidden), "target": linear(c, hidden, bias=False)})
        self.toout = nn.ModuleList([halves, nn.GELU(), linear(hidden, c)])
        self.mapp_t = nn.ModuleDict({"mapper": linear(config.c_r, 2 * c)})
        self.hr_norm = nn.ModuleDict({"mapping": nn.ModuleDict({"mapper": linear(config.c_r, 2 * c)})})

    def encode_tokens(self, features: Tensor) -> Tensor:
        """A small map (B, c, h, w) -> the weight tokens that have read it, (B, 2 groups, c_inner)."""
        check_small_grid(*features.shape[2:])
        tokens = self.tokenizer(self.input_layer(features).flatten(2).transpose(1, 2))  # (B, h w, c_inner)
        own = self.backend.cast(self.wtokens, tokens).expand(len(features), -1, -1)
        x = torch.cat([tokens, own], dim=1)
        attention, mlp = cast(Tree, self.transformer_encoder["layers"])[0]
        normed = attention["norm"](x)
        keys, values = attention["fn"]["to_kv"](normed).chunk(2, dim=-1)
        x = x + self.backend.attention(attention["fn"]["to_q"](normed), keys, values, self.config.nhead)
        x = x + mlp["fn"]["net"](mlp["norm"](x))
        return x[:, -own.shape[1] :]

    def generate_layers(self, tokens: Tensor) -> list[tuple[Tensor, Tensor]]:
        """The coordinate net of every sample: twice a weight (B, rows, c_inner) with unit columns, and a bias."""
        layers = []
        for i, own in enumerate(tokens.split(self.config.groups, dim=1)):
            base = self.backend.cast(self.base_params[f"wb{i}"], tokens)
            factors = self.wtoken_postfc[f"wb{i}"](own).transpose(1, 2)  # (B, rows, groups)
            repeats = base.shape[1] // self.config.groups
            weight = base[:-1] * factors.repeat(1, 1, repeats)  # column j is scaled by token j mod groups
            layers.append((F.normalize(weight.float(), dim=1, eps=1e-12).to(weight.dtype), base[-1]))
        return layers

    def upsample_pieces(self, features: Tensor, size: tuple[int, int], rounded: bool) -> Iterator[Tensor]:
        """The small map at another ``size``, (B, cells, c) by pieces of its cells in raster order."""
        (first, bias), (second, last_bias) = self.generate_layers(self.encode_tokens(features))
        height, width = features.shape[2:]
        cells = torch.arange(height * width, dtype=torch.float32, device=features.device).view(1, 1, height, width)
        nearest = F.interpolate(cells, size=size, mode="nearest").flatten().long()  # which small cell each one shows
        grid, small = encode_grid(*size, features.device, rounded=rounded), features.flatten(2).transpose(1, 2)
        for piece, shown in zip(grid.to(features.dtype).split(PIECE), nearest.split(PIECE), strict=True):
            hidden = F.relu(piece @ first + bias) @ second + last_bias  # (B, cells, c_inner)
            yield small[:, shown] + self.output_layer(hidden.transpose(1, 2)[..., None])[..., 0].transpose(1, 2)

    def upsample(self, features: Tensor, size: tuple[int, int], *, rounded: bool = False) -> Tensor:
        """A small map (B, c, h, w) at another ``size``, (B, c, H, W); ``rounded`` is that of :func:`encode_grid`.

        Raises :class:`~.errors.WrongInput` above 1024 cells.
        """
        return torch.cat(list(self.upsample_pieces(features, size, rounded)), dim=1).transpose(1, 2).unflatten(2, size)

    def read_features(self, features: Tensor, size: tuple[int, int], *, rounded: bool = False) -> Tensor:
        """What :meth:`upsample` gives, as the fusion reads it: (B, H, W, c / 4), constant over the large run."""
        fuse = cast(Tree, self.toout[0])["features"]
        pieces = [fuse(piece) for piece in self.upsample_pieces(features, size, rounded)]
        return torch.cat(pieces, dim=1).unflatten(1, size)

    def forward(self, target: Tensor, read: Tensor, time: Tensor) -> Tensor:
        """What is added to ``target`` (B, c, H, W), given ``read`` (b, H, W, c / 4) of :meth:`read_features` and the
        embedded noise level ``time`` (1 or B, c_r).

        Rows of ``target`` are b pictures, as often as there are conditions.
        """
        own, time = nhwc(target), time.to(target.dtype)
        x = run_linear(cast(Tree, self.toout[0])["target"], own)
        x = (x.unflatten(0, (-1, read.shape[0])) + read.to(x.dtype)).flatten(0, 1)
        x = run_linear(self.toout[2], self.toout[1](x))
        scale, shift = self.mapp_t["mapper"](time)[:, None, None].chunk(2, dim=-1)
        x = channel_norm(torch.addcmul(shift, x, 1 + scale))
        map_size = cast(Tree, self.hr_norm["mapping"])["mapper"]
        scale, shift = map_size(self.embed_size(own).to(time.dtype)).chunk(2, dim=-1)
        return nchw(torch.addcmul(shift, x, 2 + scale))

    def embed_size(self, x: Tensor) -> Tensor:
        """The embedding of s = sqrt(log of H W to the base 576) for x (B, H, W, C): (1, c_r) in float32."""
        size = math.sqrt(math.log(x.shape[1] * x.shape[2]) / math.log(SMALL_CELLS))
        return timestep_embedding(torch.tensor([size], dtype=torch.float32, device=x.device), self.config.c_r)


class GuideNets(nn.Module):
    """The four guide nets of a Stage C: ``agg_net`` for the levels going down, ``agg_net_up`` for those going up."""

    def __init__(self, config: GuideConfig, *, dtype=None, device=None, backend: Backend = TORCH):
        super().__init__()
        self.config, self.dtype = config, dtype
        args = {"dtype": dtype, "device": device, "backend": backend}
        self.agg_net = nn.ModuleList(GuideNet(config, **args) for _ in range(2))
        self.agg_net_up = nn.ModuleList(GuideNet(config, **args) for _ in range(2))

    def nets(self) -> tuple[GuideNet, ...]:
        """In the order of a pass: down 0, down 1, up 0 (the deeper), up 1."""
        return (*self.agg_net, *self.agg_net_up)
