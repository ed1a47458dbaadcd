"""The U of Stage B and Stage C: levels of block groups going down, and back up past the skips of the way down."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import WrongInput
from ..inputs.grids import COMPRESSION
from .alone import read_neighbours, run_group_alone, scale_biases, works_alone
from .backend import TORCH, Backend, Tree
from .blocks import AttnBlock, FeedForwardBlock, ResBlock, TimestepBlock, map_times, timestep_embedding
from .channels_last import channel_norm, convolve, nchw
from .hooks import BlockHooks, Place
from .run import Pass
from .scaled import choose_stream_scale, run_scaled


def as_tuples(value: Any) -> Any:
    """``value`` with every list in it turned into a tuple, as read from JSON."""
    return tuple(as_tuples(item) for item in value) if isinstance(value, (list, tuple)) else value


@dataclass(frozen=True, kw_only=True)
class UNetConfig:
    """What Stage B and Stage C have in common; field names are those of the official constructors.

    ``c_hidden``, ``nhead`` and ``level_config`` go from the shallowest level to the deepest. ``blocks`` and
    ``block_repeat`` hold (down, up); their up halves go from the deepest level to the shallowest. ``self_attn`` is one
    flag or one a level. ``native_compression`` is how many pixels of the pictures that the weights were trained on
    were one cell of Stage C; the network computes the same with any. Lists are accepted and kept as tuples.
    """

    c_in: int
    c_out: int
    c_r: int = 64
    patch_size: int
    c_cond: int
    c_hidden: tuple[int, ...]
    nhead: tuple[int, ...]
    blocks: tuple[tuple[int, ...], tuple[int, ...]]
    block_repeat: tuple[tuple[int, ...], tuple[int, ...]]
    level_config: tuple[str, ...]
    c_clip_seq: int = 4
    kernel_size: int = 3
    self_attn: bool | tuple[bool, ...] = True
    t_conds: tuple[str, ...]
    native_compression: float = COMPRESSION

    def __post_init__(self):
        for field in fields(self):
            object.__setattr__(self, field.name, as_tuples(getattr(self, field.name)))

    @property
    def res_blocks(self) -> int:
        """How many ResBlocks run in one pass, repeats counted: the length of a full list of control maps."""
        return len(self.res_block_widths)

    @property
    def res_block_widths(self) -> tuple[int, ...]:
        """The channels of every ResBlock of one pass, in the order in which they run, repeats counted."""
        levels = tuple(zip(self.level_config, self.c_hidden))
        return tuple(
            width
            for way, run in enumerate((levels, levels[::-1]))
            for (kinds, width), groups, repeats in zip(run, self.blocks[way], self.block_repeat[way])
            for _ in range(kinds.count("C") * groups * repeats)
        )


def join_conditions(parts: Sequence[Tensor], c_cond: int) -> Tensor:
    """Mapped conditions (1 or B, n, k c_cond) as normed tokens (1 or B, M, c_cond), after the SiLU of every block."""
    batch = max(part.shape[0] for part in parts)
    tokens = torch.cat([part.reshape(part.shape[0], -1, c_cond).expand(batch, -1, -1) for part in parts], dim=1)
    return F.silu(channel_norm(tokens))


def change_level(scaler: nn.Sequential, scale: float, x: Tensor) -> Tensor:
    """``x`` (B, H, W, C) on another level."""
    out = convolve(scaler[1], channel_norm(x, scale)).to(x.dtype)
    return out if scale == 1 else out * scale


class CascadeUNet(nn.Module):
    """The part that Stage B and Stage C share. A subclass adds its scalers, its conditions and its ``forward``."""

    name = "This network"
    down_blocks: Tree
    down_downscalers: Tree
    down_repeat_mappers: Tree
    up_blocks: Tree
    up_upscalers: Tree
    up_repeat_mappers: Tree

    def __init__(self, config: UNetConfig, *, dtype=None, device=None, backend: Backend = TORCH):
        super().__init__()
        self.config = config
        self.dtype = dtype
        self.layer_args = {"dtype": dtype, "device": device}
        self.backend = backend
        width, patch = config.c_hidden[0], config.patch_size**2
        self.embedding = nn.Sequential(nn.PixelUnshuffle(config.patch_size), self.conv(config.c_in * patch, width))
        self.add_levels()
        self.clf = nn.Sequential(
            nn.Identity(), self.conv(width, config.c_out * patch), nn.PixelShuffle(config.patch_size)
        )

    def conv(self, c_in: int, c_out: int, kernel_size: int = 1, **kwargs) -> nn.Module:
        """A convolution of the backend, pointwise unless told."""
        return self.backend.Conv2d(c_in, c_out, kernel_size=kernel_size, **kwargs, **self.layer_args)

    def linear(self, c_in: int, c_out: int) -> nn.Module:
        """A linear layer of the backend."""
        return self.backend.Linear(c_in, c_out, **self.layer_args)

    def downscaler(self, c_in: int, c_out: int, level: int) -> nn.Module:
        """The (B, C, H, W) module that leads from ``level`` to the next deeper one."""
        raise NotImplementedError

    def upscaler(self, c_in: int, c_out: int, level: int) -> nn.Module:
        """The (B, C, H, W) module that leads back to ``level``."""
        raise NotImplementedError

    def add_levels(self) -> None:
        """Blocks, scalers and repeat mappers under the official names; index 0 of a scaler is its weightless norm."""
        (down, up), (down_repeats, up_repeats) = self.config.blocks, self.config.block_repeat
        widths, last = self.config.c_hidden, len(self.config.c_hidden) - 1
        self.down_downscalers, self.up_upscalers = nn.ModuleList(), nn.ModuleList()
        self.down_blocks, self.down_repeat_mappers = nn.ModuleList(), nn.ModuleList()
        self.up_blocks, self.up_repeat_mappers = nn.ModuleList(), nn.ModuleList()
        for i in range(last + 1):
            scaler = self.downscaler(widths[i - 1], widths[i], i - 1) if i > 0 else None
            self.down_downscalers.append(nn.Sequential(nn.Identity(), scaler) if scaler else nn.Identity())
            self.down_blocks.append(self.level(i, down[i], c_skip=0))
            self.down_repeat_mappers.append(self.repeat_mappers(widths[i], down_repeats[i]))
        for i in range(last, -1, -1):
            scaler = self.upscaler(widths[i], widths[i - 1], i - 1) if i > 0 else None
            self.up_blocks.append(self.level(i, up[last - i], c_skip=widths[i] if i < last else 0))
            self.up_repeat_mappers.append(self.repeat_mappers(widths[i], up_repeats[last - i]))
            self.up_upscalers.append(nn.Sequential(nn.Identity(), scaler) if scaler else nn.Identity())

    def repeat_mappers(self, width: int, repeats: int) -> nn.ModuleList:
        """What runs between two repetitions of a level."""
        return nn.ModuleList([self.conv(width, width) for _ in range(repeats - 1)])

    def level(self, level: int, groups: int, c_skip: int) -> nn.ModuleList:
        """The blocks of one level in a flat list; the skip goes to the very first block if that is a ResBlock."""
        kinds = self.config.level_config[level] * groups
        return nn.ModuleList([self.block(kind, level, c_skip if i == 0 else 0) for i, kind in enumerate(kinds)])

    def block(self, kind: str, level: int, c_skip: int) -> nn.Module:
        """The block that a letter of ``level_config`` stands for; raises :class:`WrongInput` for an unknown one."""
        config, width, args = self.config, self.config.c_hidden[level], {**self.layer_args, "backend": self.backend}
        if kind == "C":
            return ResBlock(width, c_skip, config.kernel_size, **args)
        if kind == "T":
            return TimestepBlock(width, config.c_r, config.t_conds, **args)
        if kind == "A":
            own = config.self_attn[level] if isinstance(config.self_attn, tuple) else config.self_attn
            return AttnBlock(width, config.c_cond, config.nhead[level], own, **args)
        if kind == "F":
            return FeedForwardBlock(width, **args)
        raise WrongInput(
            f"A level_config can hold the blocks C, T, A and F, but this one holds {kind!r}. "
            "Correct the configuration of the network."
        )

    def check_latent(self, x: Tensor) -> None:
        """Raises :class:`~.errors.WrongInput` unless ``x`` is a latent that this network can denoise."""
        config = self.config
        if x.dim() != 4 or x.shape[1] != config.c_in:
            given = f"{x.shape[1]} channels" if x.dim() == 4 else f"the shape {tuple(x.shape)}"
            owner = {4: "a Stage B (decoder) latent", 16: "a Stage C (prior) latent"}
            looks = owner.get(x.shape[1]) if x.dim() == 4 else None
            raise WrongInput(
                f"{self.name} was given a latent with {given}{', which is ' + looks if looks else ''}. "
                f"It needs {config.c_in} channels: connect {owner.get(config.c_in, 'a matching latent')}."
            )
        if x.shape[2] % config.patch_size or x.shape[3] % config.patch_size or 0 in x.shape[2:]:
            raise WrongInput(
                f"{self.name} was given a latent of {x.shape[3]} x {x.shape[2]} cells (width x height), "
                f"but both have to be multiples of {config.patch_size}. Choose a picture size whose sides "
                "are multiples of 8 pixels, or take the latent from the canvas."
            )

    def check_condition(self, name: str, value: Tensor, width: int, x: Tensor) -> Tensor:
        """``value`` (1 or B, width) or (1 or B, n, width) as (1 or B, n, width) in the dtype and on the device of x."""
        value = value[:, None] if value.dim() == 2 else value
        if value.dim() != 3 or value.shape[-1] != width or value.shape[0] not in (1, x.shape[0]):
            raise WrongInput(
                f"{name} of {self.name} has the shape {tuple(value.shape)}, but the model needs a width "
                f"of {width} and a batch of 1 or {x.shape[0]}. Use the text and image encoders that "
                "belong to Stable Cascade."
            )
        return value.to(device=x.device, dtype=x.dtype)

    def start_run(
        self, x: Tensor, r: Tensor, conds: dict[str, Tensor | None], cond: Tensor, control: Any, hooks: BlockHooks
    ) -> Pass:
        """What a pass over the latent ``x`` hands to its blocks; a scalar condition that is not given is 0."""
        zero, scale = r.new_zeros(1), choose_stream_scale(x.dtype)
        given = (conds.get(name) for name in self.config.t_conds)
        levels = [r, *(zero if level is None else level for level in given)]
        times = [timestep_embedding(level, self.config.c_r).to(x.dtype) for level in levels]  # (1 or B, c_r)
        levels_of_blocks = (*self.down_blocks, *self.up_blocks)
        alone = works_alone(hooks)
        around = read_neighbours(levels_of_blocks, x if alone else None)
        modulations = map_times(list(around), times, scale, x.dtype, list(around.values()))
        run = Pass(scale, times[0], modulations, cond, control or (), hooks, alone=alone)
        if alone and scale != 1:
            residual = [block for level in levels_of_blocks for block in level if isinstance(block, ResBlock)]
            run.held = scale_biases(residual, x, scale)
        return run

    def embed(self, x: Tensor, scale: float, plus: Tensor | None = None) -> Tensor:
        """Latent (B, c_in, H, W) -> (B, H/patch, W/patch, C), normed, plus (C): ``scale`` times the residual stream."""
        rows = self.embedding[0](x).contiguous(memory_format=torch.channels_last).permute(0, 2, 3, 1)
        h = run_scaled(self.embedding[1], rows, 1.0, self.backend, convolve).to(x.dtype)
        return channel_norm(h, 1.0, scale, None if plus is None else plus * scale)

    def measure_grid(self, x: Tensor) -> tuple[int, int]:
        """Rows and columns of the embedded latent ``x`` (B, c_in, H, W)."""
        return x.shape[2] // self.config.patch_size, x.shape[3] // self.config.patch_size

    def read_out(self, x: Tensor, scale: float) -> Tensor:
        """The last norm and projection: (B, H, W, C) -> (B, c_out, H patch, W patch)."""
        return self.clf[2](self.clf[1](nchw(channel_norm(x, scale)))).contiguous()

    def down(self, x: Tensor, run: Pass) -> list[Tensor]:
        """Returns the output of every level, the shallowest first: skips, and where the way back starts."""
        groups = sum(n * repeat for n, repeat in zip(self.config.blocks[0], self.config.block_repeat[0]))
        number, levels = 0, []
        for level, blocks in enumerate(self.down_blocks):
            if level > 0:
                x = self.rescale(self.down_downscalers[level], x, run)
            skip = x
            mappers = self.down_repeat_mappers[level]
            run.mapped = {} if len(mappers) else None
            for repeat in range(len(mappers) + 1):
                for group in self.groups(level, blocks):
                    middle = number == groups - 1
                    place = Place("middle", 0) if middle else Place("input", number)
                    run_group = self.replace_group if run.hooks.replaces_group(place) else self.run_group
                    x = run_group(group, x, None, place, run)
                    x = skip = run.show("middle_block" if middle else "input_block", place, x)
                    if not middle:
                        x = run.show("input_block_after_skip", place, x)
                    number += 1
                if repeat < len(mappers):
                    x = skip = self.repeat(mappers[repeat], x, run)
            levels.append(skip)
        return levels

    def up(self, levels: list[Tensor], run: Pass) -> Tensor:
        """Back to the shallowest level; ``levels`` are used up, so that none outlives its use."""
        number, last, x = 0, len(self.up_blocks) - 1, levels.pop()
        for index, blocks in enumerate(self.up_blocks):
            mappers, from_below = self.up_repeat_mappers[index], levels.pop() if index > 0 else None
            run.mapped = {} if len(mappers) else None
            for repeat in range(len(mappers) + 1):
                for j, group in enumerate(self.groups(last - index, blocks)):
                    skip = from_below if j == 0 and isinstance(group[0], ResBlock) else None
                    if skip is not None:
                        x = run.hooks.resize(x, skip.shape[1:3])
                    place = Place("output", number)
                    x, skip = run.show_with_skip(place, x, skip)
                    run_group = self.replace_group if run.hooks.replaces_group(place) else self.run_group
                    handed = [x]
                    del x  # kept here, it would outlive the first block of the group
                    x = run_group(group, handed.pop(), skip, place, run)
                    number += 1
                if repeat < len(mappers):
                    x = self.repeat(mappers[repeat], x, run)
            if index < last:
                x = self.rescale(self.up_upscalers[index], x, run)
        return x

    def groups(self, level: int, blocks: Iterable[nn.Module]) -> list[list[nn.Module]]:
        """The blocks of a level cut into repetitions of its ``level_config``."""
        row, size = list(blocks), len(self.config.level_config[level])
        return [row[i : i + size] for i in range(0, len(row), size)]

    def run_group(self, group: list[nn.Module], x: Tensor, skip: Tensor | None, place: Place, run: Pass) -> Tensor:
        """``x`` (B, H, W, C) through the blocks of one group, the ``skip`` into its first ResBlock."""
        if run.alone:
            return run_group_alone(group, x, skip, place, run)
        attentions = 0
        for block in group:
            if isinstance(block, ResBlock):
                x, skip = run.hooks.run_block(block, run.add_control(x), skip, run.scale), None
            elif isinstance(block, TimestepBlock):
                x = block(x, run.modulations[block])
            elif isinstance(block, AttnBlock):
                at = place._replace(layer=attentions)
                x = block(x, run.map_condition(block), run.scale, at, run.hooks)
                x = run.show("attention_block", at, x, run.time)
                attentions += 1
            else:
                x = run.hooks.run_block(cast(FeedForwardBlock, block), x, None, run.scale)
        return x

    def replace_group(self, group: list[nn.Module], x: Tensor, skip: Tensor | None, place: Place, run: Pass) -> Tensor:
        """As :meth:`run_group`, by a hook that may run the group or leave it out; the control maps stay in step."""
        first = run.res_blocks
        # What the hook hands in is the hook's own, and may not be written over.
        x = run.hooks.replace_group(place, x, lambda x: self.run_group(group, x.clone(), skip, place, run))
        run.res_blocks = first + sum(isinstance(block, ResBlock) for block in group)
        return x

    def rescale(self, scaler: nn.Sequential, x: Tensor, run: Pass) -> Tensor:
        """``x`` (B, H, W, C) on the next level."""
        return change_level(scaler, run.scale, x)

    def repeat(self, mapper: nn.Module, x: Tensor, run: Pass) -> Tensor:
        """``x`` (B, H, W, C) through what stands between two repetitions of a level."""

        def map_rows(rows: Tensor) -> Tensor:
            return run_scaled(mapper, rows, run.scale, self.backend, convolve)

        return run.hooks.run_rowwise(map_rows, x, 2 * x.shape[-1])
