"""What to learn from: pictures with captions, checked before anything is trained.

Reading a picture file is the caller's business (:class:`PictureFiles`, which :mod:`.pictures_io` fills).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from ..errors import WrongInput
from .buckets import choose_bucket, cut_share
from .captions import make_plain
from .settings import Spec

LISTED = 20
"""How many faulty files an error names before it only counts them."""


WAYS = {"mirrored": Spec("bool", ""), "crops": Spec("int", "", 1, 100)}
SIDES = (32, 4096)
"""The least and the most that a resolution may be."""


@dataclass(frozen=True)
class PictureFiles:
    """How to look at picture files. size: (width, height) from the header. read: RGB (3, H, W) uint8, at least as large
    as is asked for. Both raise OSError."""

    size: Callable[[Path], tuple[int, int]]
    read: Callable[[Path, tuple[int, int] | None], Tensor]


Reader = Callable[..., Tensor]
"""``read(size)`` of a :class:`Picture`; without a size, as the file is."""


@dataclass(frozen=True)
class Picture:
    """A picture with its captions. ``read(size)`` gives RGB (3, H, W) uint8, not smaller than (width, height) ``size``
    where the file is not; ``digest`` changes with its contents.

    repeats: how often an epoch shows it. weight: of its loss. mask: like ``read``, white where the loss counts. hint:
    like ``read``, what a ControlNet sees.
    """

    name: str
    captions: tuple[str, ...]
    width: int
    height: int
    digest: str
    read: Reader
    repeats: int = 1
    weight: float = 1.0
    mask: Reader | None = None
    hint: Reader | None = None

    @property
    def caption(self) -> str:
        """The first one."""
        return self.captions[0]


@dataclass(frozen=True)
class TrainingSet:
    """The pictures of folders or a batch, all of them captioned.

    ``resolution`` is the side in pixels of the square whose area the image encoder sees of each. ``mirrored``: also
    show them from the other side. ``crops``: how many places of the window are tried where something is cut.
    ``sizes``: more resolutions at which every picture is shown.
    """

    title: str
    pictures: tuple[Picture, ...]
    resolution: int = 768
    mirrored: bool = False
    crops: int = 1
    notes: tuple[str, ...] = ()
    sizes: tuple[int, ...] = ()

    @property
    def digest(self) -> str:
        """Changes with any picture, caption, or the way they are shown."""
        parts = [
            f"{picture.digest} {' | '.join(picture.captions)} {picture.repeats} {picture.weight}"
            for picture in self.pictures
        ]
        ways = " ".join(map(str, (self.mirrored, self.crops, *self.sizes)))
        return hashlib.sha256("\n".join([ways, *parts]).encode()).hexdigest()[:16]

    @property
    def shown(self) -> list[tuple[Picture, int]]:
        """Every picture at every resolution, in the order of the rows that are made of them."""
        return [(picture, side) for side in (self.resolution, *self.sizes) for picture in self.pictures]

    def report(self) -> str:
        """How many pictures there are, in which buckets, what is cut, and what was passed over."""
        sizes: dict[tuple[int, int], int] = {}
        cuts: dict[str, float] = {}
        for picture, resolution in self.shown:
            size = choose_bucket(picture.width, picture.height, resolution)
            sizes[size] = sizes.get(size, 0) + 1
            cuts[picture.name] = max(cuts.get(picture.name, 0), cut_share(picture.width, picture.height, size))
        worst = max(cuts, key=lambda name: cuts[name])
        lines = [
            f"{self.title}: {len(self.pictures)} pictures with captions.",
            "Buckets: " + ", ".join(f"{w}x{h}: {n}" for (w, h), n in sorted(sizes.items())) + ".",
        ]
        if cuts[worst] >= 0.01:
            mean = sum(cuts.values()) / len(cuts)
            lines.append(f"Cut off at the edges: {mean:.0%} on average, at most {cuts[worst]:.0%} ({worst}).")
        largest = max(self.resolution, *self.sizes, 0)
        small = [picture.name for picture in self.pictures if picture.width * picture.height < largest**2 / 2]
        if small:
            lines.append(f"Enlarged, because they are small ({len(small)}): {list_names(small)}.")
        return "\n".join([*lines, *self.notes])


def from_batch(images: Tensor, captions: Sequence[str], resolution: int = 768) -> TrainingSet:
    """Pictures (B, H, W, 3 or more) in [0, 1] with one caption each, or one for all of them."""
    given = [line.strip() for line in captions if line.strip()]
    if len(given) not in (1, len(images)):
        raise WrongInput(
            f"{len(images)} pictures were given with {len(given)} captions. Write one line for each "
            "picture, in their order, or a single line for all of them."
        )
    given = given * len(images) if len(given) == 1 else given
    found = []
    for number, (image, words) in enumerate(zip(images, given), 1):
        pixels = (image[..., :3].movedim(-1, 0).float().clamp(0, 1) * 255).round().to("cpu", torch.uint8).contiguous()
        digest = hashlib.sha256(pixels.numpy().tobytes() + repr(tuple(pixels.shape)).encode()).hexdigest()
        found.append(
            Picture(
                f"picture {number}",
                (make_plain(words),),
                pixels.shape[2],
                pixels.shape[1],
                digest,
                lambda size=None, pixels=pixels: pixels,
            )
        )
    return TrainingSet("The batch", tuple(found), resolution)


def join_sets(sets: Sequence[TrainingSet]) -> TrainingSet:
    """Several folders as one set, with the sizes and ways of the first."""
    pictures = tuple(
        replace(picture, name=f"{part.title}/{picture.name}") for part in sets for picture in part.pictures
    )
    notes = tuple(f"{part.title}: {note}" for part in sets for note in part.notes)
    return replace(sets[0], title=" + ".join(part.title for part in sets), pictures=pictures, notes=notes)


def list_names(names: Sequence[str]) -> str:
    """The first of many names, and how many more there are."""
    more = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
    return ", ".join(names[:LISTED]) + more


def show_ways(pictures: TrainingSet, mirrored: bool, crops: int, sizes: Sequence[int] = ()) -> TrainingSet:
    """``pictures`` shown mirrored too, at several places of their window, and at more resolutions."""
    mirrored, crops = WAYS["mirrored"].check("mirrored", mirrored), WAYS["crops"].check("crops", crops)
    wrong = [side for side in sizes if not isinstance(side, int) or not SIDES[0] <= side <= SIDES[1]]
    if wrong:
        raise WrongInput(
            f"{wrong[0]!r} is given as another resolution of the training set. Each has to be a whole number from "
            f"{SIDES[0]} to {SIDES[1]}."
        )
    others = tuple(dict.fromkeys(side for side in sizes if side != pictures.resolution))
    return replace(pictures, mirrored=mirrored, crops=crops, sizes=others)
