"""Turns a workflow file, as ComfyUI's frontend saves it, into the prompt that its server executes.

The server knows prompts only; the conversion is the frontend's. This is the same conversion for commands and tests:
widgets by position, converted widgets, muted and bypassed nodes, reroutes, primitives and subgraphs.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

from ..messages import Stop
from .graph import BYPASS, INPUT_NODE, NEVER, OUTPUT_NODE, Node, Reader, Scope, running, wrap_value
from .widgets import WidgetPlace


class Source(NamedTuple):
    """An output of a node of the prompt."""

    node: str
    slot: int


@dataclass
class Converted:
    """The prompt, and for every value in it the place in the workflow where it lies."""

    prompt: dict[str, dict[str, Any]]
    boxes: dict[tuple[str, str], WidgetPlace] = field(default_factory=dict)

    def set(self, node: str, name: str, value: Any) -> None:
        """Replace a value in the prompt and in the workflow that it came from."""
        self.prompt[node]["inputs"][name] = value
        box = self.boxes.get((node, name))
        if box is not None and box.stored:
            box.value = value


def is_prompt(data: Any) -> bool:
    """Whether this is a prompt already (the API format) rather than a workflow."""
    return (
        isinstance(data, dict)
        and bool(data)
        and all(isinstance(node, dict) and "class_type" in node for node in data.values())
    )


def convert(workflow: dict[str, Any], object_info: dict[str, Any]) -> Converted:
    """The prompt for ``workflow`` on a server with these node definitions. Raises ``Stop`` for what cannot be sent."""
    if is_prompt(workflow):
        prompt = {str(key): {**node, "inputs": dict(node.get("inputs") or {})} for key, node in workflow.items()}
        return Converted(prompt)
    if not isinstance(workflow, dict) or not isinstance(workflow.get("nodes"), list):
        raise Stop(
            "This file is no ComfyUI workflow: it has no list of nodes. Save the workflow from ComfyUI's menu "
            "(Save, or Export) and use that file."
        )
    return _Converter(workflow, object_info).run()


class _Converter:
    def __init__(self, workflow: dict[str, Any], object_info: dict[str, Any]) -> None:
        self.object_info = object_info
        self.reader = Reader(workflow, object_info)
        self.result = Converted({})

    def run(self) -> Converted:
        for scope, node in running(self.reader.root):
            self._add(scope, node)
        prompt = self.result.prompt
        for node in prompt.values():
            links = [name for name, value in node["inputs"].items() if isinstance(value, list)]
            for name in links:
                if node["inputs"][name][0] not in prompt:
                    del node["inputs"][name]
        return self.result

    def _add(self, scope: Scope, node: Node) -> None:
        name = scope.name(node)
        inputs: dict[str, Any] = {}
        for widget in node.widgets:
            box = scope.box(node, widget)
            inputs[widget.name] = wrap_value(widget, box.value)
            self.result.boxes[(name, widget.name)] = box
        for index, entry in enumerate(node.inputs):
            found = self._input(scope, node, index, set())
            if isinstance(found, WidgetPlace):
                widget = node.widget(entry.name)
                inputs[entry.name] = wrap_value(widget, found.value) if widget else found.value
                self.result.boxes[(name, entry.name)] = found
            elif found is not None:
                inputs[entry.name] = [found.node, found.slot]
                self.result.boxes.pop((name, entry.name), None)
        definition = self.object_info.get(node.kind) or {}
        title = node.raw.get("title") or definition.get("display_name") or node.kind
        self.result.prompt[name] = {"inputs": inputs, "class_type": node.kind, "_meta": {"title": title}}

    def _once(self, key: tuple[Any, ...], seen: set[tuple[Any, ...]]) -> None:
        if key in seen:
            raise Stop(f"The workflow's links run in a circle through node {key[1]}. Take one of them out.")
        seen.add(key)

    def _input(
        self, scope: Scope, node: Node, index: int, seen: set, kind: str | None = None
    ) -> Source | WidgetPlace | None:
        """What an input receives: an output, a value, or nothing."""
        self._once(("input", scope.name(node), index), seen)
        entry = node.inputs[index]
        if entry.link is None:
            return None
        link = scope.links.get(int(entry.link))
        if link is None:
            raise Stop(
                f"The workflow is damaged: input '{entry.name}' of node {scope.name(node)} names the link "
                f"{entry.link}, which is not in the file. Open it in ComfyUI, connect that input again, save."
            )
        if link.origin == INPUT_NODE and scope.instance is not None:
            return self._outside(scope, link.origin_slot, seen)
        origin = scope.nodes.get(link.origin)
        if origin is None:
            raise Stop(
                f"The workflow is damaged: a link to node {scope.name(node)} starts at node {link.origin}, "
                "which is not in the file. Open it in ComfyUI, connect that input again and save."
            )
        return self._output(scope, origin, link.origin_slot, kind or entry.kind, seen)

    def _outside(self, scope: Scope, slot: int, seen: set) -> Source | WidgetPlace | None:
        """What a subgraph's input receives from around its instance."""
        instance = scope.instance
        if slot >= len(instance.inputs):
            return None
        if instance.inputs[slot].link is None:
            return scope.promoted.get(slot)
        return self._input(scope.parent, instance, slot, seen)

    def _output(self, scope: Scope, node: Node, slot: int, kind: str, seen: set) -> Source | WidgetPlace | None:
        """What an output gives: itself, or what stands behind a bypass, a reroute, a primitive or a subgraph."""
        self._once(("output", scope.name(node), slot), seen)
        if node.raw.get("mode") == NEVER:
            return None
        if node.raw.get("mode") == BYPASS:
            index = _bypass(node, slot, kind)
            return None if index is None else self._input(scope, node, index, seen)
        if node.inner is not None:
            for link in node.inner.links.values():
                if link.target == OUTPUT_NODE and link.target_slot == slot:
                    return self._inside(node.inner, link.origin, link.origin_slot, kind, seen)
            return None
        if node.kind == "Reroute":
            return self._input(scope, node, 0, seen, kind) if node.inputs else None
        if node.kind == "PrimitiveNode":
            values = node.raw.get("widgets_values")
            box = WidgetPlace(values, 0) if isinstance(values, list) and values else None
            return scope.overrides.get((node.id, "value"), box)
        return Source(scope.name(node), slot)

    def _inside(self, inner: Scope, origin: str, slot: int, kind: str, seen: set) -> Source | WidgetPlace | None:
        if origin == INPUT_NODE:
            return self._outside(inner, slot, seen)
        if origin not in inner.nodes:
            raise Stop(
                f"The workflow is damaged: the subgraph at {':'.join(inner.path)} takes an output from node "
                f"{origin}, which is not in it. Open it in ComfyUI, connect that output again and save."
            )
        return self._output(inner, inner.nodes[origin], slot, kind, seen)


def _fits(first: str, second: str) -> bool:
    """Whether a link between two types is allowed; types may be lists, and ``*`` is any."""
    if first in ("*", "", "0") or second in ("*", "", "0"):
        return True
    ones, others = ({part.strip() for part in kind.lower().split(",")} for kind in (first, second))
    return bool(ones & others) or "*" in ones | others


def _bypass(node: Node, slot: int, kind: str) -> int | None:
    """Which input a bypassed node hands on at output ``slot`` to an input of type ``kind``."""
    inputs = node.inputs
    if not inputs:
        return None
    if kind in ("*", ""):
        return slot if slot < len(inputs) else 0
    output = node.outputs[slot] if slot < len(node.outputs) else kind
    if slot < len(inputs) and _fits(inputs[slot].kind, output) and _fits(inputs[slot].kind, kind):
        return slot
    exact = next((index for index, entry in enumerate(inputs) if entry.kind == kind), None)
    if exact is not None:
        return exact
    return next(
        (index for index, entry in enumerate(inputs) if _fits(entry.kind, output) and _fits(entry.kind, kind)), None
    )
