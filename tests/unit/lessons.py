"""A tiny Stage C, four pictures to learn and short settings, for the tests of training."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import torch
from letters import Letters
from tiny import NETS, index, tiny_weights
from torch import Tensor

from cascade_studio.stages.files.clip import TextConfig
from cascade_studio.stages.nets.encoder import EncoderConfig, ImageEncoder
from cascade_studio.stages.nets.initial import initialise_unet
from cascade_studio.stages.nets.stage_b import StageB, StageBConfig
from cascade_studio.stages.training.distributed import ALONE, Crew
from cascade_studio.stages.training.frozen_net import frozen_net
from cascade_studio.stages.training.lora_layers import Lora
from cascade_studio.stages.training.objectives import StageCObjective
from cascade_studio.stages.training.run import Lesson, Run, add_words
from cascade_studio.stages.training.settings import Settings
from cascade_studio.stages.training.tasks import Ingredients
from cascade_studio.stages.training.trainer import Trainer
from cascade_studio.training.mini.towers import TextTower as Twin

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
    validate_every=0,
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


# One small run of every kind

KINDS = ("lora", "dora", "loha", "lokr", "lora_b", "words", "text_lora", "stage_c", "stage_b", "controlnet")
TEXT = TextConfig(
    hidden_size=WIDTH, intermediate_size=64, num_hidden_layers=1, num_attention_heads=3, projection_dim=WIDTH
)
TRUNK = EncoderConfig(
    c_stem=8, widths=(8, 8), repeats=(1, 1), expansions=(1, 2), strides=(2, 8), fused=(True, True), c_features=16
)
SMALL_B = StageBConfig(
    c_cond=64,
    c_hidden=(32, 32, 64, 64),
    nhead=(-1, -1, 1, 1),
    c_clip=WIDTH,
    blocks=((1, 1, 1, 1), (1, 1, 1, 1)),
    block_repeat=((1, 1, 1, 1), (1, 1, 1, 1)),
)


@cache
def text_weights() -> dict[str, Tensor]:
    torch.manual_seed(0)
    return {key: value.detach() for key, value in Twin(TEXT).state_dict().items()}


@cache
def stage_b_weights() -> dict[str, Tensor]:
    torch.manual_seed(0)
    net = StageB(SMALL_B)
    initialise_unet(net)
    torch.nn.init.normal_(net.clf[1].weight, std=0.1)
    return {key: value.detach() for key, value in net.state_dict().items()}


@cache
def encoder_weights() -> dict[str, Tensor]:
    torch.manual_seed(0)
    return {key: value.detach() for key, value in ImageEncoder(TRUNK).state_dict().items()}


def settings_of(kind: str, **changes: Any) -> Settings:
    """Short settings for one of :data:`KINDS`."""
    given: dict[str, Any] = {"what": kind}
    if kind in ("lora", "dora", "loha", "lokr"):
        given = {"what": "lora", "method": kind}
    elif kind == "lora_b":
        given = {"what": "lora"}
    elif kind in ("stage_c", "stage_b"):
        given |= {"optimiser": "adamw_8bit", "learning_rate": 1e-3}
    elif kind == "words":
        given |= {"tokens": (("[x]", "a dog"),)}
    return replace(SHORT, **{**given, "batch_size": 2, **changes})


def lesson(kind: str, **changes: Any) -> Lesson:
    """Everything that a small run of one of :data:`KINDS` needs."""
    settings, given = settings_of(kind, **changes), Ingredients("stage_c", config(), tiny_weights("stage_c_tiny"))
    data, empty = [dict(row) for row in rows()], dict(EMPTY)
    if kind in ("stage_b", "lora_b"):
        given = Ingredients("stage_b", SMALL_B, stage_b_weights())
        for number, row in enumerate(data):
            row.update(latent=randn(4, 16, 16, seed=number), effnet=randn(16, 3, 3, seed=number))
    if kind == "controlnet":
        given.encoder = TRUNK, encoder_weights()
        for number, row in enumerate(data):
            row["hint"] = (randn(1, 128, 128, seed=number) > 1).byte() * 255
    made = Lesson(settings, settings.identity(kind), torch.device("cpu"), False, data, empty, [], given)
    if kind in ("words", "text_lora"):
        given.text = TEXT, text_weights()
        add_words(made, [("the [x]",), ("a [x] runs",), ("see <x>",), ("[x] sleeps",)], [], Letters())
    return made


def run_of(kind: str, crew: Crew = ALONE, **changes: Any) -> Run:
    """A small run of one of :data:`KINDS`, ready to train."""
    return Run(lesson(kind, **changes), crew)
