"""The inputs and outputs that the LoRA nodes share."""

from __future__ import annotations

from comfy_api.latest import io

from .host.files import names


def lora_input() -> io.Combo.Input:
    """The LoRA's file."""
    return io.Combo.Input(
        "lora",
        options=names.Library().list_names("lora"),
        extra_dict={"file": "lora"},
        tooltip=("A LoRA for Stable Cascade in any layout: official, kohya, OneTrainer, diffusers, PEFT or ComfyUI."),
    )


def strength_input(name: str, what: str) -> io.Float.Input:
    """A strength ``name``; ``what`` is what it changes."""
    return io.Float.Input(
        name,
        default=1.0,
        min=-20.0,
        max=20.0,
        step=0.05,
        tooltip=(f"How strongly {what} changes; 0 leaves it exactly as it is, below 0 it goes the other way."),
    )


def tokens_input() -> io.String.Input:
    """New tokens of official LoRAs, which their files do not name."""
    return io.String.Input(
        "tokens",
        default="",
        multiline=True,
        optional=True,
        advanced=True,
        tooltip=(
            "For official LoRAs with new tokens: one word a line for the prompt and the word that its training started "
            "from, as in [fernando] = ^dog</w>. Leave it empty if the report shows no new tokens."
        ),
    )


def choice_inputs() -> list[io.Input]:
    """A LoRA's file and its two strengths."""
    return [
        lora_input(),
        strength_input("strength_model", "Stage C or Stage B"),
        strength_input("strength_clip", "the text encoder"),
    ]


def model_inputs() -> list[io.Input]:
    """What a LoRA may be put on, all optional."""
    return [
        io.Model.Input("prior", optional=True, tooltip="Stage C, for LoRAs of Stage C."),
        io.Model.Input("decoder", optional=True, tooltip="Stage B, for LoRAs of Stage B."),
        io.Clip.Input("clip", optional=True, tooltip="The text encoder, for LoRAs that change it or bring new words."),
    ]


def model_outputs() -> list[io.Output]:
    """The same with the LoRA, and the report."""
    return [
        io.Model.Output("prior", display_name="prior", tooltip="Stage C with the LoRA; nothing if none is wired."),
        io.Model.Output("decoder", display_name="decoder", tooltip="Stage B with the LoRA; nothing if none is wired."),
        io.Clip.Output(
            "clip", display_name="clip", tooltip="The text encoder with the LoRA; nothing if none is wired."
        ),
        report_output(),
    ]


def report_output() -> io.String.Output:
    """What of the file is used."""
    return io.String.Output(
        "report",
        display_name="report",
        tooltip=("What of the file is used and what is not, its rank, and what it was trained on."),
    )


def prefix_input(default: str) -> io.String.Input:
    """The name of what is saved."""
    return io.String.Input(
        "filename_prefix",
        default=default,
        tooltip=(
            "Name in the output folder; a number is added and nothing is overwritten. Files in output/loras are "
            "in the lists."
        ),
    )


def name_output() -> io.String.Output:
    """The name of what was saved."""
    return io.String.Output("name", display_name="name", tooltip="The name of the new file, as loaders list it.")
