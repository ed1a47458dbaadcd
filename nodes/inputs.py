"""Inputs that nodes of several areas have."""

from __future__ import annotations

from comfy_api.latest import io

from ..stages.inputs import inpaint
from .host.files.native import Sides


def side_input(
    name: str, sides: Sides, tooltip: str, *, min: int, max: int, step: int, advanced: bool | None = None
) -> io.Int.Input:
    """A side of the picture in pixels. Where what it begins with follows this machine, ``authored`` goes with it."""
    return io.Int.Input(
        name,
        default=sides.here,
        min=min,
        max=max,
        step=step,
        advanced=advanced,
        extra_dict=None if sides.authored is None else {"authored": sides.authored},
        tooltip=tooltip,
    )


def fraction_input(
    name: str, default: float, tooltip: str, *, optional: bool = False, advanced: bool | None = None
) -> io.Float.Input:
    """A number from 0 to 1: a part of the run, or how much of something."""
    return io.Float.Input(
        name,
        default=default,
        min=0.0,
        max=1.0,
        step=0.01,
        round=0.001,
        optional=optional,
        advanced=advanced,
        tooltip=tooltip,
    )


def strength_input(name: str, tooltip: str, *, advanced: bool | None = None) -> io.Float.Input:
    """How strongly a ControlNet is followed; 1 as it was trained."""
    return io.Float.Input(
        name, default=1.0, min=0.0, max=10.0, step=0.01, round=0.001, advanced=advanced, tooltip=tooltip
    )


def part_inputs(context: float, target: io.Int.Input) -> list[io.Input]:
    """How the parts of a picture are cut out; ``target`` is the size that they are worked on at."""
    return [
        io.Float.Input(
            "context",
            default=context,
            min=1.0,
            max=10.0,
            step=0.1,
            round=0.01,
            tooltip="Size of a part by the size of what is marked: more shows the model more of the surroundings.",
        ),
        io.Int.Input("grow", default=8, min=0, max=512, tooltip="Pixels by which what is marked is widened."),
        io.Int.Input(
            "feather",
            default=16,
            min=0,
            max=512,
            tooltip="Pixels around it over which the new fades into the old; nothing beyond them changes.",
        ),
        target,
    ]


def threshold_input() -> io.Float.Input:
    """What of a mask counts."""
    return fraction_input(
        "threshold",
        inpaint.THRESHOLD,
        "Mask values up to this count as nothing. Mattes hold traces everywhere.",
        advanced=True,
    )


def tile_inputs(size: Sides, least: int, overlap: Sides, tooltips: tuple[str, str, str]) -> list[io.Input]:
    """Tiles of Stage B in pixels: their side, which may be ``least``, what they share, and how many go together."""
    return [
        side_input("tile_size", size, tooltips[0], min=least, max=4096, step=64),
        side_input("tile_overlap", overlap, tooltips[1], min=64, max=2048, step=64, advanced=True),
        io.Int.Input("tile_batch", default=1, min=1, max=16, advanced=True, tooltip=tooltips[2]),
    ]
