"""What never changes during training, done once and kept on disk: latents of pictures and the text of captions."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from ..errors import BadValues
from ..files.durable import write_atomically
from .dataset import TrainingSet, choose_bucket, fit_to_size
from .objectives import Row

log = logging.getLogger(__name__)

HALF_ROOM = 60_000.0
"""Text within this is kept in float16."""


@dataclass(frozen=True)
class Encoders:
    """How to encode, and what tells one encoder from another.

    picture: (1, 3, h, w) in [0, 1] → (1, 16, h/32, w/32). text: a caption → hidden states (N, width) and pooled text
    (1, width). The marks are their :func:`fingerprint`.
    """

    picture: Callable[[Tensor], Tensor]
    text: Callable[[str], tuple[Tensor, Tensor]]
    picture_mark: str
    text_mark: str


def encode_set(
    pictures: TrainingSet, encoders: Encoders, cache: Path, on_item: Callable[[int, int], None] | None = None
) -> tuple[list[Row], Row]:
    """Rows for :class:`.objectives.StageCObjective`, and the empty prompt; read from the folder ``cache`` if there.

    ``on_item(done, total)`` follows every picture; what it raises stops the work, and nothing done is lost.
    """
    rows, total = [], len(pictures.pictures)
    for done, picture in enumerate(pictures.pictures, 1):
        size = choose_bucket(picture.width, picture.height, pictures.resolution)

        def latent(picture=picture, size=size) -> dict[str, Tensor]:
            made = encoders.picture(fit_to_size(picture.read(), size))[0].detach().float().cpu()
            if not torch.isfinite(made).all():
                raise BadValues(
                    f"The image encoder gave values that are no numbers for '{picture.name}'. Remove that "
                    "picture, or load the image encoder with vae_dtype fp32."
                )
            return {"latent": made}

        key = f"latent {encoders.picture_mark} {picture.digest} {size}"
        rows.append({**load_or_make(cache, key, latent), **encode_caption(picture.caption, encoders, cache)})
        if on_item is not None:
            on_item(done, total)
    return rows, encode_caption("", encoders, cache)


def encode_caption(caption: str, encoders: Encoders, cache: Path) -> Row:
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
    write_atomically(path, lambda draft: save_file(value, draft))
    return value


def fingerprint(tensors: Mapping[str, Tensor]) -> str:
    """16 hexadecimal digits that differ between networks, from eight values of every tensor."""
    digest = sha256()
    for name in sorted(tensors):
        value = tensors[name].detach().reshape(-1)
        few = value[:: max(1, len(value) // 8)][:8].to("cpu", torch.float32)
        digest.update(f"{name} {tuple(tensors[name].shape)} {few.tolist()}".encode())
    return digest.hexdigest()[:16]
