"""The way to the first picture in screenshots: the nodes are there, templates, the workflow, its run, the picture.

``python3 dev.py run tests/browser/retake.py`` takes them, and those of the way on.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from browser.driver import FRAMES
from browser.page import FIRST_CARD, QUEUE, Page, Small

from tools.titles import FIRST, SEARCHED

STEPS = {1: "installed", 2: "templates", 3: "workflow", 4: "running", 5: "picture"}
LONGEST = 3600.0
"""Seconds that a run may take where only a CPU is there."""

SHARE = 0.8
"""Of the screen, for the graph: the frontend's bars stand before the rest."""

LIBRARY = "Workspace.ToggleSidebarTab.node-library"
ENDED = "window.seen.some(([name]) => name.startsWith('execution_'))"
SHOWN = (
    "Object.entries(app.nodeOutputs).some(([id, { images }]) => images?.length"
    " && app.rootGraph.getNodeById(id)?.imgs?.some((image) => image.naturalWidth > 0))"
)


def walk(page: Page, folder: Path, template: str, prepare: Callable[[Page], None] = lambda page: None) -> list[Path]:
    """Go the way and return its five screenshots; ``prepare`` may change the opened workflow."""
    taken: list[Path] = []

    def shoot() -> None:
        number = len(taken) + 1
        taken.append(folder / f"first_{number}_{STEPS[number]}.png")
        taken[-1].write_bytes(page.browser.picture())

    library = (
        "[...document.querySelectorAll('*')]"
        ".find((e) => !e.children.length && e.textContent.trim() === 'Cascade Studio')"
    )
    page.clear()  # the host's own first graph
    page.browser.run("await app.extensionManager.command.execute(arguments[0])", LIBRARY)
    page.browser.wait(f"!!{library}")
    page.browser.run(f"{library}.scrollIntoView(); {library}.click()")
    page.browser.run(f"{FRAMES}; {library}.scrollIntoView()")  # its folders are there now
    page.wait_still()
    shoot()
    page.browser.run("await app.extensionManager.command.execute(arguments[0])", LIBRARY)
    page.browse_templates()
    page.search_templates(SEARCHED)
    page.browser.wait(f"{FIRST_CARD}?.dataset.testid.includes(arguments[0])", FIRST)
    page.wait_still()
    shoot()
    page.open_template(template)
    prepare(page)
    page.fit(SHARE)
    page.wait_still()
    shoot()
    page.watch("execution_success", "execution_error", "execution_interrupted", "b_preview_with_metadata")
    page.browser.click(QUEUE)
    page.browser.wait(f"window.seen.length >= 2 || {ENDED}", timeout=LONGEST)
    page.wait_still()
    shoot()
    page.wait_done(LONGEST)
    page.browser.wait(SHOWN)
    page.fit(SHARE)
    page.wait_still()
    shoot()
    return taken


def tiny(path: Path, object_info: dict[str, Any]) -> Callable[[Page], None]:
    """Makes an opened workflow run on the tiny family, small and quick."""
    small = Small(path, object_info)

    def prepare(page: Page) -> None:
        for change in small.changes:
            page.set(*change)

    return prepare


def illustrated(text: str, links: dict[int, str]) -> str:
    """The page's text with a picture below every heading "## N. Title" that ``links`` has one for, and no older one."""
    text = re.sub(r"\n!\[Step \d: [^\]]*\]\([^)]*\)\n", "", text)

    def with_picture(heading: re.Match[str]) -> str:
        link = links.get(int(heading[1]))
        return f"{heading[0]}\n![Step {heading[1]}: {heading[2]}]({link})\n" if link else heading[0]

    return re.sub(r"(?m)^## (\d)\. (.+)\n", with_picture, text)


def illustrate(page_file: Path, taken: list[Path]) -> None:
    """Put screenshots into a page, by links relative to it."""
    links = {number: Path(os.path.relpath(path, page_file.parent)).as_posix() for number, path in enumerate(taken, 1)}
    page_file.write_text(illustrated(page_file.read_text(encoding="utf-8"), links), encoding="utf-8")
