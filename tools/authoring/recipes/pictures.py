"""Pictures as input: image to image, reconstruction."""

from __future__ import annotations

from ..flow import Flow
from . import parts


def image_to_image() -> Flow:
    """A picture, noised half way in Stage C, follows a new prompt."""
    flow = Flow("image_to_image")
    without = ("clip_vision",)
    load = parts.load(flow, "full-bf16", without)
    flow.step("Load a picture")
    image = parts.load_picture(flow)
    encoded = flow.add("CascadeStudio_EncodeImage", image=image["IMAGE"], vae=load["stage_c_vae"])
    flow.step("Prompt")
    prompts = parts.prompts(flow, load["clip"], "the same scene as a winter night, snow, blue light, painting")
    c, b = parts.both_stages(flow, load, prompts, encoded["Stage C latent"], denoise=0.6)
    saved = parts.finish(flow, b["latent"], load["stage_a"], parts.keys_of("full-bf16", without))
    flow.show_in_app([(image, "image"), (prompts[0], "text"), (c, "denoise"), (c, "seed")], saved)
    flow.feature(c, denoise=1.0)
    flow.feature(image, image=parts.APPLE)
    flow.note(
        "How much changes",
        """## How much changes

**denoise** of Sample Stage C says how much noise the picture gets before the prompt works on it: 0.3 keeps nearly
everything, 0.6 keeps the composition, 0.8 only hints at it. The picture keeps its size; any size works.""",
    )
    return flow


def image_variation() -> Flow:
    """A picture as the prompt: the official image variations, with words if wanted, and a second picture to mix in."""
    flow = Flow("image_variation")
    without = parts.PICTURES_IN
    load = parts.load(flow, "full-bf16", without)
    vision = flow.add("CascadeStudio_LoadClipVision", clip_vision=parts.files.name("clip_vision"))
    flow.step("Load pictures")
    image = parts.load_picture(flow, "Picture 1")
    other = parts.load_picture(flow, "Picture 2", parts.APPLE)
    flow.step("Prompt, may be empty")
    positive, negative = prompts = parts.prompts(flow, load["clip"], "")
    mixed = flow.add(
        "CascadeStudio_ImagePrompts",
        positive=positive[0],
        negative=negative[0],
        clip_vision=vision["clip_vision"],
        image_1=image["IMAGE"],
        image_2=other["IMAGE"],
        weight_2=0.0,
    )
    flow.step("Picture size", below=True)
    canvas = parts.canvas(flow)
    _, b = parts.both_stages(flow, load, prompts, canvas["Stage C latent"], steered=mixed)
    parts.finish(flow, b["latent"], load["stage_a"], [*parts.keys_of("full-bf16", without), "clip_vision"])
    flow.feature(mixed, weight_1=0.0, weight_2=1.0)
    flow.note(
        "Weights",
        """## Weights

Each picture has a weight: 1 is normal, 0 leaves it out, below 0 pushes the result away from it. Picture 2 has weight
0, so that you see plain variations of picture 1 first; raise it to mix the two. Words in the prompt are heard beside
the pictures; with an empty prompt this is the official image variation.""",
    )
    return flow


def reconstruction() -> Flow:
    """What each stage keeps of a picture, without any prompt."""
    flow = Flow("reconstruction")
    without = ("clip_vision",)
    load = parts.load(flow, "full-bf16", without)
    flow.step("Load a picture", below=True)
    image = parts.load_picture(flow)
    flow.step("Into Stage C and back")
    encoded = flow.add("CascadeStudio_EncodeImage", image=image["IMAGE"], vae=load["stage_c_vae"])
    small = flow.add("CascadeStudio_DecodePreview", prior=encoded["Stage C latent"], vae=load["stage_c_vae"])
    flow.add("PreviewImage", "Quick look by the Previewer", images=small["image"])
    flow.step("Rebuild with Stage B")
    positive, negative = parts.prompts(flow, load["clip"], "")
    b = parts.sample_decoder(flow, load["decoder"], positive[0], negative[0], encoded["Stage C latent"])
    flow.step("Stage A paints the picture")
    parts.picture(flow, b["latent"], load["stage_a"], flow.name)
    flow.step("Stage A alone, for comparison")
    latent = flow.add("CascadeStudio_EncodeStageA", image=image["IMAGE"], vae=load["stage_a"])
    alone = flow.add("CascadeStudio_DecodeStageA", latent=latent["latent"], vae=load["stage_a"])
    flow.add("PreviewImage", "Stage A alone", images=alone["image"])
    parts.model_links(flow, parts.keys_of("full-bf16", without))
    flow.feature(image, image=parts.APPLE)
    flow.note(
        "What you see",
        """## What you see

The image encoder squeezes the picture about 42 times on each side; Stage B and Stage A rebuild it from that. Faces
and small letters change, composition and colours stay. Stage A alone (4 times on each side) hardly changes anything:
what is lost is lost in the small latent, and that is what Stage C draws.""",
    )
    return flow


RECIPES = (image_to_image, image_variation, reconstruction)
