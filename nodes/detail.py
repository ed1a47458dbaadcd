"""Parts of a picture painted anew at the model's best size."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..stages.diffusion.sampling import Guidance
from ..stages.errors import WrongInput
from ..stages.inputs import inpaint, pictures, segments
from .host.conditioning.prompt_weights import encode_text
from .host.sampling import notes, repaint
from .host.sampling.sample import StageRun
from .inputs import fraction_input, part_inputs, threshold_input
from .sampling_inputs import decoder_inputs, denoise_input, schedule_inputs, seed_input, step_input

CATEGORY = "Cascade Studio/high resolution"
DETAILER = "Detailer for Cascade"
BEST = 0
"""The target size that stands for the size that Stage C was trained on."""
FALLBACK_SIDE = 1024
KEEP = 0.0
"""A part is to be painted anew; what is only to become sharper says 1, with a low denoise."""
LEAST_MULTIPLE = 8


def detail_inputs() -> list[io.Input]:
    """The models of a picture's way through all stages, and the prompts."""
    return [
        io.Model.Input("prior", tooltip="Stage C, with the LoRAs that the new parts are to follow."),
        io.Model.Input("decoder", tooltip="Stage B."),
        io.Vae.Input("stage_a", tooltip="The Stage A output of Load Stable Cascade."),
        io.Vae.Input("stage_c_vae", tooltip="The Stage C VAE output of Load Stable Cascade (image encoder)."),
        io.Conditioning.Input(
            "positive", tooltip="What the parts show. The hints of its ControlNets are cropped with each part."
        ),
        io.Conditioning.Input("negative", tooltip="What they should not show."),
        seed_input(),
    ]


class CascadeStudioDetailer(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="CascadeStudio_Detailer",
            display_name=DETAILER,
            category=CATEGORY,
            description=(
                "Paints marked parts of a picture anew, each at the size that Stable Cascade works best at, and pastes "
                "them back. Every pixel that no mask and no feather reaches keeps exactly its old value."
            ),
            search_aliases=["stable cascade", "detailer", "face detailer", "adetailer", "segs", "inpaint", "faces"],
            inputs=[
                io.Image.Input("image", tooltip="A picture of any size, or a batch."),
                *detail_inputs(),
                fraction_input(
                    "denoise",
                    0.5,
                    (
                        "How far Stage C may go from what is there: 0.3 sharpens it, 0.7 gives it another face, 1 "
                        "something new. 0 leaves Stage C out, and Stage B paints what it sees."
                    ),
                ),
                *schedule_inputs("stage_c"),
                step_input(),
                *decoder_inputs(),
                denoise_input(
                    "decoder_denoise",
                    tooltip="Less than 1 lets Stage B start from the part as it is, with that much noise.",
                    advanced=True,
                ),
                fraction_input(
                    "keep_source",
                    KEEP,
                    "How much of the part's own shapes and colours, as it shows them at half its size, comes back "
                    "once it is painted. 1 is for blurred or grainy parts, 0 for something new.",
                ),
                *part_inputs(
                    2.0,
                    io.Int.Input(
                        "target_size",
                        default=BEST,
                        min=BEST,
                        max=4096,
                        step=64,
                        advanced=True,
                        tooltip=(
                            "A part is worked on at about the area of a square with this side; 0 takes the model's "
                            "best size."
                        ),
                    ),
                ),
                threshold_input(),
                io.Boolean.Input(
                    "each_spot",
                    default=True,
                    advanced=True,
                    tooltip=(
                        "Spots of the mask that lie apart are parts of their own. Off makes the whole mask one part."
                    ),
                ),
                io.String.Input(
                    "prompts",
                    multiline=True,
                    default="",
                    tooltip=(
                        "A prompt for each part, one a line, in the order of the list, or of the mask's spots from the "
                        "top. An empty or absent line takes 'positive'. Needs 'clip'."
                    ),
                ),
                io.Mask.Input(
                    "mask",
                    optional=True,
                    tooltip="White where to work; one for all pictures, or one each. With segments, a limit to them.",
                ),
                io.AnyType.Input(
                    "segments",
                    optional=True,
                    tooltip="What a detector found, each a part of its own: SEGS, or boxes in pixels.",
                ),
                io.Clip.Input("clip", optional=True, tooltip="The text encoder, for 'prompts'."),
            ],
            outputs=[
                io.Image.Output("image", display_name="image", tooltip="The picture with its new parts."),
                io.Mask.Output(
                    "mask", display_name="mask", tooltip="Where it may have changed, feather included; 0 elsewhere."
                ),
            ],
        )

    @classmethod
    def execute(
        cls,
        image: io.Image.Type,
        prior: Any,
        decoder: Any,
        stage_a: Any,
        stage_c_vae: Any,
        positive: Any,
        negative: Any,
        seed: int,
        denoise: float,
        steps: int,
        cfg: float,
        shift: float,
        sampler: str,
        decoder_steps: int,
        decoder_cfg: float,
        decoder_shift: float,
        decoder_denoise: float,
        keep_source: float,
        context: float,
        grow: int,
        feather: int,
        target_size: int,
        threshold: float,
        each_spot: bool,
        prompts: str,
        mask: io.Mask.Type | None = None,
        segments: Any = None,
        clip: Any = None,
    ) -> io.NodeOutput:
        models = repaint.Models(prior, decoder, stage_a, stage_c_vae)
        models.check(DETAILER)
        image = pictures.check_pictures(image, DETAILER)
        cut = make_cut(prior, context, grow, feather, target_size, threshold)
        job = repaint.Detailing(
            models,
            StageRun("Stage C", steps, shift, Guidance(cfg), seed, sampler, denoise),
            StageRun("Stage B", decoder_steps, decoder_shift, Guidance(decoder_cfg), seed, sampler, decoder_denoise),
            cut,
            keep_source,
        )
        found = find_segments(image, mask, segments, cut, each_spot)
        own = encode_lines(clip, prompts)
        result, changed = repaint.detail_pictures(job, image, found, repaint.Prompts(positive, negative), own)
        told = [] if changed.any() else [f"{DETAILER} found nothing marked, so the picture is as it was."]
        return io.NodeOutput(result, changed, ui=notes.show_notes(told))


