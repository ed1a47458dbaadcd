"""Hint nodes: pictures prepared exactly as the ControlNets were trained, each showing what its net will see."""

from __future__ import annotations

from comfy_api.latest import io, ui

from ..stages.inputs import canny
from ..stages.inputs.canvas import MAX_SIDE
from .host import latents
from .host.conditioning import hints

CATEGORY = "Cascade Studio/control"
CANNY, INPAINT, OUTPAINT = "Canny Hint", "Inpaint Hint", "Outpaint Canvas"
LARGER, IDENTITY = "Super-Resolution Hint", "Identity Hint"


def latent_input() -> io.Latent.Input:
    """The latent whose canvas a hint is fitted to."""
    return io.Latent.Input(
        "latent",
        optional=True,
        tooltip=(
            "The Stage C latent that you will sample: the hint is cropped and padded to its canvas. Without it the "
            "canvas has the picture's own size."
        ),
    )


def hint_output(what: str) -> io.Image.Output:
    """The hint of a node; ``what`` is its tooltip's first sentence."""
    return io.Image.Output("hint", display_name="hint", tooltip=f"{what} For ControlNet for Cascade.")


def preview_output() -> io.Image.Output:
    """The hint as a picture."""
    return io.Image.Output("preview", display_name="preview", tooltip="What the ControlNet sees, as a picture.")


class CascadeStudioCannyHint(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="CascadeStudio_CannyHint",
            display_name=CANNY,
            category=CATEGORY,
            description=(
                "Finds edges as the canny ControlNet was trained on: at 224 pixels, stretched back, so that "
                "they look soft. Sharp edges of other preprocessors work less well."
            ),
            search_aliases=["stable cascade", "canny", "edge detection", "preprocessor", "controlnet"],
            inputs=[
                io.Image.Input("image", tooltip="The picture whose edges you want."),
                io.Int.Input(
                    "low",
                    default=canny.LOW,
                    min=0,
                    max=2040,
                    step=5,
                    tooltip=("Weaker edges than this are dropped; 100 in training. Lower it for more detail."),
                ),
                io.Int.Input(
                    "high",
                    default=canny.HIGH,
                    min=0,
                    max=2040,
                    step=5,
                    tooltip=(
                        "Edges as strong as this are always kept, weaker ones only where they touch them; "
                        "200 in training."
                    ),
                ),
                latent_input(),
            ],
            outputs=[hint_output("The edges.")],
        )

    @classmethod
    def execute(cls, image: io.Image.Type, low: int, high: int, latent: io.Latent.Type | None = None) -> io.NodeOutput:
        hint = hints.make_canny_hint(image, low, high, latent, CANNY)
        return io.NodeOutput(hint, ui=ui.PreviewImage(hint))


class CascadeStudioInpaintHint(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="CascadeStudio_InpaintHint",
            display_name=INPAINT,
            category=CATEGORY,
            description=(
                "Packs a picture and its mask for the inpainting ControlNet: white where the picture is to be "
                "painted anew, and the mask as a fourth channel."
            ),
            search_aliases=["stable cascade", "inpaint", "outpaint", "mask", "controlnet"],
            inputs=[
                io.Image.Input("image", tooltip="The picture to keep a part of."),
                io.Mask.Input("mask", tooltip="Where to paint anew. Every pixel counts as all or nothing."),
                io.Int.Input(
                    "grow",
                    default=0,
                    min=-256,
                    max=256,
                    tooltip=("Pixels by which the mask is made larger, or smaller if negative."),
                ),
                latent_input(),
            ],
            outputs=[hint_output("Four channels: picture and mask."), preview_output()],
        )

    @classmethod
    def execute(
        cls, image: io.Image.Type, mask: io.Mask.Type, grow: int, latent: io.Latent.Type | None = None
    ) -> io.NodeOutput:
        hint, preview = hints.make_inpaint_hint(image, mask, grow, latent, INPAINT)
        return io.NodeOutput(hint, preview, ui=ui.PreviewImage(preview))


