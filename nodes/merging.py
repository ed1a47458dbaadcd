"""Merging of models part by part, adding differences, and saving what is on the wire."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io, ui

from ..stages.lora.merge import GROUPS
from .host.files.fetch import show_text
from .host.files.prefix import fill_prefix
from .host.lora import merge

CATEGORY = "Cascade Studio/merging"
MERGE, ADD, SAVE = "Merge Cascade Models by Parts", "Add Cascade Model Difference", "Save Cascade Model"

PARTS = {
    "input": "the first, shallow levels",
    "deep_down": "the deep levels on the way down, which decide what is in the picture",
    "deep_up": "the deep levels on the way up",
    "output": "the last, shallow levels, which paint the details",
    "conditioning": "what reads the prompt, image prompts and, in Stage B, the Stage C latent",
    "time": "what reads the noise level",
}


def share_input(group: str) -> io.Float.Input:
    """How much of ``model2`` goes into a group of its blocks."""
    return io.Float.Input(
        group,
        default=0.5,
        min=0.0,
        max=1.0,
        step=0.01,
        tooltip=(
            f"Share of model2 in {PARTS[group]}: 0 keeps model1 exactly, 1 takes model2 exactly. Core's merge nodes "
            "count the other way: there 1 keeps model1."
        ),
    )


class CascadeStudioMergeModels(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="CascadeStudio_MergeModels",
            display_name=MERGE,
            category=CATEGORY,
            description="Mixes two priors or two decoders of one size, with a weight of its own for each part of "
            "the network.",
            search_aliases=["stable cascade", "block merge", "merge blocks", "model merge"],
            inputs=[
                io.Model.Input("model1", tooltip="The model to start from: Stage C or Stage B."),
                io.Model.Input("model2", tooltip="The model to move to, of the same stage and size."),
                *(share_input(group) for group in GROUPS),
            ],
            outputs=[
                io.Model.Output("model", display_name="model", tooltip="The mix, for a sampler or Save Cascade Model.")
            ],
        )

    @classmethod
    def execute(cls, model1: io.Model.Type, model2: io.Model.Type, **shares: Any) -> io.NodeOutput:
        return io.NodeOutput(merge.merge_models(model1, model2, shares, MERGE))


class CascadeStudioAddDifference(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="CascadeStudio_AddDifference",
            display_name=ADD,
            category=CATEGORY,
            description="Adds to a model what training changed in another one: model + (tuned - base) x strength.",
            search_aliases=["stable cascade", "add difference", "model merge", "task vector"],
            inputs=[
                io.Model.Input("model", tooltip="The model that receives the change: Stage C or Stage B."),
                io.Model.Input("tuned", tooltip="The trained model."),
                io.Model.Input("base", tooltip="The model that it was trained from."),
                io.Float.Input(
                    "strength",
                    default=1.0,
                    min=-10.0,
                    max=10.0,
                    step=0.01,
                    tooltip=(
                        "How much of the change is added; 0 leaves the model exactly as it is, below 0 it is taken "
                        "away."
                    ),
                ),
            ],
            outputs=[io.Model.Output("model", display_name="model", tooltip="The changed model.")],
        )

    @classmethod
    def execute(cls, model: io.Model.Type, tuned: io.Model.Type, base: io.Model.Type, strength: float) -> io.NodeOutput:
        return io.NodeOutput(merge.add_difference(model, tuned, base, strength, ADD))


class CascadeStudioSaveModel(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="CascadeStudio_SaveModel",
            display_name=SAVE,
            category=CATEGORY,
            description=(
                "Writes Stage C or Stage B with its LoRAs and merges baked in, in the layout of ComfyUI, of the "
                "official code or of diffusers."
            ),
            search_aliases=["stable cascade", "checkpoint save", "save merge", "export"],
            inputs=[
                io.Model.Input("model", tooltip="The model to write, with everything on its wire."),
                io.Combo.Input(
                    "layout",
                    options=list(merge.LAYOUTS),
                    tooltip=("Key names of the file. All three load here; ComfyUI's own loader reads the first two."),
                ),
                io.Combo.Input(
                    "dtype",
                    options=list(merge.SAVED_DTYPES),
                    default="bf16",
                    tooltip=("Number format of the file; half the size in bf16 or fp16 compared to fp32."),
                ),
                io.String.Input(
                    "filename_prefix",
                    default="diffusion_models/cascade",
                    tooltip=(
                        "Name in the output folder; a number is added and nothing is overwritten. Files in "
                        "output/diffusion_models are in the lists of the loaders."
                    ),
                ),
                io.String.Input(
                    "title", default="", optional=True, advanced=True, tooltip="A title for the file's metadata."
                ),
                io.String.Input(
                    "notes",
                    default="",
                    multiline=True,
                    optional=True,
                    advanced=True,
                    tooltip=("A description for the file's metadata, for example what was merged."),
                ),
            ],
            outputs=[
                io.String.Output("name", display_name="name", tooltip="The name of the new file."),
                io.String.Output("report", display_name="report", tooltip="What was written."),
            ],
            hidden=[io.Hidden.unique_id, io.Hidden.prompt, io.Hidden.extra_pnginfo],
            is_output_node=True,
        )

    @classmethod
    def execute(
        cls, model: io.Model.Type, layout: str, dtype: str, filename_prefix: str, title: str = "", notes: str = ""
    ) -> io.NodeOutput:
        told = {"modelspec.title": title, "modelspec.description": notes}
        hidden = merge.hidden_texts(cls.hidden)
        prefix = fill_prefix(filename_prefix, cls.hidden.prompt)
        name, report = merge.save_model(model, layout, dtype, prefix, hidden, told, SAVE)
        show_text(report, cls.hidden.unique_id)
        return io.NodeOutput(name, report, ui=ui.PreviewText(report))


NODES = [CascadeStudioMergeModels, CascadeStudioAddDifference, CascadeStudioSaveModel]
