"""Part 3: the text encoder and the vision tower, in one space."""
from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from stages.training import EMA, Optimiser

from .captions import COLOUR_TEMPLATES, END, HELD_TEMPLATES, PLAIN_TEMPLATES, START, C, S, fragment_tokens
from .data import COLOURS, Subject
from .loop import Part, Place, grid
from .scenes import Scenes, for_vision
from .sizes import TEXT, VISION, WIDTH
from .towers import TextTower, VisionTower, contrastive_loss

FLOAT8 = torch.float8_e4m3fn


def known_tokens(subjects: list[Subject]) -> Tensor:
    """Every token id that a caption can hold, sorted."""
    words = {part for template in (*PLAIN_TEMPLATES, *COLOUR_TEMPLATES, *HELD_TEMPLATES) for part in template} - {S, C}
    words.update(COLOURS)
    for subject in subjects:
        words.update(subject.labels.values(), subject.tags)
    return torch.tensor(sorted({START, END, *(token for word in words for token in fragment_tokens(word))}))


@torch.no_grad()
def settled_table(table: Tensor, known: Tensor) -> Tensor:
    """The token table as it is shipped: rows rounded to float8, rows never seen all equal to the mean of the others."""
    settled = table[known].mean(0, keepdim=True).expand_as(table).clone()
    settled[known] = table[known]
    return settled.to(FLOAT8).to(table.dtype)


class LanguagePart(Part):
    """Contrastive pairs of captions and pictures, and beside them both towers name subject and background."""

    name = "language"
    LR, BATCH = 1e-3, 128

    def __init__(self, place: Place) -> None:
        super().__init__(place)
        torch.manual_seed(place.seed + 2)
        self.scenes = Scenes(self.rng, side=VISION.image_size)
        self.text, self.vision = TextTower(TEXT).to(place.device), VisionTower(VISION).to(place.device)
        heads = nn.ModuleList([nn.Linear(WIDTH, len(self.scenes.subjects)), nn.Linear(WIDTH, len(COLOURS))])
        self.heads = heads.to(place.device)
        self.scale = nn.ParameterList([nn.Parameter(torch.tensor(math.log(1 / 0.07), device=place.device))])
        self.names = {colour: index for index, colour in enumerate(COLOURS)}
        self.nets = nn.ModuleList([self.text, self.vision])
        self.ema = EMA(self.nets, 0.995)
        parameters = [*self.nets.parameters(), *self.heads.parameters(), *self.scale.parameters()]
        self.state = {"nets": self.nets, "heads": self.heads, "scale": self.scale, "ema": self.ema,
                      "optimiser": Optimiser(parameters, self.LR, weight_decay=0.01)}

    def step(self, factor: float) -> dict[str, float]:
        batch = self.scenes.batch(self.BATCH)
        device = self.place.device
        ids = self.scenes.captions(batch.subjects, batch.colours).to(device)
        image = for_vision(batch.rgb.to(device), VISION.image_size)
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
        return {"pairs": pairs.item(), "text": naming[0].item(), "vision": naming[1].item(), "text_right": right[0],
                "vision_right": right[1]}

    def result(self) -> dict[str, dict[str, Tensor]]:
        text, vision = self.ema.copy_of(self.nets)
        table = text.text_model.embeddings.token_embedding.weight
        table.copy_(settled_table(table, known_tokens(self.scenes.subjects).to(table.device)))
        return {"text": text.state_dict(), "vision": vision.state_dict()}

    def sheet(self) -> Tensor:
        """Cosine similarities of 32 captions (down) and pictures (across), white is 1."""
        text, vision = self.ema.copy_of(self.nets)
        batch = self.scenes.batch(32)
        ids = self.scenes.captions(batch.subjects, batch.colours).to(self.place.device)
        said = F.normalize(text(ids)[1], dim=-1)
        seen = F.normalize(vision(for_vision(batch.rgb.to(self.place.device), VISION.image_size)), dim=-1)
        return grid((said @ seen.T).clamp(0, 1).expand(1, 3, -1, -1), 1)
