"""What is to be predicted: the official objective for Stage C, Stage B and ControlNets, and a plain one for Stage A.

An objective turns rows (one mapping of tensors a picture, without a batch dimension) and one generator a row into a
loss for each row. All chance comes from the row's generator, on the CPU, in a fixed order.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..inputs.hints import pack_inpaint
from .losses import (
    add_training_noise,
    epsilon_losses,
    keep_mask,
    offset_noise,
    pyramid_noise,
    replace_dropped,
    sample_times,
)

Row = Mapping[str, Tensor]
ALL, SPOKEN = "all_", {"text", "pooled", "ids"}
"""What the name of a tensor of all ways begins with, and what of a row belongs to its caption, not to its picture."""
KEEP_IMAGE = 0.1
"""How often the official training shows Stage C a picture's own CLIP-vision embedding."""
DROP_EFFNET = 0.1
"""How often Stage B is trained without a Stage C latent."""


class Losses(NamedTuple):
    """``raw`` (B,) with its graph; ``logsnr`` (B,), or None where there is no noise level."""

    raw: Tensor
    logsnr: Tensor | None


def row_signature(row: Row) -> tuple[Any, ...]:
    """Rows with equal signatures can be stacked."""
    return tuple((name, tuple(row[name].shape)) for name in sorted(row))


def choose_way(row: Row, generator: torch.Generator) -> Row:
    """``row`` with one of the ways in which its picture is shown, and one of its captions, where it has several:
    "all_latent" (V, 16, h, w) becomes "latent" (16, h, w), and so on."""
    counts = {name[len(ALL) :] in SPOKEN: len(value) for name, value in row.items() if name.startswith(ALL)}
    drawn = {kind: int(torch.randint(counts[kind], (1,), generator=generator)) for kind in sorted(counts)}
    return {
        name.removeprefix(ALL): value[drawn[name[len(ALL) :] in SPOKEN]] if name.startswith(ALL) else value
        for name, value in row.items()
    }


def stack_rows(rows: Sequence[Row], name: str) -> Tensor:
    """One tensor (B, ...) of all rows, float32 on the CPU where it is of floats."""
    values = torch.stack([row[name] for row in rows])
    return values.float() if values.is_floating_point() else values


@dataclass(eq=False)
class DiffusionObjective:
    """Predict the noise in ``latent``. A subclass adds the conditions.

    drop_text: how often a prompt is replaced by the empty one, ``empty`` with "text" (N, width) and "pooled"
    (1, width). bfloat16: compute products in bfloat16 (autocast).
    """

    net: nn.Module
    empty: Row
    device: torch.device | str = "cpu"
    bfloat16: bool = False
    shift: float = 1.0
    offset: float = 0.0
    pyramid: bool = False
    drop_text: float = 0.05
    nothing: float = field(default=1.0, init=False)
    """The loss of a network that always answers zero."""

    def losses(self, rows: Sequence[Row], generators: Sequence[torch.Generator]) -> Losses:
        """Losses of ``rows``, which have one signature."""
        rows = [choose_way(row, g) for row, g in zip(rows, generators)]
        x0 = stack_rows(rows, "latent")
        t = torch.cat([sample_times(1, g) for g in generators])
        noise = torch.cat([self.noise(x0[i : i + 1].shape, g) for i, g in enumerate(generators)])
        conditions = self.conditions(rows, generators)
        seen = add_training_noise(x0, noise, t, self.shift)  # on the CPU, for the same digits everywhere
        device = torch.device(self.device)
        with torch.autocast(device.type, torch.bfloat16, enabled=self.bfloat16):
            predicted = self.predict(
                seen.x.to(device), seen.r.to(device), {name: value.to(device) for name, value in conditions.items()}
            )
        wrong = predicted.float() - seen.noise.to(device)
        if "mask" in rows[0]:
            mask = stack_rows(rows, "mask").to(device)
            wrong = wrong * (mask / mask.mean((1, 2, 3), keepdim=True).clamp(min=1e-3)).sqrt()
        raw = epsilon_losses(wrong, torch.zeros_like(wrong))
        return Losses(raw * stack_rows(rows, "weight").to(device) if "weight" in rows[0] else raw, seen.logsnr)

    def noise(self, shape: Sequence[int], generator: torch.Generator) -> Tensor:
        """Normal noise, with whole channels moved and coarse noise added where asked for."""
        noise = torch.randn(tuple(shape), generator=generator)
        if self.offset:
            noise = offset_noise(noise, self.offset, generator)
        return pyramid_noise(noise, generator=generator) if self.pyramid else noise

    def keep(self, generators: Sequence[torch.Generator], drop: float) -> Tensor:
        """Which rows keep a condition, (B,) bool."""
        return torch.cat([keep_mask(1, drop, g) for g in generators])

    def conditions(self, rows: Sequence[Row], generators: Sequence[torch.Generator]) -> dict[str, Tensor]:
        """What the network is told, on the CPU."""
        raise NotImplementedError

    def predict(self, x: Tensor, r: Tensor, conditions: dict[str, Tensor]) -> Tensor:
        """The noise that the network sees in ``x``."""
        return self.net(x, r, **conditions)


