"""Conditioning for Stage B when a core sampler runs it."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from .host import latents
from .host.sampling import notes

CATEGORY = "Cascade Studio/conditioning"
WHERE = "Cascade Decoder Conditioning"


class CascadeStudioDecoderConditioning(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="CascadeStudio_DecoderConditioning",
            display_name=WHERE,
            category=CATEGORY,
            description=(
                "Hands the Stage C latent to Stage B for core samplers such as KSampler: the prompt gets the "
                "latent, the negative prompt an empty one, as officially. Sample Stage B does this itself."
            ),
            search_aliases=["stable cascade", "stage b conditioning"],
            inputs=[
                io.Conditioning.Input("positive", tooltip="The prompt of Stage C."),
                io.Conditioning.Input("negative", tooltip="The negative prompt; an empty prompt officially."),
                io.Latent.Input("prior", tooltip="The Stage C latent."),
                io.Model.Input(
                    "model",
                    optional=True,
                    tooltip=(
                        "The Stage B model that will be sampled: gives the picture its size where core's sampler ran "
                        "a Stage C with cells of its own, such as Cascade Mini."
                    ),
                ),
            ],
            outputs=[
                io.Conditioning.Output("positive", display_name="positive", tooltip="The prompt with the latent."),
                io.Conditioning.Output("negative", display_name="negative", tooltip="Without the latent."),
                io.Latent.Output("latent", display_name="Stage B latent", tooltip="An empty latent of the right size."),
            ],
        )

    @classmethod
    def execute(cls, positive: Any, negative: Any, prior: dict[str, Any], model: Any = None) -> io.NodeOutput:
        if model is not None:
            latents.check_model(model, "Stage B", WHERE)
        compression = None if model is None else notes.read_native_compression(model)
        canvas = latents.find_prior_canvas(prior, WHERE, compression)
        codes = latents.expect_finished_prior(prior, WHERE)
        return io.NodeOutput(
            latents.attach_prior(positive, codes),
            latents.attach_prior(negative, codes.new_zeros(codes.shape)),
            latents.make_empty_decoder(canvas, codes.shape[0]),
        )


NODES = [CascadeStudioDecoderConditioning]
