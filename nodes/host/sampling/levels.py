"""Noise levels of a run in the processor's memory, so that no step has to ask a graphics card for one.

Core's samplers compare and compute with single sigmas. Where these lie on a card, each comparison waits until the card
has done all it was given. A number in the processor's memory may stand beside pictures on the card just as well.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ....stages.diffusion.sampling import logsnr_from_sigma

LEVEL_KEY, SIGMA_KEY = "cascade_studio_level", "cascade_studio_sigma"
"""In ``transformer_options``: logsnr and sigma of the evaluation, where the sampler is ours and knows them."""
RUN_SIGMAS_KEY = "cascade_studio_run_sigmas"
"""Likewise those of the whole run, a list of numbers."""


class Sigma(Tensor):
    """One sigma, a tensor without axes; core's samplers ask it for as many as a picture has, which it does not need."""

    __torch_function__ = torch._C._disabled_torch_function_impl

    def __getitem__(self, index: Any) -> Tensor:
        return self


class Sigmas(Tensor):
    """The sigmas of a run, (steps + 1,), as core's samplers take them one by one."""

    __torch_function__ = torch._C._disabled_torch_function_impl

    def __getitem__(self, index: Any) -> Tensor:
        chosen = super().__getitem__(index)
        return chosen.as_subclass(Sigmas if chosen.ndim else Sigma)


class LeveledModel:
    """Core's model for a sampler that evaluates it once at every sigma, in order; hands down the logsnr of each."""

    def __init__(self, model: Any, sigmas: Tensor):
        self.model, self.inner_model = model, model.inner_model
        self.levels: list[float] = logsnr_from_sigma(sigmas).tolist()
        self.sigmas: list[float] = sigmas.tolist()
        self.step = 0

    def __call__(self, x: Tensor, sigma: Tensor, model_options: dict[str, Any], **more: Any) -> Tensor:
        known = {LEVEL_KEY: self.levels[self.step], SIGMA_KEY: self.sigmas[self.step], RUN_SIGMAS_KEY: self.sigmas}
        options = {**model_options.get("transformer_options", {}), **known}
        self.step += 1
        return self.model(x, sigma, model_options={**model_options, "transformer_options": options}, **more)


def read_level(sigma: Tensor, model_options: dict[str, Any]) -> float:
    """logsnr of the evaluation at ``sigma`` (B,): as our sampler says, else as the device says."""
    level = model_options.get("transformer_options", {}).get(LEVEL_KEY)
    return float(logsnr_from_sigma(sigma.float().max())) if level is None else level


def read_sigma(sigma: Tensor, transformer_options: dict[str, Any]) -> float:
    """The highest of ``sigma`` (B,): as our sampler says, else as the device says."""
    known = transformer_options.get(SIGMA_KEY)
    return float(sigma.max()) if known is None else known


def bring_noise(noise: Tensor, like: Tensor) -> Tensor:
    """``noise`` on the device and in the dtype of ``like``, without making a graphics card wait."""
    if like.device.type != "cuda" or noise.device.type == "cuda":
        return noise.to(like)
    held = torch.empty(noise.shape, dtype=noise.dtype, pin_memory=True)
    held.copy_(noise)
    return held.to(like.device, non_blocking=True).to(like.dtype)
