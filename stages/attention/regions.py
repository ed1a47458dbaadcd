"""Regional prompts in one pass: all prompts' tokens at once, and a mask that says which cells hear which of them.

The attention of Stage C is one softmax over the picture's own tokens and the condition tokens. The logarithm of a
region's weight at a cell is added to the products of that cell with the region's tokens, so a weight of 1 leaves
them as they are, 0.5 counts them half and 0 takes them out. The cells still see each other, which keeps the picture
one.

Image prompts are tokens as well: those of a region are heard as its words are, those of the whole picture everywhere.
Without one for the whole picture there are the tokens of the empty image prompt, which Stage C was trained to hear
where no image is given: they are heard as far as the regions with image prompts leave room. So an image prompt of a
region that is everywhere is the same as one of the whole picture.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from ..errors import WrongInput
from ..nets.hooks import Place
from ..nets.portable import average_areas
from .layers import Attend, AttentionLayer, add_masks, log_weights

EVERYONE = -1
"""Owner of the image prompts of the whole picture: the last of the weights."""


@dataclass(frozen=True)
class Layout:
    """How the condition tokens follow each other: text of the base prompt and of every region, then the pooled tokens
    in the same order (``pooled`` each), then as many for every image prompt, then whatever all cells hear.

    ``images`` names the prompt of each image prompt, or :data:`EVERYONE`.
    """

    text: tuple[int, ...]
    pooled: int
    images: tuple[int, ...] = ()

    @property
    def prompts(self) -> int:
        """How many there are."""
        return len(self.text)

    def owners(self) -> list[int]:
        """The prompt of every token that has one."""
        text = [index for index, count in enumerate(self.text) for _ in range(count)]
        owners = (*range(self.prompts), *self.images)
        return text + [index for index in owners for _ in range(self.pooled)]


def weights_of(
    masks: Sequence[Tensor],
    strengths: Sequence[float],
    size: tuple[int, int],
    keep_base: bool,
    replaces: Sequence[bool],
) -> Tensor:
    """How loudly every cell of ``size`` hears the base prompt, each region, and the image prompts of the whole picture:
    (B, 1 + regions + 1, height, width).

    ``masks`` are (B or 1, h, w) between 0 and 1, averaged over each cell. A region is as loud as its mask times its
    strength; the base prompt is heard everywhere (``keep_base``) or as far as the regions' masks leave room, and the
    image prompts of the whole picture as far as the masks of the regions leave room that replace them (``replaces``).
    """
    if not masks:
        raise WrongInput("A regional prompt came without any region. Add at least one region with a mask.")
    cells = [average_areas(mask[:, None].float().clamp(0, 1), size) for mask in masks]
    batch = max(each.shape[0] for each in cells)
    for each in cells:
        if each.shape[0] not in (1, batch):
            raise WrongInput(
                f"The masks of the regions are batches of {[len(mask) for mask in masks]}. They have to be "
                "one mask each, or the same number: use one mask for each region."
            )
    cells = [each.expand(batch, -1, -1, -1) for each in cells]
    base = measure_rest([] if keep_base else cells, cells[0])
    whole = measure_rest([each for each, instead in zip(cells, replaces) if instead], cells[0])
    return torch.cat([base, *(each * strength for each, strength in zip(cells, strengths)), whole], dim=1)


def measure_rest(cells: Sequence[Tensor], like: Tensor) -> Tensor:
    """What the largest of ``cells`` leaves of 1; all of it, in the shape of ``like``, where there are none."""
    return 1 - torch.cat(list(cells), dim=1).amax(dim=1, keepdim=True) if cells else torch.ones_like(like)


class RegionLayer(AttentionLayer):
    """Adds the regions' mask. ``weights``, as of :func:`weights_of`, belong to one pass and any of its grids."""

    order = 0

    def __init__(self, weights: Tensor, layout: Layout):
        self.weights, self.owners = weights, layout.owners()
        self.masks: dict[tuple[int, int], Tensor] = {}

    def attend(
        self, place: Place, q: Tensor, k: Tensor, v: Tensor, n_self: int, mask: Tensor | None, following: Attend
    ) -> Tensor:
        bias = self.bias(place.grid, k.shape[1] - n_self, q.dtype)
        bias = F.pad(bias, (n_self, 0))
        return following(q, k, v, n_self, add_masks(mask, bias))

    def bias(self, grid: tuple[int, int], tokens: int, dtype: torch.dtype) -> Tensor:
        """What is added to the products of ``grid``'s cells with the condition tokens: (B, N, ``tokens``)."""
        if grid not in self.masks:
            weights = average_areas(self.weights.float(), grid) if (self.weights.shape[-2:] != grid) else self.weights
            loud = log_weights(weights).flatten(2).transpose(1, 2)
            owners = torch.tensor(self.owners, device=loud.device)
            self.masks[grid] = F.pad(loud[..., owners], (0, tokens - len(self.owners))).to(dtype)
        return self.masks[grid]
