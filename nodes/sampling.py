"""The samplers of both stages."""

from __future__ import annotations

from comfy_api.latest import io

from .host import latents
from .host.report import card
from .host.sampling import sample
from .sampling_inputs import (
    denoise_input,
    guidance_inputs,
    make_guidance,
    schedule_inputs,
    seed_input,
    start_inputs,
    step_input,
    variation_inputs,
)

CATEGORY = "Cascade Studio/sampling"
PRIOR, DECODER = "Sample Stage C", "Sample Stage B"


class CascadeStudioSamplePrior(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="CascadeStudio_SamplePrior",
            display_name="Sample Stage C (prior)",
            category=CATEGORY,
            description="Turns the prompt into the small Stage C latent, with the official sampler and guidance.",
            search_aliases=["stable cascade", "prior sampler", "stage c", "ksampler", "wuerstchen"],
            inputs=[
                io.Model.Input("model", tooltip="The prior (Stage C) of Load Stable Cascade."),
                io.Conditioning.Input("positive", tooltip="What the picture should show."),
                io.Conditioning.Input("negative", tooltip="What it should not show; an empty prompt officially."),
                io.Latent.Input("latent", tooltip="The Stage C latent of the canvas, or an encoded picture."),
                seed_input(),
                *schedule_inputs(20, 4.0, 2.0),
                denoise_input(),
                step_input(),
                *guidance_inputs(),
                *start_inputs(),
                *variation_inputs(),
            ],
            outputs=[
                io.Latent.Output(
                    "prior",
                    display_name="prior",
                    tooltip=("The Stage C latent: wire it into Sample Stage B, or look at it with Preview Stage C."),
                )
            ],
        )

    @classmethod
    def execute(
        cls,
        model,
        positive,
        negative,
        latent,
        seed,
        steps,
        cfg,
        shift,
        denoise,
        sampler,
        official_noise=False,
        fewer_steps=False,
        variation_seed=0,
        variation_strength=0.0,
        **guided,
    ) -> io.NodeOutput:
        latents.check_model(model, "Stage C", PRIOR)
        canvas = latents.canvas_of_prior(latent, PRIOR)
        run = sample.Run(
            "Stage C",
            max(1, int(steps * denoise)) if fewer_steps else steps,
            shift,
            make_guidance(cfg, **guided),
            seed,
            sampler,
            denoise,
            official_noise,
            variation_seed,
            variation_strength,
        )
        samples, done = sample.run_reported(model, positive, negative, latent, run)
        result = {**latents.replaced(latent, samples), latents.CANVAS: canvas}
        return io.NodeOutput(card.attach_reports(result, *card.find_reports(latent), done), ui=card.show_report(done))


class CascadeStudioSampleDecoder(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="CascadeStudio_SampleDecoder",
            display_name="Sample Stage B (decoder)",
            category=CATEGORY,
            description="Turns the Stage C latent into the latent that Stage A paints, with the official sampler.",
            search_aliases=["stable cascade", "decoder sampler", "stage b", "ksampler", "wuerstchen"],
            inputs=[
                io.Model.Input("model", tooltip="The decoder (Stage B) of Load Stable Cascade."),
                io.Conditioning.Input("positive", tooltip="The prompt of Stage C."),
                io.Conditioning.Input("negative", tooltip="The negative prompt; an empty prompt officially."),
                io.Latent.Input("prior", tooltip="The latent from Sample Stage C or from Encode for Stage C."),
                seed_input(),
                *schedule_inputs(10, 1.1, 1.0),
                denoise_input(),
                step_input(),
                *guidance_inputs(),
                io.Latent.Input(
                    "latent",
                    optional=True,
                    tooltip=(
                        "A Stage B latent that gives the size, and with denoise below 1 the picture to start from. "
                        "Without it the size follows from the prior."
                    ),
                ),
                *variation_inputs(),
            ],
            outputs=[
                io.Latent.Output(
                    "latent", display_name="latent", tooltip=("The Stage B latent: wire it into Decode Stage A.")
                )
            ],
        )

    @classmethod
    def execute(
        cls,
        model,
        positive,
        negative,
        prior,
        seed,
        steps,
        cfg,
        shift,
        denoise,
        sampler,
        latent=None,
        variation_seed=0,
        variation_strength=0.0,
        **guided,
    ) -> io.NodeOutput:
        latents.check_model(model, "Stage B", DECODER)
        canvas = latents.canvas_of_prior(prior, DECODER)
        codes = latents.as_prior(prior, DECODER)
        latent = latents.empty_decoder(canvas, codes.shape[0]) if latent is None else latent
        latent = latents.for_batch(latent, prior, DECODER)
        run = sample.Run(
            "Stage B",
            steps,
            shift,
            make_guidance(cfg, **guided),
            seed,
            sampler,
            denoise,
            False,
            variation_seed,
            variation_strength,
        )
        samples, done = sample.run_reported(
            model,
            latents.with_prior(positive, codes),
            latents.with_prior(negative, codes.new_zeros(codes.shape)),
            latent,
            run,
        )
        result = card.attach_reports(latents.replaced(latent, samples), *card.find_reports(prior), done)
        return io.NodeOutput(result, ui=card.show_report(done))


NODES = [CascadeStudioSamplePrior, CascadeStudioSampleDecoder]
