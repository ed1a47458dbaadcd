"""What most workflows share: loading, prompts, the two samplers, the picture, and the notes beside them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from cascade_studio.stages.diffusion.official import OFFICIAL

from ... import small
from .. import files
from ..flow import NEGATIVE, POSITIVE, TOUCH, Flow, FlowNode, Output

PICTURES_IN = ("image_encoder", "clip_vision")
"""The parts that only workflows with pictures as input need."""
HILLS, HOLE, APPLE = "cascade_hills.webp", "cascade_hills_hole.webp", "cascade_apple.webp"
"""The pictures that the pack puts into ComfyUI's input folder (tools/example_pictures.py draws them)."""
MINI = "cascade-mini"


def load(flow: Flow, key: str, without: Iterable[str] = (), **inputs: Any) -> FlowNode:
    """Step "Load models": Load Stable Cascade with the files of a preset; parts in ``without`` are not loaded."""
    flow.step("Load models")
    return flow.add("CascadeStudio_Load", **{**files.choices(key, without), "preset": "files below", **inputs})


def ships(*roles: str) -> bool:
    """Whether Cascade Mini comes with the pack, and these parts beside it."""
    return {*small.PAINTS, *roles} <= small.SHIPPED


def mini_name(role: str) -> str:
    """The name of Mini's file for a role, as a loader's widget says it."""
    return f"{small.MINI_FILES[role].rpartition('/')[2]}.safetensors"


def load_mini(flow: Flow) -> FlowNode:
    """Step "Load models": Cascade Mini by its preset."""
    return load(flow, MINI, preset=files.preset_title(MINI))


def prompts(flow: Flow, clip: Output, text: str, negative: str = "") -> tuple[FlowNode, FlowNode]:
    """The prompt and the negative prompt."""
    return (
        flow.add("CLIPTextEncode", "Prompt", POSITIVE, clip=clip, text=text),
        flow.add("CLIPTextEncode", "Negative prompt", NEGATIVE, clip=clip, text=negative),
    )


def canvas(flow: Flow, width: int = 1024, height: int = 1024, **inputs: Any) -> FlowNode:
    """The canvas node of a workflow."""
    return flow.add("CascadeStudio_Canvas", colours=TOUCH, width=width, height=height, **inputs)


def _loads_mini(flow: Flow) -> bool:
    return any(node.inputs.get("preset") == files.preset_title(MINI) for node in flow.nodes)


def sample_prior(
    flow: Flow,
    model: Output,
    positive: Output,
    negative: Output,
    latent: Output,
    then: str = "randomize",
    **inputs: Any,
) -> FlowNode:
    """Sample Stage C, by default with a new seed for every run; with the few steps and the guidance that suit
    Cascade Mini where the flow loads it.
    """
    if _loads_mini(flow):
        inputs = {"steps": small.MINI_PRIOR_STEPS, "cfg": small.MINI_PRIOR_CFG, **inputs}
    return flow.add(
        "CascadeStudio_SamplePrior",
        then=then,
        model=model,
        positive=positive,
        negative=negative,
        latent=latent,
        **inputs,
    )


def sample_decoder(
    flow: Flow, model: Output, positive: Output, negative: Output, prior: Output, **inputs: Any
) -> FlowNode:
    """Stage B after a prior, with the few steps that suffice where the flow loads Cascade Mini."""
    if _loads_mini(flow):
        inputs = {"steps": small.MINI_DECODER_STEPS, **inputs}
    return flow.add(
        "CascadeStudio_SampleDecoder", model=model, positive=positive, negative=negative, prior=prior, **inputs
    )


def picture(flow: Flow, latent: Output, stage_a: Output, name: str, **inputs: Any) -> tuple[FlowNode, FlowNode]:
    """Decode Stage A and save; returns both nodes."""
    decoded = flow.add("CascadeStudio_DecodeStageA", latent=latent, vae=stage_a, **inputs)
    return decoded, flow.add("SaveImage", images=decoded["image"], filename_prefix=f"cascade/{name}", wide=480)


