"""Pictures worked on in parts: details painted anew, pictures enlarged, and Cascade inside other packs' tools."""

from __future__ import annotations

from typing import Any

from ..flow import Flow, FlowNode
from . import parts

PRESET = "full-bf16"
WITHOUT = ("clip_vision",)
TILES = {"tile_size": 1024, "tile_overlap": 256}
"""Those of the published models, whatever the computer has on which the workflows are written."""


def _models(load: FlowNode, *names: str) -> dict:
    return {name: load[name] for name in (*names, "decoder", "stage_a", "stage_c_vae")}


def _finish(flow: Flow, before: FlowNode, after: FlowNode, *keys: str) -> None:
    """The last step, and the note about the files; ``keys`` are those beside the preset's."""
    flow.step("The picture, before and after")
    flow.add("SaveImage", images=after[0], filename_prefix=f"cascade/{flow.name}", wide=400)
    flow.add("CascadeStudio_Compare", before=before["IMAGE"], after=after[0])
    parts.model_links(flow, [*parts.keys_of(PRESET, WITHOUT), *keys])


def detailer() -> Flow:
    """Faces, hands or anything else that is marked, painted anew at full size and pasted back."""
    flow = Flow("detailer")
    load = parts.load(flow, PRESET, WITHOUT)
    flow.step("Load a picture, paint over each detail")
    image = parts.load_picture(flow, "Right-click: Open in Mask Editor", parts.HOLE)
    flow.step("Prompt for what is marked")
    positive, negative = parts.prompts(flow, load["clip"], "a small house with a red roof, sharp and detailed")
    flow.step("Paint each part anew")
    after = flow.add(
        "CascadeStudio_Detailer",
        image=image["IMAGE"],
        mask=image["MASK"],
        positive=positive[0],
        negative=negative[0],
        clip=load["clip"],
        denoise=0.5,
        **_models(load, "prior"),
    )
    _finish(flow, image, after)
    flow.feature(after, denoise=0.0)
    flow.note(
        "Parts",
        """## Parts

Every spot of the mask is a part of its own: it is cut out with its surroundings, enlarged to the size that Stable
Cascade knows best, painted anew, and pasted back. No pixel beyond the mask and its feather changes.

- **denoise**: 0.3 sharpens what is there, 0.7 paints another face.
- **prompts**: a line for each part, from the top of the picture; an empty line takes the prompt.
- **segments**: SEGS or boxes of a face detector, in place of a mask or within it.

LoRAs go on the wires of the models, as ever. The hint of a ControlNet on the prompts is cut with each part.""",
    )
    return flow


def _enlarge(flow: Flow, load: FlowNode, **inputs: Any) -> tuple[FlowNode, FlowNode]:
    """A picture and the node that enlarges it, which gets ``inputs`` beside what both ways of it share."""
    flow.step("Load a picture")
    image = parts.load_picture(flow)
    flow.step("Prompt: what the picture shows")
    positive, negative = parts.prompts(flow, load["clip"], "a house on green hills, sharp and detailed")
    flow.step("Enlarge")
    after = flow.add(
        "CascadeStudio_Upscale",
        image=image["IMAGE"],
        positive=positive[0],
        negative=negative[0],
        scale=2.0,
        **TILES,
        **inputs,
    )
    return image, after


def upscale() -> Flow:
    """A picture enlarged by Stage B in tiles, each of which follows its own part of the Stage C latent."""
    flow = Flow("upscale")
    load = parts.load(flow, PRESET, WITHOUT)
    image, after = _enlarge(flow, load, **_models(load))
    _finish(flow, image, after)
    flow.feature(after, denoise=0.01)
    flow.note(
        "Scale and denoise",
        """## Scale and denoise

The picture is enlarged plainly, gets **denoise** noise, and Stage B paints it anew in overlapping tiles of the size
it was trained on. At each step the tiles are blended, so that no border shows.

- **denoise** 0.3 stays close to the picture, 0.7 invents more.
- **keep_source**: 1 gives the picture its own shapes and colours back, without its grain; 0 leaves what was painted.
  At scale 1 it only takes grain off.
- **tile_size** 1024 suits the published models, 256 Cascade Mini.""",
    )
    return flow


