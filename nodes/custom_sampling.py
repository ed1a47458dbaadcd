"""The official schedule, sampler and guider for core's custom sampling nodes."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..stages.diffusion.official import OFFICIAL
from ..stages.diffusion.sampling import schedule_sigmas
from .host.sampling import sample
from .host.sampling.guider import CascadeGuider
from .sampling_inputs import guidance_inputs, make_guidance, step_input

CATEGORY = "Cascade Studio/sampling"
C, B = OFFICIAL["stage_c"], OFFICIAL["stage_b"]


class CascadeStudioSchedule(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="CascadeStudio_Schedule",
            display_name="Schedule for Cascade",
            category=CATEGORY,
            description="The official noise levels as SIGMAS for core's custom sampling nodes.",
            search_aliases=["stable cascade", "scheduler", "sigmas"],
            inputs=[
                io.Model.Input("model", tooltip="The prior or the decoder; its shift is used unless one is set here."),
                io.Int.Input(
                    "steps", default=C.steps, min=1, max=1000, tooltip=f"{C.steps} for Stage C, {B.steps} for Stage B."
                ),
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
                    tooltip=f"Shift; 0 takes the model's own ({C.shift:g} for Stage C, {B.shift:g} for B).",
                ),
            ],
            outputs=[io.Sigmas.Output("sigmas", display_name="sigmas", tooltip="Noise levels, ending at 0.")],
        )

    @classmethod
    def execute(cls, model: Any, steps: int, denoise: float, shift: float) -> io.NodeOutput:
        own = getattr(model.get_model_object("model_sampling"), "shift", 1.0)
        sigmas = schedule_sigmas(steps, shift or own, denoise)
        # Multistep samplers divide by the distance of two levels: equal ones are given once.
        return io.NodeOutput(sigmas.unique_consecutive())


class CascadeStudioSampler(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="CascadeStudio_Sampler",
            display_name="Sampler for Cascade",
            category=CATEGORY,
            description="The official sampler as a SAMPLER for core's custom sampling nodes.",
            search_aliases=["stable cascade", "ddpm", "lcm", "ddim"],
            inputs=[step_input()],
            outputs=[io.Sampler.Output("sampler", display_name="sampler", tooltip="For SamplerCustomAdvanced.")],
        )

    @classmethod
    def execute(cls, sampler: str) -> io.NodeOutput:
        return io.NodeOutput(sample.make_sampler(sampler))


class CascadeStudioGuider(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="CascadeStudio_Guider",
            display_name="Guider for Cascade",
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
                    default=C.cfg,
                    min=0.0,
                    max=100.0,
                    step=0.1,
                    round=0.01,
                    tooltip=f"Guidance scale; officially {C.cfg:g} for Stage C and {B.cfg:g} for Stage B.",
                ),
                *guidance_inputs(),
            ],
            outputs=[io.Guider.Output("guider", display_name="guider", tooltip="For SamplerCustomAdvanced.")],
        )

    @classmethod
    def execute(cls, model: Any, positive: Any, negative: Any, cfg: float, **guided: Any) -> io.NodeOutput:
        guider = CascadeGuider(model)
        guider.set_prompts(positive, negative)
        guider.set_guidance(make_guidance(cfg, **guided))
        return io.NodeOutput(guider)


NODES = [CascadeStudioSchedule, CascadeStudioSampler, CascadeStudioGuider]
