"""Subgraph blueprints: a flow as one block, with chosen inputs and outputs on its outside."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from cascade_studio.commands.workflow.widgets import find_authored_default

from .flow import Flow, FlowNode, Output
from .layout import GAP, WIDTH
from .write import GROUP_COLOUR, PACK, Wire, Writer, identity, pack_version

INSIDE, OUTSIDE = -10, -20
SLOT = 20


@dataclass
class Port:
    """An input of the block: its name, and the (node, input) pairs inside that it feeds."""

    name: str
    targets: list[tuple[FlowNode, str]]
    label: str = ""


@dataclass
class Block:
    """A flow with its ports; ``outputs`` are (name, output) pairs."""

    name: str
    category: str
    description: str
    flow: Flow
    inputs: list[Port] = field(default_factory=list)
    outputs: list[tuple[str, Output]] = field(default_factory=list)

    def input(self, name: str, *targets: tuple[FlowNode, str], label: str = "") -> None:
        """An input of the block, by the name of its port."""
        self.inputs.append(Port(name, list(targets), label))

    def output(self, name: str, output: Output) -> None:
        """Let an output of a node be an output of the block."""
        self.outputs.append((name, output))

    def face(self, definitions: dict[str, Any]) -> dict[str, Any]:
        """The block as the definition of a node, whose widgets are those inside."""
        kinds = [BlockWriter(self, definitions).kind_of(output) for _, output in self.outputs]
        return {"input": {}, "output": kinds, "output_name": [name for name, _ in self.outputs]}

    def instance(self, definitions: dict[str, Any], number: int) -> dict[str, Any]:
        """The node of a workflow that is this block."""
        writer = BlockWriter(self, definitions)
        shown = [port for port in self.inputs if writer.widgets[port.name]]
        return {**writer.instance(number), "widgets_values": [writer.value_of(*port.targets[0]) for port in shown]}

    def subgraph(self, definitions: dict[str, Any]) -> dict[str, Any]:
        """What is inside, for the definitions of a workflow."""
        writer = BlockWriter(self, definitions)
        return writer.subgraph(max(entry["id"] for entry in writer.entries))


class BlockWriter:
    """Makes the blueprint's JSON: one instance node, and its subgraph."""

    def __init__(self, block: Block, definitions: dict[str, Any]) -> None:
        self.block = block
        self.writer = Writer(block.flow, definitions, [target for port in block.inputs for target in port.targets])
        self.entries = self.writer.entries()
        self.wires = list(self.writer.wires)
        self.kinds: dict[str, str] = {}
        self.widgets: dict[str, bool] = {}
        self.from_inputs = {
            port.name: [self._feed(slot, port, *target) for target in port.targets]
            for slot, port in enumerate(block.inputs)
        }
        self.to_outputs = {name: [self._give(slot, output)] for slot, (name, output) in enumerate(block.outputs)}

    def _entry(self, node: FlowNode) -> dict[str, Any]:
        return next(entry for entry in self.entries if entry["id"] == node.number)

    def value_of(self, node: FlowNode, name: str) -> Any:
        """What a widget inside holds."""
        spec = (self.writer.definition(node).get("input") or {}).get("required", {})[name]
        return node.inputs[name] if name in node.inputs else find_authored_default(spec[0], spec[1])

    def _feed(self, slot: int, port: Port, node: FlowNode, name: str) -> int:
        inputs = self._entry(node)["inputs"]
        position = next(i for i, entry in enumerate(inputs) if entry["name"] == name)
        kind = inputs[position]["type"]
        self.kinds.setdefault(port.name, kind)
        self.widgets.setdefault(port.name, "widget" in inputs[position])
        wire = Wire(len(self.wires) + 1, (INSIDE, slot), (node.number, position), kind)
        self.wires.append(wire)
        inputs[position]["link"] = wire.number
        return wire.number

    def _give(self, slot: int, output: Output) -> int:
        entry = self._entry(output.node)["outputs"][self.writer.slot(output)]
        wire = Wire(len(self.wires) + 1, (output.node.number, self.writer.slot(output)), (OUTSIDE, slot), entry["type"])
        self.wires.append(wire)
        entry["links"] = [*(entry["links"] or []), wire.number]
        return wire.number

    def content(self) -> dict[str, Any]:
        """The whole file."""
        last = max(entry["id"] for entry in self.entries)
        return {
            "id": identity(f"file {self.block.name}"),
            "revision": 0,
            "last_node_id": last + 1,
            "last_link_id": 0,
            "nodes": [self.instance(last + 1)],
            "links": [],
            "version": 0.4,
            "definitions": {"subgraphs": [self.subgraph(last + 1)]},
            "extra": {},
        }

    def instance(self, number: int) -> dict[str, Any]:
        """The block as one node."""
        inputs = [
            {
                "name": port.name,
                "type": self.kinds[port.name],
                "link": None,
                **({"label": port.label} if port.label else {}),
                **({"widget": {"name": port.name}} if self.widgets[port.name] else {}),
            }
            for port in self.block.inputs
        ]
        outputs = [{"name": name, "type": self.kind_of(output), "links": []} for name, output in self.block.outputs]
        promoted = []
        for port in self.block.inputs:
            if self.widgets[port.name]:
                node, name = port.targets[0]
                promoted.append([str(node.number), name])
        return {
            "id": number,
            "type": identity(self.block.name),
            "pos": [100, 100],
            "size": [400, 60 + SLOT * len(inputs) + 100],
            "flags": {},
            "order": 0,
            "mode": 0,
            "inputs": inputs,
            "outputs": outputs,
            "title": self.block.name,
            "properties": {"proxyWidgets": promoted, "cnr_id": PACK, "ver": pack_version()},
            "widgets_values": [],
        }

    def kind_of(self, output: Output) -> str:
        """The type of an output inside."""
        return self._entry(output.node)["outputs"][self.writer.slot(output)]["type"]

    def subgraph(self, last: int) -> dict[str, Any]:
        """The inside as a file's definitions list it; ``last`` is the highest id in use."""
        frames = [frame.bounding for frame in self.writer.frames]
        left, top = min(frame[0] for frame in frames), min(frame[1] for frame in frames)
        right = max(frame[0] + frame[2] for frame in frames)
        block = self.block
        inputs = [
            {
                "id": identity(f"{block.name} in {port.name}"),
                "name": port.name,
                "type": self.kinds[port.name],
                "linkIds": self.from_inputs[port.name],
                **({"label": port.label} if port.label else {}),
                "pos": [left - GAP - 40, top + SLOT * (slot + 1)],
            }
            for slot, port in enumerate(block.inputs)
        ]
        outputs = [
            {
                "id": identity(f"{block.name} out {name}"),
                "name": name,
                "type": self.kind_of(output),
                "linkIds": self.to_outputs[name],
                "pos": [right + GAP + 20, top + SLOT * (slot + 1)],
            }
            for slot, (name, output) in enumerate(block.outputs)
        ]
        look = {"color": GROUP_COLOUR, "font_size": 24, "flags": {}}
        groups = [
            {"id": number, "title": frame.title, "bounding": list(frame.bounding), **look}
            for number, frame in enumerate(self.writer.frames, 1)
        ]
        return {
            "id": identity(block.name),
            "version": 1,
            "revision": 0,
            "config": {},
            "name": block.name,
            "state": {
                "lastGroupId": len(groups),
                "lastNodeId": last,
                "lastLinkId": len(self.wires),
                "lastRerouteId": 0,
            },
            "inputNode": {"id": INSIDE, "bounding": [left - WIDTH // 2 - GAP, top, 140, 40 + SLOT * len(inputs)]},
            "outputNode": {"id": OUTSIDE, "bounding": [right + GAP, top, 120, 40 + SLOT * len(outputs)]},
            "inputs": inputs,
            "outputs": outputs,
            "widgets": [],
            "nodes": self.entries,
            "groups": groups,
            "links": [wire.as_dict() for wire in self.wires],
            "extra": {},
            "category": block.category,
            "description": block.description,
        }


def blueprint(block: Block, definitions: dict[str, Any]) -> dict[str, Any]:
    """The content of a blueprint file."""
    return BlockWriter(block, definitions).content()
