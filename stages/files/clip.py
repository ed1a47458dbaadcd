"""Sizes of CLIP text and vision towers, read off their tensors. The towers themselves are the host's.

Field names are those of the transformers configs. Key names: transformers (``text_model.``, ``vision_model.``) or
open-clip (``transformer.resblocks.``, ``visual.``).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from .shapes import HEAD_WIDTH, Shapes

TRANSFORMERS, OPEN_CLIP = "transformers", "open-clip"
TEXT_NAMES = {768: "CLIP-L", 1024: "CLIP-H", 1280: "CLIP-G"}
VISION_HEADS = {1280: 16, 1664: 16}
"""Heads of the vision towers whose heads are not 64 wide: ViT-H and ViT-bigG."""
VISION_NAMES = {768: "CLIP-B", 1024: "CLIP-L", 1280: "CLIP-H", 1664: "CLIP-G"}


@dataclass(frozen=True)
class TextConfig:
    """A CLIP text encoder; ``projection_dim`` is 0 without a text projection. Defaults: CLIP-bigG."""

    hidden_size: int = 1280
    intermediate_size: int = 5120
    num_hidden_layers: int = 32
    num_attention_heads: int = 20
    projection_dim: int = 1280
    vocab_size: int = 49408
    max_position_embeddings: int = 77
    hidden_act: str = "gelu"
    layer_norm_eps: float = 1e-5

    @property
    def title(self) -> str:
        """What people call this size."""
        return _title(TEXT_NAMES, "text encoder", self.hidden_size)


@dataclass(frozen=True)
class VisionConfig:
    """A CLIP vision tower; ``projection_dim`` is the width of an image embedding. Defaults: CLIP-L/14."""

    hidden_size: int = 1024
    intermediate_size: int = 4096
    num_hidden_layers: int = 24
    num_attention_heads: int = 16
    projection_dim: int = 768
    image_size: int = 224
    patch_size: int = 14
    num_channels: int = 3
    hidden_act: str = "quick_gelu"
    layer_norm_eps: float = 1e-5

    @property
    def title(self) -> str:
        """What people call this size."""
        return _title(VISION_NAMES, "vision tower", self.hidden_size)


def _title(names: dict[int, str], tower: str, width: int) -> str:
    return f"a {names[width]} {tower}" if width in names else f"a CLIP {tower} of width {width}"


def text_config(shapes: Shapes, layout: str) -> TextConfig:
    """The config of a text encoder whose keys begin as ``layout`` has them."""
    if layout == OPEN_CLIP:
        tokens, positions, block = "token_embedding.weight", "positional_embedding", "transformer.resblocks."
        mlp, projection = "mlp.c_fc.weight", shapes.size("text_projection", 1)
    else:
        tokens, positions = (f"text_model.embeddings.{name}_embedding.weight" for name in ("token", "position"))
        block, mlp = "text_model.encoder.layers.", "mlp.fc1.weight"
        projection = shapes.first(("text_projection.weight", 0), ("text_projection", 1))
    width = shapes.size(tokens, 1) or shapes.size(positions, 1)
    return TextConfig(
        hidden_size=width,
        intermediate_size=shapes.size(f"{block}0.{mlp}"),
        num_hidden_layers=len(shapes.indices(block.replace(".", r"\.") + r"(\d+)\.")),
        num_attention_heads=max(1, width // HEAD_WIDTH),
        projection_dim=projection,
        vocab_size=shapes.size(tokens),
        max_position_embeddings=shapes.size(positions),
        hidden_act="quick_gelu" if width == 768 else "gelu",
    )


def vision_config(shapes: Shapes, layout: str) -> VisionConfig:
    """The config of a vision tower whose keys begin as ``layout`` has them."""
    if layout == OPEN_CLIP:
        patch, positions, block = "visual.conv1.weight", "visual.positional_embedding", "visual.transformer.resblocks."
        mlp, projection = "mlp.c_fc.weight", shapes.size("visual.proj", 1)
    else:
        patch, positions = (f"vision_model.embeddings.{name}_embedding.weight" for name in ("patch", "position"))
        block, mlp = "vision_model.encoder.layers.", "mlp.fc1.weight"
        projection = shapes.size("visual_projection.weight")
    width, side = shapes.size(patch), shapes.size(patch, 2)
    cells = max(0, shapes.size(positions) - 1)
    return VisionConfig(
        hidden_size=width,
        intermediate_size=shapes.size(f"{block}0.{mlp}"),
        num_hidden_layers=len(shapes.indices(block.replace(".", r"\.") + r"(\d+)\.")),
        num_attention_heads=VISION_HEADS.get(width, max(1, width // HEAD_WIDTH)),
        projection_dim=projection,
        image_size=round(cells**0.5) * side,
        patch_size=side,
        num_channels=shapes.size(patch, 1, default=3),
        hidden_act="gelu" if width in (1280, 1664) else "quick_gelu",
    )


_OPEN_CLIP_NAMES = (
    ("visual.transformer.resblocks.", "vision_model.encoder.layers."),
    ("visual.class_embedding", "vision_model.embeddings.class_embedding"),
    ("visual.conv1.", "vision_model.embeddings.patch_embedding."),
    ("visual.positional_embedding", "vision_model.embeddings.position_embedding.weight"),
    ("visual.ln_pre.", "vision_model.pre_layrnorm."),
    ("visual.ln_post.", "vision_model.post_layernorm."),
    ("visual.proj", "visual_projection.weight"),
    ("transformer.resblocks.", "text_model.encoder.layers."),
    ("token_embedding.", "text_model.embeddings.token_embedding."),
    ("positional_embedding", "text_model.embeddings.position_embedding.weight"),
    ("ln_final.", "text_model.final_layer_norm."),
    ("text_projection.weight", "text_projection.weight"),
    ("text_projection", "text_projection.weight"),
)
_OPEN_CLIP_PARTS = (
    (".ln_1.", ".layer_norm1."),
    (".ln_2.", ".layer_norm2."),
    (".mlp.c_fc.", ".mlp.fc1."),
    (".mlp.c_proj.", ".mlp.fc2."),
    (".attn.out_proj.", ".self_attn.out_proj."),
)
_FUSED = (".attn.in_proj_weight", ".attn.in_proj_bias")
_TRANSPOSED = ("visual.proj", "text_projection")


def to_transformers(tensors: Mapping[str, Tensor], vision: bool) -> dict[str, Tensor]:
    """The tensors of an open-clip tower (the vision tower, or the text encoder) under transformers' names.

    Fused q, k and v are cut into views, projections are turned; what no tower holds is left out.
    """
    found: dict[str, Tensor] = {}
    for key, tensor in tensors.items():
        start, name = next(((old, new) for old, new in _OPEN_CLIP_NAMES if key.startswith(old)), ("", ""))
        if not start or start.startswith("visual.") != vision:
            continue
        tensor = tensor.transpose(0, 1) if key in _TRANSPOSED else tensor
        name += key[len(start) :]
        for old, new in _OPEN_CLIP_PARTS:
            name = name.replace(old, new)
        fused = next((end for end in _FUSED if name.endswith(end)), None)
        if fused is None:
            found[name] = tensor
            continue
        layer, end = name[: -len(fused)], fused.rpartition("_")[2]
        found.update((f"{layer}.self_attn.{n}_proj.{end}", third) for n, third in zip("qkv", tensor.chunk(3)))
    return found


def tower_shapes(config: TextConfig | VisionConfig) -> dict[str, tuple[int, ...]]:
    """Every weight of a tower of ``config`` under transformers' names, with its shape."""
    width, inner = config.hidden_size, config.intermediate_size
    shapes: dict[str, tuple[int, ...]] = {}

    def add(name: str, *shape: int) -> None:
        shapes[f"{name}.weight"], shapes[f"{name}.bias"] = shape, shape[:1]

    if isinstance(config, TextConfig):
        start = "text_model."
        shapes["text_model.embeddings.token_embedding.weight"] = (config.vocab_size, width)
        shapes["text_model.embeddings.position_embedding.weight"] = (config.max_position_embeddings, width)
        add("text_model.final_layer_norm", width)
        shapes["text_projection.weight"] = (config.projection_dim, width)
    else:
        start, side = "vision_model.", config.patch_size
        shapes["vision_model.embeddings.class_embedding"] = (width,)
        shapes["vision_model.embeddings.patch_embedding.weight"] = (width, config.num_channels, side, side)
        shapes["vision_model.embeddings.position_embedding.weight"] = ((config.image_size // side) ** 2 + 1, width)
        add("vision_model.pre_layrnorm", width)
        add("vision_model.post_layernorm", width)
        shapes["visual_projection.weight"] = (config.projection_dim, width)
    for number in range(config.num_hidden_layers):
        layer = f"{start}encoder.layers.{number}."
        for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
            add(f"{layer}self_attn.{name}", width, width)
        add(f"{layer}layer_norm1", width)
        add(f"{layer}layer_norm2", width)
        add(f"{layer}mlp.fc1", inner, width)
        add(f"{layer}mlp.fc2", width, inner)
    return shapes
