"""The widths of Mini: all files together take 43 MB, none more than 20."""

from __future__ import annotations

from cascade_studio.stages.files.clip import TextConfig, VisionConfig
from cascade_studio.stages.nets.encoder import EncoderConfig
from cascade_studio.stages.nets.previewer import PreviewerConfig
from cascade_studio.stages.nets.stage_a import StageAConfig
from cascade_studio.stages.nets.stage_b import StageBConfig
from cascade_studio.stages.nets.stage_c import StageCConfig

SIDE = 256
"""Of the pictures that Mini paints, in pixels."""

WIDTH = 192
"""Of text tokens, pooled text and image embeddings."""

TEXT = TextConfig(
    hidden_size=WIDTH,
    intermediate_size=4 * WIDTH,
    num_hidden_layers=3,
    num_attention_heads=WIDTH // 64,
    projection_dim=WIDTH,
)
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
)
PREVIEWER = PreviewerConfig(c_hidden=128)
STAGE_B = StageBConfig(
    c_cond=192,
    c_hidden=(64, 128, 192, 192),
    nhead=(-1, -1, 3, 3),
    c_clip=WIDTH,
    blocks=((1, 2, 1, 1), (1, 2, 2, 2)),
    block_repeat=((1, 1, 1, 1), (1, 1, 1, 1)),
)
STAGE_C = StageCConfig(
    c_cond=256,
    c_hidden=(256, 256),
    nhead=(4, 4),
    blocks=((1, 3), (3, 1)),
    c_clip_text=WIDTH,
    c_clip_text_pooled=WIDTH,
    c_clip_img=WIDTH,
    native_side=SIDE,
)