def load_picture(flow: Flow, title: str = "", picture: str = HILLS) -> FlowNode:
    """The node that loads an example picture."""
    return flow.add("LoadImage", title, TOUCH, image=picture)


def both_stages(
    flow: Flow,
    load: FlowNode,
    prompts: tuple[FlowNode, FlowNode],
    latent: Output,
    *,
    prior: Output | None = None,
    decoder: Output | None = None,
    steered: FlowNode | None = None,
    **inputs: Any,
) -> tuple[FlowNode, FlowNode]:
    """Step "Sample": Stage C, then Stage B; returns both samplers.

    ``prior`` and ``decoder`` are the models where they are not those of ``load``. ``steered`` is the node whose
    positive and negative Stage C hears in place of the prompts; Stage B keeps the plain ones.
    """
    flow.step("Sample Stage C, then Stage B")
    plain = [node[0] for node in prompts]
    heard = [steered["positive"], steered["negative"]] if steered else plain
    c = sample_prior(flow, prior or load["prior"], *heard, latent, **inputs)
    b = sample_decoder(flow, decoder or load["decoder"], *plain, c["prior"])
    return c, b


def finish(
    flow: Flow,
    latent: Output,
    stage_a: Output,
    keys: Iterable[str],
    more: str = "",
    title: str = "Stage A paints the picture",
    **inputs: Any,
) -> FlowNode:
    """The last step, and the note about the files with these ``keys``; returns the node that saves."""
    flow.step(title)
    _, saved = picture(flow, latent, stage_a, flow.name, **inputs)
    model_links(flow, keys, more)
    return saved


def model_links(flow: Flow, keys: Iterable[str], more: str = "") -> None:
    """The note with links, sizes, folders, licences and memory."""
    keys = list(dict.fromkeys(keys))
    flow.note(
        "Model Links",
        f"""## Models

The loader fetches what is missing when you press Run, after it has found what you have already. By hand, the files
go into these folders of ComfyUI (sub-folders are optional):

{files.links(keys)}

{files.licence(keys)}

## Memory

{memory(keys)}
{more}""",
    )


def mini_note(flow: Flow, more: str = "") -> None:
    """The note of workflows that run on what comes with the pack."""
    flow.note(
        "Model Links",
        f"""## Models

Nothing to download: **Cascade Mini** comes with the pack. It is a small Stable Cascade (the same three stages, only
narrower) that paints things, animals and faces in the style of emoji on plain backgrounds, 256 pixels wide. It runs on
any computer, in seconds.
{more}
## Memory

A few hundred megabytes, on the graphics card or without one.""",
    )


def memory(keys: Iterable[str]) -> str:
    """How much the weights take, stage by stage."""
    roles = {"prior": "Stage C", "decoder": "Stage B"}
    sizes = [
        f"{roles[file['role']]} {files.gigabytes(file)}" for file in map(files.entry, keys) if file["role"] in roles
    ]
    return (
        f"Weights: {', '.join(sizes)}. ComfyUI moves one stage at a time to the graphics card where memory is "
        "short; choosing fp8 for a stage in the loader halves it again."
    )


def keys_of(preset: str, without: Iterable[str] = ()) -> list[str]:
    """The files of a preset by key."""
    return [
        value
        for role, value in files.preset(preset).items()
        if role not in without and value not in (files.NONE, files.FROM_CHECKPOINT)
    ]


C, B = OFFICIAL["stage_c"], OFFICIAL["stage_b"]
STAGES = f"""## The three stages

1. **Stage C** turns the prompt into a tiny latent (24x24 for 1024x1024). This decides what the picture shows.
2. **Stage B** rebuilds from it the latent of Stage A.
3. **Stage A** paints the pixels.

Any size works; the canvas picks the grids. cfg {C.cfg:g} and {C.steps} steps for Stage C, cfg {B.cfg:g} and {B.steps}
steps for Stage B are the official settings."""
