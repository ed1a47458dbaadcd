"""Batches of composed pictures, and pools of encoded ones that the diffusion stages learn from."""

from __future__ import annotations

import logging
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from cascade_studio.stages.inputs.canvas import Canvas
from cascade_studio.stages.nets.encoder import normalise

from .captions import Speaker, batch_tokens
from .compose import MIRRORED, ROOM, SIZES, compose, random_colour
from .data import MAIN, OTHER_STYLES, SIDE, is_there, pictures, read_split
from .loop import Place, make_once
from .towers import clip_normalise

log = logging.getLogger(__name__)

SHORT = 24
"""Tokens that nearly every caption fits into; training mostly leaves out the padding beyond them."""


@dataclass
class Batch:
    """``rgb`` (B, 3, side, side) in [0, 1], ``alpha`` (B, 1, side, side), subjects' numbers and background names."""

    rgb: Tensor
    alpha: Tensor
    subjects: list[int]
    colours: list[str]


class Scenes:
    """Draws subjects in the main style, with the share ``others`` in one of the others, at ``side`` (256, 128) px.

    ``sizes``, ``mirrored`` and ``room``: see :func:`.compose.compose`; ``shades``: :func:`.compose.random_colour`.
    """

    def __init__(
        self,
        rng: random.Random,
        others: float = 0.0,
        side: int = SIDE,
        sizes: tuple[float, float] = SIZES,
        mirrored: float = MIRRORED,
        room: float = ROOM,
        shades: float = 0.0,
    ) -> None:
        self.rng, self.others, self.side, self.shades = rng, others, side, shades
        self.placed = {"sizes": sizes, "mirrored": mirrored, "room": room}
        self.subjects, self.prompts = read_split()
        self.speaker = Speaker(self.subjects)
        self.styles = {style: pictures(style) for style in (MAIN, *(OTHER_STYLES if others else ()))}
        if side != SIDE:
            self.styles = {style: shrunk(array, SIDE // side) for style, array in self.styles.items()}
        self.there = {style: is_there(array) for style, array in self.styles.items()}

    def picture(self, subject: int) -> np.ndarray:
        """(256, 256, 4) uint8 in a random style that has the subject."""
        if self.rng.random() < self.others:
            style = self.rng.choice(OTHER_STYLES)
            if self.there[style][subject]:
                return self.styles[style][subject]
        return self.styles[MAIN][subject]

    def batch(self, count: int, subjects: list[int] | None = None, held: bool = False) -> Batch:
        """``count`` pictures of different subjects, or of the given ones."""
        chosen = self.rng.sample(range(len(self.subjects)), count) if subjects is None else subjects
        colours = [random_colour(self.subjects[i], self.rng, held, self.shades) for i in chosen]
        rgb, alpha = compose(np.stack([self.picture(i) for i in chosen]), colours, self.rng, self.side, **self.placed)
        return Batch(rgb, alpha, chosen, colours)

    def captions(self, subjects: list[int], colours: list[str], length: int = SHORT) -> Tensor:
        """Tokens (B, length) of random captions that fit into ``SHORT`` of them, as far as eight tries find one."""
        return batch_tokens(self.fragments(subjects, colours), length)

    def fragments(
        self,
        subjects: list[int],
        colours: list[str],
        bare: float = 0.5,
        foreign: float = Speaker.FOREIGN,
        length: int = SHORT,
    ) -> list[list[str]]:
        """The captions of :meth:`captions` before they are tokens, made for ``length`` of them; ``bare`` and
        ``foreign``: see :meth:`.captions.Speaker.caption`.
        """
        return [
            self.speaker.caption(index, colour, self.rng, bare, foreign, length - 2)
            for index, colour in zip(subjects, colours)
        ]


def shrunk(array: np.ndarray, factor: int) -> np.ndarray:
    """Pictures (N, H, W, 4) uint8 averaged over squares of ``factor`` pixels."""
    count, height, width, channels = array.shape
    small = np.empty((count, height // factor, width // factor, channels), np.uint8)
    for index, picture in enumerate(array):
        small[index] = picture.reshape(height // factor, factor, width // factor, factor, channels).mean((1, 3)).round()
    return small


def for_encoder(rgb: Tensor, canvas: Canvas) -> Tensor:
    """RGB of any size → the image encoder's input for the grid of ``canvas``, resized as the nodes do."""
    size = canvas.encoder_size[::-1]
    return normalise(F.interpolate(rgb, size=size, mode="bilinear", antialias=True))


def for_vision(rgb: Tensor, side: int) -> Tensor:
    """RGB → the vision tower's input of ``side`` px."""
    if rgb.shape[-1] == side:
        return clip_normalise(rgb)
    return clip_normalise(F.interpolate(rgb, size=(side, side), mode="bicubic", antialias=True).clamp(0, 1))


class Pool:
    """Encoded pictures. ``tensors`` hold one row a picture; ``subjects`` and ``colours`` say what it shows."""

    def __init__(self, saved: dict[str, Any]) -> None:
        self.tensors, self.subjects, self.colours = saved["tensors"], saved["subjects"], saved["colours"]

    def __len__(self) -> int:
        return len(self.subjects)

    def rows(self, index: list[int]) -> dict[str, Tensor]:
        """The tensors of some pictures, float32."""
        return {name: value[index].float() for name, value in self.tensors.items()}


Reader = Callable[[Tensor], Tensor]
"""Makes Stage C latents of pictures, RGB (B, 3, 256, 256) in [0, 1]."""


@torch.no_grad()
def make_pool(
    place: Place, name: str, scenes: Scenes, subjects: list[int], nets: dict[str, Any], held: bool = False
) -> Pool:
    """Compose and encode one picture for each entry of ``subjects``; read from the file ``name`` if it is there.

    ``nets``: "reader" gives ``effnet``, "stage_a" gives ``latent``, "vision" gives ``image``; kept in float16.
    ``held``: on the backgrounds that are held out for each subject.
    """
    return Pool(make_once(place, place.work / f"{name}.pt", lambda: _encode(place, name, scenes, subjects, nets, held)))


def _encode(
    place: Place, name: str, scenes: Scenes, subjects: list[int], nets: dict[str, Any], held: bool
) -> dict[str, Any]:
    """What :func:`make_pool` keeps."""
    kept: dict[str, list[Tensor]] = {}
    colours: list[str] = []
    for start in range(0, len(subjects), 32):
        batch = scenes.batch(0, subjects[start : start + 32], held)
        rgb = batch.rgb.to(place.device)
        found = {}
        if "reader" in nets:
            found["effnet"] = nets["reader"](rgb)
        if "stage_a" in nets:
            found["latent"] = nets["stage_a"].encode(rgb)
        if "vision" in nets:
            found["image"] = nets["vision"](for_vision(rgb, nets["vision"].config.image_size))
        for part, value in found.items():
            kept.setdefault(part, []).append(value.half().cpu())
        colours += batch.colours
    tensors = {part: torch.cat(rows) for part, rows in kept.items()}
    saved = {"tensors": tensors, "subjects": subjects, "colours": colours}
    for part, value in saved["tensors"].items():
        log.info("%s: %s mean %.3f std %.3f", name, part, value.float().mean(), value.float().std())
    return saved
