"""One update after another, and what stops them: the part of training that knows neither files nor the host."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from ..errors import WrongInput
from .distributed import ALONE, Crew
from .losses import AdaptiveLossWeight, p2_weight, velocity_weight
from .objectives import Losses, Row, row_signature
from .optimiser import EMA, Optimiser
from .seeding import choose_pictures, generator
from .settings import Settings

WINDOW = 10
"""Steps over which a loss is judged."""
GROWTH = 1.5
"""A mean loss this much above that of knowing nothing (or of the first step, if higher) has diverged."""


class Objective(Protocol):
    """See :mod:`.objectives`; ``nothing`` is the loss of a network that has learnt nothing, if that is known."""

    nothing: float | None

    def losses(self, rows: Sequence[Row], generators: Sequence[torch.Generator]) -> Losses: ...


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
    a step depends on the settings, the rows and the step's number, not on how the batch is split.
    """

    def __init__(
        self, objective: Objective, learned: nn.Module, rows: Sequence[Row], settings: Settings, crew: Crew = ALONE
    ) -> None:
        if not rows:
            raise WrongInput("There are no pictures to train on. Give at least one picture with a caption.")
        if settings.batch_size < crew.size:
            raise WrongInput(
                f"A batch of {settings.batch_size} cannot be shared out to {crew.size} processes. Raise "
                "batch_size, or start fewer processes."
            )
        self.objective, self.learned, self.rows, self.settings, self.crew = objective, learned, rows, settings, crew
        self.optimiser = Optimiser(
            learned.parameters(),
            settings.learning_rate,
            weight_decay=settings.weight_decay,
            warm_up=settings.warm_up,
            clip=settings.clip,
        )
        self.ema = EMA(learned, settings.ema) if settings.ema else None
        self.adaptive = AdaptiveLossWeight() if settings.loss_weight == "adaptive" else None
        self.losses: list[float] = []
        self.whole = True
        """False while an update is half done, which must not be saved."""

    @property
    def step(self) -> int:
        """How many updates were made."""
        return len(self.losses)

    def update(self) -> float:
        """One update; returns the mean loss of its pictures. Raises :class:`Diverged` and leaves the weights alone."""
        batch = self.settings.batch_size
        pictures = choose_pictures(self.settings.seed, self.step, batch, len(self.rows))
        self.optimiser.clear()
        taken = torch.zeros(batch, 2, dtype=torch.float64)  # raw loss and logsnr of every place
        for places in self.parts(pictures):
            raw, level = self.objective.losses(
                [self.rows[pictures[place]] for place in places],
                [generator(self.settings.seed, "sample", self.step, place) for place in places],
            )
            weights = self.weights(level, raw)
            ((raw * weights).sum() / batch).backward()
            taken[places, 0] = raw.detach().double().cpu()
            if level is not None:
                taken[places, 1] = level.detach().double().cpu()
        self.crew.sum(taken)
        loss = float(taken[:, 0].mean())
        self.check([*self.losses, loss])
        self.sum_gradients()
        self.whole = False
        if math.isnan(self.optimiser.update()):
            self.whole = True
            raise Diverged(f"a gradient of step {self.step + 1} is not a number")
        if self.adaptive is not None:
            self.adaptive.update(taken[:, 1].float(), taken[:, 0].float())
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

    def parts(self, pictures: Sequence[int]) -> list[list[int]]:
        """This process's places of the batch, cut into parts of one signature that fit into memory."""
        batch, crew = len(pictures), self.crew
        own = range(batch * crew.rank // crew.size, batch * (crew.rank + 1) // crew.size)
        most = max(1, -(-batch // (crew.size * self.settings.accumulation)))
        alike: dict[Any, list[int]] = {}
        for place in own:
            alike.setdefault(row_signature(self.rows[pictures[place]]), []).append(place)
        return [places[i : i + most] for places in alike.values() for i in range(0, len(places), most)]

    def weights(self, level: Tensor | None, raw: Tensor) -> Tensor:
        """How much each loss counts."""
        if level is None or self.settings.loss_weight == "constant":
            return torch.ones_like(raw)
        if self.adaptive is not None:
            return self.adaptive.weights(level).to(raw.device)
        return (velocity_weight if self.settings.loss_weight == "velocity" else p2_weight)(level).to(raw.device)

    def sum_gradients(self) -> None:
        """Every process gets the sum of all gradients. A parameter that took no part has the gradient 0."""
        for parameter in self.optimiser.parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        if self.crew.size > 1:
            together = torch.cat([parameter.grad.flatten() for parameter in self.optimiser.parameters])
            self.crew.sum(together)
            sizes = [parameter.numel() for parameter in self.optimiser.parameters]
            for parameter, grad in zip(self.optimiser.parameters, together.split(sizes)):
                parameter.grad.copy_(grad.view_as(parameter))

    def result(self) -> dict[str, Tensor]:
        """The learned tensors, averaged ones where they are kept."""
        return self.ema.tensors if self.ema is not None else self.learned.state_dict()

    def state_dict(self) -> dict[str, Any]:
        """Everything that the next step depends on."""
        parts = {"optimiser": self.optimiser, "ema": self.ema, "adaptive": self.adaptive}
        return {
            "learned": self.learned.state_dict(),
            "losses": list(self.losses),
            **{name: part.state_dict() for name, part in parts.items() if part is not None},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Inverse of :meth:`state_dict`."""
        self.learned.load_state_dict(state["learned"])
        self.losses = list(state["losses"])
        for name, part in (("optimiser", self.optimiser), ("ema", self.ema), ("adaptive", self.adaptive)):
            if part is not None:
                part.load_state_dict(state[name])