def make_cut(
    prior: Any, context: float, grow: int, feather: int, target_size: int, threshold: float
) -> inpaint.CropSettings:
    """How to cut parts that are worked on at ``target_size``, or at the size that ``prior`` knows best."""
    target = target_size or notes.read_native_side(prior) or FALLBACK_SIDE
    multiple = max(LEAST_MULTIPLE, target // 64 * 8)  # an eighth of the side: 128 px at 1024
    return inpaint.CropSettings(context, grow, feather, target, multiple, threshold)


def find_segments(
    image: Any, mask: Any, given: Any, cut: inpaint.CropSettings, each_spot: bool
) -> list[segments.Segments]:
    """The segments of each picture: those of a list, within the mask where there is one, or the spots of the mask.

    Raises :class:`WrongInput` where neither is given, and for an empty mask.
    """
    count, height, width = image.shape[:3]
    marked = None if mask is None else inpaint.prepare_mask(mask, image, cut, DETAILER)
    if given is not None:
        listed = segments.read_segments(given, height, width, DETAILER)
        limits = [None] * count if marked is None else [marked[index % len(marked)] for index in range(count)]
        return [segments.limit_segments(listed, limit, cut.threshold) for limit in limits]
    if marked is None:
        raise WrongInput(
            f"{DETAILER} was given neither a mask nor segments, so it does not know where to work. Wire a mask into "
            "'mask', or a detector's SEGS or boxes into 'segments'."
        )
    reach = cut.grow + cut.feather
    each = [segments.split_mask(one, reach, DETAILER) if each_spot else segments.trim(one) for one in marked]
    return each if len(each) == count else each * count


def encode_lines(clip: Any, prompts: str) -> list[Any]:
    """The conditioning of each line, None for an empty one. Raises :class:`WrongInput` for lines without ``clip``."""
    lines = [line.strip() for line in prompts.splitlines()] if prompts.strip() else []
    if lines and clip is None:
        raise WrongInput(
            f"{DETAILER} was given prompts for its parts, but nothing to encode them. Wire the 'clip' output of Load "
            "Stable Cascade into 'clip', or empty 'prompts'."
        )
    return [encode_text(clip, line, where=DETAILER) if line else None for line in lines]


NODES = [CascadeStudioDetailer]
