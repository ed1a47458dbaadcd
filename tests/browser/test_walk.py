"""The screenshots of the way to the first picture, and the page that they go into."""

from __future__ import annotations

import io
import re

from browser.onward import STEPS as ONWARD
from browser.walk import STEPS, illustrate, illustrated, tiny, walk
from harness import REPOSITORY
from PIL import Image

PAGE = REPOSITORY / "docs" / "first_picture.md"
TEMPLATE = "Stable Cascade - text to image"


def test_the_way_to_the_first_picture_is_shot(page, object_info, tmp_path):
    """Screenshots that differ; the last one follows a run that a click started and that made a picture.

    Where that run is over at once, the one that was taken while it ran shows the picture, too.
    """
    workflow = REPOSITORY / "workflows" / f"{TEMPLATE}.json"
    taken = walk(page, tmp_path, TEMPLATE, tiny(workflow, object_info))
    assert [path.name for path in taken] == [f"first_{number}_{name}.png" for number, name in STEPS.items()]
    contents = [path.read_bytes() for path in taken]
    assert len(set(contents[:4])) == 4 and contents[4] not in contents[:3]
    for content in contents:
        with Image.open(io.BytesIO(content)) as picture:
            assert picture.size == page.browser.size
            assert len(picture.convert("RGB").getcolors(1 << 24)) > 200
    assert page.seen("execution_success")  # a run on the tiny family can be over before the first preview is due


def test_the_page_has_a_step_for_every_screenshot():
    """The screenshots come in by the command, as often as it runs, and the words stay as they are."""
    text = PAGE.read_text(encoding="utf-8")
    words = illustrated(text, {})
    assert [int(number) for number in re.findall(r"(?m)^## (\d)\. ", words)] == list(STEPS)
    links = {number: f"pictures/{name}.png" for number, name in STEPS.items()}
    shown = illustrated(text, links)
    assert re.findall(r"!\[Step \d: [^\]]+\]\((.+)\)", shown) == list(links.values())
    assert illustrated(shown, links) == shown and illustrated(shown, {}) == words


def test_screenshots_are_linked_from_where_the_page_is(tmp_path):
    page = tmp_path / "docs" / "page.md"
    (page.parent / "pictures").mkdir(parents=True)
    page.write_text("# Page\n\n## 1. One\n\nWords.\n\n## 2. Two\n\nMore.\n", encoding="utf-8")
    illustrate(page, [page.parent / "pictures" / "a.png", tmp_path / "b.png"])
    assert page.read_text(encoding="utf-8") == (
        "# Page\n\n## 1. One\n\n![Step 1: One](pictures/a.png)\n\nWords.\n\n"
        "## 2. Two\n\n![Step 2: Two](../b.png)\n\nMore.\n"
    )


def test_the_page_shows_every_screenshot_there_is():
    shown = re.findall(r"\]\((pictures/first_\w+\.png)\)", PAGE.read_text(encoding="utf-8"))
    names = [f"pictures/first_{number}_{name}.png" for number, name in {**STEPS, **ONWARD}.items()]
    assert shown == names and all((PAGE.parent / name).is_file() for name in names)
