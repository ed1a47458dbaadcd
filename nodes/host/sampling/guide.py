"""UltraPixel's guide on a Stage C MODEL: wrappers around its runs and its passes, so that all else on it keeps working.

The guide nets go along with the model, and the host loads, streams and frees them with it. What they make of the small
picture is the same at every step of a run, so it is made once, when the run first asks for it, and dropped with it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import comfy.patcher_extension
import torch
from torch import Tensor

from ....stages.attention.guide import Features, GuideHooks, find_guided_groups
from ....stages.attention.layers import NO_CHANGES, Changes
from ....stages.errors import WrongInput
from ....stages.nets.guide import GuideNets, check_small_grid
from ....stages.nets.memory import guide_memory
from .. import latents
from ..models.hooks import CHANGES_KEY
from ..models.load_guide import check_guide
from .levels import read_sigma

GUIDE_KEY = "cascade_studio_guide"
"""Of the wrappers, of the nets beside a model, and in ``transformer_options`` of the :class:`Guide` itself."""

RUN_KEY = "cascade_studio_guide_run"
PICTURE_KEY = "cascade_studio_picture"
"""In ``transformer_options``: the :class:`GuideRun`, and which picture of its batch is sampled alone."""


@dataclass(frozen=True, eq=False)
class Guide:
    """What guides a model: the nets, the features (one picture's for all, or one for each), how strongly and when.

    ``start`` and ``end`` are shares of the run; ``rounded`` forms the encoding of the grid in bfloat16, as in training.
    """

    nets: GuideNets
    features: Features
    strength: float = 1.0
    start: float = 0.0
    end: float = 1.0
    rounded: bool = True

    def is_active(self, sampling: Any, sigma: Tensor, options: dict[str, Any]) -> bool:
        """Whether it acts at ``sigma`` (B,), told the ``transformer_options``; a whole run needs no look at either."""
        if (self.start, self.end) == (0.0, 1.0):
            return self.strength != 0
        first, last = (float(sampling.percent_to_sigma(share)) for share in (self.start, self.end))
        return self.strength != 0 and last <= read_sigma(sigma, options) <= first


@dataclass
class GuideRun:
    """One sampling run: ``size`` is that of its latent, ``read`` what the nets made of the features for it."""

    guide: Guide
    shape: tuple[int, ...]
    picture: int | None = None
    read: list[Tensor] = field(default_factory=list)

    def read_features(self, x: Tensor, dtype: torch.dtype) -> list[Tensor]:
        """What the nets make of the features, made once; raises ``WrongInput`` for what they cannot guide."""
        if x.shape[-2:] != self.shape[-2:]:
            raise WrongInput(
                f"The guide of UltraPixel was made for the whole picture of {self.shape[-1]} x {self.shape[-2]} cells, "
                f"but a prompt with an area shows Stage C {x.shape[-1]} x {x.shape[-2]} of them. Use Regional Prompt "
                "instead of areas."
            )
        if not self.read:
            guide, maps = self.guide, self.pick_pictures()
            for net, each in zip(guide.nets.nets(), maps, strict=True):
                given = each.to(device=x.device, dtype=dtype)
                self.read.append(net.read_features(given, tuple(self.shape[-2:]), rounded=guide.rounded))
        return self.read

    def pick_pictures(self) -> Features:
        """The features of the pictures of this run."""
        maps, count = self.guide.features, self.shape[0]
        if len(maps[0]) > 1 and self.picture is not None:
            maps = tuple(each[self.picture % len(each)][None] for each in maps)
        if len(maps[0]) not in (1, count):
            raise WrongInput(
                f"The guide holds the features of {len(maps[0])} small pictures, but {count} large ones are sampled. "
                "Give it one small picture for all of them, or one for each."
            )
        return maps


def patch_guide(model: Any, patcher: Any, guide: Guide) -> Any:
    """A clone of the Stage C ``model`` that follows ``guide``, whose nets are in ``patcher``; the last guide wins."""
    find_guided_groups(model.model.diffusion_model.config)
    clone = take_guide_off(model)
    clone.set_additional_models(GUIDE_KEY, [patcher])
    points = comfy.patcher_extension.WrappersMP
    for point, wrapper in (
        (points.OUTER_SAMPLE, start_run),
        (points.APPLY_MODEL, apply_guide),
        (points.PREPARE_SAMPLING, prepare_for_guide),
    ):
        clone.add_wrapper_with_key(point, GUIDE_KEY, wrapper)
    clone.model_options.setdefault("transformer_options", {})[GUIDE_KEY] = guide
    return clone


def take_guide_off(model: Any) -> Any:
    """A clone of ``model`` without a guide."""
    clone, points = model.clone(), comfy.patcher_extension.WrappersMP
    for point in (points.OUTER_SAMPLE, points.APPLY_MODEL, points.PREPARE_SAMPLING):
        clone.remove_wrappers_with_key(point, GUIDE_KEY)
    clone.remove_additional_models(GUIDE_KEY)
    clone.model_options.get("transformer_options", {}).pop(GUIDE_KEY, None)
    return clone


def check_nets(model: Any, patcher: Any, prior: dict[str, Any], where: str) -> GuideNets:
    """The nets in ``patcher``; raises ``WrongInput`` where they do not fit ``model``, or ``prior`` is too large."""
    nets = check_guide(patcher, model.model.diffusion_model.config.c_hidden[0], where)
    latents.find_prior_canvas(prior, where)  # says so where another node enlarged it
    check_small_grid(*latents.expect_finished_prior(prior, where).shape[2:])
    return nets


def name_picture(model: Any, index: int) -> Any:
    """``model`` for a run on picture ``index`` of its batch alone."""
    if find_guide(model) is None:
        return model
    clone = model.clone()
    clone.model_options["transformer_options"][PICTURE_KEY] = index
    return clone


def find_guide(model: Any) -> Guide | None:
    """The guide that a node put on this MODEL."""
    return model.model_options.get("transformer_options", {}).get(GUIDE_KEY)


def start_run(executor: Any, noise: Tensor, *args: Any, **kwargs: Any) -> Any:
    """Around a sampling run: opens what belongs to it, in the options that the host makes for the run alone."""
    options = executor.class_obj.model_options["transformer_options"]
    options[RUN_KEY] = GuideRun(options[GUIDE_KEY], tuple(noise.shape), options.get(PICTURE_KEY))
    return executor(noise, *args, **kwargs)


def apply_guide(
    executor: Any, x: Tensor, t: Tensor, concat: Any, cross: Any, control: Any, options: Any, **kwargs: Any
) -> Tensor:
    """Around a pass: adds the hooks that correct it."""
    model, run = executor.class_obj, options[RUN_KEY]
    if run.guide.is_active(model.model_sampling, t, options):
        dtype = model.get_dtype_inference()
        read = run.read_features(x, torch.float32 if dtype == torch.float16 else dtype)  # fp16 hooks see true values
        changes = options.get(CHANGES_KEY, NO_CHANGES)
        nets, net = run.guide.nets.nets(), model.diffusion_model
        hooks = GuideHooks(net.config, nets, read, run.guide.strength, changes.blocks)
        options = {**options, CHANGES_KEY: Changes(changes.layers, hooks)}
    return executor(x, t, concat, cross, control, options, **kwargs)


def prepare_for_guide(executor: Any, model: Any, noise_shape: Any, *args: Any, **kwargs: Any) -> Any:
    """Lets the host make room for what the guide keeps as well: it is told of a latent that is that much higher."""
    whole = model.model.memory_required(list(noise_shape))
    share = 1 + measure_guide(model, noise_shape) / whole
    noise_shape = [*noise_shape[:2], int(noise_shape[-2] * share) + 1, noise_shape[-1]]
    return executor(model, noise_shape, *args, **kwargs)


def measure_guide(model: Any, shape: Any) -> int:
    """Bytes that the guide on ``model`` keeps during a run on a latent of ``shape`` (B, 16, H, W); 0 without one."""
    guide = find_guide(model)
    if guide is None:
        return 0
    dtype = model.model.get_dtype_inference()
    size = 4 if dtype == torch.float16 else dtype.itemsize
    return guide_memory(guide.nets.config, min(len(guide.features[0]), shape[0]), shape[-2], shape[-1], size)
