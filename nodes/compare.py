"""Two pictures side by side, to see what a change did."""

from __future__ import annotations

from comfy_api.latest import io, ui

from ..stages.inputs.pictures import check_pictures, to_rgb

CATEGORY = "Cascade Studio/image"
WHERE = "Compare Pictures"


class CascadeStudioCompare(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="CascadeStudio_Compare",
            display_name=WHERE,
            category=CATEGORY,
            description=(
                "Shows two pictures in one place, with a slider between them or side by side. They go into "
                "the temporary folder: nothing is kept."
            ),
            search_aliases=["stable cascade", "compare", "before after", "side by side", "difference", "preview"],
            inputs=[
                io.Image.Input("before", tooltip="The picture on the left, or a batch."),
                io.Image.Input(
                    "after",
                    tooltip=(
                        "The picture on the right, or a batch: picture i is compared with picture i of the other batch."
                    ),
                ),
            ],
            outputs=[],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, before: io.Image.Type, after: io.Image.Type) -> io.NodeOutput:
        given = [check_pictures(image, WHERE, name) for name, image in (("before", before), ("after", after))]
        shown = [to_rgb(image) if image.shape[-1] == 1 else image for image in given]
        left, right = (ui.PreviewImage(image, cls=cls).as_dict()["images"] for image in shown)
        # The host's own preview shows "images"; the extension draws the slider from the other two.
        return io.NodeOutput(ui={"images": [*left, *right], "before": left, "after": right})


NODES = [CascadeStudioCompare]
