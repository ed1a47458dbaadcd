"""ControlNets: loading them, and applying them to the prompts of Stage C."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..stages.inputs.control_rules import BlockWeights, parse_curve
from .file_inputs import FileLoader, file_input, missing_input
from .host.conditioning.control_chain import apply_control
from .host.conditioning.controlnet import load_control
from .host.models.load import AUTO, ModelPart
from .inputs import fraction_input, strength_input

CATEGORY = "Cascade Studio/control"


class CascadeStudioLoadControlNet(FileLoader, io.ComfyNode):
    ROLES = ("controlnet",)

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="CascadeStudio_LoadControlNet",
            display_name="Load Cascade ControlNet",
            category=CATEGORY,
            description=(
                "Loads a ControlNet of Stable Cascade: canny, inpainting, super-resolution or the identity "
                "layout. The published ones belong to the full Stage C (3.6B)."
            ),
            search_aliases=["stable cascade", "controlnet loader", "canny", "inpaint", "super resolution"],
            inputs=[
                file_input("controlnet", "canny, inpainting or super_resolution, from models/controlnet."),
                io.Combo.Input(
                    "dtype",
                    options=[AUTO, "fp32", "bf16", "fp16"],
                    default=AUTO,
                    advanced=True,
                    tooltip=(
                        "Number format it computes in. auto follows this machine, as for the VAEs. It runs "
                        "once for each picture, so that fp32 costs little."
                    ),
                ),
                missing_input(),
            ],
            hidden=[io.Hidden.unique_id],
            outputs=[
                io.ControlNet.Output(
                    "control_net",
                    display_name="control_net",
                    tooltip=("For ControlNet for Cascade, or the core Apply ControlNet node."),
                )
            ],
        )

    @classmethod
    def load(cls, parts: dict[str, ModelPart | None], dtype: str) -> tuple[Any, ...]:
        return (load_control(parts["controlnet"], dtype),)


def factor_input(name: str, half: str) -> io.Float.Input:
    """How much more, or less, one half of the blocks hears of the hint."""
    return io.Float.Input(
        name,
        default=1.0,
        min=-10.0,
        max=10.0,
        step=0.05,
        round=0.001,
        advanced=True,
        tooltip=f"Extra factor in the {half} half of Stage C's blocks.",
    )


class CascadeStudioApplyControl(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="CascadeStudio_ApplyControl",
            display_name="ControlNet for Cascade",
            category=CATEGORY,
            description=(
                "Lets a hint steer Stage C, as strongly, in that part of the run and in those blocks that you "
                "choose. Chain several of these for several hints."
            ),
            search_aliases=["stable cascade", "controlnet", "apply controlnet", "block weights"],
            inputs=[
                io.Conditioning.Input("positive", tooltip="The prompt."),
                io.Conditioning.Input("negative", tooltip="The negative prompt; it gets the same hint, as officially."),
                io.ControlNet.Input("control_net", tooltip="From Load Cascade ControlNet, or a core loader."),
                io.Image.Input("image", tooltip="The hint that belongs to this ControlNet, from its hint node."),
                strength_input(
                    "strength", "How strongly the hint is followed; 1 officially, 0 leaves the ControlNet out."
                ),
                fraction_input("start_percent", 0.0, "Part of the run after which it begins to act."),
                fraction_input(
                    "end_percent", 1.0, "Part of the run after which it no longer acts. Composition is settled early."
                ),
                factor_input("early", "first"),
                factor_input("late", "second"),
                io.String.Input(
                    "block_weights",
                    default="",
                    advanced=True,
                    tooltip=(
                        "Factors from the first block to the last, such as '1, 0.5, 0', with straight lines between "
                        "them. Empty is 1 everywhere."
                    ),
                ),
                io.Mask.Input(
                    "mask",
                    optional=True,
                    tooltip=("Where the hint acts, on both prompts; everywhere without one. Grey acts partly."),
                ),
            ],
            outputs=[
                io.Conditioning.Output("positive", display_name="positive", tooltip="The prompt with the hint."),
                io.Conditioning.Output(
                    "negative", display_name="negative", tooltip=("The negative prompt with the hint.")
                ),
            ],
        )

    @classmethod
    def execute(
        cls,
        positive: io.Conditioning.Type,
        negative: io.Conditioning.Type,
        control_net: io.ControlNet.Type,
        image: io.Image.Type,
        strength: float,
        start_percent: float,
        end_percent: float,
        early: float,
        late: float,
        block_weights: str,
        mask: io.Mask.Type | None = None,
    ) -> io.NodeOutput:
        weights = BlockWeights(early, late, parse_curve(block_weights))
        return io.NodeOutput(
            *apply_control(
                positive, negative, control_net, image, strength, (start_percent, end_percent), weights, mask
            )
        )


NODES = [CascadeStudioLoadControlNet, CascadeStudioApplyControl]
