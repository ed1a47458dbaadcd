"""Cutting a part out and pasting it back: what is kept, what fades, and where the part lies."""

from __future__ import annotations

import pytest
import torch

from cascade_studio.stages.errors import WrongInput
from cascade_studio.stages.inputs import inpaint, masks
from cascade_studio.stages.inputs.canvas import plan_canvas
from cascade_studio.stages.inputs.inpaint import CropSettings
from cascade_studio.stages.inputs.masks import grow_diamond, grow_square


def picture(width: int, height: int, batch: int = 1, channels: int = 3) -> torch.Tensor:
    return torch.rand(batch, height, width, channels, generator=torch.Generator().manual_seed(0))


def spot(width: int, height: int, left: int, top: int, right: int, bottom: int) -> torch.Tensor:
    mask = torch.zeros(1, height, width)
    mask[:, top:bottom, left:right] = 1
    return mask


PLACES = {
    "middle": (200, 150, 260, 230),
    "corner": (0, 0, 40, 30),
    "edge": (350, 100, 400, 180),
    "long": (20, 140, 380, 150),
    "tall": (190, 5, 200, 295),
    "all": (0, 0, 400, 300),
    "one pixel": (77, 88, 78, 89),
}


@pytest.mark.parametrize("target", [0, 256])
@pytest.mark.parametrize("place", PLACES.values(), ids=PLACES)
def test_pixels_beyond_the_feather_are_the_very_same(place, target):
    image, mask = picture(400, 300), spot(400, 300, *place)
    settings = CropSettings(1.5, 6, 10, target, 32)
    part = inpaint.cut_part(image, mask, settings)
    result = inpaint.paste_part(part.stitch, torch.zeros_like(part.image))
    reach = grow_square(mask, settings.grow + settings.feather)[0] > 0
    assert torch.equal(result[0][~reach], image[0][~reach])
    grown = grow_square(mask, settings.grow)[0] > 0
    assert not result[0][grown].any(), "inside the widened mask there is nothing of the old picture"
    ring = reach & ~grown
    if ring.any():
        assert (result[0][ring] != image[0][ring]).float().mean() > 0.5, "the feather fades"
        assert (result[0][ring] <= image[0][ring]).all()


@pytest.mark.parametrize("place", PLACES.values(), ids=PLACES)
def test_the_part_holds_the_mask_and_fits_the_grids(place):
    image, mask = picture(400, 300), spot(400, 300, *place)
    for target, multiple in ((0, 8), (512, 128), (300, 64)):
        part = inpaint.cut_part(image, mask, CropSettings(1.3, 4, 8, target, multiple))
        crop = part.stitch.crops[0]
        assert 0 <= crop.left < crop.right <= 400 and 0 <= crop.top < crop.bottom <= 300
        left, top, right, bottom = place
        assert crop.left <= max(0, left - 12) and crop.right >= min(400, right + 12)
        assert crop.top <= max(0, top - 12) and crop.bottom >= min(300, bottom + 12)
        assert crop.width % multiple == 0 and crop.height % multiple == 0
        assert part.image.shape == (1, crop.height, crop.width, 3) and part.mask.shape == (1, crop.height, crop.width)
        assert float(part.mask.max()) > 0.99


def test_more_context_cuts_a_larger_part():
    image, mask = picture(400, 300), spot(400, 300, *PLACES["middle"])
    areas = []
    for context in (1.0, 1.5, 2.5):
        crop = inpaint.cut_part(image, mask, CropSettings(context=context, target=0, multiple=8)).stitch.crops[0]
        areas.append((crop.right - crop.left) * (crop.bottom - crop.top))
    assert areas == sorted(areas) and len(set(areas)) == 3


