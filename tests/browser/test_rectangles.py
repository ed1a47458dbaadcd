"""Where things are: every bundled workflow as it opens, and nodes with panels through a day's work, by rectangles.

In both of the host's renderers: no node lies on another one, each stays inside its group, no group is mostly empty, and
whatever is done, every height is the one that the workflow was opened with.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from browser.driver import FRAMES
from browser.page import TITLE, Page, Small
from harness import REPOSITORY

from tools.authoring.layout import PREVIEWED

WORKFLOWS = sorted((REPOSITORY / "workflows").glob("*.json"))
RENDERERS = {"litegraph": False, "nodes-2": True}
EMPTY = 1 / 3
"""The most of a group, inside of its title and its margins, that may be bare."""

HEAD, MARGIN = 54, 20
"""Pixels of a group above its first node, and at its other sides."""

SLACK = 2
"""Pixels by which the two renderers round otherwise."""

BOXES = (
    "return [app.rootGraph.nodes.map((n) => [n.id, n.title, ...n.pos, ...n.size]),"
    " app.rootGraph.groups.map((g) => [g.title, ...g.pos, ...g.size])]"
)
SAMPLERS = """
const samples = ({ widgets, outputs }) =>
  widgets?.some(({ name }) => name === "steps") && outputs.some(({ type }) => ["LATENT", "IMAGE"].includes(type));
