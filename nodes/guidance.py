"""Guidance that acts on Stable Cascade's own networks, and attention in windows."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from .host.sampling import guidance
from .inputs import fraction_input

CATEGORY = "Cascade Studio/guidance"
PERTURBED, SELF, ZERO, WINDOWS = (
    "Perturbed-Attention Guidance",
    "Self-Attention Guidance",
    "CFG-Zero Star",
    "Tiled Attention",
)


def model_input() -> io.Model.Input:
    """The model that guidance is put on."""
    return io.Model.Input("model", tooltip="The prior (Stage C) or the decoder (Stage B) of Load Stable Cascade.")


def model_output() -> io.Model.Output:
    """The model with the guidance on it."""
    return io.Model.Output("model", display_name="model", tooltip="The model for our samplers or for core's.")


def range_inputs() -> list[io.Input]:
    """The part of the run in which a guidance acts."""
    return [
        fraction_input(
            name, default, f"Part of the run at which it {word}; 0 is the noise, 1 the finished picture.", advanced=True
        )
        for name, default, word in (("start", 0.0, "begins"), ("end", 1.0, "ends"))
    ]


class CascadeStudioPerturbedAttention(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="CascadeStudio_PerturbedAttention",
            display_name=PERTURBED,
            category=CATEGORY,
            description=(
                "Guides the picture away from what the model makes when its cells cannot see each other: "
                "clearer structure, at the price of one more pass a step."
            ),
            search_aliases=["stable cascade", "pag", "perturbed attention"],
            inputs=[
                model_input(),
                io.Float.Input(
                    "scale",
                    default=2.0,
                    min=0.0,
                    max=100.0,
                    step=0.1,
                    round=0.01,
                    tooltip="How strongly; 0 changes nothing and costs nothing. 1 to 4 is usual.",
                ),
                io.Combo.Input(
                    "blocks",
                    options=list(guidance.BLOCKS),
                    default=guidance.MIDDLE,
                    advanced=True,
                    tooltip=("Which attentions are taken out for comparison: more of them act more strongly."),
                ),
                *range_inputs(),
                io.Float.Input(
                    "rescale",
                    default=0.0,
                    min=0.0,
                    max=1.0,
                    step=0.05,
                    round=0.01,
                    advanced=True,
                    tooltip=("How much of the contrast is taken back to that of the prompt's own prediction."),
                ),
            ],
            outputs=[model_output()],
        )

    @classmethod
    def execute(cls, model: Any, scale: float, blocks: str, start: float, end: float, rescale: float) -> io.NodeOutput:
        guidance.check_own(model, PERTURBED)
        return io.NodeOutput(guidance.patch_perturbed_attention(model, scale, blocks, start, end, rescale))


class CascadeStudioSelfAttentionGuidance(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="CascadeStudio_SelfAttentionGuidance",
            display_name=SELF,
            category=CATEGORY,
            description=(
                "Blurs the picture where the model looks at most, and guides it away from that: more detail in "
                "what matters, at the price of one more pass a step."
            ),
            search_aliases=["stable cascade", "sag", "self attention"],
            inputs=[
                model_input(),
                io.Float.Input(
                    "scale",
                    default=0.5,
                    min=-2.0,
                    max=5.0,
                    step=0.05,
                    round=0.01,
                    tooltip="How strongly; 0 changes nothing. Negative values soften the picture.",
                ),
                io.Float.Input(
                    "blur",
                    default=1.0,
                    min=0.0,
                    max=10.0,
                    step=0.1,
                    round=0.01,
                    tooltip=("Width of the blur in cells; about 1 for Stage C, 2 to 4 for Stage B."),
                ),
                io.Float.Input(
                    "threshold",
                    default=1.0,
                    min=0.0,
                    max=10.0,
                    step=0.05,
                    round=0.01,
                    advanced=True,
                    tooltip=(
                        "How much more than the average a cell has to be looked at to be blurred; 0 "
                        "blurs all of the picture."
                    ),
                ),
                *range_inputs(),
            ],
            outputs=[model_output()],
        )

    @classmethod
    def execute(
        cls, model: Any, scale: float, blur: float, threshold: float, start: float, end: float
    ) -> io.NodeOutput:
        guidance.check_own(model, SELF)
        return io.NodeOutput(guidance.patch_self_attention(model, scale, blur, threshold, start, end))


class CascadeStudioCFGZero(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="CascadeStudio_CFGZero",
            display_name=ZERO,
            category=CATEGORY,
            description=(
                "Scales the negative prediction so that it comes as near to the positive one as it can before "
                "both are combined: fewer burnt colours at high guidance. It costs nothing."
            ),
            search_aliases=["stable cascade", "cfg zero", "guidance", "optimised scale"],
            inputs=[
                model_input(),
                io.Float.Input(
                    "strength",
                    default=1.0,
                    min=0.0,
                    max=1.0,
                    step=0.05,
                    round=0.01,
                    tooltip="How much of the scaling is applied; 0 leaves the guidance as it is.",
                ),
                io.Int.Input(
                    "zero_steps",
                    default=0,
                    min=0,
                    max=100,
                    advanced=True,
                    tooltip=(
                        "First steps in which the model is not heard at all, as the paper does for about one step in "
                        "twenty-five. 0 leaves none out."
                    ),
                ),
            ],
            outputs=[model_output()],
        )

    @classmethod
    def execute(cls, model: Any, strength: float, zero_steps: int) -> io.NodeOutput:
        guidance.check_own(model, ZERO)
        return io.NodeOutput(guidance.patch_cfg_zero(model, strength, zero_steps))


class CascadeStudioTiledAttention(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="CascadeStudio_TiledAttention",
            display_name=WINDOWS,
            category=CATEGORY,
            description=(
                "Lets the cells of large pictures see only those of their own window, and all of the prompt: "
                "faster, and Stage C repeats itself less on grids larger than it learned."
            ),
            search_aliases=["stable cascade", "hypertile", "window attention", "high resolution"],
            inputs=[
                model_input(),
                io.Int.Input(
                    "window",
                    default=32,
                    min=0,
                    max=512,
                    tooltip=(
                        "Cells a side that see each other. Grids up to this size stay whole; 0 leaves all whole. "
                        "Stage C has about one cell for 42 pixels, the levels of Stage B that attend one for 32 and "
                        "for 64."
                    ),
                ),
                io.Boolean.Input(
                    "shift",
                    default=True,
                    advanced=True,
                    tooltip=("Move the windows by half at every second attention, so that their borders do not show."),
                ),
            ],
            outputs=[model_output()],
        )

    @classmethod
    def execute(cls, model: Any, window: int, shift: bool) -> io.NodeOutput:
        guidance.check_own(model, WINDOWS)
        return io.NodeOutput(guidance.patch_windows(model, window, shift))


NODES = [
    CascadeStudioPerturbedAttention,
    CascadeStudioSelfAttentionGuidance,
    CascadeStudioCFGZero,
    CascadeStudioTiledAttention,
]