def test_target_and_default_multiple_need_no_padding():
    """With multiples of 128 px Stage C's grid is exactly 3 cells for each, at the official compression."""
    part = inpaint.cut_part(picture(1600, 1200), spot(1600, 1200, 700, 500, 900, 640))
    crop = part.stitch.crops[0]
    assert abs(crop.width * crop.height / 1024**2 - 1) < 0.15
    canvas = plan_canvas(crop.width, crop.height)
    assert canvas.padding == 0 and (canvas.prior_width, canvas.prior_height) == (
        crop.width * 3 // 128,
        crop.height * 3 // 128,
    )
    stretch = (crop.right - crop.left) / crop.width * crop.height / (crop.bottom - crop.top)
    assert abs(stretch - 1) < 0.01


def test_its_own_size_is_not_resampled():
    image, mask = picture(400, 300), spot(400, 300, *PLACES["middle"])
    part = inpaint.cut_part(image, mask, CropSettings(target=0, multiple=8))
    assert torch.equal(part.image, part.stitch.crops[0].of(image))
    assert torch.equal(inpaint.paste_part(part.stitch, part.image), image), "pasting the part itself changes nothing"


def test_every_touched_cell_counts():
    """A line of two pixels in a 1024 px part is on Stage C's grid, which samples at cell centres would miss."""
    mask = torch.zeros(1, 1024, 1024)
    mask[:, 10:12, 100:900] = 1
    cells = inpaint.mask_cells(mask)
    assert cells.shape == (1, 24, 24) and cells[0, 0, 2:22].eq(1).all() and not cells[0, 1:].any()
    odd = inpaint.mask_cells(torch.ones(1, 500, 700))
    assert odd.shape[1:] == plan_canvas(700, 500).prior_shape()[2:] and odd.eq(1).all()


def test_soft_masks_and_no_feather():
    image = picture(200, 200)
    mask = spot(200, 200, 80, 80, 120, 120) * 0.5
    part = inpaint.cut_part(image, mask, CropSettings(grow=0, feather=0, target=0, multiple=8))
    result = inpaint.paste_part(part.stitch, torch.zeros_like(part.image))
    inside = mask[0] > 0
    assert torch.allclose(result[0][inside], image[0][inside] * 0.5, atol=1e-6)
    assert torch.equal(result[0][~inside], image[0][~inside])


def test_batches():
    image, masks = (
        picture(200, 160, batch=2),
        torch.cat([spot(200, 160, 20, 20, 60, 60), spot(200, 160, 120, 90, 160, 130)]),
    )
    part = inpaint.cut_part(image, masks, CropSettings(grow=0, feather=4, target=0, multiple=8))
    assert part.image.shape[0] == 2 and part.stitch.blend.shape[0] == 2
    result = inpaint.paste_part(part.stitch, torch.zeros_like(part.image))
    for index in range(2):
        own = grow_square(masks[index : index + 1], 4)[0] > 0
        assert torch.equal(result[index][~own], image[index][~own])
    one = inpaint.cut_part(image[:1], masks[:1], CropSettings(target=0, multiple=8))
    tries = inpaint.paste_part(one.stitch, torch.rand(3, *one.image.shape[1:]))
    assert tries.shape == (3, 160, 200, 3) and not torch.equal(tries[0], tries[1])
    both = inpaint.paste_part(inpaint.cut_part(image, masks[:1]).stitch, one.image)
    assert both.shape[0] == 2


def test_transparency_is_kept():
    image, mask = picture(200, 200, channels=4), spot(200, 200, 80, 80, 120, 120)
    part = inpaint.cut_part(image, mask, CropSettings(target=0, multiple=8))
    result = inpaint.paste_part(part.stitch, torch.zeros_like(part.image))
    assert torch.equal(result[..., 3], image[..., 3]) and not torch.equal(result[..., :3], image[..., :3])


def test_nothing_given_is_changed():
    image, mask = picture(200, 200), spot(200, 200, 80, 80, 120, 120)
    kept = image.clone(), mask.clone()
    part = inpaint.cut_part(image, mask)
    given = torch.zeros_like(part.image)
    inpaint.paste_part(part.stitch, given)
    assert torch.equal(image, kept[0]) and torch.equal(mask, kept[1]) and not given.any()


