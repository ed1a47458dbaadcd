"""Inpainting in the host: a part is cut out, sampled within its mask, and pasted back; the rest stays as it was."""

from __future__ import annotations

import pytest
import torch
from graphs import check_sentence
from world import changed

from cascade_studio.stages.inputs.masks import grow_square

SEED = 9


@pytest.fixture(scope="module")
def image() -> torch.Tensor:
    return torch.rand(1, 300, 400, 3, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def mask() -> torch.Tensor:
    mask = torch.zeros(1, 300, 400)
    mask[:, 120:180, 150:230] = 1
    return mask


@pytest.mark.parametrize("denoise", [1.0, 0.5])
def test_inpainting(studio, image, mask, denoise):
    """Crop, encode, Stage C within the mask, Stage B, Stage A, paste."""
    graph = studio.graph()
    cut = graph.add("CascadeStudio_InpaintCrop", image=image, mask=mask, target_size=256)
    coded = graph.add("CascadeStudio_EncodeImage", image=cut[0], vae=studio.parts.stage_c_vae)
    masked = graph.add("SetLatentNoiseMask", samples=coded[0], mask=cut[2])
    prior = graph.add(
        "CascadeStudio_SamplePrior",
        model=studio.parts.prior,
        latent=masked[0],
        steps=3,
        seed=SEED,
        denoise=denoise,
        **studio.prompts,
    )
    latent = graph.add(
        "CascadeStudio_SampleDecoder", model=studio.parts.decoder, prior=prior[0], steps=2, seed=SEED, **studio.prompts
    )
    part = graph.add("CascadeStudio_DecodeStageA", latent=latent[0], vae=studio.parts.stage_a)
    whole = graph.add("CascadeStudio_InpaintStitch", stitch=cut[3], image=part[0])
    result, cells, before, after, width, height, painted = graph.run(
        whole[0], cut[2], coded[0], prior[0], cut[4], cut[5], part[0]
    )
    assert painted.shape == (1, height, width, 3), "the picture has the size of the part"
    reach = grow_square(mask, 24)[0] > 0
    assert torch.equal(result[0][~reach], image[0][~reach])
    assert changed(result[0][mask[0] > 0], image[0][mask[0] > 0])
    assert cells.shape[1:] == before["samples"].shape[2:], "the mask has one value for each cell"
    kept = (cells == 0)[:, None].expand_as(before["samples"])
    assert kept.any() and torch.equal(after["samples"][kept], before["samples"][kept])
    assert changed(after["samples"][~kept], before["samples"][~kept])


def test_outputs_fit_each_other(studio, image, mask):
    image_part, pixels, cells, stitch, width, height = studio.call(
        "CascadeStudio_InpaintCrop", range(6), image=image, mask=mask, target_size=512
    )
    assert image_part.shape == (1, height, width, 3) and pixels.shape == (1, height, width)
    assert (width % 128, height % 128) == (0, 0)
    assert torch.equal(studio.canvas(width, height)[0]["samples"].new_zeros(cells.shape), torch.zeros_like(cells))
    assert studio.canvas(width, height)[0]["samples"].shape[2:] == cells.shape[1:]
    assert stitch.image is image


def test_wider_masks_change_more(studio, image, mask):
    areas = []
    for grow, feather in ((0, 0), (10, 0), (10, 20)):
        stitch = studio.call("CascadeStudio_InpaintCrop", 3, image=image, mask=mask, grow=grow, feather=feather)
        result = studio.call("CascadeStudio_InpaintStitch", stitch=stitch, image=torch.zeros(1, 64, 64, 3))
        areas.append(int((result != image).any(-1).sum()))
    assert areas[0] == int(mask.sum()) and areas == sorted(areas) and len(set(areas)) == 3


def test_an_empty_mask_is_explained(studio, image):
    graph = studio.graph()
    check_sentence(
        graph.error(graph.add("CascadeStudio_InpaintCrop", image=image, mask=torch.zeros(1, 64, 64))[0]),
        "mask",
        "empty",
        "paint over",
    )
