"""Draws each node of the pack with its direct neighbours, as a bundled workflow wires it, for its help page.

``python3 dev.py run -m tools.authoring`` writes ``web/docs/pictures/<NodeId>.svg`` together with the workflows.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Any

from cascade_studio.commands.workflow.graph import NEVER

from ..env import REPOSITORY

PICTURES = REPOSITORY / "web" / "docs" / "pictures"
NAMES = REPOSITORY / "locales" / "en" / "nodeDefs.json"
ROW, TITLE, PAD, GAP, BETWEEN, LETTER = 20, 26, 10, 16, 90, 6.4
"""Pixels: a socket's row, a title bar, the space in a box, between boxes, between columns, and for a letter."""
COLOURS = {
    "MODEL": "#b39ddb",
    "CLIP": "#ffd500",
    "VAE": "#ff6e6e",
    "CONDITIONING": "#ffa931",
    "LATENT": "#ff9cf9",
    "IMAGE": "#64b5f6",
    "MASK": "#81c784",
    "CONTROL_NET": "#6ee7b7",
    "CLIP_VISION": "#a8dadc",
}
OTHER, PAPER, BODY, HEAD, OWN, INK = "#9aa0a6", "#202124", "#353639", "#45474c", "#2f5d8a", "#e8eaed"
STYLE = f"text{{font:12px sans-serif;fill:{INK}}}.t{{font-weight:bold}}.c{{fill:{OTHER}}}"

Content = dict[str, Any]


@dataclass
class SocketRow:
    """A row of a box: its name and type, on the left (an input) or on the right, and whether a wire is in it."""

    name: str
    kind: str
    wired: bool = True

    @property
    def colour(self) -> str:
        """The colour of the socket's type, as ComfyUI shows it."""
        return COLOURS.get(self.kind, OTHER)


@dataclass
class Box:
    """A node in the picture; ``top`` and ``left`` are set when its column is placed."""

    title: str
    inputs: list[SocketRow] = field(default_factory=list)
    outputs: list[SocketRow] = field(default_factory=list)
    own: bool = False
    left: float = 0.0
    top: float = 0.0

    @property
    def width(self) -> float:
        """Pixels across."""
        pairs = zip([*self.inputs, *[None] * len(self.outputs)], [*self.outputs, *[None] * len(self.inputs)])
        rows = [sum(len(socket.name) for socket in pair if socket) + 4 for pair in pairs]
        return 2 * PAD + LETTER * max(1.25 * len(self.title), *rows)

    @property
    def height(self) -> float:
        """Pixels down."""
        return TITLE + ROW * max(len(self.inputs), len(self.outputs), 1) + PAD

    def point(self, output: bool, row: int) -> tuple[float, float]:
        """Where a wire meets the box."""
        return self.left + (self.width if output else 0), self.top + TITLE + ROW * (row + 0.6)


@dataclass
class Drawing:
    """The node in the middle, those that feed it, those that it feeds, and the wires as (box, row, box, row)."""

    middle: Box
    before: list[Box] = field(default_factory=list)
    after: list[Box] = field(default_factory=list)
    wires: list[tuple[Box, int, Box, int]] = field(default_factory=list)

    def place(self) -> tuple[float, float]:
        """Three columns, each centred; returns width and height."""
        columns = [column for column in (self.before, [self.middle], self.after) if column]
        heights = [sum(box.height for box in column) + GAP * (len(column) - 1) for column in columns]
        left, height = float(GAP), max(heights) + 2 * GAP
        for column, tall in zip(columns, heights):
            top = (height - tall) / 2
            wide = max(box.width for box in column)
            for box in column:
                box.left, box.top = left + (wide - box.width if column is self.before else 0), top
                top += box.height + GAP
            left += wide + BETWEEN
        return left - BETWEEN + GAP, height


def title_of(node: Content, names: Content) -> str:
    """What stands in the node's title bar."""
    known = names.get(node["type"], {}).get("display_name")
    return node.get("title") or known or re.sub(r"(?<=[a-z0-9])(?=[A-Z])", " ", node["type"])


