"""What only some tests need beside the tiny family: ControlNets for other hints than edges, and a second Stage C."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from family import MARKER, cast, stage_c_weights, tensor_for, weights_for
from family_shapes import CONTROLNET, ENCODER, Shapes, controlnet_shapes, linear
from safetensors.torch import save_file

LARGE = {"c_large": (32, 16), "blocks_large": 1, "c_embed": 16}
NETS = {
    "inpainting": {
        **CONTROLNET,
        "c_in": 4,
        "bottleneck_mode": "effnet",
        "trunk": {**{key: ENCODER[key] for key in ("c_stem", "widths", "repeats", "c_features")}, "c_in": 4},
    },
    "super_resolution": {**CONTROLNET, "c_in": 16, "bottleneck_mode": "large", **LARGE},
}


def large_shapes(config: dict) -> Shapes:
    """The layout of the super-resolution net: two wide convolutions, blocks, one convolution, projections."""
    (wide, narrow), c = config["c_large"], config["c_embed"]
    shapes = {**linear("backbone.0", wide, config["c_in"], 1, 1), **linear("backbone.2", narrow, wide, 1, 1)}
    for number in range(3, 3 + config["blocks_large"]):
        for part in (0, 3):
            norm = f"backbone.{number}.blocks.{part}"
            shapes.update(
                {
                    f"{norm}.weight": (narrow,),
                    f"{norm}.bias": (narrow,),
                    **linear(f"backbone.{number}.blocks.{part + 2}", narrow, narrow, 3, 3),
                }
            )
    shapes.update(linear(f"backbone.{3 + config['blocks_large']}", c, narrow, 1, 1))
    for number in range(len(config["proj_blocks"])):
        shapes.update(
            {
                **linear(f"projections.{number}.0", c, c, 1, 1, bias=False),
                **linear(f"projections.{number}.2", config["c_proj"], c, 1, 1, bias=False),
            }
        )
    return shapes


def write_controlnets(models: Path) -> None:
    """Write both into ``models/controlnet``."""
    folder = models / "controlnet"
    folder.mkdir(parents=True, exist_ok=True)
    for name, config in NETS.items():
        shapes = large_shapes(config) if config["bottleneck_mode"] == "large" else controlnet_shapes(config)
        weights = {
            key: 0.5 * value if key.startswith("projections.") else value for key, value in weights_for(shapes).items()
        }
        save_file(
            weights,
            folder / f"{name}.safetensors",
            metadata={"format": "pt", MARKER: json.dumps({"kind": "controlnet", "config": config})},
        )


def write_tuned_prior(models: Path) -> None:
    """Another Stage C of the same size: its blocks and its output differ by a tenth, as if it had been trained on."""
    weights = {
        key: value + 0.1 * value.std() * tensor_for(f"tuned {key}", tuple(value.shape))
        if value.ndim > 1 and key.startswith(("down_blocks", "up_blocks", "clf"))
        else value
        for key, value in stage_c_weights().items()
    }
    save_file(
        {key: value.contiguous() for key, value in cast(weights, torch.bfloat16).items()},
        models / "diffusion_models" / "tuned_prior.safetensors",
        metadata={"format": "pt"},
    )
