"""The mark and the banner: as the registry takes them, drawn by tools/icon.py and tools/banner.py alone."""

from __future__ import annotations

from pathlib import Path

import numpy
import pytest
from PIL import Image

from tools import banner, icon

COLOURS = [(20 * number, 255 - 20 * number, 7 * number) for number in range(13)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Thirteen pictures of one colour each, wide, high and square, and a file that is none."""
    for number, colour in enumerate(COLOURS):
        size = ((300, 200), (90, 500), (64, 64))[number % 3]
        Image.new("RGB", size, colour).save(tmp_path / f"{number:02d}.png")
    (tmp_path / "notes.txt").write_text("no picture", encoding="utf-8")
    return tmp_path


def middles(picture: Image.Image) -> list[tuple[int, int, int]]:
    """The colours in the middle of every square that shows a picture."""
    return [
        picture.getpixel((column * banner.TILE + banner.TILE // 2, row * banner.TILE + banner.TILE // 2))
        for row in range(banner.ROWS)
        for column in range(banner.MARK, banner.COLUMNS)
    ]


def test_the_icon_is_the_one_that_the_script_draws():
    with Image.open(icon.FILE) as kept:
        assert kept.size == (400, 400) and kept.format == "PNG" and kept.mode == "RGBA"
        apart = numpy.abs(numpy.asarray(kept, float) - numpy.asarray(icon.icon(), float))
    assert apart.mean() < 1, "run 'python3 dev.py run -m tools.icon'"
    assert icon.FILE.stat().st_size < 40_000


def test_the_icon_shows_three_nested_squares():
    """From the shared corner outwards: C, B, A, the ground, and nothing in the round corner."""
    drawn = icon.icon()
    seen = [drawn.getpixel((x, 400 - x))[:3] for x in range(56, 350)]
    order = [colour for colour in seen if colour in [square[2] for square in icon.SQUARES]]
    assert list(dict.fromkeys(order)) == [square[2] for square in reversed(icon.SQUARES)]
    assert drawn.getpixel((0, 0))[3] == 0 and drawn.getpixel((200, 20)) == (*icon.GROUND, 255)


def test_the_banner_shows_twelve_pictures_by_name(folder, tmp_path):
    file = tmp_path / "out" / "banner.png"
    file.parent.mkdir()
    assert banner.main([str(folder), "--output", str(file)]) == 0
    with Image.open(file) as made:
        assert made.width * 9 == made.height * 21
        assert middles(made.convert("RGB")) == COLOURS[:12]
        mark = numpy.asarray(made.convert("RGB"))[:, : banner.MARK * banner.TILE]
    assert {tuple(pixel) for pixel in mark.reshape(-1, 3)} >= {banner.GROUND, banner.INK, *(s[2] for s in icon.SQUARES)}


def test_few_pictures_come_again(folder):
    paths = banner.pictures_in(folder)[:5]
    assert middles(banner.banner(paths)) == [COLOURS[number % 5] for number in range(12)]


def test_a_folder_without_pictures_is_told(tmp_path, capsys):
    for given in (tmp_path, tmp_path / "none"):
        assert banner.main([str(given), "--output", str(tmp_path / "b.png")]) == 1
        assert f"{given} holds no PNG files. Give a folder" in capsys.readouterr().err
    assert not (tmp_path / "b.png").exists()


def test_a_broken_picture_is_named(folder, tmp_path, capsys):
    (folder / "00.png").write_bytes(b"\x89PNG\r\n\x1a\nbroken")
    assert banner.main([str(folder), "--output", str(tmp_path / "b.png")]) == 1
    assert "00.png cannot be read as a picture" in capsys.readouterr().err
