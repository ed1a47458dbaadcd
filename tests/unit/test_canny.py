"""The edges of the canny ControlNet's hint against OpenCV's own."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tiny import GOLDENS
from torch.nn import functional as F

from cascade_studio.stages.errors import WrongInput
from cascade_studio.stages.inputs import canny

STORED = np.load(GOLDENS / "canny.npz")
PICTURES = sum(name.startswith("picture_") for name in STORED.files)


def picture(index: int) -> torch.Tensor:
    """(1, C, H, W), uint8."""
    return torch.from_numpy(STORED[f"picture_{index}"]).permute(2, 0, 1)[None]


def opencv(index: int, number: int) -> torch.Tensor:
    height, width = STORED[f"picture_{index}"].shape[:2]
    bits = np.unpackbits(STORED[f"edges_{index}_{number}"])[: height * width]
    return torch.from_numpy(bits.reshape(1, 1, height, width)).bool()


@pytest.mark.parametrize("index", range(PICTURES))
def test_bit_equal_to_opencv(index):
    for number, (low, high) in enumerate(STORED["thresholds"].tolist()):
        assert torch.equal(canny.find_edges(picture(index), low, high), opencv(index, number)), (low, high)


def test_goldens_say_something():
    counts = [int(opencv(index, 0).sum()) for index in range(PICTURES)]
    assert sum(count > 50 for count in counts) >= 6
    assert any(not torch.equal(opencv(0, 0), opencv(0, number)) for number in (1, 3))


def test_a_batch_is_its_pictures():
    batch = torch.cat([picture(4), picture(4).flip(3), 255 - picture(4)])
    found = canny.find_edges(batch)
    for one, expected in zip(batch, found):
        assert torch.equal(canny.find_edges(one[None]), expected[None])
    assert not torch.equal(found[0], found[1])


def test_hint_is_made_at_the_training_size():
    """Squeezed to 224 without antialiasing, cut down to bytes, stretched back: the official filter's steps."""
    image = F.interpolate(picture(4).float().div(255), (240, 300), mode="nearest")
    small = F.interpolate(image, (224, 224), mode="bilinear", align_corners=False, antialias=False)
    expected = F.interpolate(canny.find_edges(small.mul(255).to(torch.uint8)).float(), (240, 300), mode="bilinear")
    given = canny.make_hint(image)
    assert given.shape == (1, 1, 240, 300) and torch.equal(given, expected)
    assert 0 < given.mean() < 0.5 and given.max() <= 1
    soft = picture(2).float().div(255)
    assert canny.make_hint(soft, 20, 40).sum() > canny.make_hint(soft, 60, 120).sum() > 0


def test_wrong_input():
    with pytest.raises(WrongInput, match="bytes"):
        canny.find_edges(torch.rand(1, 3, 8, 8))


@pytest.mark.parametrize("side", [64, 96, 128, 160, 192, 224])
def test_edges_stay_on_small_canvases(side):
    """As much of an outline is left as fewer pixels can hold: its width of one pixel of 224, at every side."""
    image = torch.ones(1, 3, side, side)
    image[..., side // 5 : -(side // 5), side // 5 : -(side // 5)] = torch.tensor([0.8, 0.1, 0.1])[:, None, None]
    outline = 4 * (side - 2 * (side // 5))
    assert canny.make_hint(image).sum() / outline == pytest.approx(side / canny.SIZE, rel=0.1)
