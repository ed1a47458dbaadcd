"""The widgets of a node in a workflow file: which of its inputs they are, and where their values lie.

A workflow file keeps widget values by position only. The positions follow the node's definition (``/object_info``):
its inputs in order, each that is a widget, plus the helpers that the frontend adds beside some of them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

DYNAMIC_COMBO = "COMFY_DYNAMICCOMBO_V3"
AUTOGROW = "COMFY_AUTOGROW_V3"
UPLOAD = "IMAGEUPLOAD"
COMPARE = "IMAGECOMPARE"
WIDGET_TYPES = {
    "INT",
    "FLOAT",
    "BOOLEAN",
    "STRING",
    "MARKDOWN",
    "COMBO",
    "COLOR",
    "COLORS",
    "CURVE",
    "RANGE",
    "CHART",
    "GALLERIA",
    "PAINTER",
    "TEXTAREA",
    "BOUNDING_BOX",
    "BOUNDING_BOXES",
    COMPARE,
    UPLOAD,
    DYNAMIC_COMBO,
}
SEEDS = {"seed", "noise_seed"}

Spec = tuple[str, str, dict[str, Any]]


class WidgetPlace:
    """The place where a value lies, so that it can be read and, for another run, replaced in the workflow."""

    def __init__(self, holder: Any, key: Any, stored: bool = True) -> None:
        self.holder, self.key, self.stored = holder, key, stored

    @property
    def value(self) -> Any:
        """What the widget holds; it may be set."""
        return self.holder[self.key]

    @value.setter
    def value(self, value: Any) -> None:
        self.holder[self.key] = value


@dataclass
class Widget:
    """One widget: the input it sets, its type and options, and its value's place."""

    name: str
    kind: str
    options: dict[str, Any]
    box: WidgetPlace


def specs(inputs: dict[str, Any], order: dict[str, list[str]] | None = None) -> list[Spec]:
    """The inputs of a definition as (name, type, options), in the order in which the frontend makes them."""
    found = []
    for group in ("required", "optional"):
        entries = inputs.get(group) or {}
        names = [name for name in (order or {}).get(group, []) if name in entries]
        names += [name for name in entries if name not in names]
        found += [(name, *parse_spec(entries[name])) for name in names]
        if (
            group == "required"
            and UPLOAD not in (kind for _, kind, _ in found)
            and any(options.get("image_upload") for _, _, options in found)
        ):
            found.append(("upload", UPLOAD, {}))  # the frontend's own button
    return found


def parse_spec(spec: Any) -> tuple[str, dict[str, Any]]:
    """Type and options of one entry of /object_info, the list of an old combo among the options."""
    kind = spec[0]
    options = dict(spec[1]) if len(spec) > 1 and isinstance(spec[1], dict) else {}
    if isinstance(kind, list):
        return "COMBO", {"options": kind, **options}
    return str(kind), options


def is_widget(spec: Spec) -> bool:
    """Whether an input has a widget beside its socket."""
    _, kind, options = spec
    return options.get("widgetType", kind) in WIDGET_TYPES and not options.get("forceInput")


def _default(kind: str, options: dict[str, Any]) -> Any:
    if kind == DYNAMIC_COMBO:
        choices = options.get("options") or []
        return choices[0]["key"] if choices else None
    if "default" in options:
        return options["default"]
    if kind == "COMBO":
        choices = options.get("options") or [None]
        return choices[0]
    return {"INT": 0, "FLOAT": 0, "BOOLEAN": False, "STRING": ""}.get(kind)


def _helpers(name: str, kind: str, options: dict[str, Any]) -> int:
    """How many values of helper widgets follow a widget's own: the seed control, and for combos its filter."""
    control = options.get("control_after_generate")
    if kind == "INT":
        return 1 if (control if control is not None else name in SEEDS) else 0
    if kind == "FLOAT":
        return 1 if control else 0
    return 2 if kind == "COMBO" and control else 0


class _Values:
    """A node's saved values, handed out in order (a list) or by name (a dict)."""

    def __init__(self, saved: Any) -> None:
        self.saved, self.position = saved, 0

    def take(self, name: str, default: Any) -> WidgetPlace:
        if isinstance(self.saved, dict):
            return (
                WidgetPlace(self.saved, name)
                if name in self.saved
                else WidgetPlace({name: default}, name, stored=False)
            )
        position, self.position = self.position, self.position + 1
        if isinstance(self.saved, list) and position < len(self.saved):
            return WidgetPlace(self.saved, position)
        return WidgetPlace({name: default}, name, stored=False)

    def skip(self, count: int) -> None:
        self.position += count


