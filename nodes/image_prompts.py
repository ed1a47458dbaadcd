"""Image prompts: pictures that Stage C hears beside the words, or is pushed away from."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io, ui

from ..stages.inputs.image_prompts import CENTRE, CROPS, MOST
from .host.conditioning import image_prompts
from .inputs import fraction_input

CATEGORY = "Cascade Studio/conditioning"
WHERE = "Cascade Image Prompts"


def picture_inputs() -> list[io.Input]:
    """Eight pictures with their weights; the first picture has to be there."""
    inputs: list[io.Input] = []
    for number in range(1, MOST + 1):
        inputs.append(
            io.Image.Input(
                f"image_{number}",
                optional=number > 1,
                tooltip=(
                    "A picture to take subject and style from. A batch counts as several."
                    if number == 1
                    else f"Picture {number}, if you want one."
                ),
            )
        )
        inputs.append(
            io.Float.Input(
                f"weight_{number}",
                default=1.0,
                min=-5.0,
                max=5.0,
                step=0.05,
                round=0.001,
                tooltip=(
                    f"How loud picture {number} is; 1 officially, 0 leaves it out. Below 0 it goes into the negative "
                    "prompt, which pushes the result away from it."
                ),
            )
        )
    return inputs


class CascadeStudioImagePrompts(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="CascadeStudio_ImagePrompts",
            display_name=WHERE,
            category=CATEGORY,
            description=(
                "Adds one to eight pictures to the prompt of Stage C. One picture and an empty prompt make "
                "the official image variations."
            ),
            search_aliases=["stable cascade", "image prompt", "image variation", "unclip", "clip vision", "ip adapter"],
            inputs=[
                io.Conditioning.Input("positive", tooltip="The prompt; an empty one for pure variations."),
                io.Conditioning.Input("negative", tooltip="The negative prompt; gets the pictures of negative weight."),
                io.ClipVision.Input("clip_vision", tooltip="From Load Stable Cascade."),
                *picture_inputs(),
                io.Combo.Input(
                    "crop",
                    options=list(CROPS),
                    default=CENTRE,
                    tooltip=(
                        "What CLIP sees of a picture that is not square: its centre (officially), all of it with "
                        "borders, or all of it squashed."
                    ),
                ),
                io.Float.Input(
                    "text_weight",
                    default=1.0,
                    min=0.0,
                    max=2.0,
                    step=0.05,
                    round=0.001,
                    tooltip=(
                        "How loud the words are beside the pictures: 0 is the empty prompt. Other values than 1 need "
                        "the 'clip' input."
                    ),
                ),
                fraction_input(
                    "start_percent",
                    0.0,
                    "Part of the run after which the pictures are heard; before it only the words.",
                    advanced=True,
                ),
                fraction_input(
                    "end_percent", 1.0, "Part of the run after which the pictures are no longer heard.", advanced=True
                ),
                io.Clip.Input(
                    "clip", optional=True, tooltip=("The text encoder; needed only for another text weight than 1.")
                ),
            ],
            outputs=[
                io.Conditioning.Output("positive", display_name="positive", tooltip="The prompt with the pictures."),
                io.Conditioning.Output(
                    "negative",
                    display_name="negative",
                    tooltip=("The negative prompt, with the pictures of negative weight."),
                ),
            ],
        )

    @classmethod
    def execute(
        cls,
        positive: io.Conditioning.Type,
        negative: io.Conditioning.Type,
        clip_vision: io.ClipVision.Type,
        crop: str,
        text_weight: float,
        start_percent: float,
        end_percent: float,
        clip: io.Clip.Type | None = None,
        **pictures: Any,
    ) -> io.NodeOutput:
        numbers = range(1, MOST + 1)
        images = (pictures.get(f"image_{n}") for n in numbers)
        given = (pictures.get(f"weight_{n}", 1.0) for n in numbers)
        found, weights = image_prompts.prepare_pictures(clip_vision, images, given, crop, WHERE)
        prompts = image_prompts.add_pictures(
            positive, negative, clip_vision, found, weights, (start_percent, end_percent), (text_weight, clip), WHERE
        )
        shown = image_prompts.show_pictures(found)
        return io.NodeOutput(*prompts, ui=None if shown is None else ui.PreviewImage(shown))


NODES = [CascadeStudioImagePrompts]
