"""The config of a network, read off the shapes of its tensors.

Every function takes a :class:`Shapes` in the official key names (fused or split attention) and returns the fields of
the network's config dataclass; fields that shapes cannot tell are left out and keep the published value. A missing
tensor does not stop the derivation, the loader names it afterwards; LookupError where too many are missing.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Mapping
from typing import Any

from .header import TensorInfo

HEAD_WIDTH = 64
CONTROL_BLOCKS = (0, 4, 8, 12, 51, 55, 59, 63)
"""The ResBlocks that the published ControlNets with eight projections feed."""
STRIDES = (1, 2, 2, 2, 1, 2)
"""The strides of the stages of EfficientNet-V2-S."""

_ATTENTION = ("attention", "kv_mapper")


class Shapes:
    """Sizes by key. ``packed`` names the layers whose weight holds two 4-bit values a byte along dimension 1.

    ``given`` are the keys as the file spells them, where they are not those of ``tensors``.
    """

    def __init__(
        self,
        tensors: Mapping[str, TensorInfo],
        packed: frozenset[str] = frozenset(),
        given: Collection[str] | None = None,
    ) -> None:
        self.tensors = tensors
        self.packed = packed
        self.given = tensors if given is None else given

    def __contains__(self, key: str) -> bool:
        return key in self.tensors

    def size(self, key: str, dim: int = 0, default: int = 0) -> int:
        """Size of dimension ``dim`` of ``key``, as it was before 4-bit packing; ``default`` where there is none."""
        info = self.tensors.get(key)
        if info is None or len(info.shape) <= dim:
            return default
        layer = key.rpartition(".")[0]
        return info.shape[dim] * (2 if dim == 1 and layer in self.packed else 1)

    def has(self, pattern: str) -> bool:
        """Whether a key begins with ``pattern``."""
        matcher = re.compile(pattern)
        return any(map(matcher.match, self.tensors))

    def indices(self, pattern: str) -> list[int]:
        """The numbers that the one group of ``pattern`` takes at the start of a key, sorted."""
        matcher = re.compile(pattern)
        return sorted({int(m.group(1)) for m in map(matcher.match, self.tensors) if m})

    def first(self, *sizes: tuple[str, int], default: int = 0) -> int:
        """The first size above zero among ``(key, dim)`` pairs."""
        return next((n for key, dim in sizes if (n := self.size(key, dim))), default)


def stage_c_config(shapes: Shapes) -> dict[str, Any]:
    """Fields of ``StageCConfig``."""
    config = _unet_config(shapes)
    c_cond = shapes.first(("clip_txt_mapper.weight", 0), ("clip_txt_mapper.bias", 0), default=_cond_width(shapes))
    pooled = shapes.first(
        ("clip_txt_pooled_mapper.weight", 0), ("clip_txt_pooled_mapper.bias", 0), ("clip_img_mapper.weight", 0)
    )
    config.update(
        c_cond=c_cond,
        c_clip_seq=pooled // c_cond if c_cond and pooled >= c_cond else None,
        c_in=shapes.size("embedding.1.weight", 1),
        c_out=shapes.size("clf.1.weight"),
        patch_size=1,
        c_clip_text=shapes.size("clip_txt_mapper.weight", 1),
        c_clip_text_pooled=shapes.size("clip_txt_pooled_mapper.weight", 1),
        c_clip_img=shapes.size("clip_img_mapper.weight", 1),
        switch_level=(False,) * (len(config["c_hidden"]) - 1),
    )
    return _drop_untold(config)


def stage_b_config(shapes: Shapes) -> dict[str, Any]:
    """Fields of ``StageBConfig``."""
    config = _unet_config(shapes)
    rows = shapes.first(("clip_mapper.weight", 0), ("clip_mapper.bias", 0))
    c_cond = _cond_width(shapes) or rows // 4
    config.update(
        c_cond=c_cond,
        c_clip_seq=rows // c_cond if c_cond and rows >= c_cond else None,
        c_in=shapes.size("embedding.1.weight", 1) // 4,
        c_out=shapes.size("clf.1.weight") // 4,
        patch_size=2,
        c_clip=shapes.size("clip_mapper.weight", 1),
        c_effnet=shapes.size("effnet_mapper.0.weight", 1),
        c_pixels=shapes.size("pixels_mapper.0.weight", 1),
    )
    return _drop_untold(config)


def stage_a_config(shapes: Shapes) -> dict[str, Any]:
    """Fields of ``StageAConfig``; the scale factor (0.43) is not in the tensors."""
    ups = shapes.indices(r"up_blocks\.(\d+)\.weight")
    blocks = shapes.indices(r"up_blocks\.(\d+)\.(?:gammas|depthwise|channelwise)")
    downs = shapes.indices(r"down_blocks\.(\d+)\.weight")
    levels = 1 + max(len(ups), len(downs))
    first_up = ups[0] if ups else max(blocks, default=0) + 1
    return _drop_untold(
        {
            "levels": levels,
            "bottleneck_blocks": first_up - 1,
            "c_hidden": shapes.first(("up_blocks.0.0.weight", 0), ("up_blocks.0.0.bias", 0)),
            "c_latent": shapes.first(("up_blocks.0.0.weight", 1), ("vquantizer.codebook.weight", 1)),
            "codebook_size": shapes.size("vquantizer.codebook.weight"),
        }
    )


def encoder_config(shapes: Shapes, prefix: str = "") -> dict[str, Any]:
    """Fields of ``EncoderConfig``; the strides of a trunk are those of EfficientNet-V2-S."""
    config = trunk_config(shapes, prefix)
    config.update(c_latent=shapes.size(f"{prefix}mapper.0.weight"))
    return _drop_untold(config)


def trunk_config(shapes: Shapes, prefix: str = "") -> dict[str, Any]:
    """The ``EncoderConfig`` fields of the EfficientNet trunk below ``backbone.``."""
    start = f"{prefix}backbone."
    count = len(shapes.indices(rf"{re.escape(start)}(\d+)\.\d+\.block\."))
    config: dict[str, Any] = {
        "c_in": shapes.size(f"{start}0.0.weight", 1),
        "c_stem": shapes.size(f"{start}0.0.weight"),
        "c_features": shapes.size(f"{start}{count + 1}.0.weight"),
    }
    stages = [_trunk_stage(shapes, f"{start}{i}.") for i in range(1, count + 1)]
    if stages and all(stage["widths"] for stage in stages):
        config.update({name: tuple(stage[name] for stage in stages) for name in stages[0]})
        config["strides"] = (STRIDES + (1,) * count)[:count]
    return _drop_untold(config)


def _trunk_stage(shapes: Shapes, start: str) -> dict[str, Any]:
    block = f"{start}0.block."
    fused = not shapes.indices(rf"{re.escape(start)}(\d+)\.block\.2\.fc1\.")
    c_in, hidden = shapes.size(f"{block}0.0.weight", 1), shapes.size(f"{block}0.0.weight")
    last = max(shapes.indices(rf"{re.escape(block)}(\d+)\."), default=0)
    return {
        "widths": shapes.size(f"{block}{last}.0.weight"),
        "repeats": len(shapes.indices(rf"{re.escape(start)}(\d+)\.")),
        "expansions": hidden // c_in if last and c_in else 1,
        "fused": fused,
    }


def previewer_config(shapes: Shapes, prefix: str = "") -> dict[str, Any]:
    """Fields of ``PreviewerConfig``."""
    start = f"{prefix}blocks."
    return _drop_untold(
        {
            "c_in": shapes.size(f"{start}0.weight", 1),
            "c_hidden": shapes.first((f"{start}0.weight", 0), (f"{start}0.bias", 0)),
            "c_out": shapes.first((f"{start}24.weight", 0), (f"{start}24.bias", 0)),
        }
    )


def controlnet_config(shapes: Shapes) -> dict[str, Any]:
    """Fields of ``ControlNetConfig``: eight projections go to the published blocks, any other number to 0, 1, 2, …

    ``trunk`` comes as a dict of ``EncoderConfig`` fields.
    """
    count = len(shapes.indices(r"projections\.(\d+)\."))
    config: dict[str, Any] = {
        "c_proj": shapes.first(*((f"projections.{i}.2.weight", 0) for i in range(count))),
        "proj_blocks": CONTROL_BLOCKS if count == len(CONTROL_BLOCKS) else tuple(range(count)),
    }
    if "backbone.0.weight" not in shapes:
        trunk = trunk_config(shapes)
        config.update(bottleneck_mode="effnet", c_in=trunk.pop("c_in", 0), trunk=trunk)
    else:
        large = shapes.size("backbone.0.weight", 2) == 1
        config.update(bottleneck_mode="large" if large else "simple", c_in=shapes.size("backbone.0.weight", 1))
        if large:
            config.update(
                c_large=(shapes.size("backbone.0.weight"), shapes.size("backbone.2.weight")),
                blocks_large=len(shapes.indices(r"backbone\.(\d+)\.blocks\.")),
                c_embed=shapes.first(*((f"projections.{i}.0.weight", 0) for i in range(count))),
            )
    return _drop_untold(config)


def _unet_config(shapes: Shapes) -> dict[str, Any]:
    """What the two diffusion networks share."""
    levels = max(shapes.indices(r"down_blocks\.(\d+)\.") + shapes.indices(r"up_blocks\.(\d+)\."), default=0) + 1
    down = [_layer_types(shapes, f"down_blocks.{i}") for i in range(levels)]
    up = [_layer_types(shapes, f"up_blocks.{i}") for i in range(levels)]
    patterns = [_pattern(down[i], up[levels - 1 - i]) for i in range(levels)]
    widths = tuple(_level_width(shapes, i, levels) for i in range(levels))
    if not all(patterns) or not all(widths):
        raise LookupError("some levels have no readable blocks")
    blocks = (
        tuple(_repetitions(down[i], patterns[i]) for i in range(levels)),
        tuple(_repetitions(up[i], patterns[levels - 1 - i]) for i in range(levels)),
    )
    repeats = tuple(
        tuple(1 + len(shapes.indices(rf"{side}_repeat_mappers\.{i}\.(\d+)\.")) for i in range(levels))
        for side in ("down", "up")
    )
    return {
        "c_hidden": widths,
        "nhead": tuple(w // HEAD_WIDTH if "A" in p else -1 for w, p in zip(widths, patterns)),
        "blocks": blocks,
        "block_repeat": repeats,
        "level_config": tuple(patterns),
        "c_r": _usual_size(shapes, r".*_blocks\.\d+\.\d+\.mapper\.weight", 1),
        "t_conds": _timestep_conditions(shapes),
        "kernel_size": _usual_size(shapes, r".*_blocks\.\d+\.\d+\.depthwise\.weight", 2),
    }


def _layer_types(shapes: Shapes, level: str) -> str:
    """One letter a layer (C, T, A, F); a question mark where a layer's tensors are missing."""
    parts: dict[int, set[str]] = {}
    start = level + "."
    for key in shapes.tensors:
        if key.startswith(start):
            index, _, rest = key[len(start) :].partition(".")
            if index.isdigit():
                parts.setdefault(int(index), set()).add(rest.partition(".")[0])
    return "".join(_layer_type(parts.get(i, set())) for i in range(max(parts, default=-1) + 1))


