"""One update after another, and what stops them: the part of training that knows neither files nor the host."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from ..errors import WrongInput
from .distributed import ALONE, Crew, sum_gradients
from .losses import AdaptiveLossWeight, min_snr_weight, p2_weight, velocity_weight
from .objectives import Losses, Row, row_signature
from .optimiser import EMA, Optimiser, scale_rate
from .seeding import BatchOrder, generator
from .settings import SLIM, Settings

WINDOW = 10
"""Steps over which a loss is judged."""
GROWTH = 1.5
"""A mean loss this much above that of knowing nothing (or of the first step, if higher) has diverged."""
JUDGED, JUDGED_GROWTH = 16, 1.5
"""Samples with the same noise each time, and how much above the best of their losses means that training went wrong.
They have little chance in them: a good run does not give back a half of what it started from."""
MOST_JUDGED = 64
"""Held-out pictures that are looked at."""

WEIGHTS: dict[str, Callable[[Tensor], Tensor]] = {
    "p2": p2_weight,
    "velocity": velocity_weight,
    "min_snr": min_snr_weight,
}


class Objective(Protocol):
    """See :mod:`.objectives`; ``nothing`` is the loss of a network that has learnt nothing, if that is known."""

    @property
    def nothing(self) -> float | None:
        """The loss of a network that has learnt nothing, None if that is not known."""

    def losses(self, rows: Sequence[Row], generators: Sequence[torch.Generator]) -> Losses:
        """One loss a row, each with a generator of its own."""


class Diverged(Exception):
    """Training has stopped being any good; the text says at which step and how."""


def find_divergence(losses: Sequence[float], nothing: float | None) -> str:
    """Why these losses of all steps so far must not go on, or ""."""
    if losses and not math.isfinite(losses[-1]):
        return f"the loss of step {len(losses)} is not a number"
    if len(losses) <= WINDOW:
        return ""
    limit = GROWTH * (sum(losses[:WINDOW]) / WINDOW if nothing is None else max(nothing, losses[0]))
    mean = sum(losses[-WINDOW:]) / WINDOW
    if mean <= limit:
        return ""
    return f"the loss grew to {mean:.3g} at step {len(losses)}, above the {limit:.3g} of a network that knows nothing"


class Trainer:
    """Trains ``learned`` (a module whose parameters the objective's network uses) on ``rows``.

    With a ``crew`` every process takes its share of each batch; all end a step with the same weights. The result of
    a step depends on the settings, the rows and the step's number, not on how the batch is split. Rows whose numbers
    are ``held`` are judged only; ``shares`` as in :class:`.Optimiser`.
    """

    def __init__(
        self,
        objective: Objective,
        learned: nn.Module,
        rows: Sequence[Row],
        settings: Settings,
        crew: Crew = ALONE,
        repeats: Sequence[int] | None = None,
        held: Collection[int] = (),
        shares: Mapping[nn.Parameter, float] | None = None,
    ) -> None:
        if not rows:
            raise WrongInput("There are no pictures to train on. Give at least one picture with a caption.")
        if settings.batch_size < crew.size:
            raise WrongInput(
                f"A batch of {settings.batch_size} cannot be shared out to {crew.size} processes. Raise "
                "batch_size, or start fewer processes."
            )
        self.objective, self.learned, self.rows, self.settings, self.crew = objective, learned, rows, settings, crew
        self.held, self.taught = sorted(held), [index for index in range(len(rows)) if index not in held]
        if not self.taught:
            raise WrongInput(
                f"All {len(rows)} pictures are held out, so there is none to learn from. Lower held_out, or add some."
            )
        self.order = BatchOrder(
            settings.seed,
            settings.batch_size,
            [row_signature(rows[index]) for index in self.taught],
            None if repeats is None else [repeats[index] for index in self.taught],
        )
        self.optimiser = Optimiser(
            learned.parameters(),
            settings.learning_rate,
            kind=settings.optimiser,
            weight_decay=settings.weight_decay,
            clip=settings.clip,
            seed=settings.seed,
            shares=shares,
            schedule=lambda update: scale_rate(
                settings.schedule, update, settings.steps, settings.warm_up, settings.restarts
            ),
        )
        if (
            settings.optimiser in SLIM
            and crew.size == 1
            and any(p.dtype == torch.bfloat16 for p in learned.parameters())
        ):
            self.optimiser.fuse()
        self.start_average()
        self.adaptive = AdaptiveLossWeight() if settings.loss_weight == "adaptive" else None
        self.losses: list[float] = []
        self.judged: list[tuple[int, float]] = []
        """Losses on the same noise each time, with their steps."""
        self.whole = True
        """False while an update is half done, which must not be saved."""

    def start_average(self) -> None:
        """Begin the average, where one is kept, at the weights of now."""
        self.ema = EMA(self.learned, self.settings.ema) if self.settings.ema else None

    @property
    def step(self) -> int:
        """How many updates were made."""
        return len(self.losses)

    def update(self) -> float:
        """One update; returns the mean loss of its pictures. Raises :class:`Diverged` and leaves the weights alone."""
        batch = self.settings.batch_size
        self.judge()
        pictures = [self.taught[place] for place in self.order.choose(self.step)]
        self.optimiser.clear()
        taken = torch.zeros(batch, 2)  # raw loss and logsnr of every place
        parts = self.parts(pictures)
        for number, places in enumerate(parts):
            raw, level = self.objective.losses(
                [self.rows[pictures[place]] for place in places],
                [generator(self.settings.seed, "sample", self.step, place) for place in places],
            )
            taken[places, 0] = raw.detach().float().cpu()
            if level is not None:
                taken[places, 1] = level.detach().float().cpu()
            last = bool(self.optimiser.fused) and number == len(parts) - 1
            if last:
                self.check([*self.losses, float(taken[:, 0].mean())])
                self.whole = False
                self.optimiser.arm()
            ((raw * self.weights(level, raw)).sum() / batch).backward()
        taken = self.crew.sum(taken)
        loss = float(taken[:, 0].double().mean())
        if self.optimiser.fused:
            norm = self.optimiser.disarm()
        else:
            self.check([*self.losses, loss])
            self.sum_gradients()
            self.whole = False
            norm = self.optimiser.update()
            self.whole = math.isnan(norm)
        if math.isnan(norm):
            raise Diverged(f"a gradient of step {self.step + 1} is not a number")
        self.whole = False
        if self.adaptive is not None:
            self.adaptive.update(taken[:, 1], taken[:, 0])
        if self.ema is not None:
            self.ema.update(self.learned)
        self.losses.append(loss)
        self.whole = True
        return loss

    def check(self, losses: Sequence[float]) -> None:
        """Raise :class:`Diverged` where the last of ``losses`` means that."""
        found = find_divergence(losses, self.objective.nothing)
        if found:
            raise Diverged(found)

    @torch.no_grad()
    def judge(self) -> None:
        """When it is due, the loss on fixed noise, of held-out pictures where there are any, weighted where weights are
        steady. Raises :class:`Diverged` where it says so."""
        every = self.settings.validate_every
        if not every or self.step % every or any(step == self.step for step, _ in self.judged):
            return
        seen = self.held or self.taught
        places = range(max(JUDGED, self.crew.size, min(len(self.held), MOST_JUDGED)))
        found = torch.zeros(len(places))
        for place in places[self.crew.rank :: self.crew.size]:
            row, chance = self.rows[seen[place % len(seen)]], generator(self.settings.seed, "judged", place)
            raw, level = self.objective.losses([row], [chance])
            # Adaptive weights change on the way, and those of velocity make one noisy sample outweigh all others.
            steady = self.settings.loss_weight in ("p2", "min_snr", "constant")
            weight = self.weights(level, raw) if steady else 1.0
            found[place] = (raw * weight).detach().float().cpu()[0]
        mean = float(self.crew.sum(found).double().mean())
        best = min((loss for _, loss in self.judged), default=math.inf)
        if not math.isfinite(mean):
            raise Diverged(f"the loss on fixed noise at step {self.step} is not a number")
        if mean > JUDGED_GROWTH * best:
            raise Diverged(f"the loss on fixed noise grew from {best:.3g} to {mean:.3g} at step {self.step}")
        self.judged.append((self.step, mean))

    def parts(self, pictures: Sequence[int]) -> list[list[int]]:
        """This process's places of the batch, cut into parts that fit into memory."""
        batch, crew = len(pictures), self.crew
        own = range(batch * crew.rank // crew.size, batch * (crew.rank + 1) // crew.size)
        most = max(1, -(-batch // (crew.size * self.settings.accumulation)))
        return [list(own[i : i + most]) for i in range(0, len(own), most)]

    def weights(self, level: Tensor | None, raw: Tensor) -> Tensor:
        """How much each loss counts."""
        if level is None or self.settings.loss_weight == "constant":
            return torch.ones_like(raw)
        if self.adaptive is not None:
            return self.adaptive.weights(level).to(raw.device)
        return WEIGHTS[self.settings.loss_weight](level).to(raw.device)

    def sum_gradients(self) -> None:
        """Every process gets the sum of all gradients. A parameter that took no part has the gradient 0."""
        sum_gradients(self.optimiser.parameters, self.crew)

    def result(self) -> dict[str, Tensor]:
        """The learned tensors, averaged ones where they are kept."""
        if self.ema is not None:
            return self.ema.tensors
        inner: Any = self.optimiser.inner
        if not hasattr(inner, "eval"):
            return self.learned.state_dict()
        inner.eval()  # schedule-free: the average is the result, the weights are where it looks
        found = {name: value.clone() for name, value in self.learned.state_dict().items()}
        inner.train()
        return found

    def state_dict(self) -> dict[str, Any]:
        """Everything that the next step depends on."""
        parts = {"optimiser": self.optimiser, "ema": self.ema, "adaptive": self.adaptive}
        return {
            "learned": self.learned.state_dict(),
            "losses": list(self.losses),
            "judged": list(self.judged),
            **{name: part.state_dict() for name, part in parts.items() if part is not None},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Inverse of :meth:`state_dict`."""
        self.learned.load_state_dict(state["learned"])
        self.whole = True
        self.losses, self.judged = list(state["losses"]), [tuple(pair) for pair in state["judged"]]
        for name, part in (("optimiser", self.optimiser), ("ema", self.ema), ("adaptive", self.adaptive)):
            if part is not None:
                part.load_state_dict(state[name])
