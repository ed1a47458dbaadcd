"""What training takes from the host's models: their weights as a private copy, and their work as encoders."""
from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import comfy.lora
import torch
from torch import Tensor

from ...stages import convert, layouts, load
from ...stages.clip import TextConfig
from ...stages.stage_c import StageC, StageCConfig
from ...stages.tuning.encode import Encoders, fingerprint

PREFIX = "diffusion_model."


def patched(patcher: Any, tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """``tensors`` of a patcher's model as a sampler would use them: with the LoRAs on its wire, loaded or not."""
    found = {}
    for key, value in tensors.items():
        full = prefix + key
        if full in patcher.backup:  # it is loaded, with its patches in the weight itself
            value = patcher.backup[full].weight
        if full in patcher.patches:
            value = comfy.lora.calculate_weight(patcher.patches[full], value.to(torch.float32, copy=True), full)
        found[key] = value
    return found


def prior_weights(model: Any) -> tuple[StageCConfig, dict[str, Tensor]]:
    """Configuration and canonical tensors of a Stage C MODEL, ours or core's; they are the host's own, not to be kept."""
    net = model.model.diffusion_model
    tensors = patched(model, net.state_dict(), PREFIX)
    kind = load.require(layouts.identify(tensors), "stage_c", "This MODEL")
    plain = convert.dequantise(convert.normalise(tensors, kind), None)
    return (net.config if isinstance(net, StageC) else kind.config), plain


def text_weights(clip: Any) -> tuple[TextConfig, dict[str, Tensor]]:
    """Configuration and tensors (names of transformers) of the Stable Cascade text encoder in a CLIP."""
    prefix = "clip_g.transformer."
    tensors = patched(clip.patcher, clip.cond_stage_model.clip_g.transformer.state_dict(), prefix)
    kind = load.require(layouts.identify(tensors), "text_encoder", "This CLIP")
    return kind.config, convert.dequantise(convert.normalise(tensors, kind), None)


def encoders(clip: Any, vae: Any) -> Encoders:
    """The image encoder and the text encoder, as the nodes use them."""

    def picture(image: Tensor) -> Tensor:
        return vae.encode(image.movedim(1, -1))

    def text(caption: str) -> tuple[Tensor, Tensor]:
        plain = caption.replace("(", "\\(").replace(")", "\\)")  # brackets are words here, no weights
        cond, pooled = clip.encode_from_tokens(clip.tokenize(plain), return_pooled=True)
        return cond[0], pooled.reshape(1, -1)

    return Encoders(picture, text, mark(vae.patcher, vae.first_stage_model.encoder),
                    mark(clip.patcher, clip.cond_stage_model))


def mark(patcher: Any, net: torch.nn.Module) -> str:
    """What tells this encoder from others in the cache; one with LoRAs on it is told by them alone."""
    if patcher.patches:
        return str(patcher.patches_uuid)
    return fingerprint({key: value for key, value in net.state_dict().items() if value is not None})
