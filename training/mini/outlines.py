"""``python3 dev.py run -m training.mini.outlines``: what a few subjects look like, as small numbers for the tests.

The tests tell what a picture shows without any of Mini's nets by comparing it with these: 32 x 32 RGBA with
premultiplied alpha of the pictures that Stage C learned from (Fluent 3D, MIT), one for each of :data:`SUBJECTS`.
"""

from __future__ import annotations

import logging

import numpy as np

from tools.env import REPOSITORY

from .data import SIDE, pictures, read_split
from .scenes import shrunk

log = logging.getLogger(__name__)

TARGET = REPOSITORY / "tests" / "mini_outlines.npz"
SMALL = 32
SUBJECTS = (
    "red apple",
    "robot",
    "pizza",
    "tiger",
    "hot dog",
    "sunflower",
    "rocket",
    "snowman",
    "octopus",
    "guitar",
    "bicycle",
    "cactus",
    "crown",
    "ghost",
    "bus",
    "evergreen tree",
    "umbrella",
    "watermelon",
    "soccer ball",
    "house",
    "frog",
    "key",
    "mushroom",
    "airplane",
)
"""Labels of the training data that look unlike each other."""


def main() -> None:
    """Write the file."""
    labels = [subject.labels["en"] for subject in read_split()[0]]
    chosen = pictures()[[labels.index(name) for name in SUBJECTS]]
    np.savez_compressed(TARGET, names=np.array(SUBJECTS), rgba=shrunk(chosen, SIDE // SMALL))
    log.info("%s: %d bytes", TARGET.name, TARGET.stat().st_size)


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    main()