class StageCObjective(DiffusionObjective):
    """Rows: "latent" (16, h, w), "text" (N, width), "pooled" (1, width), and if there is one "image" (1, width)."""

    def conditions(self, rows: Sequence[Row], generators: Sequence[torch.Generator]) -> dict[str, Tensor]:
        text, pooled = stack_rows(rows, "text"), stack_rows(rows, "pooled")
        keep = self.keep(generators, self.drop_text)
        conditions = {
            "clip_text": replace_dropped(text, keep, repeat_tokens(self.empty["text"], text.shape[1])),
            "clip_text_pooled": replace_dropped(pooled, keep, self.empty["pooled"].float()),
        }
        if "image" in rows[0]:
            seen = self.keep(generators, 1 - KEEP_IMAGE)
            conditions["clip_img"] = replace_dropped(stack_rows(rows, "image"), seen)
        return conditions


def repeat_tokens(text: Tensor, count: int) -> Tensor:
    """The empty prompt's tokens (N, width) as often as a longer prompt has room for: (count, width)."""
    times = -(-count // len(text))
    return text.float().repeat(times, 1)[:count]


class StageBObjective(DiffusionObjective):
    """Rows: "latent" (4, H, W), "effnet" (16, h, w), "pooled" (1, width). Officially with pyramid noise."""

    def conditions(self, rows: Sequence[Row], generators: Sequence[torch.Generator]) -> dict[str, Tensor]:
        keep = self.keep(generators, self.drop_text)
        pooled = replace_dropped(stack_rows(rows, "pooled"), keep, self.empty["pooled"].float())
        return {
            "effnet": replace_dropped(stack_rows(rows, "effnet"), self.keep(generators, DROP_EFFNET)),
            "clip": pooled,
        }


@dataclass(eq=False)
class ControlObjective(StageCObjective):
    """As Stage C, whose own weights stay, with the maps of a ControlNet that learns. Rows also have "hint" (c, H, W).

    masked: the hint is a picture, of which another random part is hidden each time (inpainting).
    """

    controlnet: nn.Module = field(kw_only=True)
    masked: bool = False

    def conditions(self, rows: Sequence[Row], generators: Sequence[torch.Generator]) -> dict[str, Tensor]:
        return {**super().conditions(rows, generators), "hint": stack_hints(rows, generators, self.masked)}

    def predict(self, x: Tensor, r: Tensor, conditions: dict[str, Tensor]) -> Tensor:
        told = dict(conditions)
        maps = self.controlnet(told.pop("hint"))
        return self.net(x, r, **told, control=[maps.get(index) for index in range(max(maps) + 1)])


def stack_hints(rows: Sequence[Row], generators: Sequence[torch.Generator], masked: bool) -> Tensor:
    """The hints of ``rows`` (B, c, H, W) in [0, 1], or latents; each with another part hidden where ``masked``."""
    hint = torch.stack([row["hint"].float() / (1 if row["hint"].is_floating_point() else 255) for row in rows])
    if masked:
        hint = pack_inpaint(hint, torch.stack([draw_mask(hint.shape[2:], g) for g in generators]))
    return hint


@dataclass(eq=False)
class TrunkObjective:
    """Tell the latent of a picture from its hint, by a linear layer behind a ControlNet's trunk.

    Rows: "latent" (16, h, w) and "hint" (c, H, W). The loss is the mean squared error.
    """

    trunk: nn.Module
    head: nn.Module
    device: torch.device | str = "cpu"
    bfloat16: bool = False
    masked: bool = False
    nothing: float | None = field(default=None, init=False)

    def losses(self, rows: Sequence[Row], generators: Sequence[torch.Generator]) -> Losses:
        """Losses of ``rows``, which have one signature."""
        rows = [choose_way(row, g) for row, g in zip(rows, generators)]
        device, latent = torch.device(self.device), stack_rows(rows, "latent")
        hint = self.see_hints(rows, generators)
        with torch.autocast(device.type, torch.bfloat16, enabled=self.bfloat16):
            told = self.head(self.trunk(hint)).float()
        if told.shape[2:] != latent.shape[2:]:
            told = nn.functional.interpolate(told, size=latent.shape[2:], mode="bilinear")
        return Losses((told - latent.to(device)).square().flatten(1).mean(1), None)

    def see_hints(self, rows: Sequence[Row], generators: Sequence[torch.Generator]) -> Tensor:
        """The hints of ``rows``, each shown in one way, where the trunk is."""
        hint = stack_hints([choose_way(row, g) for row, g in zip(rows, generators)], generators, self.masked)
        return hint.to(torch.device(self.device), memory_format=torch.channels_last)


def draw_mask(size: Sequence[int], generator: torch.Generator) -> Tensor:
    """What is to be painted anew, (1, H, W): one to three rectangles, each up to 0.8 of a side."""
    mask = torch.zeros(1, *size)
    for _ in range(int(torch.randint(1, 4, (1,), generator=generator))):
        spans = []
        for side in size:
            length, place = torch.rand(2, generator=generator).tolist()
            wide = max(1, int(side * (0.1 + 0.7 * length)))
            start = int(place * (side - wide + 1))
            spans.append(slice(start, start + wide))
        mask[0, spans[0], spans[1]] = 1
    return mask
