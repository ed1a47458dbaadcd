"""A workflow file as a graph: nodes, links, and every subgraph instance as a scope of its own."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from ..messages import Stop
from .widgets import AUTOGROW, Widget, WidgetPlace, is_widget, plain_prompt, read_widgets, specs

NEVER, BYPASS = 2, 4
VIRTUAL = {"Reroute", "PrimitiveNode", "Note", "MarkdownNote"}
INPUT_NODE, OUTPUT_NODE = "-10", "-20"


class Link(NamedTuple):
    """From output ``origin_slot`` of node ``origin`` to input ``target_slot`` of node ``target``."""

    origin: str
    origin_slot: int
    target: str
    target_slot: int


@dataclass
class Input:
    """One input socket; ``link`` is None where nothing is connected."""

    name: str
    kind: str
    link: int | None = None
    widget: str | None = None


@dataclass
class Node:
    """One node of a scope. ``inner`` is its scope if it is an instance of a subgraph."""

    raw: dict[str, Any]
    inputs: list[Input]
    outputs: list[str]
    widgets: list[Widget] = field(default_factory=list)
    inner: Scope | None = None

    @property
    def id(self) -> str:
        """Unlike the file's a text in every case."""
        return str(self.raw["id"])

    @property
    def kind(self) -> str:
        """The class of node."""
        return str(self.raw["type"])

    @property
    def silent(self) -> bool:
        """Muted or bypassed: the node itself does not run."""
        return self.raw.get("mode") in (NEVER, BYPASS)

    def widget(self, name: str) -> Widget | None:
        """The widget ``name``, None where the node has none."""
        return next((widget for widget in self.widgets if widget.name == name), None)


@dataclass
class Scope:
    """The nodes of the workflow itself, or of one subgraph instance; ``path`` holds the ids that lead there.

    ``promoted`` are the values that the instance keeps for its subgraph's inputs, by slot; ``overrides`` those that
    it keeps for widgets deeper inside, by (node id, widget name).
    """

    path: tuple[str, ...]
    nodes: dict[str, Node]
    links: dict[int, Link]
    parent: Scope | None = None
    instance: Node | None = None
    outputs: list[dict[str, Any]] = field(default_factory=list)
    promoted: dict[int, WidgetPlace] = field(default_factory=dict)
    overrides: dict[tuple[str, str], WidgetPlace] = field(default_factory=dict)

    def name(self, node: Node) -> str:
        """The id of a node in the prompt: the ids of the instances around it, then its own."""
        return ":".join((*self.path, node.id))

    def box(self, node: Node, widget: Widget) -> WidgetPlace:
        """Where the value of a widget lies for this instance."""
        return self.overrides.get((node.id, widget.name), widget.box)


def _links(raw: Any) -> dict[int, Link]:
    found = {}
    for link in raw or []:
        if isinstance(link, dict):
            number, values = link["id"], [link[key] for key in ("origin_id", "origin_slot", "target_id", "target_slot")]
        else:
            number, values = link[0], link[1:5]
        found[int(number)] = Link(str(values[0]), int(values[1]), str(values[2]), int(values[3]))
    return found


def _kind(raw: Any) -> str:
    return "COMBO" if isinstance(raw, list) else str(raw)


def _raw_input(raw: dict[str, Any]) -> Input:
    widget = raw.get("widget") or {}
    return Input(str(raw.get("name")), _kind(raw.get("type", "*")), raw.get("link"), widget.get("name"))


def _full_inputs(raw: dict[str, Any], definition: dict[str, Any]) -> list[Input]:
    """All inputs in the frontend's order: sockets, then widgets, as defined; then what only the file has.

    Files leave out widgets that nothing is connected to, but bypassing counts them.
    """
    saved = {entry.name: entry for entry in map(_raw_input, raw.get("inputs") or [])}
    defined = specs(definition.get("input") or {}, definition.get("input_order"))
    found: list[Input] = []
    for spec in sorted(defined, key=is_widget):
        name, kind, _ = spec
        group = [entry for entry in saved.values() if entry.name == name or entry.name.startswith(name + ".")]
        if kind == AUTOGROW or any(entry.name != name for entry in group):
            found += group
        elif group:
            found.append(
                Input(
                    name,
                    group[0].kind if kind.startswith("COMFY_") else kind,
                    group[0].link,
                    name if is_widget(spec) else None,
                )
            )
        else:
            found.append(Input(name, kind, None, name if is_widget(spec) else None))
    names = {entry.name for entry in found}
    return found + [entry for entry in saved.values() if entry.name not in names]


def _tuples(raw: dict[str, Any]) -> list[tuple[str, str]]:
    """The legacy list of promoted widgets of an instance, as (inner node id, widget name)."""
    listed = (raw.get("properties") or {}).get("proxyWidgets")
    if isinstance(listed, str):
        try:
            listed = json.loads(listed)
        except ValueError:
            listed = None
    return [(str(entry[0]), re.sub(r"^(\s*\d+\s*:\s*)+", "", str(entry[1]))) for entry in listed or []]


