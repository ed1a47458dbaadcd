"""Upscale with Cascade on Mini, in the real host: nearer to the picture than plain enlarging, no border of tiles."""

from __future__ import annotations

from typing import Any

import numpy
import pytest
import torch
from harness import REPOSITORY
from mini_studio import MiniStudio
from PIL import Image
from torch import Tensor

from cascade_studio.stages.attention.tiles import place_tiles
from cascade_studio.stages.inputs.inpaint import resize_image
from mini import need
from tools.scenes import SHEET

SEED, TILE, OVERLAP = 3, 256, 64
CELL, STEP = 4, 16
"""Pixels of a latent, and latents of a cell of Stage B's deepest level."""


@pytest.fixture(scope="module")
def mini(host) -> MiniStudio:
    need("image_encoder")
    torch.set_num_threads(1)
    return MiniStudio(host)


@pytest.fixture(scope="module")
def painted(mini) -> Tensor:
    """Four of Mini's own pictures, (4, 256, 256, 3)."""
    return mini.paint_all(SHEET[:4]).movedim(1, -1)


def enlarge(mini: MiniStudio, image: Tensor, **inputs: Any) -> Tensor:
    parts = mini.parts
    models = {"decoder": parts.decoder, "stage_a": parts.stage_a, "stage_c_vae": parts.stage_c_vae}
    prompts = {"positive": mini.negative, "negative": mini.negative}
    return mini.call("CascadeStudio_Upscale", image=image, seed=SEED, **models, **prompts, **inputs)


def psnr(given: Tensor, expected: Tensor) -> float:
    return float((-10 * (given - expected).square().mean((1, 2, 3)).log10()).mean())


def read_example(name: str) -> Tensor:
    """One of the pack's example pictures, (1, 256, 256, 3)."""
    with Image.open(REPOSITORY / "mini" / "input" / name) as picture:
        found = torch.from_numpy(numpy.asarray(picture.convert("RGB"))).float()[None] / 255
    return resize_image(found, 256, 256)


def measure_steepness(image: Tensor) -> float:
    return float(image.diff(dim=1).square().mean() + image.diff(dim=2).square().mean())


@pytest.mark.parametrize("grain", [0.0, 0.1])
def test_as_near_as_plain_enlarging_and_sharper(mini, record_property, grain):
    """With the node's defaults, without a word of what the pictures show. With the grain of a camera it is much nearer;
    a clean picture is as near, and its steepness nearer to that of the picture that was made small."""
    pictures = torch.cat([read_example("cascade_hills.webp"), read_example("cascade_apple.webp")])
    noise = grain * torch.randn(2, 128, 128, 3, generator=torch.Generator().manual_seed(SEED))
    small = (pictures.unflatten(1, (128, 2)).unflatten(3, (128, 2)).mean((2, 4)) + noise).clamp(0, 1)
    plain, made = resize_image(small, 256, 256), enlarge(mini, small)
    record_property("dB plain, by the node", (psnr(plain, pictures), psnr(made, pictures)))
    assert psnr(made, pictures) > psnr(plain, pictures) + (3 if grain else -0.1)
    steep = [abs(measure_steepness(each) / measure_steepness(pictures) - 1) for each in (plain, made)]
    record_property("how far steepness is off, plain, by the node", steep)
    assert steep[1] < steep[0]


def steepness(image: Tensor, lines: list[int]) -> float:
    """How much steeper ``image`` (B, H, W, 3) is across the columns ``lines`` than across all others."""
    steep = (image[:, :, 1:] - image[:, :, :-1]).abs().mean((0, 1, 3))
    at = torch.zeros(len(steep), dtype=torch.bool)
    at[[line - 1 for line in lines]] = True
    return float(steep[at].mean() / steep[~at].mean())


def test_no_border_of_tiles_shows(mini, painted, record_property):
    """A picture of four subjects, 2x in nine tiles, as Stage B paints it: across the borders of tiles it is no steeper
    than the plainly enlarged one is there. Strips that are enlarged alone and put together are."""
    small = resize_image(painted, 128, 128)
    small = torch.cat([torch.cat([small[:1], small[1:2]], 2), torch.cat([small[2:3], small[3:]], 2)], 1)
    plain = resize_image(small, 512, 512)
    size, begins = place_tiles(512 // CELL, TILE // CELL, OVERLAP // CELL, STEP)
    lines = sorted({CELL * edge for begin in begins for edge in (begin, begin + size)} - {0, 512})
    assert len(begins) == 3 and len(lines) == 3
    settings = {"denoise": 0.6, "tile_size": TILE, "tile_overlap": OVERLAP}
    for share in (0.0, 1.0):
        made = enlarge(mini, small, keep_source=share, **settings)
        found = [
            steepness(one, lines) / steepness(other, lines)
            for one, other in ((made, plain), (made.transpose(1, 2), plain.transpose(1, 2)))
        ]
        record_property(f"steepness across borders by the plain picture's, keep_source {share:g}", found)
        assert max(found) <= 1.05, "borders of tiles are seen"
    strips = [enlarge(mini, each, keep_source=0.0, **settings) for each in small.split(64, 2)]
    cuts = [128, 256, 384]
    assert steepness(torch.cat(strips, 2), cuts) / steepness(plain, cuts) > 1.05, "the measure sees no border"