def test_errors_are_sentences():
    image = picture(200, 200)
    with pytest.raises(WrongInput, match="64 x 64 px is empty"):
        inpaint.cut_part(image, torch.zeros(1, 64, 64))
    with pytest.raises(WrongInput, match="3 masks for 1 pictures"):
        inpaint.cut_part(image, torch.ones(3, 200, 200))
    two = inpaint.cut_part(picture(200, 200, batch=2), spot(200, 200, 80, 80, 120, 120))
    with pytest.raises(WrongInput, match="3 parts were given for 2 pictures"):
        inpaint.paste_part(two.stitch, torch.zeros(3, 64, 64, 3))


def test_a_mask_of_another_size_is_fitted():
    part = inpaint.cut_part(picture(400, 200), spot(200, 100, 40, 40, 60, 60), CropSettings(1.0, 0, 0, 0, 8))
    crop = part.stitch.crops[0]
    assert crop.left <= 80 and crop.right >= 120 and crop.top <= 80 and crop.bottom >= 120


TRACES = {
    "a matte": lambda mask: mask.clamp(min=0.004),
    "one pixel far away": lambda mask: torch.where(
        spot(400, 300, 390, 3, 391, 4) > 0, torch.full_like(mask, 1 / 255), mask
    ),
    "noise": lambda mask: torch.maximum(mask, 0.019 * picture(400, 300)[..., 0]),
}


@pytest.mark.parametrize("trace", TRACES.values(), ids=TRACES)
def test_traces_in_a_mask_touch_nothing(trace):
    """What lies below the threshold changes neither the crop nor a pixel, nor marks a cell of Stage C."""
    image, mask = picture(400, 300), spot(400, 300, *PLACES["middle"])
    clean, dirty = (
        inpaint.cut_part(image, each, CropSettings(target=256, multiple=64)) for each in (mask, trace(mask))
    )
    assert clean.stitch.crops == dirty.stitch.crops and torch.equal(clean.cells, dirty.cells)
    new = torch.zeros_like(clean.image)
    assert torch.equal(inpaint.paste_part(clean.stitch, new), inpaint.paste_part(dirty.stitch, new))
    everything = inpaint.cut_part(image, TRACES["a matte"](mask), CropSettings(threshold=0.0)).stitch.crops[0]
    assert (everything.left, everything.right) == (0, 400)


def test_blending_stays_soft_above_the_threshold():
    image, mask = picture(200, 200), torch.linspace(0, 1, 200).expand(1, 200, 200)
    part = inpaint.cut_part(image, mask, CropSettings(grow=0, feather=0, target=0, multiple=8))
    result = inpaint.paste_part(part.stitch, torch.zeros_like(part.image))
    expected = image * (1 - mask.masked_fill(mask <= inpaint.THRESHOLD, 0.0))[..., None]
    assert torch.allclose(result, expected, atol=1e-6)


def test_holes_are_filled_if_asked():
    image = picture(200, 200)
    ring = spot(200, 200, 60, 60, 140, 140) - spot(200, 200, 70, 70, 130, 130)
    settings = {"grow": 0, "feather": 0, "target": 0, "multiple": 8}
    open_part, filled = (inpaint.cut_part(image, ring, CropSettings(**settings, fill=fill)) for fill in (False, True))
    assert open_part.stitch.crops == filled.stitch.crops and open_part.mask.sum() == ring.sum()
    assert filled.mask.sum() == 80 * 80


