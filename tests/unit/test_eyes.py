"""The tests' eyes see what is there: outlines, backgrounds and layout, on pictures made of known parts."""

from __future__ import annotations

import eyes
import pytest
import torch
from eyes import outlines
from torch.nn import functional as F

import mini
from tools import small
from training.mini.subjects import COLOURS


def drawn(
    name: str, ground: str, size: int = 150, place: tuple[int, int] = (60, 40), mirrored: bool = False
) -> torch.Tensor:
    """A known subject on a colour, larger or smaller, somewhere; RGB (1, 3, 256, 256)."""
    known = outlines()
    rgba = F.interpolate(known.rgba[known.names.index(name)][None], size=(size, size), mode="bilinear")
    rgba = rgba.flip(-1) if mirrored else rgba
    y, x = place
    rgba = F.pad(rgba, (x, 256 - size - x, y, 256 - size - y))
    return rgba[:, :3] + (1 - rgba[:, 3:]) * (torch.tensor(COLOURS[ground]) / 255).view(1, 3, 1, 1)


def test_every_subject_is_told_wherever_it_stands():
    for number, name in enumerate(outlines().names):
        ground = list(COLOURS)[number % len(COLOURS)]
        picture = drawn(name, ground, 130 + number, (number, 3 * number), bool(number % 2))
        assert outlines().order(picture + 0.02 * torch.randn(picture.shape), ground)[0][0] == name
        assert eyes.colour(picture) == [ground]


def test_noise_and_plain_grounds_are_no_subject():
    """Fewer than the chance of one in 24 would give a hit on all of them."""
    torch.manual_seed(0)
    noise = F.interpolate(torch.rand(12, 3, 8, 8), size=(256, 256))
    assert len({order[0] for order in outlines().order(noise, "blue")}) < 12
    ranks = [order.index("red apple") for order in outlines().order(noise, "blue")]
    assert sum(rank == 0 for rank in ranks) <= 2


def test_layout_falls_with_what_is_changed():
    apple, other, moved = drawn("red apple", "blue"), drawn("soccer ball", "yellow"), drawn("red apple", "blue", 160)
    same, near, far = (float(eyes.correlation(apple, picture)) for picture in (apple, moved, other))
    assert same == pytest.approx(1) and same > near > far


def test_colours_are_measured_at_the_rim():
    apple = drawn("red apple", "blue")
    assert float(eyes.colour_distance(apple, "blue")) < 0.01 < 0.3 < float(eyes.colour_distance(apple, "red"))


def test_a_file_that_ships_fails_where_it_is_absent_and_one_that_does_not_yet_skips(monkeypatch):
    monkeypatch.setattr(small, "mini", lambda: small.Kit("Mini", {"prior": "x"}))
    monkeypatch.setattr(small, "SHIPPED", frozenset({"prior", "decoder"}))
    mini.need("prior")
    with pytest.raises(pytest.fail.Exception, match="ships its decoder, which is not in"):
        mini.need("prior", "decoder", "lora")
    with pytest.raises(pytest.skip.Exception, match="lora is not in the repository yet"):
        mini.need("lora")
