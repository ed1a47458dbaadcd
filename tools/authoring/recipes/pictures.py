"""Pictures as input: image to image, reconstruction."""
from __future__ import annotations

from ..flow import Flow
from . import parts


def image_to_image() -> Flow:
    """A picture, noised half way in Stage C, follows a new prompt."""
    flow = Flow("image_to_image")
    without = ("clip_vision",)
    flow.step("Load models")
    load = parts.load(flow, "full-bf16", without)
    flow.step("Load a picture")
    image = parts.load_picture(flow)
    encoded = flow.add("CascadeStudio_EncodeImage", image=image["IMAGE"], vae=load["stage_c_vae"])
    flow.step("Prompt")
    positive, negative = parts.prompts(flow, load["clip"], "the same scene as a winter night, snow, blue light, painting")
    _, b = parts.both_stages(flow, load, positive[0], negative[0], encoded["Stage C latent"], denoise=0.6)
    flow.step("Stage A paints the picture")
    parts.picture(flow, b["latent"], load["stage_a"], flow.name)
    parts.model_links(flow, parts.keys_of("full-bf16", without))
    flow.note("How much changes", """## How much changes

**denoise** of Sample Stage C says how much noise the picture gets before the prompt works on it: 0.3 keeps nearly
everything, 0.6 keeps the composition, 0.8 only hints at it. The picture keeps its size; any size works.""")
    return flow


def reconstruction() -> Flow:
    """What each stage keeps of a picture, without any prompt."""
    flow = Flow("reconstruction")
    without = ("clip_vision",)
    flow.step("Load models")
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
    flow.note("What you see", """## What you see

The image encoder squeezes the picture about 42 times on each side; Stage B and Stage A rebuild it from that. Faces and
small letters change, composition and colours stay. Stage A alone (4 times on each side) hardly changes anything: what is
lost is lost in the small latent, and that is what Stage C draws.""")
    return flow


RECIPES = (image_to_image, reconstruction)
