"""The inputs that the sampler nodes share: seed, schedule, guidance, step, start and variations."""

from __future__ import annotations

from comfy_api.latest import io

from ..stages.diffusion.official import OFFICIAL, OWN, list_tasks
from ..stages.diffusion.sampling import Guidance
from ..stages.diffusion.seeds import NOISES, PER_PICTURE
from .host.sampling import sample
from .inputs import fraction_input

SAME_CFG = -1.0
CONTROL_CFG = 1.0
"""Guidance of Stage C in the official super-resolution example."""


def seed_input() -> io.Int.Input:
    """The seed of a batch's first picture."""
    return io.Int.Input(
        "seed",
        default=0,
        min=0,
        max=0xFFFFFFFFFFFFFFFF,
        control_after_generate=True,
        tooltip=("Where the noise comes from. Picture i of a batch is the picture of seed + i."),
    )


def schedule_inputs(stage: str) -> list[io.Input]:
    """Steps, guidance scale and shift with the official defaults of ``stage``, "stage_c" or "stage_b"."""
    steps, cfg, shift = OFFICIAL[stage].steps, OFFICIAL[stage].cfg, OFFICIAL[stage].shift
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


def decoder_inputs() -> list[io.Input]:
    """As :func:`schedule_inputs` of Stage B, for nodes that run both stages."""
    inputs = schedule_inputs("stage_b")
    for entry in inputs:
        entry.id, entry.advanced = f"decoder_{entry.id}", True
        entry.tooltip = f"Stage B: {entry.tooltip}"
    return inputs


def control_prior_inputs() -> list[io.Input]:
    """Steps and guidance of Stage C with the super-resolution ControlNet, for nodes that run both stages."""
    steps, cfg, _ = schedule_inputs("stage_c")
    steps.tooltip = "Steps of Stage C with the ControlNet."
    cfg.default = CONTROL_CFG
    cfg.tooltip = "Guidance of Stage C with the ControlNet; 1 in the official example."
    for entry in (steps, cfg):
        entry.id, entry.advanced = f"prior_{entry.id}", True
    return [steps, cfg]


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
        fraction_input(
            "guidance_start",
            0.0,
            "Part of the run after which guidance begins; before it the scale is 1.",
            advanced=True,
        ),
        fraction_input(
            "guidance_end", 1.0, "Part of the run after which guidance ends; after it the scale is 1.", advanced=True
        ),
    ]


def step_input() -> io.Combo.Input:
    """The sampler's step."""
    return io.Combo.Input(
        "sampler",
        options=list(sample.STEPS),
        default="ddpm",
        advanced=True,
        tooltip=("Step of the sampler: ddpm is the official one, ddim adds no noise, lcm suits very few steps."),
    )


def denoise_input(
    name: str = "denoise",
    default: float = 1.0,
    tooltip: str = "Less than 1 starts from the latent with that much noise instead of from noise alone.",
    *,
    advanced: bool | None = None,
) -> io.Float.Input:
    """How much noise the latent starts with."""
    return io.Float.Input(
        name, default=default, min=0.01, max=1.0, step=0.01, round=0.001, advanced=advanced, tooltip=tooltip
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
                "With denoise below 1, noise the picture as at shift 1, as the official image to image does: at "
                "shift 2 more of it is kept. Off noises it as the sampling expects."
            ),
        ),
        io.Boolean.Input(
            "fewer_steps",
            default=False,
            optional=True,
            advanced=True,
            tooltip=(
                "With denoise below 1, run only that part of the steps, as the official image to image does: 16 of "
                "20 at 0.8."
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
        fraction_input(
            "variation_strength",
            0.0,
            (
                "How far from the seed's own picture: 0 is that picture itself, 0.1 a close relative, 1 the "
                "picture of the variation's seed."
            ),
            optional=True,
            advanced=True,
        ),
    ]


def noise_input() -> io.Combo.Input:
    """How the seed becomes noise."""
    return io.Combo.Input(
        "noise",
        options=list(NOISES),
        default=PER_PICTURE,
        optional=True,
        advanced=True,
        tooltip=(
            "How the seed becomes noise. per picture: each picture has its own, alone or in a batch. official: as the "
            "release and diffusers draw it. comfyui: as core's KSampler does. See 'The same picture elsewhere'."
        ),
    )


def settings_input(stage: str) -> io.Combo.Input:
    """Numbers by task. The page fills them in; a run reads the numbers alone, so that scripts have plain inputs."""
    tasks = list_tasks(stage)
    return io.Combo.Input(
        "settings",
        options=[OWN, *tasks],
        default=OWN,
        optional=True,
        tooltip=(
            "Fills in steps, cfg, shift and denoise for a task: official, a quick draft, a fine last run, or image to "
            "image. The numbers may be changed afterwards."
        ),
        extra_dict={"tasks": tasks},
    )


def make_guidance(
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
