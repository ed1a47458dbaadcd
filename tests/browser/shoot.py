"""Screenshots of every bundled workflow: ``python3 dev.py run tests/browser/shoot.py OUT_DIR [NAME ...]``.

The workflows are shown as they are saved, on a real server with the tiny family, or after a run on it with ``--run``.
Nodes that lie on one another are named. ``--light`` shows the host's light theme, ``--nodes-2`` its other renderer of
nodes.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import harness
from browser.driver import Browser, BrowserError, find_chromium
from browser.page import SETTINGS, Page, Small

from cascade_studio.commands.messages import Stop, say
from tools.env import current_setup
from tools.server import Base, HostServer

SIZE, WALK_SIZE = (2400, 1350), (1600, 900)
WORKFLOWS = harness.REPOSITORY / "workflows"
CHROME = {
    **SETTINGS,
    "Comfy.Minimap.Visible": False,
    "LiteGraph.Canvas.MinFontSizeForLOD": 0,
    "Comfy.Graph.CanvasInfo": False,
    "Comfy.NodeBadge.NodeSourceBadgeMode": "None",
}
"""Letters at every zoom, and nothing on the screen that does not belong to the workflow."""


def run_small(page: Page, path: Path, small: Small) -> None:
    """Open a workflow, make it small, and run it; that it fails is said."""
    page.load(small.workflow, path.stem)
    for node, name, value in small.changes:
        if ":" not in node:  # what is inside a block is small already
            page.set(node, name, value)
    try:
        page.run()
    except AssertionError as error:
        say(f"{path.stem}: {error}")


def shoot(page: Page, path: Path, folder: Path, object_info: dict[str, Any] | None) -> Path:
    """One workflow, fitted into the window, after a run where the nodes' definitions are given."""
    if object_info is None:
        page.load(json.loads(path.read_text(encoding="utf-8")), path.stem)
    else:
        run_small(page, path, Small(path, object_info))
    page.fit()
    page.wait_still()
    file = folder / f"{path.stem}.png"
    file.write_bytes(page.browser.picture())
    return file


def shoot_all(base: Base, options: argparse.Namespace) -> None:
    """Every workflow, or those that are named."""
    from family import write_family

    write_family(base.models)
    with HostServer(current_setup(), base) as server, Browser(SIZE) as browser:
        look = {"Comfy.ColorPalette": "light"} if options.light else {}
        server.client.fetch("/settings", {**CHROME, **look, "Comfy.VueNodes.Enabled": options.nodes_2})
        page = Page(browser, server.client.url)
        page.open()
        object_info = server.client.get("/object_info") if options.run else None
        for name in options.names or sorted(path.stem for path in WORKFLOWS.glob("*.json")):
            say(str(shoot(page, WORKFLOWS / f"{name}.json", options.folder, object_info)))
            for overlap in page.overlaps():
                say(f"  {overlap}")


def read_options(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where the pictures go")
    parser.add_argument("names", nargs="*", help="workflows by name; all of them by default")
    parser.add_argument("--run", action="store_true", help="after a run on the tiny models")
    parser.add_argument("--light", action="store_true", help="in the light theme")
    parser.add_argument("--nodes-2", action="store_true", help="with nodes drawn by the page (Nodes 2.0)")
    return parser.parse_args(arguments)


def take_pictures(folder: Path, take: Callable[[Base], None]) -> int:
    """Let ``take`` write screenshots into ``folder``, made if it is not there; returns the exit code."""
    base = Base()
    try:
        if find_chromium() is None:
            raise Stop("No Chromium is installed. Install one (apt-get install chromium) and try again.")
        folder.mkdir(parents=True, exist_ok=True)
        take(base)
    except Stop as stop:
        say(str(stop))
        return 1
    except BrowserError as error:
        say(f"The browser could not do it: {error}")
        return 1
    finally:
        base.close()
    return 0


def main(arguments: list[str]) -> int:
    """Returns the exit code."""
    options = read_options(arguments)
    missing = [name for name in options.names if not (WORKFLOWS / f"{name}.json").is_file()]
    if missing:
        say(f"There is no workflow {', '.join(missing)}. Names are those of the files in workflows/.")
        return 1
    return take_pictures(options.folder, lambda base: shoot_all(base, options))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
