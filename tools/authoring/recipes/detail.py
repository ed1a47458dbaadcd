"""Pictures worked on in parts: details painted anew, pictures enlarged, and Cascade inside other packs' tools."""

from __future__ import annotations

from ..flow import Flow, FlowNode
from . import parts

PRESET = "full-bf16"
WITHOUT = ("clip_vision",)


def _models(load: FlowNode, *names: str) -> dict:
    return {name: load[name] for name in (*names, "decoder", "stage_a", "stage_c_vae")}


def _finish(flow: Flow, before: FlowNode, after: FlowNode) -> None:
    """The last step, and the note about the files."""
    flow.step("The picture, before and after")
    flow.add("SaveImage", images=after[0], filename_prefix=f"cascade/{flow.name}", wide=400)
    flow.add("CascadeStudio_Compare", before=before["IMAGE"], after=after[0])
    parts.model_links(flow, parts.keys_of(PRESET, WITHOUT))


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
    flow.step("Off: a mask without painting one")
    flow.add("CascadeStudio_SaliencyMask", muted=True, image=image["IMAGE"])
    flow.feature(after, denoise=0.0)
    flow.note(
        "Parts",
        """## Parts

Every spot of the mask is a part of its own: it is cut out with its surroundings, enlarged to the size that Stable
Cascade knows best, painted anew, and pasted back. No pixel beyond the mask and its feather changes.

- **denoise**: 0.3 sharpens what is there, 0.7 paints another face.
- **prompts**: a line for each part, from the top of the picture; an empty line takes the prompt.
- **segments**: SEGS or boxes of a face detector, in place of a mask or within it.
- **Saliency Mask** marks what stands out, where nothing was painted: switch it on (Ctrl+M) and wire it into *mask*.

LoRAs go on the wires of the models, as ever. The hint of a ControlNet on the prompts is cut with each part.""",
    )
    return flow


def upscale() -> Flow:
    """A picture enlarged by Stage B in tiles, each of which follows its own part of the Stage C latent."""
    flow = Flow("upscale")
    load = parts.load(flow, PRESET, WITHOUT)
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
        **_models(load),
    )
    _finish(flow, image, after)
    flow.feature(after, denoise=0.01)
    flow.note(
        "Scale and denoise",
        """## Scale and denoise

The picture is enlarged plainly, gets **denoise** noise, and Stage B paints it anew in overlapping tiles of the size
it was trained on. At each step the tiles are blended, so that no border shows.

- **denoise** 0.3 stays close to the picture, 0.7 invents more.
- **tile_size** 1024 suits the published models, 256 Cascade Mini.

With the super-resolution ControlNet wired into **control_net** and Stage C into **prior**, Stage C paints the latent
that the tiles follow.""",
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


RECIPES = (detailer, upscale, other_tools)