def _layer_type(names: set[str]) -> str:
    if any(name in names for name in _ATTENTION):
        return "A"
    if any(name == "mapper" or name.startswith("mapper_") for name in names):
        return "T"
    if "depthwise" in names:
        return "C"
    return "F" if "channelwise" in names else "?"


def _pattern(*sequences: str) -> str:
    """The shortest run of layer types of which every sequence is a repetition, whole repetitions first."""
    longest = max(map(len, sequences))
    candidates = sorted(range(1, longest + 1), key=lambda n: (any(len(s) % n for s in sequences), n))
    for length in candidates:
        slots = [{s[i] for s in sequences for i in range(k, len(s), length)} - {"?"} for k in range(length)]
        if all(len(types) == 1 for types in slots):
            return "".join(types.pop() for types in slots)
    return ""


def _repetitions(sequence: str, pattern: str) -> int:
    return -(-len(sequence) // len(pattern)) if pattern else 0


def _level_width(shapes: Shapes, level: int, levels: int) -> int:
    """The width of a level, from whichever of its layers is there."""
    for start in (f"down_blocks.{level}", f"up_blocks.{levels - 1 - level}"):
        for key in shapes.tensors:
            if key.startswith(start + "."):
                if key.endswith(
                    (
                        ".depthwise.weight",
                        ".depthwise.bias",
                        ".channelwise.4.bias",
                        ".kv_mapper.1.bias",
                        ".out_proj.bias",
                    )
                ):
                    return shapes.size(key)
                if key.endswith((".mapper.weight", ".mapper.bias")):
                    return shapes.size(key) // 2
    return 0


def _cond_width(shapes: Shapes) -> int:
    return _usual_size(shapes, r".*_blocks\.\d+\.\d+\.kv_mapper\.1\.weight", 1)


def _timestep_conditions(shapes: Shapes) -> tuple[str, ...]:
    matcher = re.compile(r".*_blocks\.\d+\.\d+\.mapper_(\w+)\.")
    names = {m.group(1) for m in map(matcher.match, shapes.tensors) if m}
    official = ("sca", "crp")
    return tuple(n for n in official if n in names) + tuple(sorted(names.difference(official)))


def _usual_size(shapes: Shapes, pattern: str, dim: int) -> int:
    """The size that most keys of ``pattern`` have, so that one wrong tensor is told as the wrong one."""
    matcher = re.compile(pattern)
    sizes = Counter(shapes.size(key, dim) for key in shapes.tensors if matcher.fullmatch(key))
    return sizes.most_common(1)[0][0] if sizes else 0


def _drop_untold(config: dict[str, Any]) -> dict[str, Any]:
    """``config`` without the sizes that no tensor told."""
    return {name: value for name, value in config.items() if value or isinstance(value, (bool, tuple))}
