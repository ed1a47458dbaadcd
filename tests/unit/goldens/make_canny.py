"""Writes canny.npz: pictures of every kind, and the edges that OpenCV finds in them.

python make_canny.py        (needs numpy and opencv-python-headless; made with 4.10.0, 5.0.0 gives the same file)
"""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

THRESHOLDS = ((100, 200), (30, 60), (0, 0), (250, 400), (200, 100))


def smooth(noise, radius):
    return cv2.GaussianBlur(noise, (0, 0), radius) if radius else noise


def pictures():
    rng = np.random.default_rng(7)
    for radius, shape in ((0, (33, 47, 3)), (1.0, (64, 51, 3)), (2.5, (90, 96, 3)), (1.2, (48, 48, 1))):
        noise = smooth(rng.standard_normal(shape), radius).reshape(shape)
        low, high = noise.min(), noise.max()
        yield ((noise - low) / (high - low) * 255).astype(np.uint8)
    y, x = np.mgrid[:120, :150]
    scene = np.full((120, 150, 3), (200, 220, 240), np.uint8)
    scene[(y - 60) ** 2 + (x - 50) ** 2 < 900] = (180, 30, 40)
    scene[20:70, 90:140] = (40, 90, 200)
    scene[(x + 2 * y > 280) & (y > 90)] = (30, 120, 30)
    yield scene
    # Plateaus, equal neighbours and equal channels: where the order of comparisons decides.
    yield np.tile((np.arange(60) // 6 * 40 % 256).astype(np.uint8)[None, :, None], (40, 1, 3))
    yield np.repeat(np.repeat(rng.integers(0, 4, (11, 13, 3), dtype=np.uint8) * 80, 5, 0), 5, 1)
    yield np.tile(((y[:50, :50] + x[:50, :50]) // 5 * 60 % 256).astype(np.uint8)[..., None], (1, 1, 3))
    yield np.full((5, 4, 3), 128, np.uint8)
    yield rng.integers(0, 256, (1, 9, 3), dtype=np.uint8)


def main():
    stored = {"thresholds": np.array(THRESHOLDS)}
    for index, picture in enumerate(pictures()):
        stored[f"picture_{index}"] = picture
        for number, (low, high) in enumerate(THRESHOLDS):
            stored[f"edges_{index}_{number}"] = np.packbits(cv2.Canny(np.ascontiguousarray(picture), low, high) > 0)
    np.savez_compressed(Path(__file__).with_name("canny.npz"), **stored)


if __name__ == "__main__":
    main()
