"""Cache for Cascade: steps of a run that take the picture of an earlier step instead of asking the networks."""

from __future__ import annotations

from typing import Any

import comfy.patcher_extension
import torch
from torch import Tensor

from ....stages.diffusion import reuse
from ....stages.diffusion.sampling import logsnr_from_sigma, noise_condition
from .levels import read_level

CACHE_KEY, RUN_KEY = "cascade_studio_cache", "cascade_studio_run_cache"
"""In ``transformer_options``: the preset of a model's cache, and during a run its :class:`RunCache`."""
WRAPPER = "cascade_studio_cache"


class RunCache:
    """What one run remembers: logsnr and guided x0 (B, C, H, W) of its last two computed steps."""

    def __init__(self, rule: reuse.Rule, last: float):
        self.rule, self.last = rule, last
        self.known: list[tuple[float, Tensor]] = []

    def predict(self, executor: Any, x: Tensor, sigma: Tensor, options: dict[str, Any], *rest: Any) -> Tensor:
        """x0 of this step, computed or forecast from earlier ones."""
        level = read_level(sigma, options)
        self.known = [each for each in self.known if each[1].shape == x.shape]
        if self.rule.may_reuse(read_noise(level), [read_noise(each) for each, _ in self.known], self.last):
            return self.forecast(level)
        out = executor(x, sigma, options, *rest)
        self.known = [*self.known[-1:], (level, out.clone())]
        return out

    def forecast(self, level: float) -> Tensor:
        """The last x0, moved on towards logsnr ``level``."""
        (before, earlier), (computed, latest) = self.known[0], self.known[-1]
        if self.rule.slope == 0 or computed <= before:
            return latest.clone()
        return torch.lerp(earlier, latest, 1 + self.rule.slope * (level - computed) / (computed - before))


def patch_cache(model: Any, preset: str) -> Any:
    """A clone of ``model`` (ours) whose runs compute fewer steps, as ``preset`` of :data:`~.reuse.PRESETS` says."""
    clone = model.clone()
    options = clone.model_options.setdefault("transformer_options", {})
    points = comfy.patcher_extension.WrappersMP
    for point in (points.OUTER_SAMPLE, points.PREDICT_NOISE):
        clone.remove_wrappers_with_key(point, WRAPPER)
    options.pop(CACHE_KEY, None)
    if preset != reuse.OFF:
        options[CACHE_KEY] = preset
        clone.add_wrapper_with_key(points.OUTER_SAMPLE, WRAPPER, run_with_cache)
        clone.add_wrapper_with_key(points.PREDICT_NOISE, WRAPPER, predict_with_cache)
    return clone


def run_with_cache(
    executor: Any, noise: Tensor, latent: Tensor, sampler: Any, sigmas: Tensor, *rest: Any, **more: Any
) -> Tensor:
    """Give a run its cache, and take it away at its end."""
    guider = executor.class_obj
    before = guider.model_options
    rule = reuse.RULES[guider.model_patcher.model.kind][before["transformer_options"][CACHE_KEY]]
    last = min(map(read_noise, logsnr_from_sigma(sigmas[sigmas > 0]).tolist()), default=0.0)
    options = {**before["transformer_options"], RUN_KEY: RunCache(rule, last)}
    guider.model_options = {**before, "transformer_options": options}
    try:
        return executor(noise, latent, sampler, sigmas, *rest, **more)
    finally:
        guider.model_options = before


def read_noise(logsnr: float) -> float:
    """The noise level r that the networks are told."""
    return float(noise_condition(logsnr))


def predict_with_cache(executor: Any, x: Tensor, sigma: Tensor, options: dict[str, Any], *rest: Any) -> Tensor:
    """One step through the run's cache."""
    return options["transformer_options"][RUN_KEY].predict(executor, x, sigma, options, *rest)


def find_preset(model: Any) -> str:
    """The preset of the cache that ``model`` carries."""
    return model.model_options.get("transformer_options", {}).get(CACHE_KEY, reuse.OFF)
