"""What training takes from the host's models: their weights as a private copy, and their work as encoders."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import comfy.lora
import torch
from torch import Tensor

from ....stages.files import convert, load
from ....stages.files.clip import TextConfig
from ....stages.files.identify import identify
from ....stages.inputs.grids import COMPRESSION
from ....stages.nets.encoder import EncoderConfig
from ....stages.nets.stage_b import StageB, StageBConfig
from ....stages.nets.stage_c import StageC, StageCConfig
from ....stages.training.cache import Encoders, fingerprint
from ....stages.training.control import make_hint_maker
from ....stages.training.words import END, LENGTH, START
from ..lora.merge import ROOT
from ..lora.words import list_words
from ..models.use_vae import read_compression
from ..models.vae import check_encoder


def read_stored(patcher: Any, tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """``tensors`` of a patcher's model as they came from their file, whatever is loaded now.

    Loading casts them, and bakes the LoRAs and hooks of this or another wire into them; the host keeps what was there.
    """
    found = {key: value for key, value in tensors.items() if value is not None}
    kept = {
        **{key: value for key, (value, _) in patcher.hook_backup.items()},
        **{key: backup.weight for key, backup in patcher.backup.items()},
        **patcher.backup_buffers,
    }
    for full, value in kept.items():
        key = full.removeprefix(prefix)
        if full.startswith(prefix) and key in found:
            found.update(value.state_dict(key) if hasattr(value, "state_dict") else {key: value})  # quantised, or plain
    return found


def read_patched(patcher: Any, tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """``tensors`` of a patcher's model as a sampler would use them, in plain formats: with the LoRAs on its wire.

    The sums are made on the processor, so that they are the same numbers wherever the model happens to be.
    """
    found = convert.dequantise(read_stored(patcher, tensors, prefix), None)
    for full, patches in patcher.patches.items():
        key = full.removeprefix(prefix)
        if full.startswith(prefix) and key in found:
            weight = found[key].to("cpu", torch.float32, copy=True)
            found[key] = comfy.lora.calculate_weight(patches, weight, full)
    return found


def prior_weights(model: Any, kind: str = "stage_c") -> tuple[StageCConfig | StageBConfig, dict[str, Tensor]]:
    """Configuration and canonical tensors of a Stage C or Stage B MODEL, ours or core's; the host's, not to be kept."""
    net = model.model.diffusion_model
    tensors = read_patched(model, net.state_dict(), ROOT)
    found = load.require(identify(tensors), kind, "This MODEL")
    ours = isinstance(net, (StageC, StageB))
    return (net.config if ours else found.config), convert.normalise(tensors, found)


def encoder_weights(vae: Any) -> tuple[EncoderConfig, dict[str, Tensor]]:
    """Configuration and tensors of the image encoder in the Stage C VAE."""
    check_encoder(vae.first_stage_model)
    net = vae.first_stage_model.encoder
    return net.config, read_stored(vae.patcher, net.state_dict(), "encoder.")


def text_weights(clip: Any) -> tuple[TextConfig, dict[str, Tensor]]:
    """Configuration and tensors (names of transformers) of the Stable Cascade text encoder in a CLIP."""
    prefix = "clip_g.transformer."
    tensors = read_patched(clip.patcher, clip.cond_stage_model.clip_g.transformer.state_dict(), prefix)
    kind = load.require(identify(tensors), "text_encoder", "This CLIP")
    return kind.config, convert.normalise(tensors, kind)


def encoders(clip: Any, vae: Any, stage_a: Any = None, hint: str = "") -> Encoders:
    """The encoders of pictures and of text, as the nodes use them; Stage A's VAE for Stage B, and what makes hints."""
    check_encoder(vae.first_stage_model)

    def picture(image: Tensor) -> Tensor:
        return vae.encode(image.movedim(1, -1))

    def text(caption: str) -> tuple[Tensor, Tensor]:
        cond, pooled = clip.encode_from_tokens(plain_tokens(clip, caption), return_pooled=True)
        return cond[0], pooled.reshape(1, -1)

    mark = fingerprint(ingredients(vae.patcher, vae.first_stage_model.encoder, "encoder."))
    return Encoders(
        picture,
        text,
        mark,
        fingerprint(text_ingredients(clip)),
        stage_a=None if stage_a is None else lambda image: stage_a.encode(image.movedim(1, -1)),
        stage_a_mark="" if stage_a is None else fingerprint(ingredients(stage_a.patcher, stage_a.first_stage_model)),
        hint=make_hint_maker(hint, picture) if hint else None,
        hint_mark=f"{hint} {mark if hint == 'super_resolution' else ''}",
        cell=read_compression(vae) or COMPRESSION,
    )


def plain_tokens(clip: Any, caption: str) -> dict[str, list[list[tuple[Any, float]]]]:
    """A caption as the host's tokens: its words alone, without weights or embeddings, cut to what is trained on."""
    body = list(clip.tokenizer.clip_g.tokenizer(caption)["input_ids"])[1:-1][: LENGTH - 2]
    tokens = [START, *body, *[END] * (LENGTH - 1 - len(body))]
    return {key: [[(token, 1.0) for token in tokens]] for key in clip.tokenize("")}


def text_ingredients(clip: Any) -> dict[str, Tensor]:
    """As :func:`ingredients` for a text encoder, with its CLIP skip and the words that LoRAs have taught it."""
    found = ingredients(clip.patcher, clip.cond_stage_model)
    found.update((f"word {word}", rows) for word, rows in list_words(clip.tokenizer).items())
    return found if clip.layer_idx is None else {**found, "skip": torch.tensor(clip.layer_idx)}


def ingredients(patcher: Any, net: torch.nn.Module, prefix: str = "") -> dict[str, Tensor]:
    """What tells an encoder from others: its weights, loaded or not, and the LoRAs and hooks on its wire.

    ``prefix`` is what the patcher's keys have before those of ``net``.
    """
    found = read_stored(patcher, net.state_dict(), prefix)
    for number, patches in enumerate((patcher.patches, *patcher.hook_patches.values())):
        for key, entry in patches.items():
            found.update((f"patch {number} {key} {place}", value) for place, value in enumerate(numbers(entry)))
    return found


def numbers(patch: Any) -> Iterator[Tensor]:
    """The tensors, strengths and offsets inside a patch of the host, in order."""
    if isinstance(patch, Tensor):
        yield patch
    elif isinstance(patch, (int, float)):
        yield torch.tensor(float(patch))
    else:
        for part in patch if isinstance(patch, (list, tuple)) else getattr(patch, "weights", ()):
            yield from numbers(part)
