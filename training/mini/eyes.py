"""What is told of painted pictures: their background by its colour, their subject by the judge and by silhouettes."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from .compose import compose
from .data import pictures
from .judge import SIGHT, at_sight, first_five, load_judge, measure_told
from .loop import Place
from .scenes import Scenes
from .subjects import COLOURS


def background(image: Tensor) -> Tensor:
    """The median colour of the picture's rim, (B, 3, H, W) → (B, 3)."""
    rim = max(2, image.shape[-1] // 32)
    parts = image[:, :, :rim], image[:, :, -rim:], image[..., :rim], image[..., -rim:]
    return torch.cat([part.flatten(2) for part in parts], 2).median(2).values


def colour_names(image: Tensor) -> list[str]:
    """The nearest background colour of each picture."""
    table = torch.tensor(list(COLOURS.values())).float() / 255
    return [list(COLOURS)[int(i)] for i in torch.cdist(background(image), table).argmin(1)]


def silhouettes(image: Tensor, side: int = 24) -> Tensor:
    """What stands out, cut to its bounding box, with its mask: (B, 3, H, W) → (B, 4, side, side)."""
    ground = background(image)[:, :, None, None]
    mask = ((image - ground).abs().amax(1, keepdim=True) > 0.12).float()
    cut = []
    for picture, shape in zip(torch.cat([(image - ground) * mask, mask], 1), mask[:, 0]):
        rows, columns = (torch.nonzero(shape.mean(axis) > 0.01).flatten() for axis in (1, 0))
        if len(rows) and len(columns):
            picture = picture[:, rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        cut.append(F.interpolate(picture[None], size=(side, side), mode="area")[0])
    return torch.stack(cut)


def feature_ranks(
    image: Tensor, subjects: list[int], colours: list[str], scenes: Scenes, galleries: dict[str, Tensor]
) -> list[int]:
    """The rank of the asked subject among all, by distance of silhouettes, gallery on the same background.

    ``galleries`` keeps the silhouettes of all subjects by background.
    """
    ranks = []
    everything = list(range(len(scenes.subjects)))
    for picture, subject, colour in zip(silhouettes(image), subjects, colours):
        if colour not in galleries:
            galleries[colour] = torch.cat(
                [silhouettes(_real(scenes, everything[i : i + 128], colour)) for i in range(0, len(everything), 128)]
            )
        both = picture, picture.flip(-1)
        distances = torch.minimum(*((galleries[colour] - way).square().flatten(1).mean(1) for way in both))
        ranks.append(int((distances < distances[subject]).sum()))
    return ranks


def _real(scenes: Scenes, subjects: list[int], colour: str) -> Tensor:
    """Upright renders in the middle of the canvas."""
    source = pictures()
    chosen = np.stack([source[i] for i in subjects])
    return compose(chosen, [colour] * len(subjects), scenes.rng, SIGHT, centred=True)[0]


class Eyes:
    """The judge and the hand-made features, and what of pictures they tell right."""

    def __init__(self, place: Place, scenes: Scenes) -> None:
        self.place, self.scenes = place, scenes
        self.judge, self.galleries = load_judge(place, len(scenes.subjects)), {}

    @torch.no_grad()
    def measure(self, image: Tensor, subjects: list[int], colours: list[str]) -> dict[str, float]:
        """Shares of pictures whose subject and background are told right."""
        seen, count = at_sight(image), len(subjects)
        order = first_five(self.judge, seen, self.place.device)
        ranks = feature_ranks(seen, subjects, colours, self.scenes, self.galleries)
        return {
            **measure_told(order, subjects),
            "feature top-5": sum(rank < 5 for rank in ranks) / count,
            "background": sum(a == b for a, b in zip(colour_names(seen), colours)) / count,
        }
