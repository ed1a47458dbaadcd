"""The sizes that were published, by kind and by the name people know them by."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

from .controlnet import ControlNetConfig
from .encoder import EncoderConfig
from .previewer import PreviewerConfig
from .stage_a import StageAConfig
from .stage_b import StageBConfig
from .stage_c import StageCConfig

PUBLISHED: dict[str, dict[str, Any]] = {
    "stage_c": {
        "3.6B": StageCConfig(),
        "1B": StageCConfig(c_cond=1536, c_hidden=(1536, 1536), nhead=(24, 24), blocks=((4, 12), (12, 4))),
    },
    "stage_b": {
        "1.5B": StageBConfig(),
        "700M": StageBConfig(
            c_hidden=(320, 576, 1152, 1152),
            nhead=(-1, 9, 18, 18),
            blocks=((2, 4, 14, 4), (4, 14, 4, 2)),
            block_repeat=((1, 1, 1, 1), (2, 2, 2, 2)),
        ),
    },
    "stage_a": {"": StageAConfig()},
    "encoder": {"": EncoderConfig()},
    "previewer": {"": PreviewerConfig()},
    "controlnet": {
        "Canny": ControlNetConfig(),
        "inpainting": ControlNetConfig(c_in=4),
        "super-resolution": ControlNetConfig(c_in=16, bottleneck_mode="large"),
        "identity": ControlNetConfig(c_in=512, bottleneck_mode="simple", proj_blocks=tuple(range(64))),
    },
}


def settle_config(kind: str, config: Any) -> Any:
    """The published config that builds the same network as ``config``, else ``config``.

    They may differ in the head count of a level without attention, which no tensor tells and nothing reads.
    """
    return next((known for known in PUBLISHED.get(kind, {}).values() if _used(known) == _used(config)), config)


def is_published(kind: str, config: Any) -> bool:
    """Whether ``config`` is one of the published sizes, so that a file of it needs no marker."""
    return any(_used(known) == _used(config) for known in PUBLISHED.get(kind, {}).values())


def find_published_name(kind: str, config: Any) -> str:
    """ "3.6B", "1B", "1.5B", "700M", "Canny", …, or "" for any other config."""
    return next((name for name, known in PUBLISHED.get(kind, {}).items() if known == config), "")


def _used(config: Any) -> Any:
    names = {field.name for field in fields(config)} if config is not None else set()
    if not {"nhead", "level_config"} <= names:
        return config
    heads = tuple(n if "A" in level else -1 for n, level in zip(config.nhead, config.level_config))
    return replace(config, nhead=heads)
