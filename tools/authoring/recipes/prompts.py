"""Prompts for regions, with LoRA and ControlNet in one graph; and guidance beside plain guidance."""

from __future__ import annotations

from ...scenes import SCENES
from ...titles import title_of
from ..flow import NEGATIVE, POSITIVE, TOUCH, Flow, FlowNode, Output
from . import parts
from .lora import OWN

PRESET, WITHOUT, EDGES = "full-bf16", parts.PICTURES_IN, "controlnet_canny"
"""The published ControlNets fit the full Stage C alone."""
ON_MINI = parts.ships("lora", "controlnet_canny")
"""Whether Mini's examples of both are there to be used together."""
SIDE = 256 if ON_MINI else 1024


def _words(flow: Flow, clip: Output, text: str, title: str = "Prompt") -> FlowNode:
    """A prompt whose weights act."""
    colours = NEGATIVE if title == "Negative prompt" else POSITIVE
    return flow.add("CascadeStudio_EncodePrompt", title, colours, clip=clip, text=text)


def lora_control_regional() -> Flow:
    """A LoRA, the edges of a picture, and a prompt of its own for the left half, all at once."""
    flow = Flow("lora_control_regional")
    load = parts.load_mini(flow) if ON_MINI else parts.load(flow, PRESET, WITHOUT)
    lora = flow.add(
        "CascadeStudio_LoadLora",
        colours=TOUCH,
        lora=parts.mini_name("lora") if ON_MINI else OWN,
        strength_model=0.5,
        prior=load["prior"],
        clip=load["clip"],
    )
    net = flow.add(
        "CascadeStudio_LoadControlNet", controlnet=parts.mini_name(EDGES) if ON_MINI else parts.files.name(EDGES)
    )
    flow.step("Load a picture, find its edges")
    image = parts.load_picture(flow, picture=parts.APPLE)
    canvas = parts.canvas(flow, SIDE, SIDE)
    hint = flow.add("CascadeStudio_CannyHint", image=image["IMAGE"], latent=canvas["Stage C latent"])
    flow.step("Prompts")
    whole = _words(
        flow,
        lora["clip"],
        SCENES[title_of(flow.name)].prompt if ON_MINI else "two parrots on a branch, rain forest, photograph",
    )
    left = _words(
        flow,
        lora["clip"],
        "(green apple:1.2) on a pink background" if ON_MINI else "a (green parrot:1.3) on a branch",
        "Prompt of the left half",
    )
    negative = _words(flow, lora["clip"], "", "Negative prompt")
    flow.step("The left half hears its own prompt")
    region = flow.add(
        "CascadeStudio_RegionalPrompt",
        conditioning=whole["conditioning"],
        region=left["conditioning"],
        mask=_left_half(flow)["MASK"],
    )
    flow.step("The edges steer Stage C")
    steered = flow.add(
        "CascadeStudio_ApplyControl",
        positive=region["conditioning"],
        negative=negative["conditioning"],
        control_net=net["control_net"],
        image=hint["hint"],
        strength=0.6,
        end_percent=0.6,
    )
    _, b = parts.both_stages(
        flow, load, (whole, negative), canvas["Stage C latent"], prior=lora["prior"], steered=steered
    )
    flow.step("Stage A paints the picture")
    parts.picture(flow, b["latent"], load["stage_a"], flow.name)
    _note_files(flow)
    flow.feature(lora, strength_model=0.0)
    flow.feature(region, region=whole["conditioning"])
    flow.feature(steered, strength=0.0)
    _how_they_meet(flow)
    return flow


def _note_files(flow: Flow) -> None:
    if ON_MINI:
        parts.mini_note(flow)
    else:
        parts.model_links(flow, [*parts.keys_of(PRESET, WITHOUT), EDGES])


def _left_half(flow: Flow) -> FlowNode:
    nothing = flow.add("SolidMask", "Whole picture", value=0.0, width=SIDE, height=SIDE)
    half = flow.add("SolidMask", "Left half", value=1.0, width=SIDE // 2, height=SIDE)
    return flow.add("MaskComposite", destination=nothing["MASK"], source=half["MASK"], x=0, y=0, operation="add")


def _how_they_meet(flow: Flow) -> None:
    fits = (
        ". Here both are the examples that come with Cascade Mini."
        if ON_MINI
        else ": *my_style* stands for one of yours. Without one, bypass **Load Cascade LoRA** (Ctrl+B)."
    )
    flow.note(
        "How they meet",
        f"""## How they meet

- **Load Cascade LoRA** changes the model and the text encoder; wire both on from it.
- **Encode Prompt** lets weights act: (word:1.3) is louder, (word:0.7) quieter. BREAK starts a new part, AVG averages
  two prompts.
- **Regional Prompt** gives a mask its own prompt in the same pass. Chain several for several regions; Load Image and
  its Mask Editor make masks of any shape.
- **ControlNet for Cascade** comes last, on the finished prompts. Stage B hears the plain prompt.

The published ControlNets fit the full Stage C alone, and a LoRA fits the Stage C it was trained on{fits}""",
    )


def guidance() -> Flow:
    """The same seed twice: plain guidance, and the guidance nodes."""
    flow = Flow("guidance")
    load = parts.load(flow, PRESET, WITHOUT)
    flow.step("Picture size", below=True)
    canvas = parts.canvas(flow)
    flow.step("Prompt with weights")
    positive = _words(flow, load["clip"], "an owl reading a (newspaper:1.2) at a café table, detailed illustration")
    negative = _words(flow, load["clip"], "blurry, washed out", "Negative prompt")
    flow.step("Guidance on Stage C and Stage B")
    zero = flow.add("CascadeStudio_CFGZero", model=load["prior"])
    perturbed = flow.add("CascadeStudio_PerturbedAttention", model=zero["model"])
    blurred = flow.add("CascadeStudio_SelfAttentionGuidance", model=load["decoder"], blur=3.0)
    pictures = []
    for title, prior, decoder in (
        ("Plain", load["prior"], load["decoder"]),
        ("Guided", perturbed["model"], blurred["model"]),
    ):
        flow.step(f"{title}: both stages")
        c = flow.add(
            "CascadeStudio_SamplePrior",
            model=prior,
            positive=positive[0],
            negative=negative[0],
            latent=canvas["Stage C latent"],
        )
        b = parts.sample_decoder(flow, decoder, positive[0], negative[0], c["prior"])
        pictures.append(flow.add("CascadeStudio_DecodeStageA", latent=b["latent"], vae=load["stage_a"]))
    flow.step("Compare")
    flow.add("CascadeStudio_Compare", before=pictures[0]["image"], after=pictures[1]["image"])
    flow.add("SaveImage", images=pictures[1]["image"], filename_prefix=f"cascade/{flow.name}", wide=400)
    parts.model_links(flow, parts.keys_of(PRESET, WITHOUT))
    flow.feature(zero, strength=0.0)
    flow.feature(perturbed, scale=0.0)
    flow.feature(blurred, scale=0.0)
    flow.note(
        "The guidance nodes",
        """## The guidance nodes

- **CFG-Zero Star** keeps colours from burning at high cfg and costs nothing.
- **Perturbed-Attention Guidance** makes structure clearer, for one more pass a step.
- **Self-Attention Guidance** adds detail where the model looks at most, for one more pass a step.

Each can be used alone, on Stage C or Stage B, and with core's samplers. Both branches have the same seed, so that
the slider shows what the nodes do. Bypass one (Ctrl+B) to see the others alone.""",
    )
    return flow


RECIPES = (lora_control_regional, guidance)
