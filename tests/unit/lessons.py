"""A tiny Stage C, four pictures to learn and short settings, for the tests of training."""

from __future__ import annotations

import torch
from tiny import NETS, index, tiny_weights
from torch import Tensor

from cascade_studio.stages.training.distributed import ALONE, Crew
from cascade_studio.stages.training.frozen_net import frozen_net
from cascade_studio.stages.training.lora_layers import Lora
from cascade_studio.stages.training.objectives import StageCObjective
from cascade_studio.stages.training.settings import Settings
from cascade_studio.stages.training.trainer import Trainer

WIDTH = 96
SHORT = Settings(
    steps=6,
    batch_size=4,
    learning_rate=1e-2,
    warm_up=2,
    rank=2,
    alpha=2.0,
    base="fp32",
    seed=5,
    save_every=0,
    sample_every=0,
)


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def config():
    return NETS["stage_c_tiny"][1](**index()["stage_c_tiny"]["config"])


def net(**options):
    return frozen_net(
        "stage_c", config(), tiny_weights("stage_c_tiny"), **{"base": "fp32", "checkpointing": False, **options}
    )


def rows(shapes: tuple[tuple[int, int], ...] = ((4, 4),) * 4) -> list[dict[str, Tensor]]:
    return [
        {
            "latent": randn(16, *shape, seed=i),
            "text": randn(7, WIDTH, seed=10 + i),
            "pooled": randn(1, WIDTH, seed=20 + i),
        }
        for i, shape in enumerate(shapes)
    ]


EMPTY = {"text": randn(7, WIDTH, seed=30), "pooled": randn(1, WIDTH, seed=31)}


def trainer(settings: Settings = SHORT, data: list | None = None, crew: Crew = ALONE, **options) -> Trainer:
    model = net(checkpointing=settings.checkpointing, **options)
    lora = Lora(model, settings.rank, settings.alpha, settings.blocks, settings.seed, settings.layout == "official")
    objective = StageCObjective(model, EMPTY, offset=settings.offset_noise, drop_text=settings.drop_text)
    return Trainer(objective, lora, rows() if data is None else data, settings, crew)


def distance(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    """Norm of the difference of all tensors, in units of the norm of ``other``."""
    assert one.keys() == other.keys()
    difference = sum(float((one[key] - other[key]).square().sum()) for key in other)
    return (difference / sum(float(value.square().sum()) for value in other.values())) ** 0.5
