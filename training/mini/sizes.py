"""The widths of Mini and its grid: those of the files that ship, and those of the next training."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from cascade_studio.commands.places import cache_root
from cascade_studio.stages.files.clip import TextConfig, VisionConfig
from cascade_studio.stages.inputs.canvas import Canvas, plan_canvas
from cascade_studio.stages.nets.encoder import EncoderConfig
from cascade_studio.stages.nets.previewer import PreviewerConfig
from cascade_studio.stages.nets.stage_a import StageAConfig
from cascade_studio.stages.nets.stage_b import StageBConfig
from cascade_studio.stages.nets.stage_c import StageCConfig

SIDE, CELLS = 256, 12
"""Of the pictures that Mini paints, in pixels and in cells of Stage C: the grid on which eyes can be told."""


@dataclass(frozen=True)
class Sizes:
    """One Mini: the nets, and how many cells a side Stage C has. ``text`` and ``vision`` share a width."""

    name: str
    cells: int
    text: TextConfig
    vision: VisionConfig
    stage_a: StageAConfig
    encoder: EncoderConfig
    previewer: PreviewerConfig
    stage_b: StageBConfig
    stage_c: StageCConfig

    @property
    def width(self) -> int:
        """Of text tokens, pooled text and image embeddings."""
        return self.text.hidden_size

    @cached_property
    def canvas(self) -> Canvas:
        """The grids of a picture."""
        return plan_canvas(SIDE, SIDE, SIDE / self.cells)

    @property
    def work(self) -> Path:
        """The folder for states, results and sheets."""
        return cache_root() / "mini" / self.name


def text_sizes(width: int) -> TextConfig:
    """A text encoder of three layers."""
    return TextConfig(
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=3,
        num_attention_heads=width // 64,
        projection_dim=width,
    )


WIDTH = 192
TEXT = text_sizes(WIDTH)
VISION = VisionConfig(
    hidden_size=128,
    intermediate_size=512,
    num_hidden_layers=4,
    num_attention_heads=2,
    projection_dim=WIDTH,
    image_size=128,
    patch_size=16,
)
STAGE_A = StageAConfig(c_hidden=96, bottleneck_blocks=4, codebook_size=1024)
ENCODER = EncoderConfig(
    c_stem=16,
    widths=(16, 24, 40, 64, 96, 128),
    repeats=(1, 1, 2, 2, 2, 2),
    expansions=(1, 4, 4, 4, 4, 4),
    c_features=256,
    native_compression=SIDE / CELLS,
)
PREVIEWER = PreviewerConfig(c_hidden=128)
STAGE_B = StageBConfig(
    c_cond=192,
    c_hidden=(64, 128, 192, 192),
    nhead=(-1, -1, 3, 3),
    c_clip=WIDTH,
    blocks=((1, 2, 1, 1), (1, 2, 2, 2)),
    block_repeat=((1, 1, 1, 1), (1, 1, 1, 1)),
    native_compression=SIDE / CELLS,
)
STAGE_C = StageCConfig(
    c_cond=256,
    c_hidden=(128, 256),
    nhead=(2, 4),
    blocks=((1, 3), (3, 1)),
    switch_level=(True,),
    c_clip_text=WIDTH,
    c_clip_text_pooled=WIDTH,
    c_clip_img=WIDTH,
    native_side=SIDE,
    native_compression=SIDE / CELLS,
)

SHIPPED = Sizes("shipped", CELLS, TEXT, VISION, STAGE_A, ENCODER, PREVIEWER, STAGE_B, STAGE_C)
"""What lies in mini/: all files together take 39 MB, none more than 20."""

NEXT = replace(SHIPPED, name="next")
"""What the recipe trains, in a folder of its own."""

PLANS = {sizes.name: sizes for sizes in (SHIPPED, NEXT)}
