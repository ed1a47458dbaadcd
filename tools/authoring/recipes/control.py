"""ControlNets: edges, a part painted anew, a picture continued, a picture enlarged."""

from __future__ import annotations

from ...titles import title_of
from ..flow import Flow, FlowNode, Output
from . import parts

PRESET = "full-bf16"
WITHOUT = ("clip_vision",)


def _net(flow: Flow, key: str) -> FlowNode:
    return flow.add("CascadeStudio_LoadControlNet", controlnet=parts.files.name(key))


def _keys(net: str) -> list[str]:
    return [*parts.keys_of(PRESET, WITHOUT), net]


def _apply(flow: Flow, net: FlowNode, hint: Output, prompts: tuple[FlowNode, FlowNode], **inputs) -> FlowNode:
    """The ControlNet on the prompts; without it the picture is another one."""
    applied = flow.add(
        "CascadeStudio_ApplyControl",
        positive=prompts[0][0],
        negative=prompts[1][0],
        control_net=net[0],
        image=hint,
        **inputs,
    )
    flow.feature(applied, strength=0.0)
    return applied


def canny() -> Flow:
    """The edges of a picture, filled with something else."""
    flow = Flow("canny")
    load = parts.load(flow, PRESET, WITHOUT)
    net = _net(flow, "controlnet_canny")
    flow.step("Load a picture, find its edges")
    image = parts.load_picture(flow)
    canvas = parts.canvas(flow)
    hint = flow.add("CascadeStudio_CannyHint", image=image["IMAGE"], latent=canvas["Stage C latent"])
    flow.step("Prompt")
    prompts = parts.prompts(flow, load["clip"], "a farmhouse in the Tuscan hills at sunset, oil painting")
    applied = _apply(flow, net, hint["hint"], prompts, strength=0.8, end_percent=0.8)
    _, b = parts.both_stages(flow, load, prompts, canvas["Stage C latent"], steered=applied)
    parts.finish(flow, b["latent"], load["stage_a"], _keys("controlnet_canny"))
    mini = (
        f"""
To try it without any download, choose the preset *Cascade Mini* in the loader, the ControlNet
*{parts.mini_name("controlnet_canny")}*, 256 x 256 on the canvas, cfg 2 for Stage C and a prompt such as *red apple on a
yellow background*.
"""
        if parts.ships("controlnet_canny")
        else ""
    )
    flow.note(
        "Edges",
        f"""## Edges

**Canny Hint** finds edges just as this ControlNet was trained on: on a small copy of 224 pixels, stretched back.
Sharp edges from other nodes work less well. **low** and **high** say which edges count.

**strength** says how closely the edges are followed, **end_percent** for how long; composition is settled early. The
published ControlNets belong to the full Stage C, not to the lite one.
{mini}""",
    )
    _identity(flow)
    return flow


def _identity(flow: Flow) -> None:
    """The hint of a net that was never published, switched off."""
    flow.step("Off: identity ControlNet of your own")
    flow.add("CascadeStudio_IdentityHint", muted=True)
    flow.note(
        "Identity ControlNet",
        """## Identity ControlNet

The official code knows a ControlNet that keeps a face, but its weights were never published. If you trained one in
that layout, wire a picture, the boxes and the ArcFace embeddings of its faces (from a face analysis pack) into
**Identity Hint**, switch it on (Ctrl+M) and use its hint in place of the edges.""",
    )


