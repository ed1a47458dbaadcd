"""The pictures beside the workflows and the README's sheet: named and sized as they are shown, and all there."""

from __future__ import annotations

import io
import json

import pytest
from harness import REPOSITORY
from PIL import Image, ImageChops, ImageDraw, ImageStat

from cascade_studio.commands.messages import Stop
from tools import cards, sheet, workflow_thumbnails as tool
from tools.authoring.recipes import parts
from tools.diagrams import DIAGRAMS, LARGE_LETTERS, LETTERS, MARGIN, SIDE, draw_diagram, draw_enlarged, write_label
from tools.scenes import SHEET

WORKFLOWS = REPOSITORY / "workflows"


def png(size: tuple[int, int]) -> bytes:
    made = io.BytesIO()
    Image.new("RGB", size, (200, 30, 40)).save(made, "PNG")
    return made.getvalue()


@pytest.mark.parametrize("size", [(256, 256), (2048, 512), (300, 400)])
def test_a_thumbnail_is_a_square_jpeg_of_512_pixels(size):
    with Image.open(io.BytesIO(tool.thumbnail(png(size)))) as picture:
        assert picture.format == "JPEG" and picture.size == (512, 512)


def values_of(name: str, kind: str) -> list:
    """The widgets of the one node of its kind in a workflow."""
    workflow = json.loads((WORKFLOWS / f"{name}.json").read_text(encoding="utf-8"))
    (node,) = [node for node in workflow["nodes"] if node["type"] == kind]
    return node["widgets_values"]


def test_diagrams_tell_the_sizes_of_their_workflows():
    enlarged = {name: draw.args for name, draw in DIAGRAMS.items() if getattr(draw, "func", None) is draw_enlarged}
    assert len(enlarged) == 4
    for name, (small, large, *guide) in enlarged.items():
        size = values_of(name, "CascadeStudio_Canvas")[:2]
        scale = values_of(name, "CascadeStudio_HighResolutionPrior")[0]
        assert list(small) == size and list(large) == [round(side * scale) for side in size], name
        assert bool(guide) == ("UltraPixel" in name)


@pytest.mark.parametrize("name", DIAGRAMS)
def test_a_diagram_is_the_workflows_card_and_differs_from_the_others(name):
    with Image.open(io.BytesIO(tool.thumbnail(draw_diagram(name)))) as drawn:
        for other in DIAGRAMS:
            with Image.open(WORKFLOWS / f"{other}.jpg") as card:
                away = max(ImageStat.Stat(ImageChops.difference(drawn, card)).mean)
            assert away < 2 if other == name else away > 4, other


