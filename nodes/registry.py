"""Every node of the pack, for the host."""

from __future__ import annotations

import functools
import math
import numbers
from typing import Any

from comfy_api.latest import ComfyExtension, io

from ..stages.errors import WrongInput
from . import (
    canvas,
    compare,
    conditioning,
    control,
    custom_sampling,
    detail,
    drafts,
    guidance,
    high_resolution,
    hints,
    image_prompts,
    inpaint,
    loaders,
    lora,
    merging,
    one_model,
    pictures,
    prompts,
    reports,
    sampling,
    speed,
    training,
    training_set,
    ultrapixel,
    upscale,
)
from .host.files.examples import place_pictures
from .host.files.names import share_examples
from .host.report.state import serve_state

KINDS = {
    "INT": (numbers.Integral, "a whole number"),
    "FLOAT": (numbers.Real, "a number"),
    "BOOLEAN": (numbers.Real, "on or off"),
    "STRING": (str, "text"),
    "COMBO": (str, "one of its choices"),
}
"""By type of a widget: what it holds, and how to say so."""


def guard(node: type[io.ComfyNode]) -> type[io.ComfyNode]:
    """``node`` with a check before its work: every widget holds what it is declared to hold, and no number is NaN.

    The host's own limits let NaN pass, and a wire of any type, or a program that sends prompts, may bring anything.
    """
    work = node.execute.__func__

    @functools.wraps(work)
    def execute(cls: type[io.ComfyNode], **inputs: Any) -> io.NodeOutput:
        schema = cls.SCHEMA or cls.define_schema()
        for declared in schema.inputs:
            if declared.id in inputs and declared.get_io_type() in KINDS:
                check_value(inputs[declared.id], declared, schema.display_name)
        return work(cls, **inputs)

    node.execute = classmethod(execute)
    return node


def check_value(value: Any, declared: io.Input, where: str) -> None:
    """Raises :class:`WrongInput` where a widget's ``value`` is of another kind than ``declared``, NaN or infinity."""
    kind, words = KINDS[declared.get_io_type()]
    whole = kind is numbers.Integral and isinstance(value, float) and value.is_integer()
    if value is None and (kind is str or declared.optional):
        return
    if not isinstance(value, kind) and not whole:
        raise WrongInput(
            f"{where} got {describe_value(value)} on '{declared.id}', which takes {words}. Look at the node that is "
            "wired into it, or at the program that sent this prompt."
        )
    if kind is numbers.Real and not math.isfinite(value):
        raise WrongInput(
            f"{where} got {value:g} on '{declared.id}', which is no number. Give it one: look at the node that is "
            "wired into it, or at the program that sent this prompt."
        )


def describe_value(value: Any) -> str:
    """A value of the wrong kind, in few words."""
    if type(value) in (int, float):
        return f"the number {value:g}"
    told = {bool: "on or off", str: "text", list: "a list", dict: "a dictionary"}
    return told.get(type(value), f"a {type(value).__name__}")


class CascadeStudioExtension(ComfyExtension):
    """What the host asks a pack for."""

    async def on_load(self) -> None:
        """Once, when ComfyUI has imported the pack."""
        share_examples()
        place_pictures()
        serve_state()

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        """Every node, in the order of the areas."""
        areas = (
            loaders,
            canvas,
            sampling,
            custom_sampling,
            conditioning,
            pictures,
            inpaint,
            drafts,
            reports,
            lora,
            merging,
            control,
            hints,
            image_prompts,
            prompts,
            guidance,
            speed,
            high_resolution,
            ultrapixel,
            detail,
            upscale,
            one_model,
            training_set,
            training,
            compare,
        )
        return [guard(node) for area in areas for node in area.NODES]
