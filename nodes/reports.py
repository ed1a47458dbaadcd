"""The report card, and a save node that writes it into the picture's file."""

from __future__ import annotations

from comfy_api.latest import io, ui

from ..stages.errors import WrongInput
from ..stages.inputs.pictures import check_pictures
from .host import latents
from .host.files.prefix import fill_prefix, has_open_values
from .host.report import card, png
from .host.report.facts import gather_facts
from .types import Report

CATEGORY = "Cascade Studio/image"
CARD, SAVE = "Report Card", "Save Cascade Image"
NO_REPORT = (
    "No report arrived. Wire the 'report' output of Decode Stage A, or a latent from Sample Stage C or Sample "
    "Stage B, into this node."
)


def hashes_input() -> io.Boolean.Input:
    """Whether the card tells the hashes of model files."""
    return io.Boolean.Input(
        "hashes",
        default=True,
        advanced=True,
        tooltip=(
            "Tell the SHA-256 of the model files too. Each file is read once for it, which takes a while for large "
            "ones; after that it is remembered until the file changes."
        ),
    )


class CascadeStudioReportCard(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="CascadeStudio_ReportCard",
            display_name=CARD,
            category=CATEGORY,
            description=(
                "Tells what each stage did: seconds, peak memory, sizes, settings, and the model files with "
                "their hashes and licences."
            ),
            search_aliases=[
                "stable cascade",
                "benchmark",
                "timing",
                "memory",
                "hash",
                "licence",
                "license",
                "metadata",
            ],
            inputs=[
                Report.Input("report", optional=True, tooltip="From Decode Stage A: all three stages."),
                io.Latent.Input(
                    "latent",
                    optional=True,
                    tooltip=("From Sample Stage C or Sample Stage B: the stages so far. Used when no report is wired."),
                ),
                io.Image.Input("image", optional=True, tooltip="The finished picture, to tell its size too."),
                hashes_input(),
            ],
            outputs=[io.String.Output("text", display_name="text", tooltip="The report, to read or to save.")],
            is_output_node=True,
            hidden=[io.Hidden.prompt, io.Hidden.unique_id],
        )

    @classmethod
    def execute(
        cls,
        hashes: bool,
        report: card.Reports | None = None,
        latent: io.Latent.Type | None = None,
        image: io.Image.Type | None = None,
    ) -> io.NodeOutput:
        if image is not None:
            check_pictures(image, CARD)
        done = report or card.find_reports(latent)
        if not done:
            return io.NodeOutput(NO_REPORT, ui=ui.PreviewText(NO_REPORT))
        facts = gather_facts(cls.hidden.prompt, cls.hidden.unique_id)
        files = card.list_model_files(done, hashes, facts)
        text = card.write_card(done, latents.measure_picture(image), facts, files)
        return io.NodeOutput(text, ui=ui.PreviewText(text))


class CascadeStudioSaveImage(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="CascadeStudio_SaveImage",
            display_name=SAVE,
            category=CATEGORY,
            description=(
                "Saves pictures as PNG as the host does, prompt and workflow included, and adds the report of "
                "the stages under a name of its own."
            ),
            search_aliases=["stable cascade", "save image", "png", "metadata", "export"],
            inputs=[
                io.Image.Input("images", tooltip="The pictures to save."),
                io.String.Input(
                    "filename_prefix",
                    default="CascadeStudio",
                    tooltip=(
                        "Start of the file names, sub-folders with / included. %date:yyyy-MM-dd% and the like work as "
                        "in Save Image."
                    ),
                ),
                Report.Input(
                    "report",
                    optional=True,
                    tooltip=("From Decode Stage A. Without it only what Save Image writes is written."),
                ),
                hashes_input(),
            ],
            outputs=[io.Image.Output("images", display_name="images", tooltip="The pictures, as they came.")],
            is_output_node=True,
            hidden=[io.Hidden.prompt, io.Hidden.extra_pnginfo, io.Hidden.unique_id],
        )

    @classmethod
    def validate_inputs(cls, filename_prefix: str | None = None) -> bool | str:
        """True, or why nothing can be saved under this prefix, before anything runs."""
        try:
            place = fill_prefix(filename_prefix or "", None)
            if filename_prefix is not None and not has_open_values(place):  # else it is known when the node runs
                png.check_place(place, SAVE)
        except WrongInput as error:
            return str(error)
        return True

    @classmethod
    def execute(
        cls, images: io.Image.Type, filename_prefix: str, hashes: bool, report: card.Reports | None = None
    ) -> io.NodeOutput:
        check_pictures(images, SAVE, "images")
        prompt = cls.hidden.prompt
        place = fill_prefix(filename_prefix, prompt)
        if place != filename_prefix:
            png.check_place(place, SAVE)
        story = png.Story(report, gather_facts(prompt, cls.hidden.unique_id), hashes) if report else None
        saved = png.save_png(images, place, prompt, cls.hidden.extra_pnginfo, story)
        return io.NodeOutput(images, ui=ui.SavedImages([ui.SavedResult(*file) for file in saved]))


NODES = [CascadeStudioReportCard, CascadeStudioSaveImage]
