"""Stage C, and what training it has in common with Stage B (decoder.py): pictures are encoded once."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cascade_studio.stages.diffusion.sampling import logsnr, noise_condition
from cascade_studio.stages.nets.blocks import TimestepBlock, timestep_embedding
from cascade_studio.stages.nets.initial import initialise_unet
from cascade_studio.stages.nets.stage_b import StageB
from cascade_studio.stages.nets.stage_c import StageC
from cascade_studio.stages.training.distributed import sum_gradients
from cascade_studio.stages.training.losses import (
    Noised,
    add_training_noise,
    epsilon_losses,
    keep_mask,
    replace_dropped,
    sample_times,
    velocity_weight,
)
from cascade_studio.stages.training.optimiser import EMA, Optimiser

from .calling import Captions, list_strangers, say_both, strew
from .captions import LENGTH, Speaker, batch_tokens
from .compose import PAINTED
from .eight_bits import eight_bits, round_together
from .language import TunedText, compare_tails, list_known_tokens
from .loop import Part, Place
from .nets import TRAINING, load_code_reader, load_trained, paint_sheet
from .precondition import Preconditioning
from .scenes import SHORT, Scenes, make_pool
from .subjects import Subject
from .words import everyday

HELD_TIMES, HELD_EVERY = (0.98, 0.9, 0.75, 0.5), 250
"""When :func:`measure_held` looks, and after how many steps again."""


def ease_decay(most: float, updates: int) -> float:
    """How much running averages keep in a step after ``updates``: little at first, so that a short run forgets its
    start, and ``most`` in the end."""
    return min(most, (1 + updates) / (10 + updates))


class MatrixOptimiser:
    """Muon (Jordan et al. 2024) with updates of AdamW's size; gradients are those that the other optimiser left."""

    ITERATIONS = 3
    """Of Newton and Schulz; the usual five even out small singular values more, and take a fifth of a step's time."""

    def __init__(self, parameters: list[nn.Parameter], lr: float) -> None:
        self.lr = lr
        self.muon = torch.optim.Muon(
            parameters, lr, weight_decay=0.01, adjust_lr_fn="match_rms_adamw", ns_steps=self.ITERATIONS
        )

    def update(self, factor: float) -> None:
        """One step at ``factor`` of the learning rate; clears the gradients."""
        for group in self.muon.param_groups:
            group["lr"] = self.lr * factor
        self.muon.step()
        self.muon.zero_grad(set_to_none=True)

    def state_dict(self) -> dict[str, Any]:
        """The momenta."""
        return self.muon.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Inverse of :meth:`state_dict`."""
        self.muon.load_state_dict(state)


class DiffusionPart(Part):
    """What training Stage B and Stage C has in common: a start as v-prediction, noise, averaged weights."""

    LR, BATCH, EMA_DECAY = 2e-3, 32, 0.999
    SEED = 3
    NOISY, NOISY_FROM = 0.0, 0.75
    """The share of a batch whose times are drawn from the noisy end alone."""
    SETTLES = True
    """Whether what ships is rounded to float8: three bits of mantissa are then all that it needs."""

    def __init__(self, place: Place, net: StageB | StageC) -> None:
        super().__init__(place)
        torch.manual_seed(place.seed + self.SEED)
        initialise_unet(net)
        self.net = net.to(place.device)
        self.start = self.begin()
        self.text = load_trained(place, "text", "language")
        self.ema = EMA(net, self.EMA_DECAY)
        matrices = [
            parameter
            for name, parameter in net.named_parameters()
            if parameter.dim() == 2 and (".channelwise." in name or ".attention." in name)
        ]
        chosen = {id(parameter) for parameter in matrices}
        others = [parameter for parameter in net.parameters() if id(parameter) not in chosen]
        self.state = {
            "net": net,
            "ema": self.ema,
            "matrices": MatrixOptimiser(matrices, self.LR),
            "optimiser": Optimiser(others, self.LR, betas=(0.9, 0.98), weight_decay=0.01),
        }

    def begin(self) -> Preconditioning:
        """The start of the net, which is held from then on."""
        return Preconditioning(self.net)

    def find_again(self) -> None:
        """The start that is in the saved net, which need not be that of :meth:`begin` any more: the file of earlier
        weights may be gone.
        """
        self.start = Preconditioning.find_in(self.net, copy.deepcopy(self.net))

    @torch.no_grad()
    def encode_text(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Hidden states and pooled text of token ids."""
        return self.text(ids.to(self.place.device))

    def learn(
        self, x0: Tensor, conditions: dict[str, Tensor], factor: float, beside: Tensor | float = 0.0
    ) -> dict[str, float]:
        """One update on ``x0`` (B, C, H, W), and on the loss ``beside``."""
        t = sample_times(len(x0), device=x0.device)
        chosen = torch.rand_like(t) < self.NOISY
        t = torch.where(chosen, self.NOISY_FROM + (1 - self.NOISY_FROM) * t, t)
        seen = add_training_noise(x0, torch.randn_like(x0), t)
        self.state["optimiser"].clear()
        with self.place.autocast():
            predicted = self.net(seen.x, seen.r, **conditions)
        losses = epsilon_losses(predicted, seen.noise)
        weighted = losses * velocity_weight(seen.logsnr)
        loss = weighted.mean() + beside + self.judge_guess(seen, predicted, x0)
        (loss / self.place.crew.size).backward()
        sum_gradients(self.list_learned(), self.place.crew)
        self.start.still()
        norm = self.state["optimiser"].update(factor)
        if math.isfinite(norm):
            self.state["matrices"].update(factor)
        self.start.hold()
        self.ema.decay = ease_decay(self.EMA_DECAY, self.ema.updates)
        self.ema.update(self.net)
        taken = {"loss": float(losses.detach().mean()), "weighted": float(weighted.detach().mean()), "norm": norm}
        for name, low, high in (("noisy", -99, -4), ("middle", -4, 0), ("clear", 0, 99)):
            these = weighted.detach()[(low <= seen.logsnr) & (seen.logsnr < high)]
            if len(these):
                taken[name] = float(these.mean())
        return taken

    def list_learned(self) -> list[nn.Parameter]:
        """What gets a gradient in :meth:`learn`."""
        return list(self.net.parameters())

    def judge_guess(self, seen: Noised, predicted: Tensor, x0: Tensor) -> Tensor | float:
        """A loss on what ``predicted`` makes of the noise in ``seen``, beside that of the noise."""
        return 0.0

    def average_net(self) -> nn.Module:
        """The averaged net, as it will ship."""
        net = self.ema.copy_of(self.net)
        return settle_weights(settle_times(net)) if self.SETTLES and self.start.fits_eight_bits() else net

    def result(self) -> dict[str, dict[str, Tensor]]:
        return {self.name: self.average_net().state_dict()}


