"""The same two things said in every way that detectors know, spots of a mask, and masks from the picture alone."""

from __future__ import annotations

from collections import namedtuple
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from table import each

from cascade_studio.stages.errors import WrongInput
from cascade_studio.stages.inputs import saliency
from cascade_studio.stages.inputs.saliency import BORDER, FINE, SPECTRAL, find_salient
from cascade_studio.stages.inputs.segments import limit_segments, read_segments, split_mask, trim

SEG = namedtuple("SEG", "cropped_image cropped_mask confidence crop_region bbox label control_net_wrapper")
BOX = namedtuple("BOX", "bbox score")
HEIGHT, WIDTH = 100, 200
BOXES = ((10, 20, 40, 60), (150, 5, 190, 45))
THINGS = [
    SEG(None, np.ones((bottom - top, right - left), np.float32), 0.9, [left, top, right, bottom], None, "face", None)
    for left, top, right, bottom in BOXES
]
TWICE = [thing._replace(crop_region=[2 * side for side in thing.crop_region]) for thing in THINGS]
CORNERS = [{"x": left, "y": top, "width": right - left, "height": bottom - top} for left, top, right, bottom in BOXES]
WAYS = {
    "a pair of size and named tuples": ((HEIGHT, WIDTH), THINGS),
    "plain tuples": ((HEIGHT, WIDTH), [tuple(thing) for thing in THINGS]),
    "dicts": {"size": [HEIGHT, WIDTH], "segs": [thing._asdict() for thing in THINGS]},
    "a list alone": THINGS,
    "tensors as masks": [
        thing._replace(cropped_mask=torch.ones(1, 40, thing.cropped_mask.shape[1])) for thing in THINGS
    ],
    "bytes as masks": [thing._replace(cropped_mask=(255 * thing.cropped_mask).astype(np.uint8)) for thing in THINGS],
    "boxes only": [thing._replace(cropped_mask=None, bbox=np.array(thing.crop_region)) for thing in THINGS],
    "another size": ((2 * HEIGHT, 2 * WIDTH), TWICE),
    "corners": [list(box) for box in BOXES],
    "corners with scores": [[*box, 0.7] for box in BOXES],
    "an array": np.array(BOXES, np.float32),
    "a tensor": torch.tensor(BOXES),
    "bounding boxes": CORNERS,
    "bounding boxes by picture": [CORNERS],
    "named boxes": [BOX(list(box), 0.5) for box in BOXES],
}


@each(WAYS)
def test_every_way_says_the_same(way):
    found = read_segments(WAYS[way], HEIGHT, WIDTH, "X")
    assert [segment.box for segment in found] == list(BOXES)
    for segment, (left, top, right, bottom) in zip(found, BOXES):
        whole = segment.lay_out(HEIGHT, WIDTH)
        assert whole.sum() == (right - left) * (bottom - top) and whole[0, top:bottom, left:right].min() == 1


def test_a_mask_is_cut_at_the_edge_of_the_picture():
    mask = torch.arange(12.0).view(3, 4) / 12
    (found,) = read_segments([THINGS[0]._replace(cropped_mask=mask, crop_region=[-1, -2, 3, 1])], HEIGHT, WIDTH, "X")
    assert found.box == (0, 0, 3, 1) and torch.equal(found.mask, mask[2:, 1:])
    assert read_segments(((HEIGHT, WIDTH), []), HEIGHT, WIDTH, "X") == () == read_segments([], HEIGHT, WIDTH, "X")


@pytest.mark.parametrize("given", ["faces", 5, [1, 2], [None], [[1, 2, "a", 4]], [[500, 500, 600, 600]], ["face"]])
def test_anything_else_is_explained(given: Any):
    with pytest.raises(WrongInput, match="^Detailer (could not read|got a box)"):
        read_segments(given, HEIGHT, WIDTH, "Detailer")


def test_spots_that_lie_apart_are_told_apart():
    mask = torch.zeros(300, 500)
    mask[100:120, 400:420], mask[10:20, 10:30], mask[104, 430] = 0.5, 1, 1
    alone = split_mask(mask, 0, "X")
    assert [spot.box for spot in alone] == [(10, 10, 30, 20), (400, 100, 420, 120), (430, 104, 431, 105)]
    joined = split_mask(mask, 12, "X")
    assert len(joined) == 2 and joined[1].box == (400, 100, 431, 120)
    assert torch.equal(sum(spot.lay_out(300, 500) for spot in joined)[0], mask)
    assert trim(torch.zeros(4, 4)) == () and trim(mask)[0].box == (10, 10, 431, 120)
    with pytest.raises(WrongInput, match="64 spots"):
        split_mask((torch.arange(500) % 20 == 0).float() * (torch.arange(300) % 20 == 0).float()[:, None], 0, "X")


def test_a_limit_empties_a_segment_and_keeps_its_place():
    limit = torch.zeros(HEIGHT, WIDTH)
    limit[:, :100] = 0.5
    first, second = limit_segments(read_segments(WAYS["corners"], HEIGHT, WIDTH, "X"), limit, 0.02)
    assert first.mask.max() == 0.5 and not second.mask.any()


@each((BORDER, SPECTRAL))
def test_what_stands_out_is_found(method):
    """A disc on a ground with a gradient and noise, in one of two pictures; and nothing in a picture of one colour."""
    torch.manual_seed(0)
    rows, columns = torch.meshgrid(torch.arange(128.0), torch.arange(160.0), indexing="ij")
    disc = (rows - 60).square() + (columns - 100).square() < 20**2
    ground = (0.4 + 0.001 * columns)[None, :, :, None].expand(2, -1, -1, 3) + 0.02 * torch.randn(2, 128, 160, 3)
    picture = torch.where(disc[None, :, :, None], torch.tensor([0.9, 0.2, 0.1]), ground).clamp(0, 1)
    found = find_salient(picture, method)
    assert found.shape == (2, 128, 160) and found.min() == 0 and found.max() == 1
    assert found[:, disc].mean() > (1.5 if method == SPECTRAL else 3) * found[:, ~disc].mean()
    marked = found > 0.2
    overlap = (marked & disc).sum() / (marked | disc).sum()
    assert method == SPECTRAL or overlap > 0.9
    assert not find_salient(torch.full((1, 64, 64, 3), 0.3), BORDER).any()


class FineGrained:
    """OpenCV's class, as far as it is called: red stands out, and one picture cannot be computed."""

    given: list[np.ndarray] = []

    def computeSaliency(self, picture):
        self.given.append(picture)
        return len(self.given) != 2, (picture[..., 2] > 200).astype(np.float32)


def test_opencv_is_asked_where_it_is_installed(monkeypatch):
    """It gets bytes with blue first; a picture that it cannot compute stands out nowhere."""
    picture = torch.zeros(2, 32, 48, 3)
    picture[:, 8:16, 8:24, 0] = 1
    picture[..., 2] = 0.5
    opencv = SimpleNamespace(StaticSaliencyFineGrained_create=FineGrained)
    monkeypatch.setattr(saliency, "import_opencv", lambda: opencv)
    found = find_salient(picture, FINE)
    assert torch.equal(found[0], picture[0, ..., 0]) and not found[1].any()
    first = FineGrained.given[0]
    assert first.dtype == np.uint8 and first.shape == (32, 48, 3) and first[0, 0].tolist() == [128, 0, 0]
    monkeypatch.setattr(saliency, "import_opencv", lambda: None)
    assert torch.equal(find_salient(picture, FINE), find_salient(picture, BORDER))
