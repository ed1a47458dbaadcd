"""Pictures enlarged by Stage B."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..stages.diffusion.official import OFFICIAL
from ..stages.diffusion.sampling import Guidance
from ..stages.errors import WrongInput
from ..stages.inputs import pictures, source
from .host.files import native
from .host.sampling import notes, repaint, upscale
from .host.sampling.sample import StageRun
from .inputs import fraction_input, strength_input, tile_inputs
from .sampling_inputs import CONTROL_CFG, control_prior_inputs, denoise_input, schedule_inputs, seed_input, step_input

CATEGORY = "Cascade Studio/high resolution"
UPSCALE = "Upscale with Cascade"
C = OFFICIAL["stage_c"]


class CascadeStudioUpscale(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        sides = native.find_sides()
        return io.Schema(
            node_id="CascadeStudio_Upscale",
            display_name=UPSCALE,
            category=CATEGORY,
            description=(
                "Enlarges a picture 1.5 to 4 times: Stage B paints it anew in overlapping tiles of the size it knows, "
                "and each follows its own part of the Stage C latent."
            ),
            search_aliases=["stable cascade", "upscale", "enlarge", "tiled upscale", "super resolution", "hires"],
            inputs=[
                io.Image.Input("image", tooltip="A picture, or a batch. Up to 8192 px a side once it is enlarged."),
                io.Model.Input("decoder", tooltip="Stage B."),
                io.Vae.Input("stage_a", tooltip="The Stage A output of Load Stable Cascade."),
                io.Vae.Input("stage_c_vae", tooltip="The Stage C VAE output of Load Stable Cascade (image encoder)."),
                io.Conditioning.Input("positive", tooltip="What the picture shows; an empty prompt will do."),
                io.Conditioning.Input("negative", tooltip="What it should not show."),
                seed_input(),
                io.Float.Input(
                    "scale",
                    default=2.0,
                    min=1.0,
                    max=4.0,
                    step=0.05,
                    round=0.001,
                    tooltip="How many times wider and higher the picture becomes.",
                ),
                denoise_input(
                    default=0.3,
                    tooltip=(
                        "How much noise the plainly enlarged picture gets before Stage B paints: 0.3 stays close to "
                        "it, 0.6 paints it anew, 1 follows the Stage C latent alone."
                    ),
                ),
                fraction_input(
                    "keep_source",
                    1.0,
                    "How much of the picture's own shapes and colours comes back once it is painted. At 1 the result, "
                    "made small again, is the picture that was given, without its grain.",
                ),
                *schedule_inputs("stage_b"),
                step_input(),
                *tile_inputs(
                    sides,
                    128,
                    native.Sides(*(max(64, side // 4 // 64 * 64) for side in sides)),
                    (
                        "Side of a tile in pixels, best the size that the model was trained on.",
                        "Pixels that neighbouring tiles share at least and blend over; half a tile at most.",
                        "Tiles computed at once: faster on large graphics cards, needs that many times the memory.",
                    ),
                ),
                io.Model.Input("prior", optional=True, tooltip="Stage C, for 'control_net'."),
                io.ControlNet.Input(
                    "control_net",
                    optional=True,
                    tooltip=(
                        "The super-resolution ControlNet. With it Stage C paints the latent that the tiles follow; "
                        "without it that is what the image encoder sees in the picture."
                    ),
                ),
                strength_input(
                    "control_strength", "How strongly Stage C follows the picture by the ControlNet.", advanced=True
                ),
                *control_prior_inputs(),
            ],
            outputs=[io.Image.Output("image", display_name="image", tooltip="The enlarged picture.")],
        )

    @classmethod
    def execute(
        cls,
        image: io.Image.Type,
        decoder: Any,
        stage_a: Any,
        stage_c_vae: Any,
        positive: Any,
        negative: Any,
        seed: int,
        scale: float,
        denoise: float,
        keep_source: float,
        steps: int,
        cfg: float,
        shift: float,
        sampler: str,
        tile_size: int,
        tile_overlap: int,
        tile_batch: int,
        prior: Any = None,
        control_net: Any = None,
        control_strength: float = 1.0,
        prior_steps: int = C.steps,
        prior_cfg: float = CONTROL_CFG,
    ) -> io.NodeOutput:
        models = repaint.Models(prior, decoder, stage_a, stage_c_vae)
        if control_net is not None and prior is None:
            raise WrongInput(
                f"{UPSCALE} was given a ControlNet on 'control_net', but no Stage C for it to steer. Wire the 'prior' "
                "output of Load Stable Cascade into 'prior', or unplug the ControlNet."
            )
        models.check(UPSCALE)
        control = None
        if control_net is not None:
            own = StageRun("Stage C", prior_steps, C.shift, Guidance(prior_cfg), seed, sampler)
            control = upscale.Control(control_net, control_strength, own)
        rgb = pictures.to_rgb(pictures.check_pictures(image, UPSCALE))
        run = StageRun("Stage B", steps, shift, Guidance(cfg), seed, sampler, denoise)
        tiles = upscale.Tiles(tile_size, tile_overlap, tile_batch)
        prompts = repaint.Prompts(positive, negative)
        told = []
        if prior is not None and control is None:
            told = [f"{UPSCALE}: Stage C has nothing to do without a ControlNet on 'control_net'."]
        result = upscale.upscale_pictures(models, rgb, scale, prompts, run, tiles, control)
        return io.NodeOutput(source.keep_source(result, rgb, keep_source), ui=notes.show_notes(told))


NODES = [CascadeStudioUpscale]
