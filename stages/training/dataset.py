"""What to learn from: pictures with captions, checked before anything is trained, and the sizes they are brought to.

Reading a picture file is the caller's business: ``read`` gives RGB (3, H, W) uint8 for a path, or raises OSError.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from ..errors import WrongInput
from ..nets.encoder import CELL

SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff"}
RATIOS = (1 / 1, 1 / 2, 1 / 3, 2 / 3, 3 / 4, 1 / 5, 2 / 5, 3 / 5, 4 / 5, 1 / 6, 5 / 6, 9 / 16)
"""Width to height of the buckets; their reciprocals are buckets too."""
LISTED = 20
"""How many faulty files an error names before it only counts them."""

Read = Callable[[Path], Tensor]


@dataclass(frozen=True)
class Picture:
    """A picture with its caption. ``read()`` gives RGB (3, H, W) uint8; ``digest`` changes with its contents."""

    name: str
    caption: str
    width: int
    height: int
    digest: str
    read: Callable[[], Tensor]


@dataclass(frozen=True)
class TrainingSet:
    """The pictures of one folder or batch, all of them whole and captioned.

    ``resolution`` is the side in pixels of the square whose area the image encoder sees of each.
    """

    title: str
    pictures: tuple[Picture, ...]
    resolution: int = 768

    @property
    def digest(self) -> str:
        """Changes with any picture or caption."""
        parts = [f"{picture.digest} {picture.caption}" for picture in self.pictures]
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]

    def report(self) -> str:
        """How many pictures there are, in which buckets, and which of them are small."""
        sizes: dict[tuple[int, int], int] = {}
        for picture in self.pictures:
            size = choose_bucket(picture.width, picture.height, self.resolution)
            sizes[size] = sizes.get(size, 0) + 1
        lines = [
            f"{self.title}: {len(self.pictures)} pictures with captions.",
            "Buckets: " + ", ".join(f"{w}x{h}: {n}" for (w, h), n in sorted(sizes.items())) + ".",
        ]
        small = [picture.name for picture in self.pictures if picture.width * picture.height < self.resolution**2 / 2]
        if small:
            lines.append(f"Enlarged, because they are small ({len(small)}): {_listed(small)}.")
        return "\n".join(lines)


def from_folder(folder: str | Path, read: Read, caption: str = "", resolution: int = 768) -> TrainingSet:
    """The pictures in ``folder``, each with a text file of its name beside it.

    ``caption`` is for pictures without one; left empty, they are an error. Raises :class:`WrongInput` with the names
    of all files that cannot be used.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise WrongInput(
            f"There is no folder '{folder.name}' to train from. Put the pictures and their captions into "
            "a folder, and give its name."
        )
    files = sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES and path.is_file())
    if not files:
        raise WrongInput(
            f"The folder '{folder.name}' holds no pictures. Put pictures ({', '.join(sorted(SUFFIXES))}) "
            "into it, each with a .txt file of the same name that describes it."
        )
    found, broken, silent = [], [], []
    for path in files:
        words = read_caption(path) or caption.strip()
        if not words:
            silent.append(path.name)
        try:
            height, width = read(path).shape[1:]
        except (OSError, ValueError, SyntaxError):
            broken.append(path.name)
            continue
        found.append(Picture(path.name, words, width, height, _file_digest(path), lambda path=path: read(path)))
    problems = []
    if broken:
        problems.append(f"Broken pictures, which cannot be opened ({len(broken)}): {_listed(broken)}.")
    if silent:
        problems.append(f"Pictures without a caption ({len(silent)}): {_listed(silent)}.")
    if problems:
        raise WrongInput(
            f"The folder '{folder.name}' cannot be trained from yet. {' '.join(problems)} Replace or "
            "remove broken pictures, and write a .txt file beside each of the others, or give a caption "
            "for all pictures without one."
        )
    return TrainingSet(folder.name, tuple(found), resolution)


def from_batch(images: Tensor, captions: Sequence[str], resolution: int = 768) -> TrainingSet:
    """Pictures (B, H, W, 3 or more) in [0, 1] with one caption each, or one for all of them."""
    said = [line.strip() for line in captions if line.strip()]
    if len(said) not in (1, len(images)):
        raise WrongInput(
            f"{len(images)} pictures were given with {len(said)} captions. Write one line for each "
            "picture, in their order, or a single line for all of them."
        )
    said = said * len(images) if len(said) == 1 else said
    found = []
    for number, (image, words) in enumerate(zip(images, said), 1):
        pixels = (image[..., :3].movedim(-1, 0).float().clamp(0, 1) * 255).round().to("cpu", torch.uint8).contiguous()
        digest = hashlib.sha256(pixels.numpy().tobytes() + repr(tuple(pixels.shape)).encode()).hexdigest()
        found.append(
            Picture(f"picture {number}", words, pixels.shape[2], pixels.shape[1], digest, lambda pixels=pixels: pixels)
        )
    return TrainingSet("The batch", tuple(found), resolution)


def read_caption(path: Path) -> str:
    """The text beside a picture, on one line; "" where there is none."""
    text = path.with_suffix(".txt")
    try:
        return " ".join(text.read_text(encoding="utf-8-sig", errors="replace").split())
    except OSError:
        return ""


def choose_bucket(width: int, height: int, resolution: int) -> tuple[int, int]:
    """Width and height, whole cells, of the bucket whose shape is nearest to ``width`` x ``height``.

    For the ratio r: floor(resolution · r^±(1/2) / 32) · 32, as officially.
    """
    wanted = math.log(width / height)
    ratio = min({*RATIOS, *(1 / r for r in RATIOS)}, key=lambda r: (abs(math.log(r) - wanted), r))
    sides = (resolution * ratio**0.5, resolution / ratio**0.5)
    return tuple(max(CELL, int(side + 1e-6) // CELL * CELL) for side in sides)


def fit_to_size(pixels: Tensor, size: tuple[int, int]) -> Tensor:
    """RGB (3, H, W) uint8 → (1, 3, h, w) in [0, 1] that fills ``size`` (width, height), its middle kept."""
    width, height = size
    image = pixels[None].float() / 255
    factor = max(height / image.shape[2], width / image.shape[3])
    scaled = [max(side, round(old * factor)) for side, old in zip((height, width), image.shape[2:])]
    if tuple(scaled) != tuple(image.shape[2:]):
        image = F.interpolate(image, size=scaled, mode="bilinear", antialias=True).clamp(0, 1)
    top, left = (scaled[0] - height) // 2, (scaled[1] - width) // 2
    return image[..., top : top + height, left : left + width].contiguous()


def _file_digest(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _listed(names: Sequence[str]) -> str:
    names = [os.path.basename(name) for name in names]
    more = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
    return ", ".join(names[:LISTED]) + more