@pytest.mark.parametrize("size", [(200, 200), (97, 131), (64, 512), (2048, 2048)])
def test_thin_strokes_stay_at_every_size(size):
    """A dot and a line of one pixel are there after every reduction: of the mask, of the crop and of Stage C's grid."""
    height, width = size
    mask = torch.zeros(1, height, width)
    mask[0, height // 2, width // 2] = 1
    image = picture(96, 80)
    part = inpaint.cut_part(image, mask, CropSettings(grow=0, feather=0, target=64, multiple=8))
    result = inpaint.paste_part(part.stitch, torch.zeros_like(part.image))
    assert part.cells.max() > 0.4 and part.mask.max() > 0.4
    changed = (result != image).any(-1)[0].nonzero()
    assert len(changed) and (changed - torch.tensor([40, 48])).abs().max() <= max(2, 96 // min(size) + 1)


def test_masks_that_lie_apart_get_a_crop_each():
    image = picture(1000, 400, batch=3)
    places = ((20, 20, 60, 60), (900, 300, 980, 360), (480, 200, 500, 220))
    mask = torch.cat([spot(1000, 400, *place) for place in places])
    part = inpaint.cut_part(image, mask, CropSettings(target=0, multiple=8, feather=8))
    crops = part.stitch.crops
    assert len(set(crops)) == 3 and len({(crop.right - crop.left, crop.bottom - crop.top) for crop in crops}) == 1
    assert crops[0].right - crops[0].left < 300, "not the whole picture"
    result = inpaint.paste_part(part.stitch, torch.zeros_like(part.image))
    assert torch.equal(inpaint.paste_part(part.stitch, part.image), image)
    for index, (crop, (left, top, right, bottom)) in enumerate(zip(crops, places)):
        assert crop.left <= left and crop.top <= top and crop.right >= right and crop.bottom >= bottom
        assert torch.equal(part.image[index], crop.of(image[index : index + 1])[0])
        assert not result[index, top:bottom, left:right].any()
        reach = grow_square(mask[index : index + 1], 16)[0] > 0
        assert torch.equal(result[index][~reach], image[index][~reach])
    tries = inpaint.paste_part(part.stitch, torch.zeros(6, *part.image.shape[1:]))
    assert torch.equal(tries[:3], result) and torch.equal(tries[3:], result)


def test_grey_pictures():
    image, mask = picture(200, 200, channels=1), spot(200, 200, 80, 80, 120, 120)
    part = inpaint.cut_part(image, mask, CropSettings(target=0, multiple=8))
    assert part.image.shape[-1] == 3
    result = inpaint.paste_part(part.stitch, torch.zeros_like(part.image))
    assert result.shape == image.shape and not result[0, 90:110, 90:110].any()


def whole_grid(size: int, axis: int) -> torch.Tensor:
    return torch.arange(size).view(-1, 1) if axis == 0 else torch.arange(size).view(1, -1)


@pytest.mark.parametrize("radius", [1, 2, 3, 7, 16, 61])
def test_growth_is_that_of_its_shape(radius):
    """Squares and diamonds to the pixel, at the edges as well, against the distance to every marked pixel."""
    given = torch.rand(1, 47, 53, generator=torch.Generator().manual_seed(radius))
    given = torch.where(given > 0.995, given, torch.zeros_like(given))
    given[0, 0, 0], given[0, 46, 20] = 0.7, 0.9
    square, diamond = torch.zeros_like(given), torch.zeros_like(given)
    for y, x in given[0].nonzero().tolist():
        down, across = (whole_grid(47, 0) - y).abs(), (whole_grid(53, 1) - x).abs()
        square[0][torch.maximum(down, across) <= radius] = square[0][torch.maximum(down, across) <= radius].clamp(
            min=float(given[0, y, x])
        )
        diamond[0][down + across <= radius] = diamond[0][down + across <= radius].clamp(min=float(given[0, y, x]))
    assert torch.equal(grow_square(given, radius), square)
    assert torch.equal(grow_diamond(given, radius), diamond)


def test_growth_takes_few_steps(monkeypatch):
    """Twice the radius takes one step more, not twice as many."""
    count = []
    monkeypatch.setattr(masks, "_shift_pair", lambda *given, real=masks._shift_pair: count.append(1) or real(*given))
    steps = []
    for radius in (4, 8, 256, 512):
        count.clear()
        grow_square(torch.zeros(1, 8, 8), radius)
        steps.append(len(count))
    assert steps[1] - steps[0] == steps[3] - steps[2] == 2
