"""The mathematics of the further kinds of guidance."""

from __future__ import annotations

import pytest
import torch

from cascade_studio.stages.diffusion.guidance import (
    blur,
    blur_where_attended,
    find_optimal_scale,
    hold_still,
    match_contrast,
    sum_attention,
)


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def test_matched_contrast():
    guided, like = 3 * torch.randn(2, 4, 9, 7), torch.randn(2, 4, 9, 7)
    assert match_contrast(guided, like, 0.0) is guided
    full = match_contrast(guided, like, 1.0)
    torch.testing.assert_close(full.std((1, 2, 3)), like.std((1, 2, 3)))
    torch.testing.assert_close(match_contrast(guided, like, 0.5), (full + guided) / 2)
    torch.testing.assert_close(match_contrast(guided, like, 1.0)[:1], match_contrast(guided[:1], like[:1], 1.0))


def test_attended_is_the_column_sum_of_the_attention():
    q, k = torch.randn(2, 700, 64), torch.randn(2, 30, 64)
    found = sum_attention(q, k, 4)
    products = torch.einsum("bnhd,bmhd->bhnm", q.view(2, 700, 4, 16), k.view(2, 30, 4, 16)) / 4
    torch.testing.assert_close(found, products.softmax(-1).mean(1).sum(1), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found.sum(1), torch.full((2,), 700.0))


def test_blur():
    x = torch.randn(2, 3, 12, 9)
    assert blur(x, 0) is x
    flat = torch.full((1, 3, 12, 9), 2.0)
    torch.testing.assert_close(blur(flat, 2.0), flat)
    spreads = [float(blur(x, sigma).std()) for sigma in (0.5, 1.0, 2.0, 4.0)]
    assert spreads == sorted(spreads, reverse=True)
    dot = torch.zeros(1, 1, 21, 21)
    dot[..., 10, 10] = 1
    spot = blur(dot, 1.5)
    assert torch.equal(spot, spot.transpose(2, 3)) and abs(float(spot.sum()) - 1) < 1e-5
    assert blur(x[..., :1, :1], 3.0).shape == (2, 3, 1, 1)


def test_only_what_is_looked_at_is_blurred():
    x0, mass = torch.randn(1, 4, 8, 12), torch.ones(1, 4, 6)
    mass[:, :, :3] = 1.5
    out = blur_where_attended(x0, mass.flatten(1), (4, 6), 1.0, 1.0)
    assert torch.equal(out[..., 6:], x0[..., 6:])
    assert torch.equal(out[..., :6], blur(x0, 1.0)[..., :6]) and not torch.equal(out[..., :6], x0[..., :6])
    assert torch.equal(blur_where_attended(x0, mass.flatten(1), (4, 6), 1.0, 5.0), x0)


def test_optimised_scale_comes_nearest():
    cond, uncond = torch.randn(3, 4, 5, 6), torch.randn(3, 4, 5, 6)
    best = find_optimal_scale(cond, uncond)
    assert best.shape == (3, 1, 1, 1)
    distance = (cond - best * uncond).square().flatten(1).sum(1)
    for step in (-0.01, 0.01):
        assert ((cond - (best + step) * uncond).square().flatten(1).sum(1) > distance).all()
    torch.testing.assert_close(find_optimal_scale(2 * uncond, uncond), torch.full((3, 1, 1, 1), 2.0))
    assert torch.isfinite(find_optimal_scale(cond, torch.zeros_like(cond))).all()


def test_standing_still_has_no_velocity():
    x0, noise, sigma = torch.randn(2, 4, 5, 5), torch.randn(2, 4, 5, 5), torch.tensor([0.5, 30.0])
    s = sigma.view(2, 1, 1, 1)
    x = x0 + s * noise
    still = hold_still(x, sigma)
    a, b = 1 / (1 + s**2).sqrt(), s / (1 + s**2).sqrt()
    velocity = a * (x - still) / s - b * still
    torch.testing.assert_close(velocity, torch.zeros_like(velocity), rtol=0, atol=1e-5)
