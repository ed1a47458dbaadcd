"""Part 3: the text encoder and the vision tower, in one space."""

from __future__ import annotations

import copy
import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cascade_studio.stages.training.optimiser import EMA, Optimiser

from .captions import END, START, Speaker, word_tokens
from .compose import GROUNDS
from .eight_bits import FLOAT8
from .loop import Part, Place, grid
from .scenes import Scenes, for_vision
from .towers import TextTower, VisionTower, contrastive_loss

TABLE = "text_model.embeddings.token_embedding.weight"


def list_known_tokens(speaker: Speaker) -> Tensor:
    """Every token id that a caption of the training can hold, sorted."""
    return torch.tensor(sorted({START, END, *(token for word in speaker.words() for token in word_tokens(word))}))


@torch.no_grad()
def settle_table(table: Tensor, known: Tensor) -> Tensor:
    """The token table as it is shipped: rows rounded to float8, rows never seen all equal to the mean of the others."""
    settled = table[known].mean(0, keepdim=True).expand_as(table).clone()
    settled[known] = table[known]
    return settled.to(FLOAT8).to(table.dtype)


class TunedText(nn.Module):
    """A text tower to be trained on beside Stage C. Its table has only the rows of ``known`` tokens, and one for all
    others; they are read as eight bits will keep them, and gradients pass through that rounding.
    """

    def __init__(self, tower: TextTower, known: Tensor) -> None:
        super().__init__()
        table = tower.text_model.embeddings.token_embedding.weight
        others = torch.ones(len(table), dtype=torch.bool, device=table.device)
        others[known] = False
        self.stranger = int(others.nonzero()[0])
        place = torch.full_like(others, len(known), dtype=torch.long)
        place[known] = torch.arange(len(known), device=table.device)
        self.register_buffer("place", place, persistent=False)
        self.rows = nn.Embedding.from_pretrained(torch.cat([table[known], table[others].mean(0, keepdim=True)]), False)
        self.tower = copy.deepcopy(tower).train().requires_grad_()
        self.tower.text_model.embeddings.token_embedding = nn.Identity()

    def forward(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """As :class:`.towers.TextTower`."""
        rows = self.rows(self.place[ids])
        rounded = rows + (rows.to(FLOAT8).to(rows.dtype) - rows).detach()
        return self.tower.read(rounded, ids)

    def tensors(self) -> dict[str, Tensor]:
        """Those of the text tower that this one has become."""
        rows = self.rows.weight.detach()
        return {**self.tower.state_dict(), TABLE: rows.to(FLOAT8).to(rows.dtype)[self.place]}


def first_ends(ids: Tensor) -> Tensor:
    """Where each caption (B, N) ends."""
    return (ids == END).int().argmax(1)


def compare_tails(hidden: Tensor, wanted: Tensor, ids: Tensor, meant: Tensor) -> Tensor:
    """How far apart what two captions say behind both their ends is, as a share of what it should be."""
    behind = torch.maximum(first_ends(ids), first_ends(meant))[:, None] <= torch.arange(ids.shape[1], device=ids.device)
    return (hidden - wanted)[behind].square().mean() / wanted[behind].square().mean()


class LanguagePart(Part):
    """Contrastive pairs of captions and pictures, and beside them both towers name subject and background."""

    name = "language"
    STEPS, LR, BATCH, SHADES = 3000, 1e-3, 128, 0.15

    def __init__(self, place: Place) -> None:
        super().__init__(place)
        torch.manual_seed(place.seed + 2)
        self.side, width = place.sizes.vision.image_size, place.sizes.width
        self.scenes = Scenes(self.rng, side=self.side, shades=self.SHADES)
        self.text = TextTower(place.sizes.text).to(place.device)
        self.vision = VisionTower(place.sizes.vision).to(place.device)
        heads = nn.ModuleList([nn.Linear(width, len(self.scenes.subjects)), nn.Linear(width, len(GROUNDS))])
        self.heads = heads.to(place.device)
        self.scale = nn.ParameterList([nn.Parameter(torch.tensor(math.log(1 / 0.07), device=place.device))])
        self.names = {colour: index for index, colour in enumerate(GROUNDS)}
        self.nets = nn.ModuleList([self.text, self.vision])
        self.ema = EMA(self.nets, 0.995)
        parameters = [*self.nets.parameters(), *self.heads.parameters(), *self.scale.parameters()]
        self.state = {
            "nets": self.nets,
            "heads": self.heads,
            "scale": self.scale,
            "ema": self.ema,
            "optimiser": Optimiser(parameters, self.LR, weight_decay=0.01),
        }

    def step(self, factor: float) -> dict[str, float]:
        batch = self.scenes.batch(self.BATCH)
        device = self.place.device
        ids = self.scenes.captions(batch.subjects, batch.colours).to(device)
        image = for_vision(batch.rgb.to(device), self.side)
        subject = torch.tensor(batch.subjects, device=device)
        colour = torch.tensor([self.names[name] for name in batch.colours], device=device)
        with self.place.autocast():
            text, seen = self.text(ids)[1], self.vision(image)
            scores = [[head(embedding).float() for head in self.heads] for embedding in (text, seen)]
        pairs = contrastive_loss(text, seen, self.scale[0])
        naming = [F.cross_entropy(s, subject) + F.cross_entropy(c, colour) for s, c in scores]
        self.state["optimiser"].step(pairs + naming[0] + naming[1], factor)
        self.ema.update(self.nets)
        right = [float((s.argmax(1) == subject).float().mean()) for s, _ in scores]
        return {
            "pairs": pairs.item(),
            "text": naming[0].item(),
            "vision": naming[1].item(),
            "text_right": right[0],
            "vision_right": right[1],
        }

    def result(self) -> dict[str, dict[str, Tensor]]:
        text, vision = self.ema.copy_of(self.nets)
        table = text.text_model.embeddings.token_embedding.weight
        table.copy_(settle_table(table, list_known_tokens(self.scenes.speaker).to(table.device)))
        return {"text": text.state_dict(), "vision": vision.state_dict()}

    def sheet(self) -> Tensor:
        """Cosine similarities of 32 captions (down) and pictures (across), white is 1."""
        text, vision = self.ema.copy_of(self.nets)
        batch = self.scenes.batch(32)
        ids = self.scenes.captions(batch.subjects, batch.colours).to(self.place.device)
        said = F.normalize(text(ids)[1], dim=-1)
        seen = F.normalize(vision(for_vision(batch.rgb.to(self.place.device), self.side)), dim=-1)
        return grid((said @ seen.T).clamp(0, 1).expand(1, 3, -1, -1), 1)
