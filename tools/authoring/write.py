"""Makes the frontend's JSON (version 0.4) of a flow, with the node definitions of a running server."""

from __future__ import annotations

import re
import uuid
from dataclasses import dataclass
from typing import Any

from cascade_studio.commands.messages import Stop
from cascade_studio.commands.workflow.graph import NEVER
from cascade_studio.commands.workflow.inputs import MODEL_FILES
from cascade_studio.commands.workflow.widgets import AUTOGROW, is_widget, specs, write_values
from cascade_studio.nodes import PREFIX

from ..env import REPOSITORY
from ..hosts import DEFAULT_VERSION
from ..server import PACK
from . import files
from .flow import Flow, FlowNode, Output
from .layout import place, size_of

NAMESPACE = uuid.UUID("6c8f7a0e-52f1-4f0c-9f0a-6d1a3c9f2b10")
GROUP_COLOUR = "#3f789e"
OPTIONAL = 7
"""The shape of an optional socket."""


def pack_version() -> str:
    """The version in pyproject.toml."""
    text = (REPOSITORY / "pyproject.toml").read_text(encoding="utf-8")
    return re.search(r'^version = "([^"]+)"', text, re.MULTILINE).group(1)


def identity(name: str) -> str:
    """The same UUID for the same name."""
    return str(uuid.uuid5(NAMESPACE, name))


@dataclass(frozen=True)
class Socket:
    """One entry of a node's inputs: its type, and whether it is a widget that a wire replaces."""

    name: str
    kind: str
    widget: bool
    optional: bool


@dataclass
class Wire:
    """A link: its number, and where it starts and ends, as (node, slot)."""

    number: int
    start: tuple[int, int]
    end: tuple[int, int]
    kind: str

    def as_list(self) -> list[Any]:
        """The link as a workflow file lists it."""
        return [self.number, *self.start, *self.end, self.kind]

    def as_dict(self) -> dict[str, Any]:
        """The link as a subgraph lists it."""
        return {
            "id": self.number,
            "origin_id": self.start[0],
            "origin_slot": self.start[1],
            "target_id": self.end[0],
            "target_slot": self.end[1],
            "type": self.kind,
        }


