"""What never changes during training, done once and kept on disk: latents of pictures and the text of captions."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from ..errors import BadValues, WrongInput
from ..inputs.canvas import ENCODER_PIXELS
from ..inputs.grids import COMPRESSION
from .buckets import choose_bucket, cut_share, fit_to_size
from .checkpoint import write_tensors
from .dataset import Picture, TrainingSet, list_names
from .distributed import ALONE, Crew
from .objectives import ALL, Row

log = logging.getLogger(__name__)

HALF_ROOM = 60_000.0
"""Text within this is kept in float16."""
ROUNDING = 1e-3
STAGE_B_PIXELS = 8
"""Pixels to a cell of Stage B's grid: four to a cell of Stage A, in patches of two."""


@dataclass(frozen=True)
class Encoders:
    """How to encode, and what tells one encoder from another.

    picture: (1, 3, h, w) in [0, 1] → (1, 16, h/32, w/32). text: a caption → hidden states (N, width) and pooled text
    (1, width). stage_a, for Stage B: (1, 3, H, W) → (1, 4, H/4, W/4). hint, for a ControlNet: (1, 3, h, w) →
    (1, c, h', w') in [0, 1]; ``hint_mark`` names it. The marks are their :func:`fingerprint`. cell: pixels of what
    Stage B paints to one cell; the image encoder sees 32 of them.
    """

    picture: Callable[[Tensor], Tensor]
    text: Callable[[str], tuple[Tensor, Tensor]]
    picture_mark: str
    text_mark: str
    stage_a: Callable[[Tensor], Tensor] | None = None
    stage_a_mark: str = ""
    hint: Callable[[Tensor], Tensor] | None = None
    hint_mark: str = ""
    cell: float = COMPRESSION


def encode_set(
    pictures: TrainingSet,
    encoders: Encoders,
    cache: Path,
    on_item: Callable[[int, int], None] | None = None,
    crew: Crew = ALONE,
) -> tuple[list[Row], Row]:
    """Rows for the objectives, one for each of ``pictures.shown``, and the empty prompt; read from the folder ``cache``
    if there.

    Every process of ``crew`` encodes its share, then all read everything. ``on_item(done, total)`` follows every
    picture; what it raises stops the work, and nothing done is lost. Raises :class:`WrongInput` with the names of all
    pictures that turn out not to be whole.
    """
    broken, everything = [], pictures.shown
    for done, (picture, resolution) in enumerate(everything, 1):
        if done % crew.size == crew.rank and picture.name not in broken:
            try:
                encode_picture(picture, pictures, encoders, cache, resolution)
            except OSError as error:
                if isinstance(error, (PermissionError, FileNotFoundError)) or error.errno:
                    raise
                broken.append(picture.name)
        if on_item is not None:
            on_item(done, len(everything))
    crew.wait()
    if broken:
        raise WrongInput(
            f"Pictures that cannot be read to their end ({len(broken)}): {list_names(broken)}. Replace or remove them."
        )
    rows = [encode_picture(picture, pictures, encoders, cache, resolution) for picture, resolution in everything]
    if any("weight" in row for row in rows):
        rows = [{"weight": torch.tensor(1.0), **row} for row in rows]
    return rows, encode_caption("", encoders, cache)


def encode_picture(picture: Picture, pictures: TrainingSet, encoders: Encoders, cache: Path, resolution: int) -> Row:
    """The row of one picture at one resolution: "latent" or, where it is shown in several ways, "all_latent"
    (V, 16, h, w), with "effnet", "hint" and "mask" of the same ways where they are wanted; "text" and "pooled", or
    those of "all_".
    """
    size = choose_bucket(picture.width, picture.height, resolution)
    ways = list_ways(picture, pictures, size)
    shown = [encode_way(picture, size, way, encoders, cache) for way in ways]
    row: dict[str, Tensor] = {}
    for name in shown[0]:
        row.update(
            {name: shown[0][name]} if len(ways) == 1 else {ALL + name: torch.stack([way[name] for way in shown])}
        )
    said = [encode_caption(caption, encoders, cache) for caption in picture.captions]
    for name in said[0]:
        row.update({name: said[0][name]} if len(said) == 1 else {ALL + name: torch.stack([one[name] for one in said])})
    if picture.weight != 1:
        row["weight"] = torch.tensor(picture.weight)
    return row


Way = tuple[tuple[float, float], bool]
"""Where the window lies, and whether it is mirrored."""