const nodes = app.rootGraph.nodes.filter(
  (node) => node.mode === 0 && (arguments[0].includes(node.type) || samples(node)),
);
return nodes.map(({ id }) => id);
"""
"""The nodes that sample, with steps of their own or of the given types."""
SETTLED = f"await new Promise((done) => setTimeout(done, 60)); {FRAMES}"


@pytest.fixture(params=RENDERERS.values(), ids=RENDERERS)
def modern(opened: Page, request: pytest.FixtureRequest) -> Iterator[bool]:
    opened.setting("Comfy.VueNodes.Enabled", request.param)
    yield request.param
    opened.clear()
    opened.setting("Comfy.VueNodes.Enabled", False)


def measure(page: Page) -> tuple[dict[str, tuple[float, ...]], dict[str, tuple[float, ...]]]:
    """Left, top, width and height of every node (its title included) by id, and of every group by title."""
    page.wait_still()
    nodes, groups = page.browser.run(SETTLED + ";" + BOXES)
    return (
        {f"{number} {title}": (x, y - TITLE, w, h + TITLE) for number, title, x, y, w, h in nodes},
        {title: tuple(box) for title, *box in groups},
    )


def inside(box: tuple[float, ...], group: tuple[float, ...]) -> bool:
    left, top, width, height = box
    x, y, across, down = group
    return (
        left >= x - SLACK
        and top >= y - SLACK
        and left + width <= x + across + SLACK
        and top + height <= y + down + SLACK
    )


def find_scale(groups: dict[str, tuple[float, ...]], workflow: dict[str, Any]) -> float:
    """By how much the page itself enlarges a whole workflow: older frontends do, by a fifth, in Nodes 2.0."""
    saved = {group["title"]: group["bounding"][2] for group in workflow["groups"]}
    scales = {round(groups[title][2] / across, 2) for title, across in saved.items()} or {1.0}
    assert len(scales) == 1 and scales <= {1.0, 1.2}, f"groups are enlarged by {scales}"
    return scales.pop()


def find_faults(page: Page, workflow: dict[str, Any] | None = None) -> list[str]:
    """Nodes on one another, nodes that stick out of their group, groups that are mostly bare, nodes that grew over what
    ``workflow`` says."""
    nodes, groups = measure(page)
    faults = page.overlaps()
    for title, group in groups.items():
        x, y, across, down = group
        own = {name: box for name, box in nodes.items() if x <= box[0] < x + across and y <= box[1] < y + down}
        faults += [f"'{name}' sticks out of '{title}'" for name, box in own.items() if not inside(box, group)]
        room = (across - 2 * MARGIN) * (down - HEAD - MARGIN)
        bare = 1 - sum(width * height for _, _, width, height in own.values()) / room
        faults += [f"'{title}' is {bare:.0%} bare"] if bare > EMPTY else []
    scale = find_scale(groups, workflow) if workflow else 1.0
    saved = {node["id"]: node["size"][1] * scale for node in workflow["nodes"]} if workflow else {}
    for name, (_, _, _, height) in nodes.items() if saved else ():
        expected = saved[int(name.split()[0])] + TITLE
        faults += [f"'{name}' is {height:.0f} high, saved {expected}"] if abs(height - expected) > SLACK else []
    return faults


def test_every_workflow_opens_tidy_and_has_room_for_previews(page, modern):
    faults, shown = [], 0
    for path in WORKFLOWS:
        workflow = json.loads(path.read_text(encoding="utf-8"))
        page.load(workflow, path.stem)
        faults += [f"{path.stem}: {fault}" for fault in find_faults(page, workflow)]
        sampling = page.browser.run(SAMPLERS, sorted(PREVIEWED))
        page.show_previews(sampling)
        shown += len(sampling)
        faults += [f"{path.stem}, while it runs: {fault}" for fault in find_faults(page, workflow)]
    assert not faults, "\n".join(faults)
    assert shown > len(WORKFLOWS)


def command(page: Page, name: str) -> None:
    page.browser.run("await app.extensionManager.command.execute(arguments[0])", name)


def heights(page: Page) -> dict[str, int]:
    return {name: round(box[3]) for name, box in measure(page)[0].items()}


def turn_twice(page: Page) -> None:
    """To another tab and back, two times; a tab is left when it is there, as a hand would leave it."""
    for turn, there in (
        ("Comfy.NewBlankWorkflow", "=== 0"),
        ("Workspace.PreviousOpenedWorkflow", "> 0"),
        ("Workspace.NextOpenedWorkflow", "=== 0"),
        ("Workspace.PreviousOpenedWorkflow", "> 0"),
    ):
        command(page, turn)
        page.browser.wait(f"app.rootGraph.nodes.length {there}")
        page.wait_still()
        page.browser.run(SETTLED)


@pytest.fixture
def drafts(object_info: dict[str, Any]) -> Small:
    return Small(REPOSITORY / "workflows" / "Stable Cascade - many drafts, draft board.json", object_info)


def test_heights_stay_through_a_days_work(page, modern, drafts):
    """Open, run, switch tabs, undo and redo, save and open again."""
    page.load(drafts.workflow, "a-day")
    for change in drafts.changes:
        page.set(*change)
    page.fit()
    first = heights(page)

    def check(done: str) -> None:
        now = heights(page)
        changed = {name: (first[name], now.get(name)) for name in first if abs(first[name] - now.get(name, 0)) > SLACK}
        assert not changed, f"after {done}: {changed}"
        assert not (faults := find_faults(page)), f"after {done}: {faults}"

    page.run()
    sheet = "document.querySelector('.cascade-studio-board .sheet img')?.naturalWidth > 0"
    page.browser.wait(sheet)
    check("a run")
    shape = page.browser.run(
        "const image = document.querySelector('.cascade-studio-board .sheet img');"
        "return [image.naturalWidth / image.naturalHeight, image.offsetWidth / image.offsetHeight]"
    )
    assert abs(shape[0] / shape[1] - 1) < 0.02, f"the sheet is stretched: {shape}"
    turn_twice(page)
    page.browser.wait(sheet)
    check("switching tabs twice")
    page.set(drafts.node("CascadeStudio_DraftBoard"), "chosen", "2")
    page.browser.run("app.extensionManager.workflow.activeWorkflow.changeTracker.captureCanvasState?.()")
    for name in ("Comfy.Undo", "Comfy.Redo"):
        command(page, name)
        check(name)
    saved = page.graph()
    page.clear()
    page.load(saved, "again")
    check("saving and opening again")
