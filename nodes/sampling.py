"""The samplers of both stages."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..stages.diffusion.official import OWN
from ..stages.diffusion.seeds import PER_PICTURE
from .host import latents
from .host.report import card
from .host.sampling import features, notes, sample
from .sampling_inputs import (
    denoise_input,
    guidance_inputs,
    make_guidance,
    noise_input,
    schedule_inputs,
    seed_input,
    settings_input,
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
            display_name="Sample Stage C (KSampler)",
            category=CATEGORY,
            description="Turns the prompt into the small Stage C latent, with the official sampler and guidance.",
            search_aliases=[
                "txt2img",
                "text to image",
                "img2img",
                "stable cascade",
                "prior sampler",
                "stage c",
                "ksampler",
            ],
            inputs=[
                io.Model.Input("model", tooltip="The prior (Stage C) of Load Stable Cascade."),
                io.Conditioning.Input("positive", tooltip="What the picture should show."),
                io.Conditioning.Input("negative", tooltip="What it should not show; an empty prompt officially."),
                io.Latent.Input("latent", tooltip="The Stage C latent of the canvas, or an encoded picture."),
                seed_input(),
                *schedule_inputs("stage_c"),
                denoise_input(),
                step_input(),
                *guidance_inputs(),
                *start_inputs(),
                *variation_inputs(),
                noise_input(),
                io.Boolean.Input(
                    "keep_features",
                    default=False,
                    optional=True,
                    advanced=True,
                    tooltip=(
                        "Keep what the model saw in the last step in the latent, for Guide Stage C with 'last step'."
                    ),
                ),
                settings_input("stage_c"),
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
        model: Any,
        positive: Any,
        negative: Any,
        latent: dict[str, Any],
        seed: int,
        steps: int,
        cfg: float,
        shift: float,
        denoise: float,
        sampler: str,
        official_noise: bool = False,
        fewer_steps: bool = False,
        variation_seed: int = 0,
        variation_strength: float = 0.0,
        noise: str = PER_PICTURE,
        keep_features: bool = False,
        settings: str = OWN,
        **guided: Any,
    ) -> io.NodeOutput:
        latents.check_model(model, "Stage C", PRIOR)
        compression = notes.read_native_compression(model)
        latent = latents.fit_empty_prior(latent, compression)
        canvas = latents.find_prior_canvas(latent, PRIOR, compression)
        sizes = notes.advise_on_size(model, canvas)
        told = [*sizes, *notes.advise_on_resizing(latent, canvas)]
        told += notes.advise_on_placing(latent, canvas, "Stage C")
        run = sample.StageRun(
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
            noise,
            canvas,
        )
        recording = features.start_recording(model, PRIOR) if keep_features else None
        recorded = recording.put_on(model) if recording else model
        samples, done = sample.run_with_report(recorded, positive, negative, latent, run)
        result = {**latents.replace_samples(latent, samples), latents.CANVAS: canvas}
        result = features.keep_features(result, recording)
        return io.NodeOutput(
            card.attach_reports(result, *card.find_reports(latent), done),
            ui={**card.show_report(done), **notes.show_notes(told), **notes.show_native(model, sizes)},
        )


class CascadeStudioSampleDecoder(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="CascadeStudio_SampleDecoder",
            display_name="Sample Stage B (KSampler)",
            category=CATEGORY,
            description="Turns the Stage C latent into the latent that Stage A paints, with the official sampler.",
            search_aliases=["txt2img", "stable cascade", "decoder sampler", "stage b", "ksampler"],
            inputs=[
                io.Model.Input("model", tooltip="The decoder (Stage B) of Load Stable Cascade."),
                io.Conditioning.Input("positive", tooltip="The prompt of Stage C."),
                io.Conditioning.Input("negative", tooltip="The negative prompt; an empty prompt officially."),
                io.Latent.Input("prior", tooltip="The latent from Sample Stage C or from Encode for Stage C."),
                seed_input(),
                *schedule_inputs("stage_b"),
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
                noise_input(),
                settings_input("stage_b"),
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
        model: Any,
        positive: Any,
        negative: Any,
        prior: dict[str, Any],
        seed: int,
        steps: int,
        cfg: float,
        shift: float,
        denoise: float,
        sampler: str,
        latent: dict[str, Any] | None = None,
        variation_seed: int = 0,
        variation_strength: float = 0.0,
        noise: str = PER_PICTURE,
        settings: str = OWN,
        **guided: Any,
    ) -> io.NodeOutput:
        latents.check_model(model, "Stage B", DECODER)
        compression = notes.read_native_compression(model)
        canvas = latents.find_prior_canvas(prior, DECODER, compression)
        codes = latents.expect_finished_prior(prior, DECODER)
        told = [*notes.advise_on_resizing(prior, canvas), *notes.advise_on_placing(prior, canvas, "Stage C")]
        if latent is None:
            latent = latents.make_empty_decoder(canvas, codes.shape[0])
        told += notes.advise_on_placing(latent, canvas, "Stage B")
        latent = latents.fit_batch(latents.fit_empty_decoder(latent, canvas, compression), prior, DECODER)
        run = sample.StageRun(
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
            noise,
            latents.find_decoder_canvas(latent),
        )
        samples, done = sample.run_with_report(
            model,
            latents.attach_prior(positive, codes),
            latents.attach_prior(negative, codes.new_zeros(codes.shape)),
            latent,
            run,
        )
        result = card.attach_reports(latents.replace_samples(latent, samples), *card.find_reports(prior), done)
        return io.NodeOutput(result, ui={**card.show_report(done), **notes.show_notes(told)})


NODES = [CascadeStudioSamplePrior, CascadeStudioSampleDecoder]