def upscale_steered() -> Flow:
    """The same, where Stage C paints the latent that the tiles follow by the super-resolution ControlNet."""
    flow = Flow("upscale_steered")
    load = parts.load(flow, PRESET, WITHOUT)
    net = flow.add("CascadeStudio_LoadControlNet", controlnet=parts.files.name("controlnet_super_resolution"))
    image, after = _enlarge(flow, load, control_net=net[0], denoise=0.6, **_models(load, "prior"))
    _finish(flow, image, after, "controlnet_super_resolution")
    flow.feature(after, control_strength=0.0)
    flow.note(
        "Stage C paints as well",
        """## Stage C paints as well

The super-resolution ControlNet shows Stage C the picture, and Stage C paints the latent that the tiles follow: more
detail of its own, less likeness. **denoise** 0.6 gives that detail room.""",
    )
    return flow


def saliency() -> Flow:
    """What stands out in a picture is found and painted anew, without a mask by hand."""
    flow = Flow("saliency")
    load = parts.load(flow, PRESET, WITHOUT)
    flow.step("Load a picture")
    image = parts.load_picture(flow)
    flow.step("What stands out")
    mask = flow.add("CascadeStudio_SaliencyMask", image=image["IMAGE"])
    flow.add("MaskPreview", mask=mask[0])
    flow.step("Prompt for what is marked")
    positive, negative = parts.prompts(flow, load["clip"], "a house on green hills, sharp and detailed")
    flow.step("Paint each part anew")
    after = flow.add(
        "CascadeStudio_Detailer",
        image=image["IMAGE"],
        mask=mask[0],
        positive=positive[0],
        negative=negative[0],
        denoise=0.5,
        each_spot=False,
        **_models(load, "prior"),
    )
    _finish(flow, image, after)
    flow.feature(mask, grow=64)
    flow.note(
        "What stands out",
        """## What stands out

**Saliency Mask** marks what has other colours than the sides of the picture. Look at the mask before the picture;
**threshold** marks less when it is raised.""",
    )
    return flow


def other_tools() -> Flow:
    """Cascade as one MODEL and one VAE, as tiled upscalers and face detailers of other packs want it."""
    flow = Flow("other_tools")
    load = parts.load(flow, PRESET, WITHOUT)
    flow.step("Load a picture")
    image = parts.load_picture(flow)
    flow.step("Prompt")
    positive, negative = parts.prompts(flow, load["clip"], "a house on green hills, sharp and detailed")
    flow.step("One MODEL, one VAE")
    one = flow.add("CascadeStudio_OneModel", prior_denoise=0.5, **_models(load, "prior"))
    flow.step("What a tool of another pack does with each tile")
    coded = flow.add("VAEEncode", pixels=image["IMAGE"], vae=one["vae"])
    sampled = flow.add(
        "KSampler",
        model=one["model"],
        positive=positive[0],
        negative=negative[0],
        latent_image=coded["LATENT"],
        steps=10,
        cfg=1.1,
        sampler_name="euler_ancestral",
        scheduler="simple",
        denoise=0.6,
    )
    after = flow.add("VAEDecode", samples=sampled["LATENT"], vae=one["vae"])
    _finish(flow, image, after)
    flow.feature(one, prior_denoise=0.0)
    flow.note(
        "Other tools",
        """## Other tools

Tiled upscalers and detailers of other packs encode a tile, sample it and decode it, with one MODEL and one VAE. Wire
the two outputs of **Cascade as One Model** into such a tool in place of the three core nodes here, and the CLIP of the
loader into its prompts. Every tile follows the Stage C latent of its own picture.

- The tool's own denoise, steps and cfg are those of Stage B: 10 steps at cfg 1.1 officially.
- **prior_denoise** lets Stage C change a tile first; 0 leaves it out.
- Tiles of 1024 pixels are best; Cascade's own nodes for the same are *Upscale with Cascade* and
*Detailer for Cascade*.""",
    )
    return flow


RECIPES = (detailer, saliency, upscale, upscale_steered, other_tools)
