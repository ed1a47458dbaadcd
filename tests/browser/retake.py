"""All screenshots of the users' pages anew: ``python3 dev.py run tests/browser/retake.py [FOLDER]``.

They are those of ``docs/first_picture.md``, in the order in which a newcomer sees them: the walk to the first picture
on Cascade Mini, then the published models' files, a download from a server on this computer, and a LoRA. Everything is
what a plain ComfyUI of the main version shows, with no model but those of the pack; they go to ``docs/pictures``.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from pathlib import Path

import harness
from browser.driver import Browser
from browser.onward import shoot_fetching, shoot_files, shoot_lora
from browser.page import Page
from browser.shoot import CHROME, WALK_SIZE, take_pictures
from browser.shop import IN_THE_WAY, Shop
from browser.walk import illustrate, walk
from family import write_family

from cascade_studio.commands.messages import say
from tools.env import current_setup
from tools.server import Base, HostServer, has_accelerator
from tools.titles import FIRST

PICTURES = harness.REPOSITORY / "docs" / "pictures"
PAGE = harness.REPOSITORY / "docs" / "first_picture.md"


def retake(base: Base, folder: Path, shop: Shop) -> list[Path]:
    """Every screenshot in order, on one server and in one browser."""
    setup = current_setup()
    with HostServer(setup, base, cpu=not has_accelerator(setup)) as server, Browser(WALK_SIZE) as browser:
        server.client.fetch("/settings", CHROME)
        page = Page(browser, server.client.url)
        page.open()
        walked = walk(page, folder, FIRST)
        if folder == PICTURES:
            illustrate(PAGE, walked)
        return [*walked, shoot_files(page, folder), shoot_fetching(page, folder, shop), shoot_lora(page, folder)]


def take_all(base: Base, folder: Path) -> None:
    """All of them; files come from a shop of their own."""
    begun = time.monotonic()
    with tempfile.TemporaryDirectory() as scratch:
        write_family(Path(scratch, "models"))
        shop = Shop(Path(scratch, "models"), Path(scratch))
        try:
            for name in IN_THE_WAY:
                os.environ.pop(name, None)
            os.environ.update(shop.environment)
            os.environ.setdefault("OMP_NUM_THREADS", "1")  # Mini's layers mostly wait for each other on more
            for path in retake(base, folder, shop):
                say(str(path))
        finally:
            shop.close()
    say(f"Taken in {time.monotonic() - begun:.0f} s.")


def main(arguments: list[str]) -> int:
    """Take them all; returns the exit code."""
    folder = Path(arguments[0]).resolve() if arguments else PICTURES
    return take_pictures(folder, lambda base: take_all(base, folder))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