def _children(name: str, value: Any, options: dict[str, Any]) -> list[Spec]:
    chosen = next((option for option in options.get("options") or [] if option["key"] == value), None)
    inputs = specs(chosen.get("inputs") or {}) if chosen else []
    return [(f"{name}.{child}", kind, child_options) for child, kind, child_options in inputs]


def _walk(inputs: list[Spec], values: _Values) -> Iterator[Widget]:
    for spec in inputs:
        name, kind, options = spec
        kind = options.get("widgetType", kind)
        if not is_widget(spec):
            continue
        if kind == UPLOAD:
            values.skip(1)
            continue
        if kind == COMPARE:
            # The one widget that is sent but never saved.
            yield Widget(name, kind, options, WidgetPlace({name: ["", ""]}, name, stored=False))
            continue
        box = values.take(name, _default(kind, options))
        yield Widget(name, kind, options, box)
        if kind == DYNAMIC_COMBO:
            yield from _walk(_children(name, box.value, options), values)
        values.skip(_helpers(name, kind, options))


def _without_forced(inputs: list[Spec], saved: list[Any]) -> list[int] | None:
    """Files from before frontend 1.16 keep a dummy value for each forced socket: the positions of the real ones."""
    marks: list[bool] = []
    for spec in inputs:
        forced = bool(spec[2].get("forceInput"))
        if forced or is_widget(spec):
            marks += [forced, False] if spec[2].get("control_after_generate") else [forced]
    if not any(marks) or len(marks) != len(saved):
        return None
    return [position for position, forced in enumerate(marks) if not forced]


class _Selected:
    """A list seen through chosen positions, so that boxes still lead to the saved values."""

    def __init__(self, saved: list[Any], positions: list[int]) -> None:
        self.saved, self.positions, self.position = saved, positions, 0

    def take(self, name: str, default: Any) -> WidgetPlace:
        position, self.position = self.position, self.position + 1
        if position < len(self.positions):
            return WidgetPlace(self.saved, self.positions[position])
        return WidgetPlace({name: default}, name, stored=False)

    def skip(self, count: int) -> None:
        self.position += count


def read_widgets(definition: dict[str, Any], saved: Any) -> list[Widget]:
    """The widgets of a node with this ``/object_info`` definition and these saved ``widgets_values``."""
    inputs = specs(definition.get("input") or {}, definition.get("input_order"))
    positions = _without_forced(inputs, saved) if isinstance(saved, list) else None
    values = _Values(saved) if positions is None else _Selected(saved, positions)
    return list(_walk(inputs, values))


def find_authored_default(kind: str, options: dict[str, Any]) -> Any:
    """The default of an input in files that are handed on: the pack's inputs whose own follows the machine name it."""
    return options.get("authored", _default(kind, options))


def write_values(definition: dict[str, Any], given: dict[str, Any], after: str = "fixed") -> list[Any]:
    """The ``widgets_values`` of a node: what is ``given`` by input name, else the definition's defaults.

    ``after`` is what the frontend does with a seed after each run. Raises ``ValueError`` for a combo that has neither.
    """
    return list(_write_each(specs(definition.get("input") or {}, definition.get("input_order")), given, after))


def _write_each(inputs: list[Spec], given: dict[str, Any], after: str) -> Iterator[Any]:
    for spec in inputs:
        name, kind, options = spec
        kind = options.get("widgetType", kind)
        if not is_widget(spec) or kind == COMPARE:
            continue
        if kind == UPLOAD:
            yield "image"  # what the frontend saves for the button
            continue
        if kind == "COMBO" and name not in given and "default" not in options:
            raise ValueError(f"The input '{name}' needs a value: its choices depend on the computer.")
        value = given[name] if name in given else find_authored_default(kind, options)
        yield value
        if kind == DYNAMIC_COMBO:
            yield from _write_each(_children(name, value, options), given, after)
        helpers = _helpers(name, kind, options)
        yield from [after, ""][:helpers]


def plain_prompt(text: str) -> str:
    """Resolve the frontend's dynamic prompts: comments go, and of ``{a|b}`` the first choice stays.

    The frontend draws a choice at random; a command that has to give the same picture twice cannot.
    """
    text = re.sub(r"/\*[\s\S]*?\*/|//.*", "", text)
    result, _ = _choices(text, 0, inside=False)
    return re.sub(r"\\([{}|])", r"\1", result)


def _choices(text: str, start: int, inside: bool) -> tuple[str, int]:
    first: str | None = None
    current, position = "", start
    while position < len(text):
        char = text[position]
        position += 1
        if char == "\\" and position < len(text):
            current += char + text[position]
            position += 1
        elif char == "{":
            inner, position = _choices(text, position, inside=True)
            current += inner
        elif inside and char == "}":
            break
        elif inside and char == "|":
            first = current if first is None else first
            current = ""
        else:
            current += char
    return (current if first is None else first), position
