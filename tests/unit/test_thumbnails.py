"""The pictures beside the workflows: named and sized as the template browser shows them, and all there."""
from __future__ import annotations

import io

import pytest
from harness import REPOSITORY
from PIL import Image
from tools import workflow_thumbnails as tool
from tools.authoring.recipes import parts

WORKFLOWS = REPOSITORY / "workflows"
PICTURES = sorted(WORKFLOWS.glob("*.jpg"))


def png(size: tuple[int, int]) -> bytes:
    made = io.BytesIO()
    Image.new("RGB", size, (200, 30, 40)).save(made, "PNG")
    return made.getvalue()


@pytest.mark.parametrize("size, expected", [((256, 256), (512, 512)), ((2048, 512), (512, 128))])
def test_a_thumbnail_is_a_jpeg_of_512_pixels(size, expected):
    with Image.open(io.BytesIO(tool.thumbnail(png(size)))) as picture:
        assert picture.format == "JPEG" and picture.size == expected


def test_the_example_has_a_hole_that_keeps_its_colours():
    """Load Image reads what is see-through as a mask, and the colours below it as the picture."""
    with Image.open(io.BytesIO(tool.with_hole(png((64, 64))))) as picture:
        assert picture.mode == "RGBA"
        assert picture.getpixel((32, 32)) == (200, 30, 40, 0) and picture.getpixel((2, 2)) == (200, 30, 40, 255)


def test_every_workflow_has_its_picture():
    """``python3 dev.py run -m tools.workflow_thumbnails`` writes them, with Cascade Mini."""
    if not parts.ships():
        pytest.skip("Cascade Mini, which paints them, is not in the repository yet")
    names = {path.stem for path in WORKFLOWS.glob("*.json")}
    assert {path.stem for path in PICTURES} == names


@pytest.mark.parametrize("path", PICTURES, ids=lambda path: path.stem)
def test_pictures_are_what_the_tool_writes(path):
    with Image.open(path) as picture:
        assert picture.format == "JPEG" and max(picture.size) == tool.SIDE
    assert path.stat().st_size < 150_000
