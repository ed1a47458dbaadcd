"""The text encoder and the CLIP vision tower, in any width, inside the host's own classes."""

from __future__ import annotations

import json
import os
import tempfile
from dataclasses import asdict
from typing import Any

import comfy.clip_vision
import comfy.model_management
import comfy.sd
import comfy.sdxl_clip
import comfy.supported_models_base
import comfy.utils
import folder_paths

from ....stages.errors import WrongFile
from ....stages.files.clip import TextConfig, VisionConfig, tower_shapes
from ....stages.files.load import check_tensors
from ....stages.lora.match import TOKENS
from .load import AUTO, DTYPES, Loaded, ModelPart, read

CONFIG_FIELDS = (
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "hidden_act",
    "layer_norm_eps",
    "max_position_embeddings",
    "vocab_size",
)


def load_text_encoder(source: str | ModelPart, dtype: str = AUTO, disable_dynamic: bool = False) -> comfy.sd.CLIP:
    """The CLIP of Stable Cascade from a text encoder file or an all-in-one checkpoint."""
    loaded = read(source, "text_encoder")
    config: TextConfig = loaded.kind.config
    check_text_encoder(loaded, config)
    check_tensors(tower_shapes(config), loaded.tensors, loaded.kind, loaded.name)
    options: dict[str, Any] = {"clip_g_model_config": {name: getattr(config, name) for name in CONFIG_FIELDS}}
    if dtype != AUTO:
        options["dtype"] = DTYPES[dtype]
    quantised = comfy.utils.detect_layer_quantization(loaded.tensors, "")
    if quantised:
        options["quantization_metadata"] = quantised
    target = comfy.supported_models_base.ClipTarget(
        comfy.sdxl_clip.StableCascadeTokenizer, comfy.sdxl_clip.StableCascadeClipModel
    )
    clip = comfy.sd.CLIP(
        target,
        embedding_directory=folder_paths.get_folder_paths("embeddings"),
        tokenizer_data={},
        parameters=comfy.utils.calculate_parameters(loaded.tensors),
        state_dict=[loaded.tensors],
        model_options=options,
        disable_dynamic=disable_dynamic,
    )
    clip.patcher.cached_patcher_init = (load_text_encoder_patcher, (loaded.path, dtype))
    return clip


def load_text_encoder_patcher(path: str, dtype: str = AUTO, disable_dynamic: bool = False) -> Any:
    """The patcher alone, for hosts that load a model a second time."""
    return load_text_encoder(path, dtype, disable_dynamic).patcher


def check_text_encoder(loaded: Loaded, config: TextConfig) -> None:
    """Refuse text encoders that cannot be Stable Cascade's, before the host fails on their tensors."""
    if config.vocab_size != TOKENS:
        raise WrongFile(
            f"{loaded.name} has a table of {config.vocab_size} tokens; the tokenizer of Stable Cascade has "
            f"{TOKENS}. Choose the text encoder that comes with Stable Cascade (CLIP ViT-bigG)."
        )
    if config.projection_dim != config.hidden_size:
        raise WrongFile(
            f"{loaded.name} has {'no' if not config.projection_dim else 'an unfitting'} text projection, which "
            "Stable Cascade needs for its pooled text. Choose the text encoder that comes with Stable Cascade "
            "(CLIP ViT-bigG with projection)."
        )


def load_clip_vision(source: str | ModelPart) -> comfy.clip_vision.ClipVisionModel:
    """A CLIP vision tower of any size; the published ViT-L/14 gives exactly what the host's own loader does."""
    loaded = read(source, "clip_vision")
    check_tensors(tower_shapes(loaded.kind.config), loaded.tensors, loaded.kind, loaded.name)
    vision = build_vision(loaded.kind.config)
    vision.load_sd(loaded.tensors)
    return vision


def build_vision(config: VisionConfig) -> comfy.clip_vision.ClipVisionModel:
    """The host's class for ``config``; older hosts read it from a file only."""
    settings = {**asdict(config), "model_type": "clip_vision_model"}
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "config.json")
        with open(path, "w", encoding="utf-8") as file:
            json.dump(settings, file)
        return comfy.clip_vision.ClipVisionModel(path)