@torch.no_grad()
def measure_held(
    place: Place, net: nn.Module, x0: Tensor, conditions: dict[str, Tensor], times: Sequence[float] = HELD_TIMES
) -> dict[str, float]:
    """The loss of v at each of ``times``, on pictures that are never learned, with noise that is always the same."""
    noise, found = torch.randn(x0.shape, generator=torch.Generator().manual_seed(0)).to(x0), {}
    for time in times:
        seen = add_training_noise(x0, noise, torch.full((len(x0),), time, device=x0.device))
        with place.autocast():
            predicted = net(seen.x, seen.r, **conditions)
        losses = epsilon_losses(predicted, seen.noise) * velocity_weight(seen.logsnr)
        found[f"held_{100 * time:.0f}"] = float(losses.mean())
    return found


@torch.no_grad()
def settle_weights(net: nn.Module) -> nn.Module:
    """``net`` with each of its parameters rounded to float8, as a host does that keeps them so."""
    for parameter in net.parameters():
        parameter.copy_(eight_bits(parameter))
    return net


@torch.no_grad()
def settle_times(net: nn.Module) -> nn.Module:
    """``net`` with what it makes of times in float8, rounded so that scales and shifts stay what they are.

    The last time block of a net that starts as v-prediction adds up to nothing at pure noise; each number rounded for
    itself leaves a rest there that the sampler divides by a hundredth.
    """
    level = logsnr(torch.linspace(0, 1, 2000))
    importance = velocity_weight(level)
    for block in net.modules():
        if not isinstance(block, TimestepBlock):
            continue
        for name in block.names:
            layer = getattr(block, name)
            r, weight = (noise_condition(level), importance) if name == "mapper" else (torch.zeros(1), torch.ones(1))
            features = F.pad(timestep_embedding(r, layer.in_features), (1, 0), value=1.0)
            both = torch.cat([layer.bias[:, None], layer.weight], 1)
            rounded = round_together(both, features.to(both), weight.to(both))
            layer.bias.copy_(rounded[:, 0])
            layer.weight.copy_(rounded[:, 1:])
    return net


def repeat_common(subjects: list[Subject], common: int, rest: int) -> list[int]:
    """Numbers of ``subjects``: those with everyday words ``common`` times, the others ``rest`` times."""
    known = everyday()
    return [i for i, subject in enumerate(subjects) for _ in range(common if subject.labels["en"] in known else rest)]


@torch.no_grad()
def take_deep_blocks(net: StageC, tensors: dict[str, Tensor]) -> None:
    """Into ``net``, what of an earlier Stage C reads conditions and thinks in the deeper level, where sizes agree."""
    mine = net.state_dict()
    for name, value in tensors.items():
        if name.startswith(("clip_", "down_blocks.1.", "up_blocks.0.")) and mine[name].shape == value.shape:
            mine[name].copy_(value)


