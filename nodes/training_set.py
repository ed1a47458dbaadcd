"""What to learn from, in the graph: a folder or a batch of pictures with captions."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..stages.inputs.pictures import check_pictures, to_rgb
from ..stages.training import dataset, folders, settings
from .host.training import train

CATEGORY = "Cascade Studio/training"
TrainingSet = io.Custom("CASCADE_TRAINING_SET")
DEFAULTS = settings.Settings()


def split_lines(text: str) -> list[str]:
    """The lines of a text box."""
    return [line.strip() for line in text.splitlines() if line.strip()]


def make_input(name: str, **changes: Any) -> Any:
    """The node input of a training setting, from its one description in stages/training/settings.py."""
    spec = settings.SPECS[name]
    given = {"default": getattr(DEFAULTS, name), "tooltip": spec.says, **changes}
    if spec.kind == "int":
        return io.Int.Input(name, **{"min": int(spec.low), "max": int(spec.high), "step": int(spec.step) or 1, **given})
    if spec.kind == "float":
        return io.Float.Input(
            name, **{"min": spec.low, "max": spec.high, "step": spec.step, "round": spec.step / 10_000, **given}
        )
    if spec.kind == "bool":
        return io.Boolean.Input(name, **given)
    if spec.kind == "choice":
        return io.Combo.Input(name, **{"options": list(spec.choices), **given})
    return io.String.Input(name, **given)


class CascadeStudioTrainingSet(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="CascadeStudio_TrainingSet",
            display_name="Cascade Training Set",
            category=CATEGORY,
            description=(
                "Pictures with captions to learn from: a folder in ComfyUI's input folder, each picture with a "
                ".txt file of its name beside it, or images from the graph. Everything is checked at once."
            ),
            search_aliases=["stable cascade", "dataset", "captions", "train lora", "bucket"],
            inputs=[
                io.String.Input(
                    "folder",
                    default="",
                    tooltip=(
                        "Name of a folder inside ComfyUI's input folder, or chalk for twelve drawings that come with "
                        "the pack. Leave it empty when images are wired in."
                    ),
                ),
                io.String.Input(
                    "captions",
                    default="",
                    multiline=True,
                    tooltip=(
                        "For a folder: a caption for pictures without a .txt file; left empty, such pictures are an "
                        "error. For images: one line each, or a single line for all."
                    ),
                ),
                make_input("resolution", min=64, max=2048),
                io.Image.Input("images", optional=True, tooltip="Pictures from the graph, instead of a folder."),
                io.Combo.Input(
                    "caption_kind",
                    options=list(folders.CAPTION_KINDS),
                    default="one",
                    advanced=True,
                    optional=True,
                    tooltip=(
                        "How a .txt file is read: one caption, lines of which each is a caption of its own, or tags "
                        "with commas, whose order is shuffled."
                    ),
                ),
                io.Int.Input(
                    "kept_tags",
                    default=1,
                    min=0,
                    max=100,
                    advanced=True,
                    optional=True,
                    tooltip="How many tags stay in front when tags are shuffled.",
                ),
                io.String.Input(
                    "trigger",
                    default="",
                    advanced=True,
                    optional=True,
                    tooltip="A word that is put in front of every caption.",
                ),
                io.Int.Input(
                    "repeats",
                    default=1,
                    min=1,
                    max=1000,
                    advanced=True,
                    optional=True,
                    tooltip="How often an epoch shows these pictures; a sub-folder 10_cats shows its own ten times.",
                ),
                io.Float.Input(
                    "weight",
                    default=1.0,
                    min=0.0,
                    max=10.0,
                    step=0.1,
                    round=0.001,
                    advanced=True,
                    optional=True,
                    tooltip="How much these pictures count; less than 1 for those that only keep the model as it is.",
                ),
                io.Boolean.Input(
                    "mirrored",
                    default=False,
                    advanced=True,
                    optional=True,
                    tooltip="Show every picture from the other side too. Not for text, faces or sides that matter.",
                ),
                io.Int.Input(
                    "crops",
                    default=1,
                    min=1,
                    max=16,
                    advanced=True,
                    optional=True,
                    tooltip="How many places of the window are shown where a picture does not fit its bucket.",
                ),
                io.String.Input(
                    "hints",
                    default="",
                    advanced=True,
                    optional=True,
                    tooltip="For a ControlNet: a folder with the hint of each picture, under the same name.",
                ),
                TrainingSet.Input("more", optional=True, tooltip="Another training set, to be added to this one."),
                io.String.Input(
                    "sizes",
                    default="",
                    advanced=True,
                    optional=True,
                    tooltip=(
                        "More resolutions at which every picture is learned, such as 512 1024; a batch is of one size."
                    ),
                ),
            ],
            outputs=[
                TrainingSet.Output("training_set", display_name="training set", tooltip="For Train Cascade LoRA."),
                io.String.Output(
                    "report",
                    display_name="report",
                    tooltip=("How many pictures there are, in which sizes, what is cut, and what was passed over."),
                ),
            ],
        )

    @classmethod
    def fingerprint_inputs(cls, folder: str = "", hints: str = "", **_: Any) -> str:
        """A hash of names, sizes and times in the folders, so that a changed picture is seen."""
        return train.stamp_folder(folder) + (train.stamp_folder(hints) if hints else "")

    @classmethod
    def execute(
        cls,
        folder: str,
        captions: str,
        resolution: int,
        images: Any = None,
        caption_kind: str = "one",
        kept_tags: int = 1,
        trigger: str = "",
        repeats: int = 1,
        weight: float = 1.0,
        mirrored: bool = False,
        crops: int = 1,
        hints: str = "",
        more: dataset.TrainingSet | None = None,
        sizes: str = "",
    ) -> io.NodeOutput:
        if images is not None and not folder.strip():
            check_pictures(images, "Cascade Training Set", "images")
            found = dataset.from_batch(to_rgb(images), split_lines(captions), resolution)
        else:
            options = folders.FolderOptions(
                " ".join(split_lines(captions)), caption_kind, trigger, kept_tags, weight, repeats
            )
            found = train.read_folder(folder, options, hints, resolution)
        others = [int(side) if side.isdecimal() else side for side in sizes.replace(",", " ").split()]
        found = dataset.show_ways(found, mirrored, crops, others)
        found = found if more is None else dataset.join_sets([found, more])
        return io.NodeOutput(found, found.report())


NODES = [CascadeStudioTrainingSet]
