"""What the pack knows of each network and of the other files it takes: one :class:`Kind` each, in one list."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

from torch import nn

from ..errors import WrongFile
from ..nets.controlnet import ControlNet, ControlNetConfig
from ..nets.encoder import EncoderConfig, ImageEncoder
from ..nets.guide import GuideConfig, GuideNets
from ..nets.previewer import Previewer, PreviewerConfig
from ..nets.prior_coder import PriorCoder, PriorCoderConfig
from ..nets.stage_a import StageA, StageAConfig
from ..nets.stage_b import StageB, StageBConfig
from ..nets.stage_c import StageC, StageCConfig
from ..nets.unet import as_tuples
from . import shapes as derive
from .clip import OPEN_CLIP, TRANSFORMERS, TextConfig, VisionConfig, text_config, vision_config
from .guide import KEY as GUIDE_KEY, derive_guide_config
from .shapes import Shapes

OFFICIAL, COMFYUI, DIFFUSERS = "official", "comfyui", "diffusers"


def _never(shapes: Shapes) -> str:
    return ""


def _derive_nothing(shapes: Shapes, layout: str) -> None:
    """For what has no config."""


@dataclass(frozen=True)
class Kind:
    """One kind of file.

    name: what code calls it; title: what it is, in a few words; stage: "Stage C", … of a diffusion network.
    roles: the loader inputs that it fills. input, needs, use: the input's name, what it needs, and what to do with such
    a file, for sentences.
    layout_of: the key layout of tensors (official names) that are of this kind, "" for others.
    config: its config dataclass; module: its network, None where the host has it; derive: config fields by shapes.
    published: configs of the sizes that were published, by the name people know them by.
    """

    name: str
    title: str
    input: str
    needs: str
    use: str
    roles: tuple[str, ...] = ()
    stage: str = ""
    layout_of: Callable[[Shapes], str] = _never
    config: type[Any] | None = None
    module: type[nn.Module] | None = None
    derive: Callable[[Shapes, str], Any] = _derive_nothing
    published: Mapping[str, Any] = field(default_factory=dict)


def _unet_layout(shapes: Shapes, is_prior: bool) -> str:
    starts = {key.partition(".")[0] for key in shapes.tensors}
    if "down_blocks" not in starts or not starts & {"clf", "embedding", "clip_mapper", "clip_txt_mapper"}:
        return ""
    if not shapes.has(r"down_blocks\.\d+\.\d+\.(depthwise|channelwise|mapper|kv_mapper|attention)"):
        return ""
    of_prior = starts & {"clip_txt_mapper", "clip_img_mapper"} or shapes.has(r"down_downscalers\.1\.1\.blocks\.")
    if bool(of_prior) != is_prior:
        return ""
    given = shapes.given
    if any(".attention.to_" in key for key in given) or (
        "clip_txt_pooled_mapper.weight" in given and "clip_txt_mapper.weight" not in given
    ):
        return DIFFUSERS
    return COMFYUI if any(".attention.attn.to_" in key for key in given) else OFFICIAL


def _stage_a_layout(shapes: Shapes) -> str:
    if not shapes.has(r"vquantizer\.|up_blocks\.\d+\.gammas"):
        return ""
    return DIFFUSERS if "vquantizer.embedding.weight" in shapes.given else OFFICIAL


def _controlnet_layout(shapes: Shapes) -> str:
    return OFFICIAL if {"backbone", "projections"} <= {key.partition(".")[0] for key in shapes.tensors} else ""


def _previewer_layout(shapes: Shapes) -> str:
    return OFFICIAL if "blocks.2.running_mean" in shapes and "blocks.0.weight" in shapes else ""


def _vision_layout(shapes: Shapes) -> str:
    if shapes.has(r"vision_model\.encoder\.layers\."):
        return TRANSFORMERS
    return OPEN_CLIP if shapes.has(r"visual\.transformer\.resblocks\.") else ""


def _text_layout(shapes: Shapes) -> str:
    if shapes.has(r"text_model\.encoder\.layers\."):
        return TRANSFORMERS
    whole = shapes.has(r"transformer\.resblocks\.") and "token_embedding.weight" in shapes
    return OPEN_CLIP if whole else ""


def _coder_fields(shapes: Shapes, layout: str) -> dict[str, Any]:
    halves = {"encoder": derive.encoder_config, "previewer": derive.previewer_config}
    return {name: read(shapes, f"{name}.") for name, read in halves.items() if shapes.has(rf"{name}\.")}


KINDS: dict[str, Kind] = {
    kind.name: kind
    for kind in (
        Kind(
            "stage_c",
            "a Stable Cascade Stage C prior",
            "prior",
            "a Stage C model",
            "as the prior",
            roles=("prior",),
            stage="Stage C",
            layout_of=lambda shapes: _unet_layout(shapes, is_prior=True),
            config=StageCConfig,
            module=StageC,
            derive=lambda shapes, layout: derive.stage_c_config(shapes),
            published={
                "3.6B": StageCConfig(),
                "1B": StageCConfig(c_cond=1536, c_hidden=(1536, 1536), nhead=(24, 24), blocks=((4, 12), (12, 4))),
            },
        ),
        Kind(
            "stage_b",
            "a Stable Cascade Stage B decoder",
            "decoder",
            "a Stage B model",
            "as the decoder",
            roles=("decoder",),
            stage="Stage B",
            layout_of=lambda shapes: _unet_layout(shapes, is_prior=False),
            config=StageBConfig,
            module=StageB,
            derive=lambda shapes, layout: derive.stage_b_config(shapes),
            published={
                "1.5B": StageBConfig(),
                "700M": StageBConfig(
                    c_hidden=(320, 576, 1152, 1152),
                    nhead=(-1, 9, 18, 18),
                    blocks=((2, 4, 14, 4), (4, 14, 4, 2)),
                    block_repeat=((1, 1, 1, 1), (2, 2, 2, 2)),
                ),
            },
        ),
        Kind(
            "stage_a",
            "a Stable Cascade Stage A VAE",
            "Stage A VAE",
            "a Stage A VAE",
            "as the Stage A VAE",
            roles=("stage_a",),
            stage="Stage A",
            layout_of=_stage_a_layout,
            config=StageAConfig,
            module=StageA,
            derive=lambda shapes, layout: derive.stage_a_config(shapes),
            published={"": StageAConfig()},
        ),
        Kind(
            "stage_c_vae",
            "a Stable Cascade Stage C VAE (image encoder and Previewer)",
            "Stage C VAE",
            "the image encoder, the Previewer or both",
            "as the Stage C VAE",
            roles=("image_encoder", "previewer"),
            layout_of=lambda s: COMFYUI if s.has(r"(encoder\.backbone\.\d|previewer\.blocks\.\d)") else "",
            config=PriorCoderConfig,
            module=PriorCoder,
            derive=_coder_fields,
        ),
        Kind(
            "controlnet",
            "a Stable Cascade ControlNet",
            "ControlNet",
            "a Stable Cascade ControlNet",
            "as the ControlNet",
            roles=("controlnet",),
            layout_of=_controlnet_layout,
            config=ControlNetConfig,
            module=ControlNet,
            derive=lambda shapes, layout: derive.controlnet_config(shapes),
            published={
                "Canny": ControlNetConfig(),
                "inpainting": ControlNetConfig(c_in=4),
                "super-resolution": ControlNetConfig(c_in=16, bottleneck_mode="large"),
                "identity": ControlNetConfig(c_in=512, bottleneck_mode="simple", proj_blocks=tuple(range(64))),
            },
        ),
        Kind(
            "encoder",
            "the Stable Cascade image encoder (EfficientNet)",
            "image encoder",
            "the EfficientNet image encoder",
            "as the image encoder (Stage C VAE)",
            roles=("image_encoder",),
            layout_of=lambda s: OFFICIAL if s.has(r"backbone\.1\.0\.block\.") else "",
            config=EncoderConfig,
            module=ImageEncoder,
            derive=lambda shapes, layout: derive.encoder_config(shapes),
            published={"": EncoderConfig()},
        ),
        Kind(
            "previewer",
            "the Stable Cascade Previewer",
            "Previewer",
            "the Previewer",
            "as the Previewer (Stage C VAE)",
            roles=("previewer",),
            layout_of=_previewer_layout,
            config=PreviewerConfig,
            module=Previewer,
            derive=lambda shapes, layout: derive.previewer_config(shapes),
            published={"": PreviewerConfig()},
        ),
        Kind(
            "clip_vision",
            "a CLIP vision tower",
            "CLIP vision",
            "a CLIP vision tower (CLIP-L)",
            "as the CLIP vision model",
            roles=("clip_vision",),
            layout_of=_vision_layout,
            config=VisionConfig,
            derive=vision_config,
        ),
        Kind(
            "text_encoder",
            "a CLIP text encoder",
            "text encoder",
            "the CLIP-G text encoder",
            "as the text encoder",
            roles=("text_encoder",),
            layout_of=_text_layout,
            config=TextConfig,
            derive=text_config,
        ),
        Kind(
            "ultrapixel",
            "UltraPixel's guide nets",
            "UltraPixel",
            "UltraPixel's guide nets",
            "in Load UltraPixel Guide",
            roles=("ultrapixel",),
            layout_of=lambda s: OFFICIAL if any(map(GUIDE_KEY.fullmatch, s.given)) else "",
            config=GuideConfig,
            module=GuideNets,
            derive=lambda s, layout: derive_guide_config({key: s.tensors[key].shape for key in s.given}),
            published={"": GuideConfig()},
        ),
        Kind("lora", "a Stable Cascade LoRA", "LoRA", "a Stable Cascade LoRA", "in a LoRA loader", roles=("lora",)),
        Kind(
            "embeddings",
            "a textual-inversion embedding",
            "embedding",
            "a textual-inversion embedding",
            "as an embedding, by its name in a prompt",
            roles=("embedding",),
        ),
        Kind(
            "checkpoint",
            "an all-in-one Stable Cascade checkpoint",
            "checkpoint",
            "an all-in-one checkpoint",
            "as a checkpoint",
        ),
    )
}
"""Every kind by its name; networks are recognised in this order."""

NETWORKS = tuple(kind.name for kind in KINDS.values() if kind.module)


def kinds_for(role: str) -> tuple[str, ...]:
    """Names of the kinds that fill the loader input ``role``, the one for it alone first."""
    filling = [kind for kind in KINDS.values() if role in kind.roles]
    return tuple(kind.name for kind in sorted(filling, key=lambda kind: len(kind.roles)))


def config_from(kind: str, values: Mapping[str, Any]) -> Any:
    """The config dataclass of ``kind`` with ``values``, as a marker or JSON has them; raises :class:`WrongFile`."""
    cls, nested = KINDS[kind].config, {"trunk": EncoderConfig, "encoder": EncoderConfig, "previewer": PreviewerConfig}
    if cls is None:
        raise WrongFile(f"This file says that it is {KINDS[kind].title} with settings, which such a file has not.")
    names = {f.name for f in fields(cls)}
    if unknown := sorted(set(values) - names):
        raise WrongFile(
            f"The config of this file has settings that this version does not know ({', '.join(unknown)}). "
            "It was made with another version of Cascade Studio: update the pack."
        )
    made = {}
    for name, value in values.items():
        if name in nested and isinstance(value, Mapping):
            value = nested[name](**{key: as_tuples(item) for key, item in value.items()})
        made[name] = as_tuples(value)
    return cls(**made)


def settle_config(kind: str, config: Any) -> Any:
    """The published config that builds the same network as ``config``, else ``config``.

    They may differ in the head count of a level without attention, which no tensor tells and nothing reads.
    """
    return next(
        (known for known in KINDS[kind].published.values() if _part_in_use(known) == _part_in_use(config)), config
    )


def is_published(kind: str, config: Any) -> bool:
    """Whether ``config`` is one of the published sizes, so that a file of it needs no marker."""
    return any(_part_in_use(known) == _part_in_use(config) for known in KINDS[kind].published.values())


def find_published_name(kind: str, config: Any) -> str:
    """ "3.6B", "1B", "1.5B", "700M", "Canny", …, or "" for any other config."""
    known = KINDS[kind].published if kind in KINDS else {}
    return next((name for name, published in known.items() if published == config), "")


def _part_in_use(config: Any) -> Any:
    names = {f.name for f in fields(config)} if config is not None else set()
    if not {"nhead", "level_config"} <= names:
        return config
    heads = tuple(n if "A" in level else -1 for n, level in zip(config.nhead, config.level_config))
    return replace(config, nhead=heads)
