"""Inpainting a part of a picture at its own size, pasting it back without touching the rest, and masks for it."""

from __future__ import annotations

from comfy_api.latest import io

from ..stages.inputs import inpaint, masks, pictures, saliency
from .host.files import native
from .host.sampling import notes
from .inputs import fraction_input, part_inputs, side_input, threshold_input
from .types import Stitch

CATEGORY = "Cascade Studio/image"
SALIENCY = "Saliency Mask"


class CascadeStudioInpaintCrop(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="CascadeStudio_InpaintCrop",
            display_name="Inpaint Crop",
            category=CATEGORY,
            description=(
                "Cuts the part around a mask out of a picture and brings it to a size that Stable Cascade works "
                "well at. Paste Inpainted Part puts it back."
            ),
            search_aliases=["stable cascade", "inpaint", "crop and stitch", "mask", "region"],
            inputs=[
                io.Image.Input("image", tooltip="The whole picture, or a batch."),
                io.Mask.Input(
                    "mask",
                    tooltip=(
                        "White where something new goes. In a batch every picture may have a mask of its own, and gets "
                        "a part of its own."
                    ),
                ),
                *part_inputs(
                    1.5,
                    side_input(
                        "target_size",
                        native.find_sides(),
                        "The part is enlarged or reduced to about the area of a square with this side; 0 keeps its "
                        "size.",
                        min=0,
                        max=4096,
                        step=64,
                    ),
                ),
                io.Int.Input(
                    "multiple",
                    default=128,
                    min=8,
                    max=256,
                    step=8,
                    advanced=True,
                    tooltip=(
                        "Sides of the part are multiples of this; 128 is three cells of Stage C, so that "
                        "nothing is padded."
                    ),
                ),
                threshold_input(),
                io.Boolean.Input(
                    "fill_holes",
                    default=False,
                    advanced=True,
                    tooltip="Whether what the mask surrounds belongs to it, so that an outline is enough.",
                ),
            ],
            outputs=[
                io.Image.Output("image", display_name="image", tooltip="The part to work on."),
                io.Mask.Output("mask", display_name="mask", tooltip="Its widened mask, pixel by pixel."),
                io.Mask.Output(
                    "prior_mask",
                    display_name="prior_mask",
                    tooltip=("The mask on the grid of Stage C, every touched cell whole, for Set Latent Noise Mask."),
                ),
                Stitch.Output("stitch", display_name="stitch", tooltip="The way back, for Paste Inpainted Part."),
                io.Int.Output("width", display_name="width", tooltip="Width of the part, for Canvas for Cascade."),
                io.Int.Output("height", display_name="height", tooltip="Height of the part, for Canvas for Cascade."),
            ],
        )

    @classmethod
    def execute(
        cls,
        image: io.Image.Type,
        mask: io.Mask.Type,
        context: float,
        grow: int,
        feather: int,
        target_size: int,
        multiple: int,
        threshold: float = inpaint.THRESHOLD,
        fill_holes: bool = False,
    ) -> io.NodeOutput:
        settings = inpaint.CropSettings(context, grow, feather, target_size, multiple, threshold, fill_holes)
        part = inpaint.cut_part(image, mask, settings)
        height, width = part.mask.shape[1:]
        return io.NodeOutput(part.image, part.mask, part.cells, part.stitch, width, height)


class CascadeStudioInpaintStitch(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="CascadeStudio_InpaintStitch",
            display_name="Paste Inpainted Part",
            category=CATEGORY,
            description=(
                "Pastes the inpainted part back into the whole picture. Every pixel outside of the mask and its "
                "feather keeps exactly its old value."
            ),
            search_aliases=["stable cascade", "inpaint", "stitch", "paste", "composite"],
            inputs=[
                Stitch.Input("stitch", tooltip="From Inpaint Crop."),
                io.Image.Input("image", tooltip="The inpainted part, or a batch of tries."),
            ],
            outputs=[io.Image.Output("image", display_name="image", tooltip="The whole picture, one for each try.")],
        )

    @classmethod
    def execute(cls, stitch: inpaint.Stitch, image: io.Image.Type) -> io.NodeOutput:
        return io.NodeOutput(inpaint.paste_part(stitch, image))


class CascadeStudioSaliencyMask(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="CascadeStudio_SaliencyMask",
            display_name=SALIENCY,
            category=CATEGORY,
            description=(
                "A mask of what stands out in a picture, from the picture alone: a start for inpainting and detailing "
                "where nothing was painted by hand."
            ),
            search_aliases=["stable cascade", "saliency", "auto mask", "foreground", "subject mask"],
            inputs=[
                io.Image.Input("image", tooltip="A picture, or a batch; each gets a mask of its own."),
                io.Combo.Input(
                    "method",
                    options=list(saliency.METHODS),
                    default=saliency.BORDER,
                    tooltip=(
                        "border: what has other colours than the picture's sides, best for a subject on a ground. "
                        "spectral residual: what breaks the picture's pattern. fine grained: what differs from its "
                        "surroundings, by opencv-contrib-python where it is installed, else border."
                    ),
                ),
                fraction_input(
                    "threshold",
                    saliency.THRESHOLD,
                    "What is more salient than this share of the most salient place is marked.",
                ),
                io.Int.Input(
                    "grow",
                    default=0,
                    min=-512,
                    max=512,
                    tooltip="Pixels by which the mask is widened; negative numbers make it smaller.",
                ),
                io.Boolean.Input(
                    "fill_holes", default=True, advanced=True, tooltip="Whether what the mask surrounds belongs to it."
                ),
            ],
            outputs=[io.Mask.Output("mask", display_name="mask", tooltip="1 where the picture stands out, else 0.")],
        )

    @classmethod
    def execute(cls, image: io.Image.Type, method: str, threshold: float, grow: int, fill_holes: bool) -> io.NodeOutput:
        rgb = pictures.to_rgb(pictures.check_pictures(image, SALIENCY))
        mask = (saliency.find_salient(rgb, method) > threshold).float()
        mask = masks.grow_octagon(masks.fill_holes(mask) if fill_holes else mask, grow)
        told = []
        if method == saliency.FINE and saliency.import_opencv() is None:
            told = [
                f"{SALIENCY}: '{method}' needs the Python package opencv-contrib-python, which is not installed, so "
                f"'{saliency.BORDER}' was taken."
            ]
        return io.NodeOutput(mask, ui=notes.show_notes(told))


NODES = [CascadeStudioInpaintCrop, CascadeStudioInpaintStitch, CascadeStudioSaliencyMask]
