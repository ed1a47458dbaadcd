"""Inputs that nodes of several areas have."""

from __future__ import annotations

from comfy_api.latest import io

from .host.files.native import Sides


def side_input(name: str, sides: Sides, tooltip: str, *, min: int, max: int, step: int) -> io.Int.Input:
    """A side of the picture in pixels. What it begins with follows this machine, so that ``authored`` goes with it."""
    return io.Int.Input(
        name, default=sides.here, min=min, max=max, step=step, extra_dict={"authored": sides.authored}, tooltip=tooltip
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