class Reader:
    """Builds the scopes of one workflow for the node definitions of one server."""

    def __init__(self, workflow: dict[str, Any], definitions: dict[str, Any]) -> None:
        self.definitions = definitions
        self.subgraphs: dict[str, dict[str, Any]] = {}
        self.unknown: set[str] = set()
        self._collect(workflow)
        self.root = self._scope(workflow, ())
        if self.unknown:
            raise Stop(
                f"The workflow uses nodes that this ComfyUI does not have: {', '.join(sorted(self.unknown))}. "
                "Install the packs they belong to, or take these nodes out of the workflow."
            )

    def _collect(self, holder: dict[str, Any]) -> None:
        for subgraph in (holder.get("definitions") or {}).get("subgraphs") or []:
            if str(subgraph["id"]) not in self.subgraphs:
                self.subgraphs[str(subgraph["id"])] = subgraph
                self._collect(subgraph)

    def _scope(
        self, raw: dict[str, Any], path: tuple[str, ...], parent: Scope | None = None, instance: Node | None = None
    ) -> Scope:
        nodes = {}
        for entry in raw.get("nodes") or []:
            node = self._node(entry)
            nodes[node.id] = node
        scope = Scope(path, nodes, _links(raw.get("links")), parent, instance, list(raw.get("outputs") or []))
        if instance is not None:
            self._override(scope, instance)
        for node in nodes.values():
            if node.kind in self.subgraphs:
                self._enter(scope, node)
        return scope

    def _node(self, raw: dict[str, Any]) -> Node:
        kind = str(raw["type"])
        outputs = [_kind(output.get("type", "*")) for output in raw.get("outputs") or []]
        if kind in self.subgraphs:
            saved = {entry.name: entry for entry in map(_raw_input, raw.get("inputs") or [])}
            slots = self.subgraphs[kind].get("inputs") or []
            inputs = [saved.get(slot["name"], Input(slot["name"], _kind(slot["type"]))) for slot in slots]
            return Node(raw, inputs, outputs)
        definition = self.definitions.get(kind)
        if definition is None:
            node = Node(raw, [_raw_input(entry) for entry in raw.get("inputs") or []], outputs)
            if kind not in VIRTUAL and not node.silent:
                self.unknown.add(kind)
            return node
        return Node(raw, _full_inputs(raw, definition), outputs, read_widgets(definition, raw.get("widgets_values")))

    def _enter(self, scope: Scope, node: Node) -> None:
        path = (*scope.path, node.id)
        subgraph = self.subgraphs[node.kind]
        ancestor: Scope | None = scope
        while ancestor is not None and ancestor.instance is not None:
            if ancestor.instance.kind == node.kind:
                raise Stop(
                    f"The subgraph '{subgraph.get('name', node.kind)}' contains itself (node {':'.join(path)}). "
                    "Take the inner one out of the workflow."
                )
            ancestor = ancestor.parent
        node.inner = self._scope(subgraph, path, scope, node)
        node.inner.promoted = self._promote(scope, node, subgraph.get("inputs") or [])

    def _override(self, scope: Scope, instance: Node) -> None:
        """Values that the instance keeps for inner widgets, as files from before frontend 1.43 do."""
        values = instance.raw.get("widgets_values")
        for position, (node, widget) in enumerate(_tuples(instance.raw)):
            if isinstance(values, list) and position < len(values) and values[position] is not None:
                scope.overrides[(node, widget)] = WidgetPlace(values, position)

    def _promote(self, scope: Scope, node: Node, slots: list[dict[str, Any]]) -> dict[int, WidgetPlace]:
        inner = node.inner
        values = node.raw.get("widgets_values")
        legacy = bool(_tuples(node.raw))
        boxes: dict[int, WidgetPlace] = {}
        for index, slot in enumerate(slots):
            box = self._interior(inner, index)
            if box is None:
                continue
            position, name = len(boxes), str(slot["name"])
            if isinstance(values, dict) and values.get(name) is not None:
                box = WidgetPlace(values, name)
            elif not legacy and isinstance(values, list) and position < len(values) and values[position] is not None:
                box = WidgetPlace(values, position)
            box = inner.overrides.get(("-1", name), box)
            boxes[index] = scope.overrides.get((node.id, name), box)
        return boxes

    @staticmethod
    def _interior(inner: Scope, index: int) -> WidgetPlace | None:
        """The value of the first widget inside that a subgraph's input leads to."""
        for link in inner.links.values():
            if link.origin != INPUT_NODE or link.origin_slot != index or link.target not in inner.nodes:
                continue
            target = inner.nodes[link.target]
            entry = _input_of(inner, target, link)
            if entry is None:
                continue
            if target.inner is not None:
                nested = target.inner.promoted.get(target.inputs.index(entry))
                if nested is not None:
                    return nested
            widget = target.widget(entry.widget or "")
            if widget is not None:
                return inner.box(target, widget)
        return None


def _input_of(scope: Scope, node: Node, link: Link) -> Input | None:
    """The input that a link arrives at: sockets are counted anew, so the socket that names the link is the one."""
    for entry in node.inputs:
        if entry.link is not None and scope.links.get(entry.link) == link:
            return entry
    return None


def running(scope: Scope) -> Iterator[tuple[Scope, Node]]:
    """Every node that is part of the prompt, with its scope; the insides of silent instances are left out."""
    for node in scope.nodes.values():
        if node.silent or node.kind in VIRTUAL:
            continue
        if node.inner is not None:
            yield from running(node.inner)
        else:
            yield scope, node


def wrap_value(widget: Widget, value: Any) -> Any:
    """A widget's value as the prompt carries it; lists are wrapped, since a bare list means a link."""
    if isinstance(value, str) and widget.options.get("dynamicPrompts"):
        value = plain_prompt(value)
    if isinstance(value, list):
        return {"__type__": "CURVE", "__value__": value} if widget.kind == "CURVE" else {"__value__": value}
    return value
