"""Places nodes: each step is a frame, steps stand side by side from left to right, notes in a column before them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from cascade_studio.commands.workflow.widgets import is_widget, specs
from cascade_studio.nodes import PREFIX

from .flow import Flow, FlowNode, FlowStep

WIDTH, NOTE_WIDTH, TOP, LEFT = 340, 420, 120, 40
LETTER, TITLE, SLOT, WIDGET, BASE, TEXT, GAP, FRAME, PICTURE = 10.2, 34, 20, 27, 60, 130, 46, 30, 320
"""What both of the page's renderers need, the larger of the two; tests/browser/test_rectangles.py measures it."""

PICTURES = {
    "SaveImage",
    "PreviewImage",
    "LoadImage",
    "CascadeStudio_SaveImage",
    "CascadeStudio_Train",
    "CascadeStudio_TrainLora",
}
"""Nodes that show a picture below their widgets."""

PANELS = {
    "Canvas": 218,
    "Compare": 332,
    "DraftBoard": 450,
    "SamplePrior": 320,
    "SampleDecoder": 320,
    "DecodeStageA": 34,
    "Load": 214,
    "LoadPrior": 160,
    "LoadDecoder": 142,
    "LoadTextEncoder": 142,
    "LoadStageA": 142,
    "LoadImageEncoder": 160,
    "LoadClipVision": 142,
    "LoadControlNet": 142,
    "LoadUltraPixel": 142,
    "LoadLora": 118,
    "ApplyLoraStack": 118,
    "LoadHookLora": 118,
    "ReportCard": 238,
    "CannyHint": 240,
    "InpaintHint": 240,
    "SuperResolutionHint": 240,
    "IdentityHint": 240,
    "OutpaintCanvas": 240,
    "ImagePrompts": 240,
    "Detailer": 240,
    "Upscale": 240,
}
"""What some of our nodes show below their widgets, room for a live preview, a hint and a note included."""

PREVIEW = 240
PREVIEWED = {"KSampler", "KSamplerAdvanced", "SamplerCustom", "SamplerCustomAdvanced"}
"""Core's nodes that show a preview while they run, if the user has switched previews on."""


Size = tuple[int, int]
Place = tuple[int, int]


@dataclass(frozen=True)
class Frame:
    """A step's frame: x, y, width, height."""

    title: str
    bounding: tuple[int, int, int, int]


def size_of(node: FlowNode, definition: dict[str, Any] | None) -> Size:
    """Width and height that hold the node's sockets, widgets and picture."""
    if definition is None:
        shown = re.sub(r"\]\([^)]*\)", "]", node.inputs[""])
        lines = sum(1 + len(line) // 58 for line in shown.splitlines())
        return NOTE_WIDTH, node.high or min(900, 60 + 20 * lines)
    if node.high:
        return node.wide or WIDTH, node.high
    inputs = [spec for spec in specs(definition["input"], definition.get("input_order")) if is_in_sight(node, spec[0])]
    widgets = [spec for spec in inputs if is_widget(spec)]
    folded = [spec for spec in widgets if spec[2].get("advanced")] if node.kind.startswith(PREFIX) else []
    widgets = [spec for spec in widgets if spec not in folded or len(folded) == 1]
    rows = max(len(inputs) - len(widgets) - len(folded), len(definition.get("output") or []))
    texts = sum(1 for _, kind, options in widgets if kind == "STRING" and options.get("multiline"))
    panel = PANELS.get(node.kind.removeprefix(PREFIX), 0) + (PICTURE if node.kind in PICTURES else 0)
    panel += PREVIEW if node.kind in PREVIEWED else 0
    height = BASE + panel + SLOT * rows + WIDGET * (len(widgets) - texts + (len(folded) > 1)) + TEXT * texts
    return node.wide or (WIDTH + 60 if node.kind in PICTURES else WIDTH), max(50, height)


def is_in_sight(node: FlowNode, name: str) -> bool:
    """Whether the page shows an input: of pictures that grow those in use, with one more to wire (web/js/grow.js)."""
    found = re.fullmatch(r"(image|weight)_(\d+)", name) if node.kind == f"{PREFIX}ImagePrompts" else None
    used = sum(1 for given in node.inputs if given.startswith("image_"))
    return found is None or int(found[2]) <= max(1, used) + (found[1] == "image" and used > 0)


def _column(step: FlowStep, sizes: dict[int, Size], x: int, y: int, places: dict[int, Place]) -> Frame:
    """Place a step's nodes one below the other, all as wide as the widest or the title."""
    width = max(*(sizes[node.number][0] for node in step.nodes), int(LETTER * len(f"Step 0 - {step.title}")))
    at = y + TITLE
    for node in step.nodes:
        places[node.number] = (x, at)
        sizes[node.number] = (width, sizes[node.number][1])
        at += sizes[node.number][1] + GAP
    return Frame(step.title, (x - 20, y - 50, width + 40, at - y - GAP + 50 + 20))


def place(flow: Flow, sizes: dict[int, Size]) -> tuple[dict[int, Place], list[Frame]]:
    """The position of every node by number, and the frames of the steps; ``sizes`` get the width of their column."""
    places: dict[int, Place] = {}
    frames: list[Frame] = []
    x, y = LEFT, TOP - 50
    for note in flow.notes:
        places[note.number] = (x, y)
        y += sizes[note.number][1] + GAP
    x += NOTE_WIDTH + 60 if flow.notes else 0
    for position, step in enumerate(flow.steps):
        below = step.below and position > 0
        if position > 0 and not below:
            x = max(frame.bounding[0] + frame.bounding[2] for frame in frames) + FRAME + 20
        y = frames[-1].bounding[1] + frames[-1].bounding[3] + FRAME + 50 if below else TOP
        frames.append(_column(step, sizes, x, y, places))
    return places, [Frame(f"Step {number} - {frame.title}", frame.bounding) for number, frame in enumerate(frames, 1)]
