"""How pictures are prepared for CLIP, and prompts faded."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from cascade_studio.stages.errors import WrongInput
from cascade_studio.stages.inputs import image_prompts


def official(image: torch.Tensor) -> torch.Tensor:
    """The official steps for a landscape picture, written out."""
    height, width = image.shape[-2:]
    image = F.interpolate(image, (768, int(768 * width / height)), mode="bilinear", antialias=True)
    image = F.interpolate(image, (224, int(224 * image.shape[-1] / 768)), mode="bicubic")
    left = round((image.shape[-1] - 224) / 2)
    return image[..., left : left + 224]


def test_official_preparation():
    image = torch.rand(2, 3, 300, 410)
    assert torch.equal(image_prompts.prepare_for_clip(image), official(image))
    turned = image_prompts.prepare_for_clip(image.transpose(2, 3)).transpose(2, 3)
    torch.testing.assert_close(turned, official(image), rtol=0, atol=1e-5)


def test_crops():
    """Left, middle and right of a wide picture are red, green and blue."""
    image = torch.zeros(1, 3, 100, 300)
    for channel in range(3):
        image[:, channel, :, 100 * channel : 100 * (channel + 1)] = 1
    centre, whole, squash = (image_prompts.prepare_for_clip(image, 60, crop)[0] for crop in image_prompts.CROPS)
    assert all(found.shape == (3, 60, 60) for found in (centre, whole, squash))
    assert centre[1, :, 5:-5].min() > 0.95 and centre[0, :, 5:-5].abs().max() < 0.05
    for found, row in ((whole, 30), (squash, 5), (squash, 55)):
        assert [int(found[:, row, column].argmax()) for column in (10, 30, 50)] == [0, 1, 2]
    border = image_prompts.normalise_for_clip(whole[None])[0, :, 5]
    assert border.abs().max() < 1e-4, "the padding is what CLIP takes for nothing"
    with pytest.raises(WrongInput, match="'middle'"):
        image_prompts.prepare_for_clip(image, 60, "middle")


def test_fading():
    text, empty = torch.rand(1, 154, 8), torch.rand(1, 77, 8)
    assert torch.equal(image_prompts.fade_text(text, empty, 1.0), text)
    assert torch.equal(image_prompts.fade_text(text, empty, 0.0), empty.repeat(1, 2, 1))
    half = image_prompts.fade_text(text[:, :80], empty, 0.5)
    torch.testing.assert_close(half, (text[:, :80] + empty.repeat(1, 2, 1)[:, :80]) / 2)
    pooled = image_prompts.fade_text(torch.ones(1, 4), torch.zeros(1, 4), 0.25)
    assert torch.equal(pooled, torch.full((1, 4), 0.25))
