"""What was painted keeps what its source said, and the detail that it added."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from cascade_studio.stages.inputs.inpaint import resample_image, resize_image
from cascade_studio.stages.inputs.masks import blur_mask
from cascade_studio.stages.inputs.source import estimate_grain, keep_source

HEIGHT, WIDTH = 46, 61


def smooth(*shape: int, seed: int = 0) -> Tensor:
    """Pictures of soft blobs, far from black and white."""
    noise = torch.rand(*shape, generator=torch.Generator().manual_seed(seed))
    return torch.stack([0.5 + 2 * (blur_mask(each, 8) - 0.5) for each in noise.movedim(-1, 0)], -1).clamp(0.2, 0.8)


def grain(strength: float, *shape: int) -> Tensor:
    return strength * torch.randn(*shape, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def source() -> Tensor:
    return smooth(2, HEIGHT, WIDTH, 3)


@pytest.mark.parametrize("scale", [1.0, 1.5, 2.0, 4.0])
def test_made_small_again_it_is_the_source(source, scale):
    """Whatever was painted, as far as enlarging and making smaller undo each other."""
    height, width = round(HEIGHT * scale), round(WIDTH * scale)
    painted = smooth(2, height, width, 3, seed=5)
    kept = keep_source(painted, source)
    before, after = (resample_image(each, WIDTH, HEIGHT) - source for each in (painted, kept))
    assert kept.shape == painted.shape and kept.min() >= 0 and kept.max() <= 1
    assert after.abs().mean() < 0.1 * before.abs().mean()


def test_detail_that_was_added_stays(source):
    """What making the picture small takes away is the painted picture's own."""
    plain = resize_image(source, 4 * WIDTH, 4 * HEIGHT)
    lines = torch.zeros_like(plain)
    lines[:, :, ::2], lines[:, :, 1::2] = 0.1, -0.1
    torch.testing.assert_close(keep_source(plain + lines + 0.05, source), plain + lines, rtol=0, atol=0.02)


def test_a_share_of_it(source):
    painted = smooth(2, 2 * HEIGHT, 2 * WIDTH, 3, seed=5)
    assert keep_source(painted, source, 0.0) is painted
    half, whole = (keep_source(painted, source, share) for share in (0.5, 1.0))
    torch.testing.assert_close(half, (painted + whole) / 2, rtol=0, atol=1e-5)


def test_each_picture_of_a_batch_is_its_own(source):
    """One with grain changes nothing of the other."""
    painted = smooth(2, 2 * HEIGHT, 2 * WIDTH, 3, seed=5)
    noisy = source.clone()
    noisy[1] += grain(0.1, HEIGHT, WIDTH, 3)
    both = keep_source(painted, noisy)
    assert torch.equal(both[:1], keep_source(painted[:1], source[:1]))


@pytest.mark.parametrize("strength", [0.02, 0.1])
def test_grain_stays_away(source, strength):
    """Of a picture that was painted right, from a source with grain, next to nothing is taken back."""
    right = resize_image(source, 2 * WIDTH, 2 * HEIGHT)
    noisy = source + grain(strength, *source.shape)
    kept, plain = keep_source(right, noisy), resize_image(noisy, 2 * WIDTH, 2 * HEIGHT)
    assert (kept - right).square().mean() < 0.05 * (plain - right).square().mean()


@pytest.mark.parametrize("strength", [0.0, 0.01, 0.05, 0.2])
def test_the_grain_is_measured(source, strength):
    found = estimate_grain(source + grain(strength, *source.shape))
    torch.testing.assert_close(found, torch.full((2,), strength), rtol=0.15, atol=0.004)


@pytest.mark.parametrize("height, width", [(1, 1), (1, 9), (3, 2)])
def test_the_smallest_pictures(height, width):
    tiny = torch.rand(1, height, width, 3)
    kept = keep_source(torch.rand(1, 4 * height, 4 * width, 3), tiny)
    assert kept.shape == (1, 4 * height, 4 * width, 3) and torch.isfinite(kept).all()
