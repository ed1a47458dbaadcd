"""The samplers of both stages, and the official schedule, sampler and guider for core's custom sampling nodes."""

from __future__ import annotations

from comfy_api.latest import io

from ..stages.diffusion import sampling as diffusion
from ..stages.diffusion.sampling import Guidance
from .host import latents
from .host.report import card
from .host.sampling import sample

CATEGORY = "Cascade Studio/sampling"
PRIOR, DECODER = "Sample Stage C", "Sample Stage B"
SAME_CFG = -1.0


def seed_input() -> io.Int.Input:
    return io.Int.Input(
        "seed",
        default=0,
        min=0,
        max=0xFFFFFFFFFFFFFFFF,
        control_after_generate=True,
        tooltip=("Where the noise comes from. Picture i of a batch is the picture of seed + i."),
    )


def schedule_inputs(steps: int, cfg: float, shift: float) -> list[io.Input]:
    """Steps, guidance scale and shift with a stage's official defaults."""
    return [
        io.Int.Input("steps", default=steps, min=1, max=1000, tooltip=f"Denoising steps; {steps} officially."),
        io.Float.Input(
            "cfg",
            default=cfg,
            min=0.0,
            max=100.0,
            step=0.1,
            round=0.01,
            tooltip=(
                f"How strongly the prompt is followed; {cfg} officially. 1 ignores the negative prompt and is faster."
            ),
        ),
        io.Float.Input(
            "shift",
            default=shift,
            min=0.1,
            max=16.0,
            step=0.1,
            round=0.01,
            advanced=True,
            tooltip=(
                f"Moves the schedule towards noise; {shift:g} officially, more for larger Stage C grids. A "
                "ModelSamplingStableCascade node on the model's wire is used instead of this number."
            ),
        ),
    ]


def guidance_inputs() -> list[io.Input]:
    """The rest of the official guidance, under the advanced inputs."""
    return [
        io.Float.Input(
            "rescale",
            default=0.7,
            min=0.0,
            max=1.0,
            step=0.05,
            round=0.01,
            advanced=True,
            tooltip=(
                "Pulls the contrast of the guided prediction back to the prompt's own; 0.7 officially, 0 is plain "
                "guidance."
            ),
        ),
        io.Boolean.Input(
            "rescale_batch",
            default=False,
            advanced=True,
            tooltip=("Rescale over the whole batch, as the official code does. Pictures then depend on their batch."),
        ),
        io.Float.Input(
            "cfg_end",
            default=SAME_CFG,
            min=SAME_CFG,
            max=100.0,
            step=0.1,
            round=0.01,
            advanced=True,
            tooltip="Guidance scale at the end; it changes linearly from cfg. -1 keeps cfg throughout.",
        ),
        io.Float.Input(
            "guidance_start",
            default=0.0,
            min=0.0,
            max=1.0,
            step=0.01,
            round=0.001,
            advanced=True,
            tooltip="Part of the run after which guidance begins; before it the scale is 1.",
        ),
        io.Float.Input(
            "guidance_end",
            default=1.0,
            min=0.0,
            max=1.0,
            step=0.01,
            round=0.001,
            advanced=True,
            tooltip="Part of the run after which guidance ends; after it the scale is 1.",
        ),
    ]


def step_input() -> io.Combo.Input:
    return io.Combo.Input(
        "sampler",
        options=list(sample.STEPS),
        default="ddpm",
        advanced=True,
        tooltip=("Step of the sampler: ddpm is the official one, ddim adds no noise, lcm suits very few steps."),
    )


def denoise_input() -> io.Float.Input:
    return io.Float.Input(
        "denoise",
        default=1.0,
        min=0.01,
        max=1.0,
        step=0.01,
        round=0.001,
        advanced=True,
        tooltip=("Less than 1 starts from the latent with that much noise instead of from noise alone."),
    )


def start_inputs() -> list[io.Input]:
    """How the official image to image differs from ours."""
    return [
        io.Boolean.Input(
            "official_noise",
            default=False,
            optional=True,
            advanced=True,
            tooltip=(
                "With denoise below 1, noise the picture as at shift 1, as the official image to image does: at shift 2 "
                "more of it is kept. Off noises it as the sampling expects."
            ),
        ),
        io.Boolean.Input(
            "fewer_steps",
            default=False,
            optional=True,
            advanced=True,
            tooltip=(
                "With denoise below 1, run only that part of the steps, as the official image to image does: 16 of 20 at "
                "0.8."
            ),
        ),
    ]