def drawing(workflow: Content, node: Content, names: Content) -> Drawing:
    """The node with its neighbours in this workflow."""
    nodes = {entry["id"]: entry for entry in workflow["nodes"]}
    sockets = [SocketRow(entry["name"], entry["type"], entry["link"] is not None) for entry in node["inputs"]]
    outputs = [SocketRow(entry["name"], entry["type"], bool(entry["links"])) for entry in node["outputs"]]
    drawn = Drawing(Box(names[node["type"]]["display_name"], sockets, outputs, own=True))
    boxes: dict[tuple[int, bool], Box] = {}

    def neighbour(key: int, feeds: bool) -> Box:
        if (key, feeds) not in boxes:
            boxes[key, feeds] = Box(title_of(nodes[key], names))
            (drawn.before if feeds else drawn.after).append(boxes[key, feeds])
        return boxes[key, feeds]

    def row_of(rows: list[SocketRow], socket: SocketRow) -> int:
        if socket not in rows:
            rows.append(socket)
        return rows.index(socket)

    for _, origin, slot, target, entry, kind in sorted(workflow["links"], key=lambda link: (link[4], link[2])):
        if target == node["id"]:
            box = neighbour(origin, True)
            row = row_of(box.outputs, SocketRow(nodes[origin]["outputs"][slot]["name"], kind))
            drawn.wires.append((box, row, drawn.middle, entry))
    for _, origin, slot, target, entry, kind in sorted(workflow["links"], key=lambda link: (link[2], link[0])):
        if origin == node["id"]:
            box = neighbour(target, False)
            row = row_of(box.inputs, SocketRow(nodes[target]["inputs"][entry]["name"], kind))
            drawn.wires.append((drawn.middle, slot, box, row))
    return drawn


def _text(x: float, y: float, words: str, more: str = "") -> str:
    return f'<text x="{x:.0f}" y="{y:.0f}"{more}>{escape(words)}</text>'


def _box(box: Box) -> list[str]:
    place = f'x="{box.left:.0f}" y="{box.top:.0f}" width="{box.width:.0f}"'
    lines = [
        f'<rect {place} height="{box.height:.0f}" rx="6" fill="{BODY}"/>',
        f'<rect {place} height="{TITLE}" rx="6" fill="{OWN if box.own else HEAD}"/>',
        _text(box.left + PAD, box.top + 17, box.title, ' class="t"'),
    ]
    for output, sockets in ((False, box.inputs), (True, box.outputs)):
        for row, socket in enumerate(sockets):
            x, y = box.point(output, row)
            inside = socket.colour if socket.wired else BODY
            lines.append(f'<circle cx="{x:.0f}" cy="{y:.0f}" r="4" fill="{inside}" stroke="{socket.colour}"/>')
            end = ' text-anchor="end"' if output else ""
            lines.append(_text(x - PAD if output else x + PAD, y + 4, socket.name, end))
    return lines


def _wire(start: tuple[float, float], end: tuple[float, float], colour: str) -> str:
    (x, y), (to_x, to_y) = start, end
    bend = (to_x - x) / 2
    return (
        f'<path d="M{x:.0f} {y:.0f}C{x + bend:.0f} {y:.0f} {to_x - bend:.0f} {to_y:.0f} {to_x:.0f} {to_y:.0f}" '
        f'fill="none" stroke="{colour}" stroke-width="2"/>'
    )


def svg(drawn: Drawing, caption: str) -> str:
    """The picture as text, on a dark ground of its own, so that it can be read on light and dark pages."""
    width, height = drawn.place()
    width, height = max(width, LETTER * len(caption) + 2 * GAP), height + GAP
    title = f"Wiring of {drawn.middle.title}"
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height:.0f}" width="{width:.0f}" '
        f'height="{height:.0f}" role="img"><title>{escape(title)}</title><style>{STYLE}</style>',
        f'<rect width="100%" height="100%" rx="8" fill="{PAPER}"/>',
    ]
    lines += [
        _wire(start.point(True, out), end.point(False, into), start.outputs[out].colour)
        for start, out, end, into in drawn.wires
    ]
    for box in (*drawn.before, drawn.middle, *drawn.after):
        lines += _box(box)
    lines.append(_text(GAP, height - 10, caption, ' class="c"'))
    return "\n".join([*lines, "</svg>"]) + "\n"


def find_example(workflows: dict[str, Content], kind: str) -> tuple[str, Content]:
    """The first workflow in which this node works, else the first that has it switched off; and the node in it."""
    found = [
        (node["mode"] == NEVER, place, name, node)
        for place, (name, workflow) in enumerate(workflows.items())
        for node in workflow["nodes"]
        if node["type"] == kind
    ]
    _, _, name, node = min(found, key=lambda entry: entry[:2])
    return name, node


def draw_pictures(workflows: dict[str, Content], names: Content) -> dict[Path, str]:
    """Every picture, from the workflows by name, the simplest ones first, and the English names of the nodes."""
    found = {}
    for kind in names:
        workflow, node = find_example(workflows, kind)
        caption = f"As in the workflow {workflow}" + (", where it is switched off" if node["mode"] == NEVER else "")
        found[PICTURES / f"{kind}.svg"] = svg(drawing(workflows[workflow], node, names), caption)
    return found


def of_files(order: list[str]) -> dict[Path, str]:
    """Every picture, from the files of the pack; ``order`` is that of the workflows."""
    workflows = {
        name: json.loads(Path(REPOSITORY, "workflows", f"{name}.json").read_text(encoding="utf-8")) for name in order
    }
    return draw_pictures(workflows, json.loads(NAMES.read_text(encoding="utf-8")))
