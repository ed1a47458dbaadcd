"""Guidance on the host's sampler hooks: perturbed attention, self-attention, CFG-Zero*, and attention in windows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import comfy.model_patcher
import comfy.samplers
from comfy.ldm.modules.attention import optimized_attention
from torch import Tensor

from ....stages.attention.windows import WindowLayer
from ....stages.diffusion import guidance
from ....stages.errors import WrongInput
from ....stages.nets.unet import UNetConfig
from ..models.hooks import LAYERS_KEY
from ..models.model import CascadeModel
from .levels import RUN_SIGMAS_KEY, read_sigma

MIDDLE, MIDDLE_AND_UP, EVERYWHERE = "middle", "middle and up", "everywhere"
BLOCKS = (MIDDLE, MIDDLE_AND_UP, EVERYWHERE)


def check_own(model: Any, where: str, stage: str | None = None) -> None:
    """Refuse models that this pack's networks do not run: there the node would do nothing and say nothing."""
    own = model.model
    if isinstance(own, CascadeModel) and stage in (None, own.stage):
        return
    given = f"the {own.stage} model" if isinstance(own, CascadeModel) else "a model that another loader loaded"
    need = f"the {stage} model" if stage else "a Stage C or Stage B model"
    raise WrongInput(
        f"{where} got {given} on its 'model' input. It needs {need} from Load Stable Cascade, whose network "
        "it changes from within: load the file with that node."
    )


def list_groups(config: UNetConfig, which: str) -> list[tuple[str, int]]:
    """The names of the block groups in ``which`` part of a network (see hooks.py)."""
    down, up = (sum(n * repeat for n, repeat in zip(config.blocks[way], config.block_repeat[way])) for way in (0, 1))
    names = [("middle", 0)]
    if which in (MIDDLE_AND_UP, EVERYWHERE):
        names += [("output", number) for number in range(up)]
    if which == EVERYWHERE:
        names += [("input", number) for number in range(down - 1)]
    return names


def read_options(args: dict[str, Any]) -> dict[str, Any]:
    """The ``transformer_options`` of a step, from what the host hands to a guidance."""
    return args["model_options"].get("transformer_options", {})


def is_within(args: dict[str, Any], start: float, end: float) -> bool:
    """Whether this step lies in the part of the run from ``start`` to ``end``; 0 is noise and 1 the picture."""
    sampling, sigma = args["model"].model_sampling, read_sigma(args["sigma"], read_options(args))
    return float(sampling.percent_to_sigma(end)) <= sigma <= float(sampling.percent_to_sigma(start))


def patch_perturbed_attention(model: Any, scale: float, blocks: str, start: float, end: float, rescale: float) -> Any:
    """A clone of ``model`` that is guided away from what it makes with its self-attention taken out."""
    names = list_groups(model.model.diffusion_model.config, blocks)

    def guide(args: dict[str, Any]) -> Tensor:
        guided = args["denoised"]
        if scale == 0 or not is_within(args, start, end):
            return guided
        options = args["model_options"].copy()
        for name in names:
            options = comfy.model_patcher.set_model_options_patch_replace(options, attend_to_itself, "attn1", *name)
        (perturbed,) = comfy.samplers.calc_cond_batch(
            args["model"], [args["cond"]], args["input"], args["sigma"], options
        )
        guided = guided + (args["cond_denoised"] - perturbed) * scale
        return guidance.match_contrast(guided, args["cond_denoised"], rescale)

    clone = model.clone()
    clone.set_model_sampler_post_cfg_function(guide)
    return clone


def attend_to_itself(q: Tensor, k: Tensor, v: Tensor, extra: dict[str, Any]) -> Tensor:
    """An attention in which every token sees itself alone."""
    return v[:, : q.shape[1]]


