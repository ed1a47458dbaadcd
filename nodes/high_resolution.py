"""High resolution: Stage B in pieces, and the start of a second pass of Stage C."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..stages.inputs import canvas, resize
from .host import latents
from .host.files.native import Sides
from .host.sampling import guidance, notes, tiles
from .inputs import tile_inputs

CATEGORY = "Cascade Studio/high resolution"
TILES, SECOND = "Tile Stage B", "Enlarge Stage C Latent"
PIXELS = canvas.LATENT_PIXELS
GUIDED = "guided"


class CascadeStudioTileDecoder(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="CascadeStudio_TileDecoder",
            display_name=TILES,
            category=CATEGORY,
            description=(
                "Lets Stage B make large pictures in little memory, piece by piece: the picture is the same but for "
                "the last rounding."
            ),
            search_aliases=["stable cascade", "tiled diffusion", "tiled decoder", "low vram", "4k", "high resolution"],
            inputs=[
                io.Model.Input("model", tooltip="The decoder (Stage B) of Load Stable Cascade."),
                io.Combo.Input(
                    "method",
                    options=list(tiles.METHODS),
                    default=tiles.PIECES,
                    advanced=True,
                    tooltip=(
                        "pieces, which is exact. The others stand in older workflows and are done in pieces as well. "
                        "To enlarge a picture by tiles use Upscale with Cascade."
                    ),
                ),
                *tile_inputs(
                    Sides(1024),
                    256,
                    Sides(256),
                    (
                        "The wide layers hold no more at once than a picture of a quarter of this side needs, or a "
                        "sixteenth of what they read; smaller needs less memory.",
                        "Not used: pieces need no overlap. It stands in older workflows.",
                        "Not used: pieces follow each other. It stands in older workflows.",
                    ),
                ),
            ],
            outputs=[
                io.Model.Output(
                    "model", display_name="decoder", tooltip=("The decoder for Sample Stage B or for a core sampler.")
                )
            ],
        )

    @classmethod
    def execute(cls, model: Any, method: str, tile_size: int, tile_overlap: int, tile_batch: int) -> io.NodeOutput:
        latents.check_model(model, "Stage B", TILES)
        guidance.check_own(model, TILES, "Stage B")
        told = []
        if method != tiles.PIECES:
            told = [f"{TILES}: '{method}' is done in pieces now, which give exactly the picture without this node."]
        tiling = tiles.make_tiling(tiles.PIECES, tile_size // PIXELS, 0, 1)
        return io.NodeOutput(tiles.patch_tiles(model, tiling), ui=notes.show_notes(told))


class CascadeStudioHighResolutionPrior(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="CascadeStudio_HighResolutionPrior",
            display_name=SECOND,
            category=CATEGORY,
            description=(
                "Enlarges a finished Stage C latent for a second pass of Stage C: the small picture guides the "
                "large one, so that the composition stays and nothing appears twice."
            ),
            search_aliases=["upscale", "stable cascade", "hires fix", "two pass", "upscale latent", "high resolution"],
            inputs=[
                io.Latent.Input("prior", tooltip="The latent from Sample Stage C, of a picture of about 1024 pixels."),
                io.Float.Input(
                    "scale",
                    default=2.0,
                    min=1.0,
                    max=8.0,
                    step=0.05,
                    round=0.001,
                    tooltip=(
                        "How many times wider and higher the picture becomes. 1 with compression 0 changes nothing."
                    ),
                ),
                io.Float.Input(
                    "compression",
                    default=0.0,
                    min=0.0,
                    max=canvas.ASKED[1],
                    step=1.0,
                    round=0.01,
                    advanced=True,
                    tooltip=(
                        "Pixels to one cell of the large Stage C latent, from 16 to 64; 0 chooses it. Higher "
                        "keeps the grid, and with it time and repeated motifs, smaller."
                    ),
                ),
                io.Combo.Input(
                    "method",
                    options=[*resize.MODES, GUIDED],
                    default=resize.MODES[0],
                    advanced=True,
                    tooltip=(
                        "How the cells between are made. What it blurs, the second pass sharpens again. guided leaves "
                        "them empty, for a second pass with Guide Stage C and denoise 1."
                    ),
                ),
            ],
            outputs=[
                io.Latent.Output(
                    "prior",
                    display_name="Stage C latent",
                    tooltip=("Start of a second Sample Stage C with denoise between 0.4 and 0.7."),
                )
            ],
        )

    @classmethod
    def execute(cls, prior: dict[str, Any], scale: float, compression: float, method: str) -> io.NodeOutput:
        source = latents.find_prior_canvas(prior, SECOND)
        samples = latents.expect_finished_prior(prior, SECOND)
        same = scale == 1 and compression == 0
        target = source if same else resize.enlarge_canvas(source, scale, compression or None)
        if method == GUIDED:
            empty = latents.make_empty_prior(target, samples.shape[0])
            return io.NodeOutput({**latents.replace_samples(prior, empty["samples"]), **empty})
        moved = resize.resample_prior(samples, source, target, method)
        return io.NodeOutput({**latents.replace_samples(prior, moved), latents.CANVAS: target})


NODES = [CascadeStudioTileDecoder, CascadeStudioHighResolutionPrior]
