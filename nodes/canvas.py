"""The canvas: from a picture's size to the latents of both stages."""

from __future__ import annotations

from comfy_api.latest import io

from ..stages.inputs.canvas import ASKED, GRIDS, MAX_SIDE, MIN_SIDE, OFFICIAL, plan_canvas
from .host import latents
from .host.files import native
from .inputs import side_input

CATEGORY = "Cascade Studio/latent"
AUTOMATIC = 0.0


def grid_input() -> io.Combo.Input:
    """Which rule gives the Stage C grid."""
    return io.Combo.Input(
        "grid",
        options=list(GRIDS),
        default=GRIDS[0],
        optional=True,
        advanced=True,
        tooltip=(
            "without stretch pads the picture where its aspect needs it. official takes ceil(side / 42.67) cells a "
            "side, as the release and diffusers do, for the same picture as there."
        ),
    )


class CascadeStudioCanvas(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        sides = native.find_sides()
        return io.Schema(
            node_id="CascadeStudio_Canvas",
            display_name="Canvas for Cascade",
            category=CATEGORY,
            description=(
                "The size of the picture. Any width and height work: the grids of both stages are chosen so "
                "that nothing is stretched, and what they need more is cropped off at the end."
            ),
            search_aliases=["txt2img", "stable cascade", "empty latent", "resolution", "size", "compression"],
            inputs=[
                side_input("width", sides, "Width of the picture in pixels.", min=MIN_SIDE, max=MAX_SIDE, step=8),
                side_input("height", sides, "Height of the picture in pixels.", min=MIN_SIDE, max=MAX_SIDE, step=8),
                io.Int.Input("batch_size", default=1, min=1, max=4096, tooltip="How many pictures to make at once."),
                io.Float.Input(
                    "compression",
                    default=AUTOMATIC,
                    min=AUTOMATIC,
                    max=ASKED[1],
                    step=1.0,
                    round=0.01,
                    tooltip=(
                        "Pixels to one cell of the Stage C latent. 0 chooses it: near 42.67 (38 to 48), or what the "
                        "model was trained with. 32 gives more detail and needs more memory, 64 less; the published "
                        "Stage B was not trained below 32, and 16 is the least."
                    ),
                ),
                grid_input(),
            ],
            outputs=[
                io.Latent.Output("prior", display_name="Stage C latent", tooltip="Empty latent for Sample Stage C."),
                io.Latent.Output(
                    "decoder",
                    display_name="Stage B latent",
                    tooltip=("Empty latent for a core sampler that runs Stage B; Sample Stage B needs none."),
                ),
            ],
        )

    @classmethod
    def execute(
        cls, width: int, height: int, batch_size: int, compression: float, grid: str = GRIDS[0]
    ) -> io.NodeOutput:
        asked = None if compression <= AUTOMATIC else compression
        canvas = plan_canvas(width, height, asked, official=grid == OFFICIAL)
        return io.NodeOutput(
            latents.make_empty_prior(canvas, batch_size, automatic=asked is None),
            latents.make_empty_decoder(canvas, batch_size),
        )


NODES = [CascadeStudioCanvas]
