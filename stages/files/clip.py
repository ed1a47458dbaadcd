"""Sizes of CLIP text and vision towers, read off their tensors. The towers themselves are the host's.

Field names are those of the transformers configs. Key names: transformers (``text_model.``, ``vision_model.``) or
open-clip (``transformer.resblocks.``, ``visual.``).
"""

from __future__ import annotations

from dataclasses import dataclass

from .shapes import HEAD_WIDTH, Shapes

TRANSFORMERS, OPEN_CLIP = "transformers", "open-clip"
TEXT_NAMES = {768: "CLIP-L", 1024: "CLIP-H", 1280: "CLIP-G"}
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
        num_attention_heads=max(1, width // HEAD_WIDTH),
        projection_dim=projection,
        image_size=round(cells**0.5) * side,
        patch_size=side,
        num_channels=shapes.size(patch, 1, default=3),
        hidden_act="gelu" if width in (1280, 1664) else "quick_gelu",
    )
