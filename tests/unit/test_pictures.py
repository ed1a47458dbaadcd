"""The one check of pictures and masks: what passes, and the sentence for what does not."""

from __future__ import annotations

import pytest
import torch

from cascade_studio.stages.errors import WrongInput
from cascade_studio.stages.inputs.pictures import check_count, check_mask, check_pictures, to_rgb

NAN, INFINITY = float("nan"), float("inf")

WRONG_PICTURES = {
    "no tensor": (None, "NoneType"),
    "a mask": (torch.rand(1, 8, 8), "shape"),
    "no picture": (torch.rand(0, 8, 8, 3), "0 pictures"),
    "no pixel": (torch.rand(1, 0, 8, 3), "8 x 0 px"),
    "two channels": (torch.rand(1, 8, 8, 2), "2 channels"),
    "super-resolution": (torch.rand(1, 8, 8, 16), "Super-Resolution Hint"),
    "identity": (torch.rand(1, 8, 8, 512), "Identity Hint"),
    "bytes": (torch.zeros(1, 8, 8, 3, dtype=torch.uint8), "uint8"),
    "NaN": (torch.full((1, 8, 8, 3), NAN), "NaN"),
    "infinity": (torch.full((1, 8, 8, 3), INFINITY), "infinity"),
}

WRONG_MASKS = {
    "no tensor": (None, "NoneType"),
    "a picture": (torch.rand(1, 8, 8, 3), "shape"),
    "no mask": (torch.rand(0, 8, 8), "0 masks"),
    "no pixel": (torch.rand(1, 8, 0), "0 x 8 px"),
    "NaN": (torch.full((1, 8, 8), NAN), "NaN"),
    "infinity": (torch.full((1, 8, 8), INFINITY), "infinity"),
    "negative": (torch.full((1, 8, 8), -0.5), "down to -0.5"),
}


@pytest.mark.parametrize("image, words", WRONG_PICTURES.values(), ids=WRONG_PICTURES)
def test_wrong_pictures(image, words):
    with pytest.raises(WrongInput, match="A Node got .*'name'.*") as error:
        check_pictures(image, "A Node", "name")
    assert words in str(error.value)


@pytest.mark.parametrize("mask, words", WRONG_MASKS.values(), ids=WRONG_MASKS)
def test_wrong_masks(mask, words):
    with pytest.raises(WrongInput, match="A Node got .*'name'.*") as error:
        check_mask(mask, "A Node", "name")
    assert words in str(error.value)


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_pictures_pass_as_they_are(channels):
    image = torch.rand(2, 5, 6, channels)
    assert check_pictures(image, "A Node") is image
    assert check_pictures(image.half(), "A Node").dtype == torch.float32
    rgb = to_rgb(image)
    assert rgb.shape == (2, 5, 6, 3) and torch.equal(rgb[..., :1], image[..., :1])


def test_masks_get_one_shape():
    for shape in ((8, 6), (1, 8, 6), (2, 1, 8, 6)):
        assert check_mask(torch.ones(shape), "A Node").shape[1:] == (8, 6)
    loud = check_mask(torch.tensor([[[-1e-4, 0.5, 255.0]]]), "A Node")
    assert loud.tolist() == [[[0.0, 0.5, 1.0]]], "what resizing leaves is no error, and more than all is all"
    with pytest.raises(WrongInput, match="3 masks for 2 pictures"):
        check_count(torch.ones(3, 4, 4), torch.ones(2, 4, 4, 3), "A Node")
