"""Drawings made from Mini's pictures, from which its second LoRA learns."""

from __future__ import annotations

import numpy as np

from training.mini import ink


def disc(side: int = 96, radius: int = 30) -> np.ndarray:
    """A disc, white above and dark red below, (1, side, side, 4), premultiplied."""
    at = np.arange(side) - side / 2 + 0.5
    inside = (at[:, None] ** 2 + at[None] ** 2 <= radius**2)[..., None]
    colour = np.where(np.arange(side)[:, None, None] < side // 2, (250, 250, 250), (90, 20, 20))
    return np.concatenate([colour * inside, 255 * inside], -1).astype(np.uint8)[None]


def test_a_subject_gets_a_dark_outline_and_keeps_its_colour():
    drawn, plain = ink.draw_with_ink(disc())[0].astype(int), disc()[0].astype(int)
    assert drawn.shape == plain.shape
    rim = (drawn[..., 3] > 250) & (plain[..., 3] == 0)
    assert rim.sum() > 300 and drawn[rim][:, :3].max() < 60, "black outside of what was there"
    assert drawn[30, 48].min() > 200 and drawn[66, 48, 0] > 2 * drawn[66, 48, 1], "white and red within"
    middle = drawn[45:51, 48, :3]
    assert middle.max(axis=1).min() < 60, "a line where brightness changes"
    assert (drawn[drawn[..., 3] == 0] == 0).all() and (drawn[..., :3] <= drawn[..., 3:]).all(), "premultiplied"


def test_any_style_is_picked_the_same_way(monkeypatch):
    array = np.concatenate([disc(), np.zeros_like(disc()), disc()])
    monkeypatch.setattr(ink, "pictures", lambda style: {"fluent": array}[style])
    assert ink.find_subjects("ink") == ink.find_subjects("fluent") == [0, 2]
    plain, drawn = (ink.pick_pictures(style, [2]) for style in ("fluent", "ink"))
    assert np.array_equal(plain[0], array[2]) and np.array_equal(drawn, ink.draw_with_ink(array[2:]))
