"""Screenshots of every bundled workflow: ``python3 dev.py run tests/browser/shoot.py OUT_DIR [NAME ...]``.

The workflows are shown as they are saved, on a real server with the tiny family; nothing is run. Nodes that lie on one
another are named.

``shoot.py OUT_DIR NAME --walk`` takes the way to the first picture instead, by clicks: the nodes are there, the
template browser, the workflow, its run, the picture. It runs as it is saved, on the models of ``--model DIR`` or on
files that come with the pack; ``--tiny`` tries the way with the tiny family and a small picture. ``--page FILE`` shows
the screenshots on a page, below its headings "## 1. ..." to "## 5. ...".
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import harness
from browser.driver import Browser, BrowserError, find_chromium
from browser.page import SETTINGS, Page
from browser.walk import illustrate, tiny, walk

from cascade_studio.commands.messages import Stop, say
from tools.env import current_setup
from tools.server import Base, HostServer, has_accelerator

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


def shoot(page: Page, path: Path, folder: Path) -> Path:
    """One workflow, fitted into the window."""
    page.load(json.loads(path.read_text(encoding="utf-8")), path.stem)
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
        server.client.fetch("/settings", CHROME)
        page = Page(browser, server.client.url)
        page.open()
        for name in options.names or sorted(path.stem for path in WORKFLOWS.glob("*.json")):
            say(str(shoot(page, WORKFLOWS / f"{name}.json", options.folder)))
            for overlap in page.overlaps():
                say(f"  {overlap}")


def shoot_walk(base: Base, options: argparse.Namespace) -> None:
    """The way to the first picture with one workflow."""
    if len(options.names) != 1:
        raise Stop("--walk needs the name of one workflow, for example 'Stable Cascade - text to image'.")
    flags = base.add_models(options.model) if options.model else []
    if options.tiny:
        from family import write_family

        write_family(base.models)
    setup, name = current_setup(), options.names[0]
    with HostServer(setup, base, cpu=not has_accelerator(setup), flags=flags) as server, Browser(WALK_SIZE) as browser:
        server.client.fetch("/settings", CHROME)
        page = Page(browser, server.client.url)
        page.open()
        change = [tiny(WORKFLOWS / f"{name}.json", server.client.get("/object_info"))] if options.tiny else []
        taken = walk(page, options.folder, name, *change)
    for path in taken:
        say(str(path))
    if options.page:
        illustrate(options.page, taken)


def read_options(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where the pictures go")
    parser.add_argument("names", nargs="*", help="workflows by name; all of them by default")
    parser.add_argument("--walk", action="store_true", help="the way to the first picture with one workflow")
    parser.add_argument("--model", type=Path, metavar="DIR", help="with --walk: a ComfyUI models folder")
    parser.add_argument("--tiny", action="store_true", help="with --walk: the tiny family and a small picture")
    parser.add_argument("--page", type=Path, metavar="FILE", help="with --walk: a page to put the screenshots into")
    return parser.parse_args(arguments)


def main(arguments: list[str]) -> int:
    """Returns the exit code."""
    options = read_options(arguments)
    base = Base()
    try:
        if find_chromium() is None:
            raise Stop("No Chromium is installed. Install one (apt-get install chromium) and try again.")
        missing = [name for name in options.names if not (WORKFLOWS / f"{name}.json").is_file()]
        if missing:
            raise Stop(f"There is no workflow {', '.join(missing)}. Names are those of the files in workflows/.")
        options.folder.mkdir(parents=True, exist_ok=True)
        (shoot_walk if options.walk else shoot_all)(base, options)
    except Stop as stop:
        say(str(stop))
        return 1
    except BrowserError as error:
        say(f"The browser could not do it: {error}")
        return 1
    finally:
        base.close()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