class Writer:
    """Writes the nodes and links of one flow; ``opened`` are further (node, input) pairs that need a socket."""

    def __init__(self, flow: Flow, definitions: dict[str, Any], opened: list[tuple[FlowNode, str]] = ()) -> None:
        self.flow, self.definitions = flow, definitions
        self.opened = {(node.number, name) for node, name in opened}
        self.sockets = {node.number: self._sockets(node) for node in flow.nodes}
        self.wires = self._wires()
        self.sizes = {node.number: size_of(node, self.definition(node)) for node in flow.nodes}
        self.places, self.frames = place(flow, self.sizes)

    def definition(self, node: FlowNode) -> dict[str, Any] | None:
        """The node's definition; None for a note."""
        if node.is_note:
            return None
        if node.block:
            return node.block.face(self.definitions)
        if node.kind not in self.definitions:
            raise Stop(f"The workflow {self.flow.name} uses {node.kind}, which this ComfyUI does not have.")
        return self.definitions[node.kind]

    def _sockets(self, node: FlowNode) -> list[Socket]:
        definition = self.definition(node)
        if definition is None:
            return []
        defined = specs(definition.get("input") or {}, definition.get("input_order"))
        required = set((definition.get("input") or {}).get("required") or {})
        linked = {name for name, value in node.inputs.items() if isinstance(value, Output)}
        self._check_names(node, defined)
        found = []
        for spec in defined:
            name, kind, options = spec
            if kind == AUTOGROW:
                found += [
                    Socket(entry, _kind_of_grown(options), False, False)
                    for entry in node.inputs
                    if entry.startswith(f"{name}.")
                ]
            elif not is_widget(spec):
                open_end = node.muted or (node.number, name) in self.opened
                if name in required and name not in linked and not open_end:
                    raise Stop(f"{self.flow.name}: {node.kind} needs a wire into '{name}'.")
                found.append(Socket(name, kind, False, name not in required))
            elif name in linked or (node.number, name) in self.opened:
                found.append(Socket(name, options.get("widgetType", kind), True, False))
        return sorted(found, key=lambda socket: socket.widget)

    def _check_names(self, node: FlowNode, defined: list[Any]) -> None:
        names = {spec[0] for spec in defined}
        unknown = [name for name in node.inputs if name not in names and name.split(".")[0] not in names]
        if unknown:
            raise Stop(f"{self.flow.name}: {node.kind} has no input {', '.join(unknown)}; it has {', '.join(names)}.")

    def slot(self, output: Output) -> int:
        """The number of an output that is named by its id, its shown name or its number."""
        definition = self.definition(output.node)
        if isinstance(output.key, int):
            return output.key
        names = list(definition.get("output_name") or [])
        if output.key not in names:
            raise Stop(f"{self.flow.name}: {output.node.kind} has no output '{output.key}'; it has {', '.join(names)}.")
        return names.index(output.key)

    def _wires(self) -> list[Wire]:
        wires: list[Wire] = []
        for node in self.flow.nodes:
            for position, socket in enumerate(self.sockets[node.number]):
                value = node.inputs.get(socket.name)
                if isinstance(value, Output):
                    slot = self.slot(value)
                    kind = self.definition(value.node)["output"][slot]
                    kind = "COMBO" if isinstance(kind, list) else kind
                    wires.append(Wire(len(wires) + 1, (value.node.number, slot), (node.number, position), kind))
        return wires

    def entries(self) -> list[dict[str, Any]]:
        """The nodes of the file."""
        return [self._entry(node, order) for order, node in enumerate(self.flow.nodes)]

    def _entry(self, node: FlowNode, order: int) -> dict[str, Any]:
        definition = self.definition(node)
        if node.block:
            place = {"pos": list(self.places[node.number]), "size": list(self.sizes[node.number]), "order": order}
            outputs = self._outputs(node, definition)
            return {**node.block.instance(self.definitions, node.number), **place, "outputs": outputs}
        found: dict[str, Any] = {
            "id": node.number,
            "type": node.kind,
            "pos": list(self.places[node.number]),
            "size": list(self.sizes[node.number]),
            "flags": {},
            "order": order,
            "mode": NEVER if node.muted else 0,
            "inputs": [
                self._input(node, position, socket) for position, socket in enumerate(self.sockets[node.number])
            ],
            "outputs": self._outputs(node, definition),
            "properties": {},
            "widgets_values": list(node.inputs.values()),
        }
        if definition is not None:
            given = {name: value for name, value in node.inputs.items() if not isinstance(value, Output)}
            try:
                found["widgets_values"] = write_values(definition, given, node.then)
            except ValueError as error:
                raise Stop(f"{self.flow.name}, {node.kind}: {error}") from None
            found["properties"] = self._properties(node, found["widgets_values"])
        if node.title:
            found["title"] = node.title
        if node.colours:
            found["color"], found["bgcolor"] = node.colours
        return found

    def _input(self, node: FlowNode, position: int, socket: Socket) -> dict[str, Any]:
        link = next((wire.number for wire in self.wires if wire.end == (node.number, position)), None)
        found: dict[str, Any] = {"name": socket.name, "type": socket.kind, "link": link}
        if socket.widget:
            found["widget"] = {"name": socket.name}
        elif socket.optional:
            found["shape"] = OPTIONAL
        return found

    def _outputs(self, node: FlowNode, definition: dict[str, Any] | None) -> list[dict[str, Any]]:
        found = []
        for slot, (kind, name) in enumerate(
            zip(*((definition or {}).get(key) or [] for key in ("output", "output_name")))
        ):
            links = [wire.number for wire in self.wires if wire.start == (node.number, slot)]
            found.append({"name": name, "type": "COMBO" if isinstance(kind, list) else kind, "links": links or None})
        return found

    def _properties(self, node: FlowNode, values: list[Any]) -> dict[str, Any]:
        ours = node.kind.startswith(PREFIX)
        found: dict[str, Any] = {
            "Node name for S&R": node.kind,
            "cnr_id": PACK if ours else "comfy-core",
            "ver": pack_version() if ours else DEFAULT_VERSION,
        }
        names = [value for value in values if isinstance(value, str) and value.endswith(MODEL_FILES)]
        models = [entry for entry in map(files.for_workflow, dict.fromkeys(names)) if entry]
        if models:
            found["models"] = models
        return found


def _kind_of_grown(options: dict[str, Any]) -> str:
    """The type of the sockets that an input of growing number has."""
    inputs = options["template"]["input"]
    return next(str(spec[0]) for group in inputs.values() for spec in group.values())


def workflow(flow: Flow, definitions: dict[str, Any]) -> dict[str, Any]:
    """The content of a workflow file. Raises ``Stop`` for a recipe that does not say what it shows."""
    if not flow.features:
        raise Stop(
            f"The recipe {flow.name} does not say what it shows. Add flow.feature(node, input=value) with the "
            "input that matters most and a value at which it is not felt."
        )
    writer = Writer(flow, definitions)
    blocks = [node.block.subgraph(definitions) for node in flow.nodes if node.block]
    groups = [
        {
            "id": number,
            "title": frame.title,
            "bounding": list(frame.bounding),
            "color": GROUP_COLOUR,
            "font_size": 24,
            "flags": {},
        }
        for number, frame in enumerate(writer.frames, 1)
    ]
    return {
        "id": identity(flow.name),
        "revision": 0,
        "last_node_id": max(node.number for node in flow.nodes),
        "last_link_id": len(writer.wires),
        "nodes": writer.entries(),
        "links": [wire.as_list() for wire in writer.wires],
        "groups": groups,
        "config": {},
        "extra": _app_data(flow),
        "version": 0.4,
        **({"definitions": {"subgraphs": blocks}} if blocks else {}),
    }


def _app_data(flow: Flow) -> dict[str, Any]:
    """What the page's app mode reads: widgets by node and name, and the nodes whose results it shows."""
    if flow.shown_in_app is None:
        return {}
    inputs, outputs = flow.shown_in_app
    named = {
        "inputs": [[str(node.number), name] for node, name in inputs],
        "outputs": [str(node.number) for node in outputs],
    }
    return {"linearData": named, "linearMode": False}