def api_of(name: str) -> dict:
    return json.loads((WORKFLOWS / "api" / f"{name}.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", cards.PAIRS)
def test_a_pair_saves_what_was_before(name):
    """Beside what the workflow saves itself, which stays as it is."""
    prompt = api_of(name)
    more = cards.save_more(name, prompt)
    (added,) = set(more) - set(prompt)
    wire = more[added]["inputs"]["images"]
    assert prompt == api_of(name) and wire[0] in prompt and more[added]["inputs"]["filename_prefix"] == cards.BEFORE


@pytest.mark.parametrize("name", sorted(cards.WITHOUT))
def test_before_is_without_what_the_workflow_is_for(name):
    prompt = api_of(name)
    off = cards.take_off(name, prompt)
    changed = [key for key in prompt if prompt[key] != off[key]]
    assert changed and prompt == api_of(name) and cards.save_more(name, prompt) == prompt


@pytest.mark.parametrize("name", sorted(cards.BOARDS))
def test_a_board_shows_its_drafts(name):
    prompt = api_of(name)
    more = cards.save_more(name, prompt)
    assert more[cards.DRAFTS]["inputs"]["images"] == ["drafts", 0]
    colours = [(250, 0, 0), (0, 250, 0), (0, 0, 250), (250, 250, 0), (9, 9, 9)]
    sheet = cards.draw_sheet([Image.new("RGB", (8, 8), colour) for colour in colours])
    middles = [(x * SIDE // 4, y * SIDE // 4) for y in (1, 3) for x in (1, 3)]
    assert [sheet.getpixel(at) for at in middles] == colours[:4]


def test_a_pair_has_before_below_and_after_above():
    pair = cards.draw_pair(*(Image.new("RGB", (64, 64), colour) for colour in ((9, 0, 0), (0, 0, 9))))
    assert pair.getpixel((SIDE // 4, 3 * SIDE // 4)) == (9, 0, 0)
    assert pair.getpixel((3 * SIDE // 4, SIDE // 4)) == (0, 0, 9)


def test_a_card_of_training_trains_as_opened():
    (name,) = [name for name in cards.PAIRS if "train" in name]
    whole = api_of(name)
    less = json.loads(json.dumps(whole))
    node = cards.find_node(less, "CascadeStudio_TrainLora")
    less[node]["inputs"]["steps"] = 2
    cards.keep_training(less, whole)
    assert less == whole


def test_labels_of_diagrams_stay_inside_of_them():
    picture = Image.new("RGB", (SIDE, SIDE))
    for size, corner, anchor in ((LARGE_LETTERS, (SIDE - MARGIN, MARGIN), "rt"), (LETTERS, (MARGIN, SIDE), "lb")):
        left, top, right, bottom = write_label(ImageDraw.Draw(picture), "3840 x 2160", corner, size, anchor)
        assert 0 <= left < right <= SIDE and 0 <= top < bottom <= SIDE
        assert (bottom - top) * 250 / SIDE >= 16, "plates of letters that can be read on a card"


def test_the_example_has_a_hole_that_keeps_its_colours():
    """Load Image reads what is see-through as a mask, and the colours below it as the picture."""
    with Image.open(io.BytesIO(tool.with_hole(png((64, 64))))) as picture:
        assert picture.mode == "RGBA"
        assert picture.getpixel((32, 32)) == (200, 30, 40, 0) and picture.getpixel((2, 2)) == (200, 30, 40, 255)


def test_every_workflow_has_its_picture():
    """``python3 dev.py run -m tools.workflow_thumbnails`` writes them, with Cascade Mini."""
    if not parts.ships():
        pytest.skip("Cascade Mini, which paints them, is not in the repository yet")
    pictures = sorted(WORKFLOWS.glob("*.jpg"))
    assert {path.stem for path in pictures} == {path.stem for path in WORKFLOWS.glob("*.json")}
    for path in pictures:
        with Image.open(path) as picture:
            assert picture.format == "JPEG" and picture.size == (tool.SIDE, tool.SIDE), path.name
        assert path.stat().st_size < 150_000, path.name


def test_the_sheet_has_rows_with_a_caption_below_each_picture():
    pictures = [(f"number {i}", Image.new("RGB", (256, 256), (40 * i, 90, 200 - 30 * i))) for i in range(5)]
    made = sheet.sheet(pictures)
    step, row = sheet.SIDE + sheet.GAP, sheet.SIDE + sheet.CAPTION + sheet.GAP
    assert made.size == (4 * step + sheet.GAP, 2 * row + sheet.GAP)
    for number in range(5):
        x, y = sheet.GAP + number % 4 * step, sheet.GAP + number // 4 * row
        assert made.getpixel((x + 128, y + 128)) == pictures[number][1].getpixel((0, 0))
        below = made.crop((x, y + sheet.SIDE, x + sheet.SIDE, y + sheet.SIDE + sheet.CAPTION))
        assert min(low for low, _ in below.getextrema()) < 100, "the caption is there"
    assert made.getpixel((made.width - 20, made.height - 60)) == sheet.PAPER


def test_the_sheet_is_as_good_as_its_size_allows():
    large = Image.effect_mandelbrot((1000, 800), (-2, -1.5, 1, 1.5), 90).convert("RGB")
    data = sheet.compress(large)
    assert len(data) <= sheet.MOST and data[:2] == b"\xff\xd8"
    with pytest.raises(Stop, match="does not fit into 300,000 bytes"):
        sheet.compress(Image.effect_noise((3000, 3000), 200).convert("RGB"))


def test_the_readme_shows_the_sheet_that_the_tool_writes():
    """From the commit on that ships Mini."""
    if not parts.ships():
        pytest.skip("Cascade Mini is not in the repository yet")
    name = sheet.TARGET.relative_to(REPOSITORY).as_posix()
    assert f"]({name})" in (REPOSITORY / "README.md").read_text(encoding="utf-8")
    assert sheet.TARGET.stat().st_size <= sheet.MOST
    with Image.open(sheet.TARGET) as picture:
        assert picture.size == sheet.sheet([("", Image.new("RGB", (8, 8)))] * len(SHEET)).size
