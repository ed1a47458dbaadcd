"""Odd pictures, masks and lists for Upscale with Cascade, Detailer and Saliency Mask: right, or told in a sentence."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from graphs import check_sentence
from torch import Tensor
from world import Studio, changed

UPSCALE, DETAILER, SALIENCY = "CascadeStudio_Upscale", "CascadeStudio_Detailer", "CascadeStudio_SaliencyMask"
HEIGHT, WIDTH = 97, 131
BOX = (30, 20, 70, 60)
"""Left, top, right, bottom."""


def picture(height: int = HEIGHT, width: int = WIDTH, channels: int = 3, count: int = 1) -> Tensor:
    return torch.rand(count, height, width, channels, generator=torch.Generator().manual_seed(0))


def marked(height: int = HEIGHT, width: int = WIDTH, box: tuple[int, ...] = BOX) -> Tensor:
    mask = torch.zeros(1, height, width)
    mask[:, box[1] : box[3], box[0] : box[2]] = 1
    return mask


def models(studio: Studio) -> dict[str, Any]:
    parts = studio.parts
    return {"decoder": parts.decoder, "stage_a": parts.stage_a, "stage_c_vae": parts.stage_c_vae, **studio.prompts}


def upscale(studio: Studio, image: Any, **inputs: Any) -> dict[str, Any]:
    return {"image": image, **models(studio), "steps": 1, "tile_size": 128, "tile_overlap": 64, **inputs}


def detail(studio: Studio, image: Any, **inputs: Any) -> dict[str, Any]:
    usual = {"prior": studio.parts.prior, "steps": 1, "decoder_steps": 1, "target_size": 64, "grow": 2, "feather": 4}
    return {"image": image, **models(studio), **usual, **inputs}


def fails(studio: Studio, kind: str, given: dict[str, Any], *words: str) -> None:
    graph = studio.graph()
    check_sentence(graph.error(graph.add(kind, **given)[0]), *words)


# Upscale with Cascade


@pytest.mark.parametrize("height, width, scale", [(64, 64, 1.0), (33, 70, 2.0), (97, 131, 1.37), (16, 200, 4.0)])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_any_picture_is_enlarged(studio, height, width, scale, channels):
    """Smaller than a tile, with sides that nothing divides, grey or with alpha."""
    result = studio.call(UPSCALE, **upscale(studio, picture(height, width, channels), scale=scale))
    assert result.shape == (1, round(height * scale), round(width * scale), 3)
    assert torch.isfinite(result).all() and 0 <= result.min() and result.max() <= 1


def test_what_cannot_be_enlarged_is_explained(studio):
    broken = picture()
    broken[0, 0, 0, 0] = torch.nan
    for image, inputs, words in (
        (broken, {}, ("NaN", "image")),
        (picture(8, 8), {}, ("width", "16", "64")),
        (picture(1, 1), {"scale": 4.0}, ("width", "4", "64")),
        (picture(channels=2), {}, ("2 channels",)),
        (picture()[:0], {}, ("0 pictures",)),
        (picture()[0], {}, ("batch, height, width, channels",)),
        ((255 * picture()).byte(), {}, ("whole numbers",)),
        (picture(), {"denoise": float("nan")}, ("denoise",)),
        (picture(), {"keep_source": float("nan")}, ("keep_source",)),
        (picture(), {"decoder": studio.parts.prior}, ("decoder", "Stage C")),
    ):
        fails(studio, UPSCALE, upscale(studio, image, **inputs), *words)


# Detailer for Cascade


def test_a_picture_smaller_than_any_model_takes(studio):
    """Its part is enlarged to what is worked on, and made small again."""
    image = picture(32, 40)
    result, where = studio.call(DETAILER, range(2), **detail(studio, image, mask=marked(32, 40, (10, 10, 20, 20))))
    assert result.shape == image.shape and torch.equal(result[where == 0], image[where == 0])
    assert changed(result[where > 0], image[where > 0])


MASKS = {
    "one pixel": marked(box=(64, 48, 65, 49)),
    "a corner": marked(box=(0, 0, 10, 10)),
    "the last pixel": marked(box=(WIDTH - 1, HEIGHT - 1, WIDTH, HEIGHT)),
    "all of it": torch.ones(1, HEIGHT, WIDTH),
    "a row": marked(box=(0, 40, WIDTH, 41)),
    "of another size": marked(64, 64, (20, 20, 40, 40)),
    "without a batch": marked()[0],
    "with channels": marked()[:, None],
    "booleans": marked().bool(),
    "half floats": marked().half(),
    "above 1": 3 * marked(),
    "soft": 0.4 * marked(),
}


@pytest.mark.parametrize("name", MASKS)
@pytest.mark.parametrize("channels", [3, 4])
def test_any_mask_says_where(studio, name, channels):
    image = picture(channels=channels)
    result, where = studio.call(DETAILER, range(2), **detail(studio, image, mask=MASKS[name]))
    assert result.shape == image.shape and where.shape == (1, HEIGHT, WIDTH)
    assert torch.equal(result[where == 0], image[where == 0]) and where.any()
    assert changed(result[..., :3][where > 0], image[..., :3][where > 0]) and torch.isfinite(result).all()
    assert torch.equal(result[..., 3:], image[..., 3:]), "alpha is not painted"


def things(**more: Any) -> list[dict[str, Any]]:
    left, top, right, bottom = BOX
    given = {"cropped_mask": np.ones((bottom - top, right - left), np.float32), "crop_region": list(BOX), "bbox": BOX}
    return [{**given, "label": "thing", **more}]


SEGS = {
    "a dict": {"size": (HEIGHT, WIDTH), "segs": things()},
    "a tuple": ((HEIGHT, WIDTH), things()),
    "a list of a list": [[HEIGHT, WIDTH], things()],
    "a mask of bytes": ((HEIGHT, WIDTH), things(cropped_mask=np.full((40, 40), 255, np.uint8))),
    "a mask of booleans": ((HEIGHT, WIDTH), things(cropped_mask=np.ones((40, 40), bool))),
    "a mask of one more axis": ((HEIGHT, WIDTH), things(cropped_mask=torch.ones(1, 40, 40))),
    "a region of an array": ((HEIGHT, WIDTH), things(crop_region=np.array(BOX), bbox=np.array(BOX))),
    "numbers with fractions": ((HEIGHT, WIDTH), things(crop_region=[30.2, 19.8, 70.1, 59.9])),
    "no label": ((HEIGHT, WIDTH), things(label=None)),
}


@pytest.fixture(scope="module")
def by_mask(studio) -> Tensor:
    return studio.call(DETAILER, **detail(studio, picture(), mask=marked()))


@pytest.mark.parametrize("kind", SEGS)
def test_any_segs_are_the_same_place(studio, by_mask, kind):
    assert torch.equal(studio.call(DETAILER, **detail(studio, picture(), segments=SEGS[kind])), by_mask)


@pytest.mark.parametrize(
    "nothing",
    [[], (), {"size": (HEIGHT, WIDTH), "segs": []}, ((HEIGHT, WIDTH), []), torch.zeros(0, 4), np.zeros((0, 4))],
    ids=["list", "tuple", "dict", "pair", "tensor", "array"],
)
def test_a_detector_that_found_nothing_changes_nothing(studio, nothing):
    result, where = studio.call(DETAILER, range(2), **detail(studio, picture(), segments=nothing))
    assert torch.equal(result, picture()) and not where.any()


def test_a_thing_with_an_empty_mask_is_passed_over(studio, by_mask):
    """It keeps its place in the list of prompts."""
    empty = things(cropped_mask=np.zeros((40, 40), np.float32))
    given = detail(studio, picture(), segments=((HEIGHT, WIDTH), empty), mask=None)
    result, where = studio.call(DETAILER, range(2), **given)
    assert torch.equal(result, picture()) and not where.any()


def test_a_batch_of_pictures_with_masks_of_their_own(studio):
    """Large, small and none; alone each is the same."""
    image = picture(count=3)
    masks = torch.cat([marked(), marked(box=(100, 70, 110, 80)), torch.zeros(1, HEIGHT, WIDTH)])
    result, where = studio.call(DETAILER, range(2), **detail(studio, image, mask=masks, seed=5))
    assert torch.equal(result[2], image[2]) and not where[2].any()
    for index in range(2):
        alone = studio.call(
            DETAILER, **detail(studio, image[index : index + 1], mask=masks[index : index + 1], seed=5 + index)
        )
        assert torch.equal(result[index : index + 1], alone)


def test_what_cannot_be_detailed_is_explained(studio):
    broken, nan = picture(), marked()
    broken[0, 0, 0, 0] = torch.nan
    nan[0, 0, 0] = torch.nan
    for image, inputs, words in (
        (broken, {"mask": marked()}, ("NaN", "image")),
        (picture(), {"mask": nan}, ("NaN", "mask")),
        (picture(), {"mask": -marked()}, ("mask",)),
        (picture(), {"mask": torch.zeros(1, HEIGHT, WIDTH)}, ("empty",)),
        (picture(), {"mask": torch.ones(3, HEIGHT, WIDTH)}, ("3", "mask")),
        (picture(), {"segments": "faces"}, ("segments",)),
        (picture(), {"segments": 5}, ("segments",)),
        (picture(), {"segments": [None]}, ("segments",)),
        (picture(), {"segments": ((HEIGHT, WIDTH), [None])}, ("segments",)),
        (picture(), {"segments": [[float("nan"), 0, 10, 10]]}, ("segments", "NaN")),
        (picture(), {"segments": [[float("inf"), 0, 10, 10]]}, ("segments", "infinite")),
        (picture(), {"segments": things(cropped_mask=np.full((40, 40), np.nan, np.float32))}, ("segments", "NaN")),
        (picture(), {"mask": marked(), "keep_source": float("nan")}, ("keep_source",)),
        (picture(), {"segments": [[10, 10, 10, 10]]}, ("10",)),
        (picture(), {"segments": [[50, 50, 20, 20]]}, ("50",)),
        (picture(), {"segments": [[500, 500, 600, 600]]}, ("500",)),
        (picture(), {"segments": torch.rand(2, 3)}, ("segments",)),
        (picture(), {"segments": ((HEIGHT, WIDTH), things(crop_region=None, bbox=None))}, ("segments",)),
        (picture(), {"mask": marked(), "denoise": float("nan")}, ("denoise",)),
    ):
        fails(studio, DETAILER, detail(studio, image, **inputs), *words)


# Saliency Mask


@pytest.mark.parametrize("method", ["border", "spectral residual", "fine grained (OpenCV)"])
@pytest.mark.parametrize("height, width, channels", [(1, 1, 3), (7, 300, 4), (97, 131, 1)])
def test_any_picture_has_a_mask(studio, method, height, width, channels):
    mask = studio.call(SALIENCY, image=picture(height, width, channels, 2), method=method)
    assert mask.shape == (2, height, width) and set(mask.unique().tolist()) <= {0.0, 1.0}


def test_opencv_that_is_not_installed_is_told(studio, monkeypatch):
    from cascade_studio.stages.inputs import saliency

    monkeypatch.setattr(saliency, "import_opencv", lambda: None)
    graph = studio.graph()
    node = graph.add(SALIENCY, image=picture(), method=saliency.FINE)
    found = graph.execute(node[0])
    assert "opencv-contrib-python" in found.ui[node.name]["text"][0]
    assert torch.equal(found.values[node.name, 0], studio.call(SALIENCY, image=picture()))
