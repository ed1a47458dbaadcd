"""A workflow as its author thinks of it: steps, nodes in them, wires by output name, and notes."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

POSITIVE, NEGATIVE, NOTE, TOUCH = ("#232", "#353"), ("#322", "#533"), ("#222", "#383838"), ("#432", "#653")
"""The colours of the official templates: prompt, negative prompt, note, and what a newcomer should change.

Notes are a grey where official ones are black: the light theme lightens what it is given by half, and on the grey that
it makes of black links cannot be read.
"""


@dataclass(frozen=True)
class Output:
    """An output of a node, by its id or name, or by its number."""

    node: FlowNode
    key: str | int


@dataclass(eq=False)
class FlowNode:
    """One node. ``inputs`` maps names to values or outputs; ``then`` is what happens to a seed after each run.

    ``wide`` and ``high`` are its size where that does not follow from its kind. ``block`` is the subgraph that it is an
    instance of, ``inside`` the instance whose subgraph it is in.
    """

    number: int
    kind: str
    inputs: dict[str, Any]
    title: str = ""
    colours: tuple[str, str] | None = None
    then: str = "fixed"
    muted: bool = False
    wide: int = 0
    high: int = 0
    block: Any = None
    inside: FlowNode | None = None

    @property
    def key(self) -> str:
        """Its id in a prompt: "7", or "5:7" inside the instance 5."""
        return f"{self.inside.key}:{self.number}" if self.inside else str(self.number)

    def __getitem__(self, key: str | int) -> Output:
        return Output(self, key)

    @property
    def is_note(self) -> bool:
        """Whether it is a note, which takes no part in the run."""
        return self.kind == "MarkdownNote"


@dataclass
class FlowStep:
    """A titled group of nodes; ``below`` puts it under the step before, in the same column."""

    title: str
    below: bool = False
    nodes: list[FlowNode] = field(default_factory=list)


@dataclass(frozen=True)
class Feature:
    """What a workflow is there to show: the input that steers it, and the value or output at which it is not felt."""

    node: FlowNode
    input: str
    neutral: Any


class Flow:
    """A workflow, or the inside of a blueprint, in the making."""

    def __init__(self, name: str, after: int = 0) -> None:
        self.name = name
        self.steps: list[FlowStep] = []
        self.notes: list[FlowNode] = []
        self.features: list[Feature] = []
        self.shown_in_app: tuple[list[tuple[FlowNode, str]], list[FlowNode]] | None = None
        self._last = after

    @property
    def nodes(self) -> list[FlowNode]:
        """Every node in reading order, notes last."""
        return [node for step in self.steps for node in step.nodes] + self.notes

    def step(self, title: str, below: bool = False) -> Flow:
        """Begin the next step: the nodes that follow belong to it."""
        self.steps.append(FlowStep(title, below))
        return self

    def add(
        self,
        kind: str,
        title: str = "",
        colours: tuple[str, str] | None = None,
        *,
        then: str = "fixed",
        muted: bool = False,
        wide: int = 0,
        high: int = 0,
        **inputs: Any,
    ) -> FlowNode:
        """A node in the current step; inputs that are not named keep their defaults, muted nodes may lack wires."""
        node = FlowNode(self._number(), kind, inputs, title, colours, then, muted, wide, high)
        self.steps[-1].nodes.append(node)
        return node

    def add_block(self, block: Any, size: tuple[int, int]) -> FlowNode:
        """An instance of a block in the current step."""
        node = FlowNode(self._number(), block.name, {}, wide=size[0], high=size[1], block=block)
        self.steps[-1].nodes.append(node)
        for inner in block.flow.nodes:
            inner.inside = node
        return node

    def show_in_app(self, inputs: list[tuple[FlowNode, str]], *outputs: FlowNode) -> None:
        """Let the page's app mode show these widgets, and the results of these nodes."""
        self.shown_in_app = inputs, list(outputs)

    def note(self, title: str, text: str, high: int = 0) -> FlowNode:
        """A note in the column at the left."""
        node = FlowNode(self._number(), "MarkdownNote", {"": unwrap(text)}, title, NOTE, high=high)
        self.notes.append(node)
        return node

    def feature(self, node: FlowNode, **neutral: Any) -> None:
        """Say what the workflow shows: the tests set each of these inputs to this, and the picture has to change."""
        self.features += [Feature(node, name, value) for name, value in neutral.items()]

    def _number(self) -> int:
        self._last += 1
        return self._last


STARTS_A_LINE = re.compile(r"\s*(#|-|\d+\.|\||```|$)")


def unwrap(text: str) -> str:
    """Markdown with each paragraph and list item on one line, as notes of any width need it."""
    lines: list[str] = []
    for line in text.strip().split("\n"):
        if lines and lines[-1] and not lines[-1].startswith("#") and not STARTS_A_LINE.match(line):
            lines[-1] += " " + line.strip()
        else:
            lines.append(line.rstrip())
    return "\n".join(lines) + "\n"


Recipe = Callable[[], Flow]
