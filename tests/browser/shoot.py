"""Screenshots of every bundled workflow: ``python3 dev.py run tests/browser/shoot.py OUT_DIR [NAME ...]``.

The workflows are shown as they are saved, on a real server with the tiny family; nothing is run. Nodes that lie on one
another are named.
"""
from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import harness  # noqa: E402

harness.arrange_path()
harness.name_pack()

from browser.driver import Browser, BrowserError, find_chromium  # noqa: E402
from browser.page import SETTINGS, Page  # noqa: E402
from tools.messages import say  # noqa: E402
from tools.server import Base, Server  # noqa: E402

SIZE = (2400, 1350)
CHROME = {**SETTINGS, "Comfy.Minimap.Visible": False, "LiteGraph.Canvas.MinFontSizeForLOD": 0,
          "Comfy.Graph.CanvasInfo": False, "Comfy.NodeBadge.NodeSourceBadgeMode": "None"}
"""Letters at every zoom, and nothing on the screen that does not belong to the workflow."""


def shoot(page: Page, path: Path, folder: Path) -> Path:
    """One workflow, fitted into the window."""
    page.load(json.loads(path.read_text(encoding="utf-8")), path.stem)
    page.fit()
    page.wait_still()
    file = folder / f"{path.stem}.png"
    file.write_bytes(page.browser.picture())
    return file


def main(arguments: list[str]) -> int:
    """Returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="where the pictures go")
    parser.add_argument("names", nargs="*", help="workflows by name; all of them by default")
    options = parser.parse_args(arguments)
    if find_chromium() is None:
        say("No Chromium is installed. Install one (apt-get install chromium) and try again.")
        return 1
    paths = [path for path in sorted((harness.REPOSITORY / "workflows").glob("*.json"))
             if not options.names or path.stem in options.names]
    options.folder.mkdir(parents=True, exist_ok=True)
    base = Base()
    try:
        from family import write_family
        write_family(base.models)
        with Server(harness.main_setup(), base) as server, Browser(SIZE) as browser:
            server.client.fetch("/settings", CHROME)
            page = Page(browser, server.client.url)
            page.open()
            for path in paths:
                say(str(shoot(page, path, options.folder)))
                for overlap in page.overlaps():
                    say(f"  {overlap}")
    except BrowserError as error:
        say(f"The browser could not do it: {error}")
        return 1
    finally:
        base.close()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
