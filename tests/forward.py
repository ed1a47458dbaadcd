"""One pass of a MODEL's network with its patches on, and LoRA files for the tiny family."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

ATTENTION = "down_blocks.0.2.attention.attn"


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def inputs_for(config: Any) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """``(x, r, conditions)`` for a network with this configuration."""
    r = torch.tensor([0.6])
    if config.c_in == 16:
        conditions = {
            "clip_text": noise(1, 5, config.c_clip_text, seed=1),
            "clip_text_pooled": noise(1, 1, config.c_clip_text_pooled, seed=2),
            "clip_img": noise(1, 1, config.c_clip_img, seed=3),
        }
        return noise(1, 16, 6, 6), r, conditions
    conditions = {"effnet": noise(1, 16, 4, 4, seed=1), "clip": noise(1, 1, config.c_clip, seed=2)}
    return noise(1, 4, 32, 32), r, conditions


@contextmanager
def streamed(model: Any) -> Iterator[Any]:
    """The network of ``model`` as the host loads it in part: its layers stay where they are and are cast at use."""
    import comfy.model_management

    comfy.model_management.unload_all_models()
    partly = model.clone(disable_dynamic=True) if model.is_dynamic() else model.clone()
    partly.load(torch.device("cpu"), lowvram_model_memory=1)
    try:
        net = partly.model.diffusion_model
        assert any(getattr(module, "comfy_cast_weights", False) for module in net.modules())
        yield net
    finally:
        partly.detach()


@torch.inference_mode()
def forward(model: Any, given: tuple[Tensor, Tensor, dict[str, Tensor]] | None = None) -> Tensor:
    """What the network of ``model`` answers to the same input, patches applied by the host's own loading."""
    import comfy.model_management

    comfy.model_management.load_models_gpu([model])
    net = model.model.diffusion_model
    x, r, conditions = given or inputs_for(net.config)
    return net(x, r, transformer_options={}, **conditions)


def low_rank(
    shapes: dict[str, tuple[int, ...]], rank: int = 4, size: float = 1.0, seed: int = 0
) -> dict[str, tuple[Tensor, Tensor]]:
    """``{module: (up, down)}`` for the weights of ``shapes``; q, k and v of one attention share ``down``."""
    found = {}
    for number, (module, shape) in enumerate(shapes.items()):
        start = module.rpartition(".to_")[0] or module
        key = sum(map(ord, start)) + seed
        found[module] = (
            size * noise(shape[0], rank, seed=seed + number + 1),
            noise(rank, shape[1], seed=key) / shape[1] ** 0.5,
        )
    return found


def attention_shapes(model: Any) -> dict[str, tuple[int, ...]]:
    """Every projection of every attention block, in the order of the network."""
    return {
        key.removesuffix(".weight"): tuple(value.shape)
        for key, value in model.model.diffusion_model.state_dict().items()
        if ".attention.attn." in key and key.endswith(".weight")
    }


def comfyui(changes: dict[str, tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
    """The changes under ComfyUI's generic names."""
    return {
        f"diffusion_model.{module}.lora_{way}.weight": factor
        for module, pair in changes.items()
        for way, factor in zip(("up", "down"), pair)
    }


def official(changes: dict[str, tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
    """The same in the official positional layout, whose strength is 1 / rank."""
    found, index = {}, 0
    for start in dict.fromkeys(module.rpartition(".")[0] for module in changes):
        for names in (("out_proj",), ("to_q", "to_k", "to_v")):
            ups = [changes[f"{start}.{name}"][0] for name in names]
            down = changes[f"{start}.{names[0]}"][1]
            found[f"weights.{index}.lora_up"], found[f"weights.{index}.lora_down"] = torch.cat(ups) * len(down), down
            index += 1
    return found