class StageCPart(DiffusionPart):
    """Stage C from captions, and at times from the image embedding of the vision tower.

    Its subjects stand in one place and are never mirrored, and the commonest come three times as often. Captions are
    mostly bare at first. The text encoder learns with it, so that similar pictures come to lie close in what it says.
    All captions of a picture are to mean what its plain one means: their pooled output is held where the language part
    left that of the plain one, for Stage B and the vision tower, and what stands behind their ends is that of the plain
    one as well. Captions without a picture, mostly in other languages, learn that beside them at little cost. Words
    that say nothing about the picture are strewn in.
    """

    name = "stage_c"
    STEPS, BATCH, SEED, NOISY = 40000, 40, 5, 0.5
    COMMON, REST, SHADES = 18, 6, 0.15
    DROP_TEXT, KEEP_IMAGE, LONG_FROM, STRANGE = 0.08, 0.05, 0.97, 0.5
    BESIDE, FOREIGN_BESIDE = 80, 0.7
    """Captions without a picture, and the share of other languages in them."""
    LR, TEXT_LR, ROWS_SHARE, HELD, TAILS = 1e-3, 5e-4, 8.0, 1.0, 0.3
    """``ROWS_SHARE``: the rows of tokens learn by so much of the text encoder's rate, since most captions miss them."""
    SETTLES = False
    """Stage C and the text encoder lose little in eight bits as they are (36 dB with Stage B)."""

    def __init__(self, place: Place) -> None:
        super().__init__(place, StageC(place.sizes.stage_c, backend=TRAINING))
        tower, earlier = copy.deepcopy(self.text), place.read_start("stage_c")
        if earlier:
            tower.load_state_dict(earlier["text"])
        self.scenes = Scenes(self.rng, shades=self.SHADES, **PAINTED)
        known = list_known_tokens(self.scenes.speaker).to(place.device)
        self.tuned = TunedText(tower, known)
        self.strangers = list_strangers(self.scenes.subjects, self.tuned.stranger)
        self.text_ema = EMA(self.tuned, self.EMA_DECAY)
        self.state.update(
            text=self.tuned,
            text_ema=self.text_ema,
            text_optimiser=Optimiser(
                self.tuned.parameters(),
                self.TEXT_LR,
                betas=(0.9, 0.98),
                shares={self.tuned.rows.weight: self.ROWS_SHARE},
            ),
        )
        nets = {"reader": load_code_reader(place), "vision": load_trained(place, "vision")}
        subjects = repeat_common(self.scenes.subjects, self.COMMON, self.REST)
        self.pool = make_pool(place, "pool_c", self.scenes, subjects, nets)

    def list_learned(self) -> list[nn.Parameter]:
        return [*super().list_learned(), *self.tuned.parameters()]

    def begin(self) -> Preconditioning:
        """With what an earlier Stage C knows where the work folder has one (``stage_c.start.pt``)."""
        start = super().begin()
        take_deep_blocks(self.net, self.place.read_start("stage_c").get("stage_c", {}))
        start.hold()
        return start

    def step(self, factor: float) -> dict[str, float]:
        length = LENGTH if self.progress > self.LONG_FROM else SHORT
        index = self.rng.sample(range(len(self.pool)), self.BATCH)
        rows = {name: value.to(self.place.device) for name, value in self.pool.rows(index).items()}
        beside = self.rng.sample(range(len(self.pool)), self.BESIDE)
        said = [self.say(index, Speaker.FOREIGN), self.say(beside, self.FOREIGN_BESIDE)]
        ids, plain = (batch_tokens([*a, *b], length).to(self.place.device) for a, b in zip(*said))
        meant = self.encode_text(plain)[1]
        with self.place.autocast():
            with torch.no_grad():
                wanted = self.tuned(plain)[0].float()
            text, pooled = (value.float() for value in self.tuned(ids))
        held = (pooled - meant).square().mean() / meant.square().mean()
        tails = compare_tails(text, wanted, ids, plain)
        text, pooled = text[: self.BATCH], pooled[: self.BATCH]
        image = replace_dropped(rows["image"], keep_mask(len(index), 1 - self.KEEP_IMAGE))
        conditions = {"clip_text": text, "clip_text_pooled": pooled, "clip_img": image}
        self.state["text_optimiser"].clear()
        taken = self.learn(rows["effnet"], conditions, factor, self.HELD * held + self.TAILS * tails)
        norm = self.state["text_optimiser"].update(factor)
        self.text_ema.decay = ease_decay(self.EMA_DECAY, self.ema.updates)
        self.text_ema.update(self.tuned)
        return {**taken, "held": float(held.detach()), "tails": float(tails.detach()), "text_norm": norm}

    def say(self, index: list[int], foreign: float) -> tuple[Captions, Captions]:
        """Random captions of pictures of the pool, and their plain ones."""
        bare = 0.9 - 0.6 * self.progress
        said, plain = say_both(self.scenes, self.pool, index, bare, foreign, self.DROP_TEXT)
        return [strew(part, self.rng, self.STRANGE, self.strangers, SHORT) for part in said], plain

    def average_text(self) -> TunedText:
        """The averaged text encoder, as it will ship."""
        return self.text_ema.copy_of(self.tuned)

    def result(self) -> dict[str, dict[str, Tensor]]:
        return {"stage_c": self.average_net().state_dict(), "text": self.average_text().tensors()}

    def sheet(self) -> Tensor:
        """Sixteen held-out prompts, seen through the Previewer."""
        return paint_sheet(self.place, self.average_net(), self.average_text(), self.scenes.prompts)