def variation_inputs() -> list[io.Input]:
    """Variations of one seed."""
    return [
        io.Int.Input(
            "variation_seed",
            default=0,
            min=0,
            max=0xFFFFFFFFFFFFFFFF,
            optional=True,
            advanced=True,
            tooltip=(
                "Which variation; picture i of a batch is that of variation_seed + i, all of them of the same seed."
            ),
        ),
        io.Float.Input(
            "variation_strength",
            default=0.0,
            min=0.0,
            max=1.0,
            step=0.01,
            round=0.001,
            optional=True,
            advanced=True,
            tooltip=(
                "How far from the seed's own picture: 0 is that picture itself, 0.1 a close relative, 1 the "
                "picture of the variation's seed."
            ),
        ),
    ]


def guidance(
    cfg: float, rescale: float, rescale_batch: bool, cfg_end: float, guidance_start: float, guidance_end: float
) -> Guidance:
    """The guidance that a node's inputs describe; the run goes from t = 1 to t = 0."""
    return Guidance(
        cfg,
        None if cfg_end <= SAME_CFG else cfg_end,
        (1.0 - guidance_start, 1.0 - guidance_end),
        rescale,
        not rescale_batch,
    )


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
            guidance(cfg, **guided),
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
            guidance(cfg, **guided),
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


class CascadeStudioSchedule(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="CascadeStudio_Schedule",
            display_name="Cascade Schedule",
            category=CATEGORY,
            description="The official noise levels as SIGMAS for core's custom sampling nodes.",
            search_aliases=["stable cascade", "scheduler", "sigmas"],
            inputs=[
                io.Model.Input("model", tooltip="The prior or the decoder; its shift is used unless one is set here."),
                io.Int.Input("steps", default=20, min=1, max=1000, tooltip="20 for Stage C, 10 for Stage B."),
                io.Float.Input(
                    "denoise",
                    default=1.0,
                    min=0.01,
                    max=1.0,
                    step=0.01,
                    round=0.001,
                    tooltip=("Part of the schedule to run, from its end; below 1 for image to image."),
                ),
                io.Float.Input(
                    "shift",
                    default=0.0,
                    min=0.0,
                    max=16.0,
                    step=0.1,
                    round=0.01,
                    advanced=True,
                    tooltip="Shift of the schedule; 0 takes the model's own (2 for Stage C, 1 for B).",
                ),
            ],
            outputs=[io.Sigmas.Output("sigmas", display_name="sigmas", tooltip="Noise levels, ending at 0.")],
        )

    @classmethod
    def execute(cls, model, steps, denoise, shift) -> io.NodeOutput:
        own = getattr(model.get_model_object("model_sampling"), "shift", 1.0)
        return io.NodeOutput(diffusion.schedule_sigmas(steps, shift or own, denoise))


class CascadeStudioSampler(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="CascadeStudio_Sampler",
            display_name="Cascade Sampler",
            category=CATEGORY,
            description="The official sampler as a SAMPLER for core's custom sampling nodes.",
            search_aliases=["stable cascade", "ddpm", "lcm", "ddim"],
            inputs=[step_input()],
            outputs=[io.Sampler.Output("sampler", display_name="sampler", tooltip="For SamplerCustomAdvanced.")],
        )

    @classmethod
    def execute(cls, sampler) -> io.NodeOutput:
        return io.NodeOutput(sample.official_sampler(sampler))


class CascadeStudioGuider(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="CascadeStudio_Guider",
            display_name="Cascade Guider",
            category=CATEGORY,
            description="The official guidance (rescale, interval, linear scale) as a GUIDER.",
            search_aliases=["stable cascade", "cfg", "rescale", "guidance interval"],
            inputs=[
                io.Model.Input("model", tooltip="The prior or the decoder."),
                io.Conditioning.Input(
                    "positive", tooltip="The prompt; for Stage B, from Cascade Decoder Conditioning."
                ),
                io.Conditioning.Input("negative", tooltip="The negative prompt, likewise."),
                io.Float.Input(
                    "cfg",
                    default=4.0,
                    min=0.0,
                    max=100.0,
                    step=0.1,
                    round=0.01,
                    tooltip="Guidance scale; officially 4 for Stage C and 1.1 for Stage B.",
                ),
                *guidance_inputs(),
            ],
            outputs=[io.Guider.Output("guider", display_name="guider", tooltip="For SamplerCustomAdvanced.")],
        )

    @classmethod
    def execute(cls, model, positive, negative, cfg, **guided) -> io.NodeOutput:
        guider = sample.CascadeGuider(model)
        guider.set_prompts(positive, negative)
        guider.set_guidance(guidance(cfg, **guided))
        return io.NodeOutput(guider)


NODES = [
    CascadeStudioSamplePrior,
    CascadeStudioSampleDecoder,
    CascadeStudioSchedule,
    CascadeStudioSampler,
    CascadeStudioGuider,
]
