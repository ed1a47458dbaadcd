"""Between pictures and latents: Stage A, the image encoder and the Previewer."""

from __future__ import annotations

from comfy_api.latest import io

from ..stages.inputs import pictures
from ..stages.inputs.canvas import ASKED, MAX_SIDE
from ..stages.inputs.hints import lay_on_canvas
from .host import latents
from .host.conditioning.hints import to_image
from .host.models import use_vae as vaes
from .host.report import card
from .types import Report

CATEGORY = "Cascade Studio/latent"
AUTOMATIC = 0
ENCODE = "Encode for Stage C"


class CascadeStudioDecodeStageA(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="CascadeStudio_DecodeStageA",
            display_name="Decode Stage A",
            category=CATEGORY,
            description="Paints the picture from the Stage B latent and crops it to the size that was asked for.",
            search_aliases=["stable cascade", "vae decode", "vqgan", "stage a"],
            inputs=[
                io.Latent.Input("latent", tooltip="The latent from Sample Stage B."),
                io.Vae.Input("vae", tooltip="The Stage A output of Load Stable Cascade."),
                io.Int.Input(
                    "tile_size",
                    default=AUTOMATIC,
                    min=AUTOMATIC,
                    max=MAX_SIDE,
                    step=64,
                    advanced=True,
                    tooltip=(
                        "Pixels a tile; 0 cuts tiles only when the picture does not fit into memory. Tiles "
                        "give exactly the same picture."
                    ),
                ),
            ],
            outputs=[
                io.Image.Output("image", display_name="image", tooltip="The picture."),
                Report.Output(
                    "report",
                    display_name="report",
                    tooltip=("What all stages did and how long they took, for Report Card and Save Cascade Image."),
                ),
            ],
        )

    @classmethod
    def execute(cls, latent: io.Latent.Type, vae: io.Vae.Type, tile_size: int) -> io.NodeOutput:
        samples = latents.expect_finished_decoder(latent, "Decode Stage A")
        vaes.expect_stage_a(vae, "Decode Stage A")
        image, done = vaes.decode_reported(vae, samples, tile_size)
        image = latents.crop_padding(image, latents.find_decoder_canvas(latent))
        return io.NodeOutput(image, (*card.find_reports(latent), done), ui=card.show_report(done))


class CascadeStudioEncodeStageA(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="CascadeStudio_EncodeStageA",
            display_name="Encode Stage A",
            category=CATEGORY,
            description="Turns a picture into a Stage B latent, for refining it with Sample Stage B.",
            search_aliases=["img2img", "stable cascade", "vae encode", "vqgan", "image to image"],
            inputs=[
                io.Image.Input("image", tooltip="A picture of any size."),
                io.Vae.Input("vae", tooltip="The Stage A output of Load Stable Cascade."),
            ],
            outputs=[io.Latent.Output("latent", display_name="latent", tooltip="The Stage B latent.")],
        )

    @classmethod
    def execute(cls, image: io.Image.Type, vae: io.Vae.Type) -> io.NodeOutput:
        vaes.expect_stage_a(vae, "Encode Stage A")
        rgb = pictures.to_rgb(pictures.check_pictures(image, "Encode Stage A"))
        canvas = latents.plan_canvas_for_image(rgb)
        samples = vaes.encode(vae, latents.pad_to_canvas(rgb, canvas))
        return io.NodeOutput(latents.make_decoder_latent(samples, canvas))


class CascadeStudioEncodeImage(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="CascadeStudio_EncodeImage",
            display_name=ENCODE,
            category=CATEGORY,
            description=(
                "Turns a picture into a Stage C latent with the image encoder, for image to image with Sample "
                "Stage C or for rebuilding it with Sample Stage B."
            ),
            search_aliases=["img2img", "stable cascade", "effnet", "vae encode", "image to image", "reconstruct"],
            inputs=[
                io.Image.Input("image", tooltip="A picture of any size."),
                io.Vae.Input("vae", tooltip="The Stage C VAE output of Load Stable Cascade (image encoder)."),
                io.Float.Input(
                    "compression",
                    default=0.0,
                    min=0.0,
                    max=ASKED[1],
                    step=1.0,
                    round=0.01,
                    advanced=True,
                    tooltip="Pixels to one cell; 0 chooses it, as the canvas does.",
                ),
                io.Latent.Input(
                    "target",
                    optional=True,
                    tooltip=(
                        "A Stage C latent whose canvas the picture is to have: it is cropped to that aspect and "
                        "enlarged or shrunk. Without it the canvas has the picture's own size."
                    ),
                ),
            ],
            outputs=[
                io.Latent.Output("prior", display_name="Stage C latent", tooltip="The encoded picture."),
                io.Latent.Output("decoder", display_name="Stage B latent", tooltip="An empty latent of its size."),
            ],
        )

    @classmethod
    def execute(
        cls, image: io.Image.Type, vae: io.Vae.Type, compression: float, target: io.Latent.Type | None = None
    ) -> io.NodeOutput:
        vaes.expect_stage_c(vae, ENCODE)
        rgb = pictures.to_rgb(pictures.check_pictures(image, ENCODE))
        if target is None:
            canvas = latents.plan_canvas_for_image(rgb, compression or vaes.read_compression(vae))
            samples = vaes.encode_for_prior(vae, latents.pad_to_canvas(rgb, canvas), canvas)
        else:
            native = vaes.read_compression(vae)
            canvas = latents.find_prior_canvas(latents.fit_empty_prior(target, native), ENCODE, native)
            samples = vaes.encode_picture(vae, to_image(lay_on_canvas(rgb.movedim(-1, 1), canvas)).clamp(0.0, 1.0))
        return io.NodeOutput(
            latents.make_prior_latent(samples, canvas), latents.make_empty_decoder(canvas, samples.shape[0])
        )


class CascadeStudioDecodePreview(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="CascadeStudio_DecodePreview",
            display_name="Preview Stage C",
            category=CATEGORY,
            description="A small, quick picture of a Stage C latent, painted by the Previewer.",
            search_aliases=["stable cascade", "previewer", "draft"],
            inputs=[
                io.Latent.Input("prior", tooltip="The latent from Sample Stage C."),
                io.Vae.Input("vae", tooltip="The Stage C VAE output of Load Stable Cascade (Previewer)."),
            ],
            outputs=[io.Image.Output("image", display_name="image", tooltip="8 pixels a cell: 192x192 for 24x24.")],
        )

    @classmethod
    def execute(cls, prior: io.Latent.Type, vae: io.Vae.Type) -> io.NodeOutput:
        samples = latents.expect_finished_prior(prior, "Preview Stage C")
        vaes.expect_stage_c(vae, "Preview Stage C")
        return io.NodeOutput(vaes.preview(vae, samples))


NODES = [CascadeStudioDecodeStageA, CascadeStudioEncodeStageA, CascadeStudioEncodeImage, CascadeStudioDecodePreview]
