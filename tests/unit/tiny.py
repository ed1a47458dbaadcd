"""Networks with the recipe's weights, and the recorded outputs of the official code for them."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

import torch
from recipe import weights_for
from safetensors.torch import load_file
from torch import Tensor

from cascade_studio.stages.nets.stage_b import StageB, StageBConfig
from cascade_studio.stages.nets.stage_c import StageC, StageCConfig

GOLDENS = Path(__file__).resolve().parent / "goldens"
TOLERANCE = 5e-5
PARTS = ("to_q", "to_k", "to_v")
NETS = {"stage_c_tiny": (StageC, StageCConfig), "stage_b_tiny": (StageB, StageBConfig)}


@cache
def index() -> dict:
    return json.loads((GOLDENS / "index.json").read_text())


def golden(name: str) -> dict[str, Tensor]:
    return load_file(GOLDENS / f"{name}.safetensors")


def split_qkv(official: dict[str, Tensor]) -> dict[str, Tensor]:
    """Official key names with the fused ``in_proj`` cut into the three projections."""
    split = {}
    for key, value in official.items():
        stem, fused, kind = key.partition(".in_proj_")
        if fused:
            split.update({f"{stem}.{part}.{kind}": rows for part, rows in zip(PARTS, value.chunk(3))})
        else:
            split[key] = value
    return split


def fused_keys(keys: list[str]) -> set[str]:
    """The official key names for those of a network with split projections."""
    fused = set()
    for key in keys:
        stem, _, kind = key.rpartition(".")
        part = stem.rpartition(".")[2]
        fused.add(f"{stem.removesuffix(part)}in_proj_{kind}" if part in PARTS else key)
    return fused


@cache
def tiny_weights(name: str) -> dict[str, Tensor]:
    """The weights of the goldens under the names of our networks. Read only."""
    return split_qkv(weights_for(index()[name]["keys"]))


def tiny_net(name: str, dtype: torch.dtype = torch.float32, **changes) -> StageC | StageB:
    """A network of the goldens, its configuration changed by ``changes``, with weights by the recipe."""
    kind, config = NETS[name]
    net = kind(config(**{**index()[name]["config"], **changes}), dtype=dtype)
    shapes = {key: value.shape for key, value in net.state_dict().items()}
    net.load_state_dict(weights_for(shapes) if changes else tiny_weights(name))
    return net.requires_grad_(False)


def relative(given: Tensor, expected: Tensor) -> float:
    """The largest difference in units of the standard deviation of what is expected."""
    assert given.shape == expected.shape
    given, expected = given.detach().float(), expected.detach().float()
    return float((given - expected).abs().max() / expected.std())
