"""Stage B: from encoded pictures, then from what Stage C paints; and the critic that compares its pictures."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cascade_studio.stages.diffusion.sampling import alpha_sigma
from cascade_studio.stages.nets.stage_b import StageB
from cascade_studio.stages.training.losses import Noised, add_training_noise, keep_mask, replace_dropped
from cascade_studio.stages.training.optimiser import EMA, Optimiser

from .autoencoders import settle_norms
from .captions import batch_tokens
from .compose import PAINTED
from .generators import HELD_EVERY, DiffusionPart, measure_held, repeat_common
from .loop import Part, Place, frozen, grid, make_once
from .nets import TRAINING, decode, load_code_reader, load_reader, load_trained, paint
from .precondition import Preconditioning
from .scenes import SHORT, Pool, Scenes, make_pool
from .sizes import SHIPPED

PICTURES = 4000
NOISIEST, LEAST = 0.98, 0.03
"""The latest time at which a guess is looked at, and less than the picture's share in what is seen there."""


def decoder_pool(place: Place, scenes: Scenes) -> Pool:
    """Pictures as codes and through Stage A; the commonest subjects come three times as often."""
    numbers = repeat_common(scenes.subjects, 3, 1)
    subjects = [scenes.rng.choice(numbers) for _ in range(PICTURES)]
    nets = {"stage_a": load_trained(place, "stage_a"), "reader": load_code_reader(place)}
    return make_pool(place, "pool_b", scenes, subjects, nets)


def decoder_scenes(part: Part) -> Scenes:
    """Mostly as Stage C paints, with some motion and some pictures of other styles."""
    return Scenes(part.rng, others=0.2, sizes=(0.82, 0.92), mirrored=0.1, room=0.4, shades=0.1)


def guess_clean(seen: Noised, predicted: Tensor) -> Tensor:
    """What ``predicted`` leaves of a noisy latent, within its range. Beyond :data:`NOISIEST` rounding is most of it."""
    a, b = seen.logsnr.sigmoid().sqrt().view(-1, 1, 1, 1), (-seen.logsnr).sigmoid().sqrt().view(-1, 1, 1, 1)
    return ((seen.x - b * predicted.float()) / a.clamp(min=LEAST)).clamp(-4, 4)