class SelfAttentionGuidance:
    """One model's guidance; between the two calls of a step it holds the attention of the middle block."""

    def __init__(self, scale: float, blur: float, threshold: float, start: float, end: float):
        self.scale, self.blur, self.threshold = scale, blur, threshold
        self.start, self.end = start, end
        self.seen: dict[int, tuple[Tensor, tuple[int, int]]] = {}
        self.watching = True

    def watch(self, q: Tensor, k: Tensor, v: Tensor, extra: dict[str, Any]) -> Tensor:
        """The attention as it is; remembers how much each cell is looked at, by condition."""
        if self.watching:
            mass = guidance.sum_attention(q, k, extra["n_heads"])
            kinds = extra["cond_or_uncond"]
            for kind, part in zip(kinds, mass.chunk(len(kinds))):
                self.seen[kind] = part, extra["grid"]
        return optimized_attention(q, k, v, extra["n_heads"], transformer_options=extra)

    def guide(self, args: dict[str, Any]) -> Tensor:
        """The host's post-CFG function: ``denoised`` and ``scale`` times what a blur of attended places takes away."""
        seen, self.seen = self.seen, {}
        without_negative = args["uncond"] is None or args["uncond_denoised"] is None or 1 not in seen
        kind, cond, x0 = (
            (0, args["cond"], args["cond_denoised"])
            if without_negative
            else (1, args["uncond"], args["uncond_denoised"])
        )
        guided = args["denoised"]
        if self.scale == 0 or kind not in seen or not is_within(args, self.start, self.end):
            return guided
        mass, grid = seen[kind]
        if mass.shape[0] != x0.shape[0] or grid != args["model"].diffusion_model.deepest_grid(*x0.shape[-2:]):
            raise WrongInput(
                "Self-Attention Guidance needs the attention of the whole picture, but an area's prompt or a "
                "tile shows it a part only. Use Regional Prompt instead of areas, and take the guidance off the "
                "decoder of Upscale with Cascade."
            )
        worse = guidance.blur_where_attended(x0, mass, grid, self.blur, self.threshold)
        self.watching = False
        try:
            (denoised,) = comfy.samplers.calc_cond_batch(
                args["model"], [cond], worse + (args["input"] - x0), args["sigma"], args["model_options"]
            )
        finally:
            self.watching = True
        return guided + (worse - denoised) * self.scale


def patch_self_attention(model: Any, scale: float, blur: float, threshold: float, start: float, end: float) -> Any:
    """A clone of ``model`` that is guided away from pictures blurred where its middle block looks."""
    clone = model.clone()
    if scale == 0:
        return clone
    state = SelfAttentionGuidance(scale, blur, threshold, start, end)
    clone.set_model_sampler_post_cfg_function(state.guide)
    clone.set_model_attn1_replace(state.watch, "middle", 0)
    return clone


def patch_cfg_zero(model: Any, strength: float, zero_steps: int) -> Any:
    """A clone of ``model`` whose negative prediction is scaled onto the positive one before they are combined."""
    clone = model.clone()
    if strength or zero_steps:
        clone.set_model_sampler_pre_cfg_function(make_zero_star(strength, zero_steps))
    return clone


def make_zero_star(strength: float, zero_steps: int) -> Callable[[dict[str, Any]], list[Tensor]]:
    """The host's function before guidance; predictions there are x0."""

    def scale_negative(args: dict[str, Any]) -> list[Tensor]:
        cond, *others = args["conds_out"]
        x, sigma = args["input"], args["sigma"].reshape(-1, *([1] * (args["input"].ndim - 1)))
        if find_step(args) < zero_steps:
            still = guidance.hold_still(x, args["sigma"])
            return [still, *(still for _ in others)]
        if strength == 0 or not others or len(args["conds"]) < 2 or args["conds"][1] is None:
            return args["conds_out"]
        noise, negative = (x - cond) / sigma, (x - others[0]) / sigma
        scale = 1 + strength * (guidance.find_optimal_scale(noise, negative) - 1)
        return [cond, x - sigma * scale * negative, *others[1:]]

    return scale_negative


def find_step(args: dict[str, Any]) -> int:
    """Which step of the run this is, from 0; a sampler may evaluate a step several times."""
    options = read_options(args)
    sigmas = options.get(RUN_SIGMAS_KEY)
    if sigmas is None:
        given = options.get("sample_sigmas")
        sigmas = [] if given is None else given.float().tolist()
    now = read_sigma(args["sigma"], options) * (1 + 1e-4)
    return sum(each > now for each in sigmas)


def patch_windows(model: Any, window: int, shift: bool) -> Any:
    """A clone of ``model`` whose picture attends to itself in windows of ``window`` cells; 0 leaves it whole."""
    clone = model.clone()
    options = clone.model_options.setdefault("transformer_options", {})
    others = [layer for layer in options.get(LAYERS_KEY, ()) if not isinstance(layer, WindowLayer)]
    options[LAYERS_KEY] = [*others, WindowLayer(window, shift)] if window else others
    return clone