class CascadeStudioOutpaintCanvas(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        def side(name: str) -> io.Int.Input:
            return io.Int.Input(name, default=0, min=0, max=MAX_SIDE, step=8, tooltip=f"Pixels to add at the {name}.")

        def to(name: str) -> io.Int.Input:
            return io.Int.Input(
                name,
                default=0,
                min=0,
                max=MAX_SIDE,
                step=8,
                advanced=True,
                tooltip=(
                    f"{name.capitalize()} of the whole canvas; what is missing is shared by both sides. "
                    "0 asks for none."
                ),
            )

        return io.Schema(
            node_id="CascadeStudio_OutpaintCanvas",
            display_name=OUTPAINT,
            category=CATEGORY,
            description=(
                "Adds empty borders to a picture, and a mask that covers them, for outpainting with the "
                "inpainting ControlNet."
            ),
            search_aliases=["stable cascade", "outpaint", "pad image", "extend", "uncrop"],
            inputs=[
                io.Image.Input("image", tooltip="The picture to go on beyond its borders."),
                side("left"),
                side("top"),
                side("right"),
                side("bottom"),
                to("width"),
                to("height"),
                io.Mask.Input("mask", optional=True, tooltip="A part of the picture to paint anew as well."),
            ],
            outputs=[
                io.Image.Output("image", display_name="image", tooltip="The picture with white borders."),
                io.Mask.Output("mask", display_name="mask", tooltip="The borders, for Inpaint Hint."),
                io.Int.Output("width", display_name="width", tooltip="The new width, for Canvas for Cascade."),
                io.Int.Output("height", display_name="height", tooltip="The new height, for Canvas for Cascade."),
            ],
        )

    @classmethod
    def execute(
        cls,
        image: io.Image.Type,
        left: int,
        top: int,
        right: int,
        bottom: int,
        width: int,
        height: int,
        mask: io.Mask.Type | None = None,
    ) -> io.NodeOutput:
        picture, new = hints.make_outpaint_canvas(image, mask, (left, top, right, bottom), width, height, OUTPAINT)
        return io.NodeOutput(picture, new, picture.shape[2], picture.shape[1], ui=ui.PreviewImage(picture))


class CascadeStudioSuperResolutionHint(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="CascadeStudio_SuperResolutionHint",
            display_name=LARGER,
            category=CATEGORY,
            description=(
                "Encodes a picture for the super-resolution ControlNet and makes the canvas of the larger "
                "picture, 2.67 times as wide and high."
            ),
            search_aliases=["upscaler", "stable cascade", "super resolution", "upscale", "enlarge", "controlnet"],
            inputs=[
                io.Image.Input("image", tooltip="The small picture; about 768 pixels a side officially."),
                io.Vae.Input("vae", tooltip="The Stage C VAE output of Load Stable Cascade (image encoder)."),
            ],
            outputs=[
                hint_output("Sixteen channels: the encoded picture, twice as large."),
                io.Latent.Output("prior", display_name="Stage C latent", tooltip="Empty, for Sample Stage C."),
                io.Latent.Output(
                    "decoder",
                    display_name="Stage B latent",
                    tooltip=("Empty, for a core sampler that runs Stage B; Sample Stage B needs none."),
                ),
                io.Image.Output("preview", display_name="preview", tooltip="The picture as the encoder reads it."),
            ],
        )

    @classmethod
    def execute(cls, image: io.Image.Type, vae: io.Vae.Type) -> io.NodeOutput:
        hint, preview, canvas = hints.make_super_resolution_hint(image, vae, LARGER)
        batch = hint.shape[0]
        return io.NodeOutput(
            hint,
            latents.make_empty_prior(canvas, batch),
            latents.make_empty_decoder(canvas, batch),
            preview,
            ui=ui.PreviewImage(preview),
        )


class CascadeStudioIdentityHint(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="CascadeStudio_IdentityHint",
            display_name=IDENTITY,
            category=CATEGORY,
            description=(
                "Paints face embeddings into a map for an identity ControlNet. Stability AI never published "
                "the face weights: this is for nets of that layout that you trained yourself."
            ),
            search_aliases=["stable cascade", "face", "identity", "arcface", "controlnet"],
            inputs=[
                io.Image.Input("image", tooltip="The picture in which the boxes were found."),
                io.AnyType.Input(
                    "boxes",
                    tooltip=(
                        "One box a face, in pixels: left, top, right, bottom, or x, y, width, height in a bounding "
                        "box. Up to four faces are used, the largest and most central ones."
                    ),
                ),
                io.AnyType.Input(
                    "embeddings",
                    tooltip=(
                        "One ArcFace embedding (512 numbers) a face, in the same order. A list of insightface faces "
                        "can go into both inputs."
                    ),
                ),
                latent_input(),
            ],
            outputs=[hint_output("512 channels: who is where."), preview_output()],
        )

    @classmethod
    def execute(
        cls, image: io.Image.Type, boxes: object, embeddings: object, latent: io.Latent.Type | None = None
    ) -> io.NodeOutput:
        hint, preview = hints.make_identity_hint(image, boxes, embeddings, latent, IDENTITY)
        return io.NodeOutput(hint, preview, ui=ui.PreviewImage(preview))


NODES = [
    CascadeStudioCannyHint,
    CascadeStudioInpaintHint,
    CascadeStudioOutpaintCanvas,
    CascadeStudioSuperResolutionHint,
    CascadeStudioIdentityHint,
]
