"""The three stages as one MODEL and one VAE, for tools that know no more than that."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..stages.diffusion.sampling import Guidance
from ..stages.errors import WrongInput
from .host.sampling import one_model, repaint
from .host.sampling.sample import StageRun
from .inputs import fraction_input
from .sampling_inputs import schedule_inputs

CATEGORY = "Cascade Studio/high resolution"
ONE = "Cascade as One Model"


class CascadeStudioOneModel(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="CascadeStudio_OneModel",
            display_name=ONE,
            category=CATEGORY,
            description=(
                "A MODEL and a VAE for tools of other packs that encode, sample and decode tiles or faces with one of "
                "each: every run of the sampler makes the Stage C latent of the very picture that it begins with."
            ),
            search_aliases=["stable cascade", "ultimate upscale", "tiled upscaler", "face detailer", "wrapper"],
            inputs=[
                io.Model.Input("decoder", tooltip="Stage B."),
                io.Vae.Input("stage_a", tooltip="The Stage A output of Load Stable Cascade."),
                io.Vae.Input("stage_c_vae", tooltip="The Stage C VAE output of Load Stable Cascade (image encoder)."),
                fraction_input(
                    "prior_denoise",
                    0.0,
                    (
                        "How far Stage C may go from what a tile shows: 0 leaves it out, 0.3 adds detail, 0.6 another "
                        "face. The other tool's own denoise is that of Stage B."
                    ),
                ),
                *schedule_inputs("stage_c"),
                io.Model.Input("prior", optional=True, tooltip="Stage C, for prior_denoise above 0."),
            ],
            outputs=[
                io.Model.Output("model", display_name="model", tooltip="For the other tool's MODEL input."),
                io.Vae.Output("vae", display_name="vae", tooltip="Stage A, for the other tool's VAE input."),
            ],
        )

    @classmethod
    def execute(
        cls,
        decoder: Any,
        stage_a: Any,
        stage_c_vae: Any,
        prior_denoise: float,
        steps: int,
        cfg: float,
        shift: float,
        prior: Any = None,
    ) -> io.NodeOutput:
        if prior_denoise and prior is None:
            raise WrongInput(
                f"{ONE} was given a prior_denoise of {prior_denoise:g}, but no Stage C. Wire the 'prior' output of "
                "Load Stable Cascade into 'prior', or set prior_denoise to 0."
            )
        models = repaint.Models(prior, decoder, stage_a, stage_c_vae)
        models.check(ONE)
        run = StageRun("Stage C", steps, shift, Guidance(cfg), 0, denoise=prior_denoise) if prior_denoise else None
        return io.NodeOutput(one_model.patch_own_prior(models, run, ONE), stage_a)


NODES = [CascadeStudioOneModel]
