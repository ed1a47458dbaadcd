"""LoRAs: load one or a stack of them, as hooks with schedules, convert them, and extract them from trained models."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from comfy_api.latest import io, ui

from ..stages.lora.convert import LAYOUTS, to_layout
from ..stages.lora.extract import MATRICES, SCOPES
from .file_inputs import FileInputs
from .host.files import names
from .host.files.fetch import show_text
from .host.files.prefix import fill_prefix
from .host.files.write import next_path, write_model
from .host.lora import merge
from .host.lora.apply import LoraChoice, Targets, apply_all, make_hook, read_and_match
from .host.models.load import DTYPES
from .host.nothing import give_or_block_each
from .lora_inputs import (
    choice_inputs,
    lora_input,
    model_inputs,
    model_outputs,
    name_output,
    prefix_input,
    report_output,
    tokens_input,
)

CATEGORY = "Cascade Studio/lora"
Stack = io.Custom("CASCADE_STUDIO_LORA_STACK")
LOAD, APPLY, HOOK = "Load Cascade LoRA", "Apply Cascade LoRA Stack", "Load Cascade Hook LoRA"
CONVERT, EXTRACT = "Convert Cascade LoRA", "Extract Cascade LoRA"


def apply_choices(choices: list[LoraChoice], targets: Targets, where: str, node: str | None) -> io.NodeOutput:
    """Models with the LoRAs on them, and the report as text and in the node."""
    result, report = apply_all(choices, targets, where)
    show_text(report, node)
    outputs = give_or_block_each(where, prior=result.prior, decoder=result.decoder, clip=result.clip)
    return io.NodeOutput(*outputs, report, ui=ui.PreviewText(report))


class CascadeStudioLoadLora(FileInputs, io.ComfyNode):
    ROLES = ("lora",)

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="CascadeStudio_LoadLora",
            display_name=LOAD,
            category=CATEGORY,
            description=(
                "Puts a LoRA on Stage C, Stage B and the text encoder, from any file layout, and reports which of "
                "its keys are used."
            ),
            search_aliases=["stable cascade", "lora loader", "lycoris", "style"],
            inputs=[*choice_inputs(), *model_inputs(), tokens_input()],
            outputs=model_outputs(),
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(
        cls,
        lora: str,
        strength_model: float,
        strength_clip: float,
        prior: io.Model.Type | None = None,
        decoder: io.Model.Type | None = None,
        clip: io.Clip.Type | None = None,
        tokens: str = "",
    ) -> io.NodeOutput:
        return apply_choices(
            [LoraChoice(lora, strength_model, strength_clip, tokens)],
            Targets(prior, decoder, clip),
            LOAD,
            cls.hidden.unique_id,
        )


class CascadeStudioLoraStack(FileInputs, io.ComfyNode):
    ROLES = ("lora",)

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="CascadeStudio_LoraStack",
            display_name="Cascade LoRA Stack",
            category=CATEGORY,
            description="Adds a LoRA to a list that Apply Cascade LoRA Stack puts on the models all at once.",
            search_aliases=["stable cascade", "lora stacker", "multiple loras"],
            inputs=[
                *choice_inputs(),
                tokens_input(),
                Stack.Input("stack", optional=True, tooltip="LoRAs to apply before this one."),
            ],
            outputs=[
                Stack.Output(
                    "stack",
                    display_name="stack",
                    tooltip=("The list, for another Cascade LoRA Stack or for Apply Cascade LoRA Stack."),
                )
            ],
        )

    @classmethod
    def execute(
        cls, lora: str, strength_model: float, strength_clip: float, tokens: str = "", stack: Any = ()
    ) -> io.NodeOutput:
        return io.NodeOutput((*stack, LoraChoice(lora, strength_model, strength_clip, tokens)))


class CascadeStudioApplyLoraStack(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="CascadeStudio_ApplyLoraStack",
            display_name=APPLY,
            category=CATEGORY,
            description="Puts all LoRAs of a stack on the models, in the order of the stack, with one report on "
            "all of them.",
            search_aliases=["stable cascade", "lora stack", "multiple loras"],
            inputs=[Stack.Input("stack", tooltip="The list from Cascade LoRA Stack."), *model_inputs()],
            outputs=model_outputs(),
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(
        cls,
        stack: Any,
        prior: io.Model.Type | None = None,
        decoder: io.Model.Type | None = None,
        clip: io.Clip.Type | None = None,
    ) -> io.NodeOutput:
        return apply_choices(list(stack), Targets(prior, decoder, clip), APPLY, cls.hidden.unique_id)


class CascadeStudioLoadHookLora(FileInputs, io.ComfyNode):
    ROLES = ("lora",)

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="CascadeStudio_LoadHookLora",
            display_name=HOOK,
            category=CATEGORY,
            description=(
                "A LoRA as hooks: it acts on the prompts that it is attached to, and with keyframes on a part of "
                "the steps. Attach it with the host's hook nodes."
            ),
            search_aliases=["stable cascade", "hook lora", "scheduled lora", "regional lora"],
            inputs=[
                io.Model.Input("model", tooltip="The model it is made for (Stage C or Stage B); it is not changed."),
                *choice_inputs(),
                io.Clip.Input("clip", optional=True, tooltip="The text encoder, for LoRAs that change it."),
                io.Hooks.Input("prev_hooks", optional=True, tooltip="Hooks to keep beside this one."),
            ],
            outputs=[
                io.Hooks.Output(
                    "hooks",
                    display_name="hooks",
                    tooltip=("For Cond Set Props, Set CLIP Hooks and Set Hook Keyframes."),
                ),
                report_output(),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(
        cls,
        model: io.Model.Type,
        lora: str,
        strength_model: float,
        strength_clip: float,
        clip: io.Clip.Type | None = None,
        prev_hooks: io.Hooks.Type | None = None,
    ) -> io.NodeOutput:
        wired = Targets.of_model(model, clip, HOOK)
        found = read_and_match(lora, wired)
        report = found.report.text()
        show_text(report, cls.hidden.unique_id)
        return io.NodeOutput(
            make_hook(found, wired, strength_model, strength_clip, prev_hooks), report, ui=ui.PreviewText(report)
        )


class CascadeStudioConvertLora(FileInputs, io.ComfyNode):
    ROLES = ("lora",)

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="CascadeStudio_ConvertLora",
            display_name=CONVERT,
            category=CATEGORY,
            description="Writes a LoRA in another layout: for ComfyUI's own loader, for kohya's tools or for the "
            "official code.",
            search_aliases=["stable cascade", "lora converter", "export lora", "kohya"],
            inputs=[
                lora_input(),
                io.Model.Input(
                    "model", tooltip="The model that the LoRA is for (Stage C or Stage B); it is not changed."
                ),
                io.Combo.Input(
                    "layout",
                    options=list(LAYOUTS),
                    tooltip=(
                        "ComfyUI: works in every LoRA loader. kohya: older names. official: attention layers only."
                    ),
                ),
                prefix_input("loras/converted"),
                io.Clip.Input(
                    "clip", optional=True, tooltip="The text encoder; without it, changes to it are left out."
                ),
            ],
            outputs=[name_output(), report_output()],
            hidden=[io.Hidden.unique_id, io.Hidden.prompt],
            is_output_node=True,
        )

    @classmethod
    def execute(
        cls, lora: str, model: io.Model.Type, layout: str, filename_prefix: str, clip: io.Clip.Type | None = None
    ) -> io.NodeOutput:
        path, wired = next_path(fill_prefix(filename_prefix, cls.hidden.prompt)), Targets.of_model(model, clip, CONVERT)
        found = read_and_match(lora, wired)
        tensors, metadata = to_layout(found, layout, wired.shapes().get(found.stage, {}))
        return save_lora(path, tensors, metadata, found.report.text(), cls.hidden.unique_id)


class CascadeStudioExtractLora(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="CascadeStudio_ExtractLora",
            display_name=EXTRACT,
            category=CATEGORY,
            description="Writes the difference of two models as a LoRA: the best of each layer that the rank can hold.",
            search_aliases=["stable cascade", "lora extract", "svd", "difference"],
            inputs=[
                io.Model.Input("tuned", tooltip="The trained or merged model, LoRAs on its wire included."),
                io.Model.Input("base", tooltip="The model to compare it with, of the same stage and size."),
                io.Int.Input("rank", default=32, min=1, max=4096, tooltip="The most that is kept of each layer."),
                io.Float.Input(
                    "energy",
                    default=1.0,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    tooltip=("Below 1, each layer gets the lowest rank that keeps this share of its change."),
                ),
                io.Combo.Input(
                    "layers",
                    options=list(SCOPES),
                    default=MATRICES,
                    tooltip=(
                        "attention gives small files that also fit the official layout; biases and norms are kept "
                        "whole."
                    ),
                ),
                io.Combo.Input(
                    "dtype", options=["fp16", "bf16", "fp32"], default="fp16", tooltip="Number format of the file."
                ),
                prefix_input("loras/extracted"),
            ],
            outputs=[name_output(), report_output()],
            hidden=[io.Hidden.unique_id, io.Hidden.prompt],
            is_output_node=True,
        )

    @classmethod
    def execute(
        cls,
        tuned: io.Model.Type,
        base: io.Model.Type,
        rank: int,
        energy: float,
        layers: str,
        dtype: str,
        filename_prefix: str,
    ) -> io.NodeOutput:
        path = next_path(fill_prefix(filename_prefix, cls.hidden.prompt))
        tensors, found = merge.extract_lora(tuned, base, rank, energy, layers, DTYPES[dtype], EXTRACT)
        return save_lora(path, tensors, {"format": "pt"}, found.text(), cls.hidden.unique_id)


def save_lora(
    path: Path, tensors: Mapping[str, Any], metadata: Mapping[str, str], report: str, node: str | None
) -> io.NodeOutput:
    """Write a LoRA, and show where and what."""
    write_model(path, tensors, metadata)
    report = f"Saved as {path.name}\n{report}"
    show_text(report, node)
    return io.NodeOutput(names.name_in_lists(path), report, ui=ui.PreviewText(report))


NODES = [
    CascadeStudioLoadLora,
    CascadeStudioLoraStack,
    CascadeStudioApplyLoraStack,
    CascadeStudioLoadHookLora,
    CascadeStudioConvertLora,
    CascadeStudioExtractLora,
]