def inpaint() -> Flow:
    """A painted part of a picture is made anew; every other pixel stays as it is."""
    flow = Flow("inpaint")
    load = parts.load(flow, PRESET, WITHOUT)
    net = _net(flow, "controlnet_inpainting")
    flow.step("Load a picture and paint a mask on it")
    image = parts.load_picture(flow, "Right-click: Open in Mask Editor", parts.HOLE)
    crop = flow.add("CascadeStudio_InpaintCrop", image=image["IMAGE"], mask=image["MASK"], target_size=1024)
    flow.step("Prompt")
    prompts = parts.prompts(flow, load["clip"], "a white windmill on green hills, soft morning light, photograph")
    flow.step("Tell Stage C what to keep")
    encoded = flow.add("CascadeStudio_EncodeImage", image=crop["image"], vae=load["stage_c_vae"])
    masked = flow.add("SetLatentNoiseMask", samples=encoded["Stage C latent"], mask=crop["prior_mask"])
    hint = flow.add(
        "CascadeStudio_InpaintHint", image=crop["image"], mask=crop["mask"], latent=encoded["Stage C latent"]
    )
    applied = _apply(flow, net, hint["hint"], prompts)
    c, b = parts.both_stages(flow, load, prompts, masked["LATENT"], steered=applied)
    flow.feature(c, latent=encoded["Stage C latent"])
    flow.step("Stage A paints, then paste back")
    decoded = flow.add("CascadeStudio_DecodeStageA", latent=b["latent"], vae=load["stage_a"])
    whole = flow.add("CascadeStudio_InpaintStitch", stitch=crop["stitch"], image=decoded["image"])
    flow.step("The picture, before and after")
    flow.add("CascadeStudio_Compare", before=image["IMAGE"], after=whole["image"])
    saved = flow.add("SaveImage", images=whole["image"], filename_prefix=f"cascade/{flow.name}", wide=400)
    flow.show_in_app([(image, "image"), (prompts[0], "text"), (c, "seed")], saved)
    parts.model_links(flow, _keys("controlnet_inpainting"))
    flow.note(
        "How it works",
        """## How it works

1. Paint over what should change (right-click the picture, *Open in Mask Editor*).
2. **Inpaint Crop** cuts that part out with some surroundings and enlarges it to a size that Stable Cascade works
   well at.
3. The inpainting ControlNet and the noise mask let Stage C draw only there.
4. **Paste Inpainted Part** puts it back. Outside of the mask and its feather every pixel keeps exactly its old
   value.

More **context** shows the model more of the surroundings; more **feather** makes a softer seam.""",
    )
    return flow


def outpaint() -> Flow:
    """A picture goes on beyond its borders."""
    flow = Flow("outpaint")
    load = parts.load(flow, PRESET, WITHOUT)
    net = _net(flow, "controlnet_inpainting")
    flow.step("Load a picture and add borders")
    image = parts.load_picture(flow)
    border = flow.add("CascadeStudio_OutpaintCanvas", left=256, right=256, image=image["IMAGE"])
    flow.step("Prompt")
    prompts = parts.prompts(flow, load["clip"], "a wide landscape with hills and a river, clear morning, photograph")
    flow.step("Picture size and hint")
    canvas = flow.add("CascadeStudio_Canvas", width=border["width"], height=border["height"])
    hint = flow.add(
        "CascadeStudio_InpaintHint", image=border["image"], mask=border["mask"], latent=canvas["Stage C latent"]
    )
    applied = _apply(flow, net, hint["hint"], prompts)
    _, b = parts.both_stages(flow, load, prompts, canvas["Stage C latent"], steered=applied)
    parts.finish(flow, b["latent"], load["stage_a"], _keys("controlnet_inpainting"))
    flow.feature(border, left=0)
    flow.note(
        "Borders",
        f"""## Borders

**Outpaint Canvas** adds pixels at each side, or fills up to a width and height. Describe the whole picture in the
prompt, not the border alone. Go on in several steps of a quarter of the picture rather than in one large one.

The old part is drawn anew, too, as close as the small latent allows. To keep it pixel by pixel, use the workflow
*{title_of("inpaint")}* with the mask of this canvas.""",
    )
    return flow


def super_resolution() -> Flow:
    """A picture, 2.67 times as wide and high."""
    flow = Flow("super_resolution")
    load = parts.load(flow, PRESET, parts.PICTURES_IN)
    encoder = flow.add(
        "CascadeStudio_LoadImageEncoder",
        image_encoder=parts.files.name("effnet_encoder"),
        previewer=parts.files.name("previewer"),
    )
    net = _net(flow, "controlnet_super_resolution")
    flow.step("Load a small picture")
    image = parts.load_picture(flow)
    hint = flow.add("CascadeStudio_SuperResolutionHint", image=image["IMAGE"], vae=encoder["stage_c_vae"])
    flow.step("Prompt")
    prompts = parts.prompts(flow, load["clip"], "a house on green hills under a blue sky, sharp and detailed")
    applied = _apply(flow, net, hint["hint"], prompts)
    _, b = parts.both_stages(flow, load, prompts, hint["Stage C latent"], steered=applied, cfg=1.0)
    parts.finish(flow, b["latent"], load["stage_a"], _keys("controlnet_super_resolution"))
    flow.note(
        "Sizes",
        """## Sizes

The ControlNet was trained on pictures of about 768 pixels, which become 2048. Stage C works on a grid twice as fine
for it, so this needs more time and memory than a plain picture. Describe in the prompt what the picture shows.""",
    )
    return flow


RECIPES = (canny, inpaint, outpaint, super_resolution)