def list_ways(picture: Picture, pictures: TrainingSet, size: tuple[int, int]) -> list[Way]:
    """All ways in which a picture is shown: places of the window where something is cut, and mirrored ones."""
    places = [(0.5, 0.5)]
    if pictures.crops > 1 and cut_share(picture.width, picture.height, size) > 0.01:
        places = [(step / (pictures.crops - 1),) * 2 for step in range(pictures.crops)]
    return [(place, mirrored) for place in places for mirrored in ((False, True) if pictures.mirrored else (False,))]


def encode_way(picture: Picture, size: tuple[int, int], way: Way, encoders: Encoders, cache: Path) -> dict[str, Tensor]:
    """What networks are told of one way to see a picture, each made once."""
    place, mirrored = way
    opened: dict[str, Tensor] = {}

    def see(kind: str = "read", at: tuple[int, int] = size) -> Tensor:
        if kind not in opened:
            opened[kind] = getattr(picture, kind)(at)
        image = fit_to_size(opened[kind], at, place)
        return image.flip(3) if mirrored else image

    def finite(made: Tensor) -> Tensor:
        made = made[0].detach().float().cpu()
        if not torch.isfinite(made).all():
            raise BadValues(
                f"The image encoder gave values that are no numbers for '{picture.name}'. Remove that "
                "picture, or load the image encoder with vae_dtype fp32."
            )
        return made

    mark = f"{picture.digest} {size}" + ("" if way == ((0.5, 0.5), False) else f" {way}")
    latent = load_or_make(
        cache, f"latent {encoders.picture_mark} {mark}", lambda: {"latent": finite(encoders.picture(see()))}
    )
    found = dict(latent)
    if encode := encoders.stage_a:
        scale = encoders.cell / ENCODER_PIXELS
        across, down = (round(side * scale / STAGE_B_PIXELS) * STAGE_B_PIXELS for side in size)
        full = across, down
        opened.clear()
        made = load_or_make(
            cache,
            f"stage a {encoders.stage_a_mark} {mark} {full}",
            lambda: {"latent": finite(encode(see("read", full))).half()},
        )
        found = {"latent": made["latent"], "effnet": latent["latent"]}
    if make_hint := encoders.hint:
        opened.clear()
        kind = "read" if picture.hint is None else "hint"
        made = load_or_make(
            cache, f"hint {encoders.hint_mark} {kind} {mark}", lambda: {"hint": shrink(finite(make_hint(see(kind))))}
        )
        found["hint"] = made["hint"]
    if picture.mask is not None:
        height, width = found["latent"].shape[1:]
        found["mask"] = torch.nn.functional.adaptive_avg_pool2d(see("mask").mean(1, keepdim=True), (height, width))[0]
    return found


def shrink(hint: Tensor) -> Tensor:
    """A hint in [0, 1] as bytes, any other in float16. Resizing rounds: a picture's may lie a hair outside."""
    fits = hint.min() >= -ROUNDING and hint.max() <= 1 + ROUNDING
    return (hint.clamp(0, 1) * 255).round().byte() if fits else hint.half()


def encode_caption(caption: str, encoders: Encoders, cache: Path) -> dict[str, Tensor]:
    """ "text" (N, width) and "pooled" (1, width) of a caption."""

    def make() -> dict[str, Tensor]:
        text, pooled = (value.detach().float().cpu() for value in encoders.text(caption))
        dtype = torch.float16 if text.abs().max() < HALF_ROOM else torch.float32
        return {"text": text.to(dtype), "pooled": pooled}

    return load_or_make(cache, f"text {encoders.text_mark} {caption}", make)


def load_or_make(folder: Path, key: str, make: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
    """What was made for ``key`` before, or now."""
    path = folder / f"{sha256(key.encode()).hexdigest()[:32]}.safetensors"
    if path.is_file():
        try:
            return load_file(path)
        except (SafetensorError, OSError) as error:
            log.warning("%s cannot be read (%s) and is made again", path.name, error)
    value = {name: tensor.contiguous() for name, tensor in make().items()}
    write_tensors(path, value)
    return value


def fingerprint(tensors: Mapping[str, Tensor]) -> str:
    """16 hexadecimal digits that differ between networks, from eight values of every tensor."""
    digest = sha256()
    for name in sorted(tensors):
        value = tensors[name].detach().reshape(-1)
        few = value[:: max(1, len(value) // 8)][:8].to("cpu", torch.float32)
        digest.update(f"{name} {tuple(tensors[name].shape)} {few.tolist()}".encode())
    return digest.hexdigest()[:16]
