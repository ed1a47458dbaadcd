"""Prompts: weights that act, long prompts in parts, averages, and prompts for a region of the picture."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from .host.conditioning import embeddings, prompt_weights, region_prompts

CATEGORY = "Cascade Studio/conditioning"
ENCODE, REGION = "Encode Prompt", "Regional Prompt"


class CascadeStudioEncodePrompt(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="CascadeStudio_EncodePrompt",
            display_name=ENCODE,
            category=CATEGORY,
            description=(
                "Encodes a prompt for both stages with weights that act on the Stable Cascade text encoder: "
                "(word:1.3), BREAK for parts and AVG for the average of prompts. Without them it gives exactly "
                "what CLIP Text Encode gives."
            ),
            search_aliases=[
                "stable cascade",
                "clip text encode",
                "prompt weight",
                "emphasis",
                "break",
                "average",
                "long prompt",
            ],
            inputs=[
                io.Clip.Input("clip", tooltip="The text encoder (clip) of Load Stable Cascade."),
                io.String.Input(
                    "text",
                    multiline=True,
                    dynamic_prompts=True,
                    default="",
                    tooltip=(
                        "The prompt. (word:1.3) strengthens and (word:0.7) weakens words, BREAK starts a new part of "
                        "77 tokens, and AVG averages two prompts, as in: a cat AVG a dog:0.5."
                    ),
                ),
                io.Combo.Input(
                    "weighting",
                    options=list(prompt_weights.METHODS),
                    default=prompt_weights.CONTRAST,
                    tooltip=(
                        "contrast moves the whole embedding away from the prompt without the words, for both stages; "
                        "attention lets Stage C hear the words that many times; comfyui is the host's own way."
                    ),
                ),
                io.Combo.Input(
                    "pooled",
                    options=list(prompt_weights.POOLED),
                    default=prompt_weights.FIRST,
                    advanced=True,
                    tooltip=(
                        "Which parts of a long prompt make the pooled text, which is all that Stage B "
                        "hears: the first one, as in ComfyUI, or the mean of all."
                    ),
                ),
            ],
            outputs=[
                io.Conditioning.Output(
                    "conditioning",
                    display_name="conditioning",
                    tooltip=("For positive or negative of both samplers, and for Regional Prompt."),
                )
            ],
        )

    @classmethod
    def fingerprint_inputs(cls, text: str | None = None, **_: Any) -> str:
        """A hash of the embedding files that the text names."""
        return embeddings.stamp_embeddings(text)

    @classmethod
    def execute(cls, clip: io.Clip.Type, text: str, weighting: str, pooled: str) -> io.NodeOutput:
        return io.NodeOutput(prompt_weights.encode_text(clip, text, weighting, pooled, ENCODE))


class CascadeStudioRegionalPrompt(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="CascadeStudio_RegionalPrompt",
            display_name=REGION,
            category=CATEGORY,
            description=(
                "Gives a part of the picture its own prompt, in one pass: every cell of Stage C hears the "
                "prompts of the regions it lies in. Chain several for several regions."
            ),
            search_aliases=[
                "stable cascade",
                "regional prompting",
                "attention mask",
                "area prompt",
                "attention couple",
            ],
            inputs=[
                io.Conditioning.Input(
                    "conditioning",
                    tooltip=("The prompt of the whole picture, or the output of another Regional Prompt."),
                ),
                io.Conditioning.Input(
                    "region",
                    tooltip=("The prompt of the region, with image prompts and ControlNets of its own if you like."),
                ),
                io.Mask.Input("mask", tooltip="Where the region is. Grey counts partly; any size is fitted."),
                io.Float.Input(
                    "strength",
                    default=1.0,
                    min=0.0,
                    max=8.0,
                    step=0.05,
                    round=0.001,
                    tooltip=("How loudly the region hears its prompt beside the others; 0 leaves the region out."),
                ),
                io.Boolean.Input(
                    "keep_base",
                    default=True,
                    tooltip=(
                        "Whether all regions hear the prompt of the whole picture as well. The last node of a chain "
                        "decides for all of it."
                    ),
                ),
            ],
            outputs=[
                io.Conditioning.Output(
                    "conditioning",
                    display_name="conditioning",
                    tooltip=("For positive of Sample Stage C; Stage B uses the prompt of the whole picture in it."),
                )
            ],
        )

    @classmethod
    def execute(
        cls,
        conditioning: io.Conditioning.Type,
        region: io.Conditioning.Type,
        mask: io.Mask.Type,
        strength: float,
        keep_base: bool,
    ) -> io.NodeOutput:
        return io.NodeOutput(region_prompts.add_region(conditioning, region, mask, strength, keep_base, REGION))


NODES = [CascadeStudioEncodePrompt, CascadeStudioRegionalPrompt]
