"""UltraPixel's guide nets as the host's MODEL_PATCH: networks in a patcher of their own, which accompany a model."""

from __future__ import annotations

import logging
from typing import Any

import comfy.ops

from ....stages.errors import WrongInput
from ....stages.nets.guide import GuideNets
from .backend import backend_for
from .load import ModelPart, patch_small_net, read, weight_dtype

log = logging.getLogger(__name__)


def load_guide(source: str | ModelPart, disable_dynamic: bool = False) -> Any:
    """The guide nets in a file, kept as they are stored; they compute in the format of the Stage C that they guide."""
    loaded = read(source, "ultrapixel")
    net = GuideNets(loaded.kind.config, dtype=weight_dtype(loaded.tensors), backend=backend_for(comfy.ops.manual_cast))
    patcher = patch_small_net(net, loaded, disable_dynamic)
    patcher.cached_patcher_init = (load_guide, (loaded.path,))
    log.info("%s: %s", loaded.name, loaded.kind.describe())
    return patcher


def check_guide(guide: Any, width: int, where: str) -> GuideNets:
    """The nets of ``guide``; a sentence where it is another model's patch, or of another Stage C than one ``width``
    channels wide."""
    nets = getattr(guide, "model", None)
    if not isinstance(nets, GuideNets):
        raise WrongInput(
            f"{where} got another kind of model patch on 'guide'. It needs UltraPixel's guide nets: wire Load "
            "UltraPixel Guide into it."
        )
    if nets.config.c != width:
        raise WrongInput(
            f"{where} got a guide for a Stage C of {nets.config.c} channels, but this one has {width}. The published "
            "guide belongs to the full Stage C (3.6B), not to the lite one: load that, or a guide that was trained for "
            "this model."
        )
    return nets