class Critic(nn.Module):
    """Stage A latents (B, 4, 64, 64) → scores of the subjects; ``maps`` are the features that lie between."""

    def __init__(self, classes: int, c_in: int = 4, widths: tuple[int, ...] = (48, 96, 160, 224)) -> None:
        super().__init__()
        layers, c = [], c_in
        for width in widths:
            layers.append(
                nn.Sequential(
                    nn.Conv2d(c, width, 3, 2 if c > c_in else 1, 1, bias=False),
                    nn.BatchNorm2d(width),
                    nn.ReLU(),
                    nn.Conv2d(width, width, 3, 1, 1, groups=width // 16, bias=False),
                    nn.BatchNorm2d(width),
                    nn.ReLU(),
                )
            )
            c = width
        self.layers = nn.ModuleList(layers)
        self.head = nn.Linear(c * 4, classes)

    def maps(self, latent: Tensor) -> list[Tensor]:
        """The features of every level."""
        found = []
        for layer in self.layers:
            latent = layer(latent)
            found.append(latent)
        return found

    def forward(self, latent: Tensor) -> Tensor:
        return self.head(F.adaptive_avg_pool2d(self.maps(latent)[-1], 2).flatten(1))

    def distances(self, made: Tensor, wanted: Tensor) -> Tensor:
        """How far the features of two batches are apart, (B,): they have unit length in every place."""
        with torch.no_grad():
            aims = [F.normalize(value.float(), dim=1) for value in self.maps(wanted)]
        pairs = zip((F.normalize(value.float(), dim=1) for value in self.maps(made)), aims)
        return sum((one - other).square().sum(1).flatten(1).mean(1) for one, other in pairs) / len(aims)


class CriticPart(Part):
    """Names the subject of Stage A latents, softened and noisy at times. The judge that measures stays apart."""

    name = "critic"
    STEPS, LR, BATCH = 2500, 2e-3, 64

    def __init__(self, place: Place) -> None:
        super().__init__(place)
        torch.manual_seed(place.seed + 6)
        self.scenes = decoder_scenes(self)
        self.pool = decoder_pool(place, self.scenes)
        self.net = Critic(len(self.scenes.subjects)).to(place.device)
        self.ema = EMA(self.net, 0.995)
        self.state = {"net": self.net, "ema": self.ema, "optimiser": Optimiser(self.net.parameters(), self.LR)}

    def step(self, factor: float) -> dict[str, float]:
        settle_norms(self.net, self.progress < 0.9)
        index = self.rng.sample(range(len(self.pool)), self.BATCH)
        latent = self.pool.rows(index)["latent"].to(self.place.device)
        subject = torch.tensor([self.pool.subjects[i] for i in index], device=self.place.device)
        shift = [self.rng.randrange(-3, 4) for _ in range(2)]
        latent = torch.roll(latent, shift, (2, 3)) + 0.5 * self.rng.random() * torch.randn_like(latent)
        if self.rng.random() < 0.3:
            latent = F.avg_pool2d(F.pad(latent, (1, 1, 1, 1), mode="replicate"), 3, 1)
        with self.place.autocast():
            scores = self.net(latent).float()
        loss = F.cross_entropy(scores, subject, label_smoothing=0.05)
        self.state["optimiser"].step(loss, factor)
        self.ema.update(self.net)
        return {"loss": loss.item(), "right": float((scores.argmax(1) == subject).float().mean())}

    def sheet(self) -> Tensor:
        """The first level's features of eight pictures, four at a time as colours."""
        with torch.no_grad():
            maps = frozen(self.ema.copy_of(self.net)).maps(
                self.pool.rows(list(range(8)))["latent"].to(self.place.device)
            )
        return grid(maps[0][:, :3].clamp(0, 3).cpu() / 3, 8)

    def result(self) -> dict[str, Tensor]:
        return self.ema.copy_of(self.net).state_dict()


@dataclass
class Drawn:
    """Some pictures of a pool: their tensors and what they show."""

    rows: dict[str, Tensor]
    subjects: list[int]
    colours: list[str]


def draw_rows(pool: Pool, rng: random.Random, count: int) -> Drawn:
    """``count`` pictures of ``pool`` at random."""
    index = rng.sample(range(len(pool)), count)
    return Drawn(pool.rows(index), [pool.subjects[i] for i in index], [pool.colours[i] for i in index])


class StageBPart(DiffusionPart):
    """Stage B from latents of the image encoder, with a little noise on them, and the pooled caption.

    Most of every batch is close to pure noise: there it learns what a latent says, and the rest only sharpens that.
    From ``FEATURES_FROM`` of the budget on, its guess has to have the features that the critic sees in the picture.
    """

    name = "stage_b"
    STEPS, BATCH, SEED, NOISY, NOISY_FROM = 20000, 24, 4, 0.7, 0.6
    DROP_TEXT, DROP_EFFNET, NOISE = 0.1, 0.05, 0.2
    FEATURES_FROM, FEATURES = 0.6, 0.5

    def __init__(self, place: Place) -> None:
        super().__init__(place, StageB(place.sizes.stage_b, backend=TRAINING))
        self.scenes = decoder_scenes(self)
        self.pool = decoder_pool(place, self.scenes)
        self.stage_a, self.critic = load_trained(place, "stage_a"), load_critic(place, len(self.scenes.subjects))
        self.nothing = self.encode_text(batch_tokens([[]], SHORT))[1]

    def begin(self) -> Preconditioning:
        """From an earlier Stage B where the work folder has one (``stage_b.start.pt``), else from nothing."""
        found = self.place.read_start("stage_b")
        if not found:
            return super().begin()
        earlier = StageB(SHIPPED.stage_b)
        earlier.load_state_dict(found["stage_b"])
        return Preconditioning.renew_in(self.net, earlier)

    def draw(self) -> list[Drawn]:
        """The rows of a batch."""
        return [self.draw_encoded(self.BATCH)]

    def draw_encoded(self, count: int) -> Drawn:
        """Rows of the pool, with a little noise on what Stage B is given."""
        drawn = draw_rows(self.pool, self.rng, count)
        effnet = drawn.rows["effnet"]
        strength = self.NOISE * torch.rand(count, 1, 1, 1)
        drawn.rows["effnet"] = effnet + strength * torch.randn_like(effnet)
        return drawn

    def step(self, factor: float) -> dict[str, float]:
        parts = self.draw()
        latent, effnet = (
            torch.cat([part.rows[name] for part in parts]).to(self.place.device) for name in ("latent", "effnet")
        )
        subjects, colours = (
            [each for part in parts for each in getattr(part, name)] for name in ("subjects", "colours")
        )
        ids = self.scenes.captions(subjects, colours)
        clip = replace_dropped(self.encode_text(ids)[1], keep_mask(len(subjects), self.DROP_TEXT), self.nothing)
        effnet = replace_dropped(effnet, keep_mask(len(subjects), self.DROP_EFFNET))
        return self.learn(latent, {"effnet": effnet, "clip": clip}, factor)

    def judge_guess(self, seen: Noised, predicted: Tensor, x0: Tensor) -> Tensor | float:
        """The critic's distance of what the network says lies below the noise."""
        if self.progress < self.FEATURES_FROM:
            return 0.0
        told = alpha_sigma(seen.logsnr)[0] >= LEAST
        if not told.any():
            return 0.0
        made = guess_clean(seen, predicted)[told]
        with self.place.autocast():
            return self.FEATURES * self.critic.distances(made, x0[told]).mean()

    def sheet(self) -> Tensor:
        """Rows: pictures through Stage A alone, and through encoder, Stage B and Stage A."""
        index = [i * len(self.pool) // 8 for i in range(8)]
        rows = {name: value.to(self.place.device) for name, value in self.pool.rows(index).items()}
        ids = self.scenes.captions([self.pool.subjects[i] for i in index], [self.pool.colours[i] for i in index])
        made = decode(self.average_net(), rows["effnet"], self.encode_text(ids)[1], self.nothing, list(range(8)))
        return grid(torch.cat([self.stage_a.decode(rows["latent"]), self.stage_a.decode(made)]).cpu(), 8)


class RefinePart(StageBPart):
    """Stage B further, most of it from latents that Stage C painted, with the pictures that it should have painted."""

    name = "refine"
    STEPS, SEED, LR, FEATURES_FROM, EMA_DECAY = 20000, 7, 7e-4, 0.4, 0.998
    PAINTED, PAINTINGS, HELD_PICTURES = 14, 3000, 48

    def __init__(self, place: Place) -> None:
        super().__init__(place)
        self.painted = paint_pool(place, self)
        rng = random.Random(place.seed + self.SEED)
        scenes = Scenes(rng, **PAINTED)
        subjects = rng.sample(range(len(scenes.subjects)), self.HELD_PICTURES)
        nets = {"stage_a": self.stage_a, "reader": load_reader(place)}
        self.held = make_pool(place, "held_b", scenes, subjects, nets, held=True)

    def begin(self) -> Preconditioning:
        return Preconditioning.find_in(self.net, load_trained(self.place, "stage_b", "stage_b"))

    def draw(self) -> list[Drawn]:
        return [self.draw_encoded(self.BATCH - self.PAINTED), draw_rows(self.painted, self.rng, self.PAINTED)]

    @torch.no_grad()
    def check(self) -> dict[str, float]:
        """:func:`.generators.measure_held` of what would ship now, and the critic's distance of its first guess."""
        net, rows = self.average_net(), self.held.rows(list(range(len(self.held))))
        latent, effnet = (rows[name].to(self.place.device) for name in ("latent", "effnet"))
        names = (self.scenes.subjects[i].labels["en"] for i in self.held.subjects)
        said = [[f"{name} on {colour}"] for name, colour in zip(names, self.held.colours)]
        conditions = {"effnet": effnet, "clip": self.encode_text(batch_tokens(said))[1]}
        found = measure_held(self.place, net, latent, conditions)
        noise = torch.randn(latent.shape, generator=torch.Generator().manual_seed(1)).to(latent)
        seen = add_training_noise(latent, noise, torch.full((len(latent),), NOISIEST, device=latent.device))
        with self.place.autocast():
            made = guess_clean(seen, net(seen.x, seen.r, **conditions))
        return {**found, "held_features": float(self.critic.distances(made, latent).mean())}

    def step(self, factor: float) -> dict[str, float]:
        found = self.check() if self.ema.updates % HELD_EVERY == 0 else {}
        return {**super().step(factor), **found}

    def result(self) -> dict[str, dict[str, Tensor]]:
        return {"stage_b": self.average_net().state_dict()}


@torch.no_grad()
def paint_pool(place: Place, part: RefinePart) -> Pool:
    """What Stage C paints of ``PAINTED`` captions (``effnet``), and real pictures of the same (``latent``)."""
    return Pool(make_once(place, place.work / "pool_painted.pt", lambda: _paint(place, part)))


def _paint(place: Place, part: RefinePart) -> dict[str, Any]:
    """What :func:`paint_pool` keeps."""
    nets, canvas = {name: load_trained(place, name) for name in ("stage_a", "text")}, place.sizes.canvas
    painter = load_trained(place, "stage_c", backend=TRAINING)
    scenes = Scenes(part.rng, shades=0.1, **PAINTED)
    numbers = repeat_common(scenes.subjects, 3, 1)
    rows: dict[str, list[Tensor]] = {"latent": [], "effnet": []}
    subjects, colours = [], []
    while len(subjects) < part.PAINTINGS:
        batch = scenes.batch(0, part.rng.sample(numbers, 32))
        prompts = [" ".join(fragments) for fragments in scenes.fragments(batch.subjects, batch.colours)]
        seeds = [part.rng.randrange(2**32) for _ in prompts]
        rows["latent"].append(nets["stage_a"].encode(batch.rgb.to(place.device)).half().cpu())
        with place.autocast():
            size = (canvas.prior_height, canvas.prior_width)
            made = paint(painter, nets["text"], prompts, seeds, steps=10, grid_size=size)
        rows["effnet"].append(made.half().cpu())
        subjects, colours = subjects + batch.subjects, colours + batch.colours
    return {
        "tensors": {name: torch.cat(parts) for name, parts in rows.items()},
        "subjects": subjects,
        "colours": colours,
    }


def load_critic(place: Place, classes: int) -> Critic:
    """The finished critic."""
    critic = Critic(classes)
    critic.load_state_dict(torch.load(place.weights("critic"), map_location="cpu"))
    return frozen(critic).to(place.device)
