"""One workflow with everything that artists chain, as an API prompt of the tiny family's files.

Three LoRAs through three loaders (ours, a stack, core's), two ControlNets through two nodes (ours, core's), an image
prompt, a regional prompt with a picture and a ControlNet of its own, and the Previewer as live preview.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import family as tiny_family
import torch
from forward import comfyui, low_rank, noise, official
from graphs import FILES
from PIL import Image
from safetensors.torch import save_file
from small_extras import write_controlnets
from world import FP32

PARTS = (
    "our LoRA",
    "stacked LoRA",
    "core's LoRA",
    "our ControlNet",
    "core's ControlNet",
    "image prompt",
    "regional prompt",
    "the region's picture",
    "the region's ControlNet",
    "live preview",
)
PICTURE, STEPS, SIDE = "matrix.png", 5, 256
SAMPLE, LATENT, SAVED = "sample", "save latent", "save picture"

Specs = Callable[[str], dict[str, Any]]
"""The input definitions of a node: ``{"required": {name: (type, options)}, "optional": …}``."""


def write_files(models: Path, inputs: Path) -> None:
    """The LoRAs, ControlNets and the picture of the workflow, beside the family."""
    weights = tiny_family.split(tiny_family.stage_c_weights())
    shapes = {
        key.removesuffix(".weight"): tuple(value.shape)
        for key, value in weights.items()
        if ".attention.attn." in key and key.endswith(".weight")
    }
    kohya = {
        f"lora_prior_unet_{module.replace('.', '_')}.lora_{way}.weight": factor
        for module, pair in low_rank(shapes, seed=50).items()
        for way, factor in zip(("up", "down"), pair)
    }
    words = "lora_prior_te_text_model_encoder_layers_1_mlp_fc1"
    text = {f"{words}.lora_up.weight": noise(256, 2), f"{words}.lora_down.weight": noise(2, 64)}
    for name, tensors in (
        ("one", official(low_rank(shapes))),
        ("two", kohya),
        ("three", {**comfyui(low_rank(shapes, seed=90)), **text}),
    ):
        save_file(
            {key: value.contiguous() for key, value in tensors.items()},
            models / "loras" / f"matrix_{name}.safetensors",
            metadata={"format": "pt"},
        )
    write_controlnets(models)
    colours = torch.rand(12, 12, 3, generator=torch.Generator().manual_seed(1))
    colours[:, 6:, 0] = 1.0  # the red channel is the region's mask
    colours[:, :6, 0] = 0.0
    Image.fromarray((colours * 255).byte().numpy()).resize((SIDE, SIDE), Image.Resampling.NEAREST).save(
        inputs / PICTURE
    )


class Sheet:
    """An API prompt; inputs that are left out have their defaults."""

    def __init__(self, specs: Specs) -> None:
        self.specs, self.prompt = specs, {}

    def add(self, name: str, kind: str, **inputs: Any) -> Callable[[int], list[Any]]:
        """Add a node called ``name``; what is returned gives its outputs by number."""
        spec = self.specs(kind)
        defaults = {
            key: value[1]["default"]
            for part in ("required", "optional")
            for key, value in spec.get(part, {}).items()
            if len(value) > 1 and "default" in value[1]
        }
        self.prompt[name] = {"class_type": kind, "inputs": {**defaults, **inputs}}
        return lambda slot: [name, slot]


def matrix(
    specs: Specs,
    without: Collection[str] = (),
    steps: int = STEPS,
    lora: float = 1.0,
    control: float = 3.0,
    words: str = "a red barn",
    paint: bool = True,
) -> dict[str, Any]:
    """The workflow ``without`` some of :data:`PARTS`, up to the picture or (``paint`` False) to Stage C's latent.

    ``control``, ``words`` and ``lora`` change a part late, in the middle and early in it.
    """
    sheet = Sheet(specs)
    files = {**FILES, **({"previewer": "none"} if "live preview" in without else {})}
    load = sheet.add("load", "CascadeStudio_Load", **files, **FP32, preset="files below", missing_files="never")
    model, clip = with_loras(sheet, load(0), load(2), without, lora)
    picture, mask = (
        sheet.add("picture", "LoadImage", image=PICTURE)(0),
        sheet.add("mask", "LoadImageMask", image=PICTURE, channel="red")(0),
    )
    canvas = sheet.add("canvas", "CascadeStudio_Canvas", width=SIDE, height=SIDE)
    plain = [
        sheet.add(name, "CascadeStudio_EncodePrompt", clip=clip, text=text)(0)
        for name, text in (("prompt", "a wide valley at (dawn:1.3)"), ("negative", "blurry"))
    ]
    positive, negative = plain
    if "image prompt" not in without:
        seen = sheet.add(
            "image prompt",
            "CascadeStudio_ImagePrompts",
            positive=positive,
            negative=negative,
            clip_vision=load(3),
            image_1=picture,
        )
        positive, negative = seen(0), seen(1)
    canny = sheet.add("canny net", "CascadeStudio_LoadControlNet", controlnet="canny.safetensors", dtype="fp32")
    edges = sheet.add("edges", "CascadeStudio_CannyHint", image=picture, latent=canvas(0))
    if "regional prompt" not in without:
        region = sheet.add("words", "CascadeStudio_EncodePrompt", clip=clip, text=words)(0)
        if "the region's picture" not in without:
            region = sheet.add(
                "region's picture",
                "CascadeStudio_ImagePrompts",
                positive=region,
                negative=plain[1],
                clip_vision=load(3),
                image_1=picture,
                crop="squash",
                weight_1=2.0,
            )(0)
        if "the region's ControlNet" not in without:
            region = sheet.add(
                "region's net",
                "CascadeStudio_ApplyControl",
                positive=region,
                negative=plain[1],
                control_net=canny(0),
                image=edges(0),
                strength=2.0,
                end_percent=0.7,
            )(0)
        positive = sheet.add("region", "CascadeStudio_RegionalPrompt", conditioning=positive, region=region, mask=mask)(
            0
        )
    if "our ControlNet" not in without:
        ours = sheet.add(
            "our net",
            "CascadeStudio_ApplyControl",
            positive=positive,
            negative=negative,
            control_net=canny(0),
            image=edges(0),
            strength=2.0,
            late=0.5,
        )
        positive, negative = ours(0), ours(1)
    if "core's ControlNet" not in without:
        net = sheet.add("paint net", "CascadeStudio_LoadControlNet", controlnet="inpainting.safetensors", dtype="fp32")
        hint = sheet.add("hole", "CascadeStudio_InpaintHint", image=picture, mask=mask, latent=canvas(0))
        core = sheet.add(
            "core's net",
            "ControlNetApplyAdvanced",
            positive=positive,
            negative=negative,
            control_net=net(0),
            image=hint(0),
            strength=control,
            start_percent=0.0,
            end_percent=0.8,
        )
        positive, negative = core(0), core(1)
    prior = sheet.add(
        SAMPLE,
        "CascadeStudio_SamplePrior",
        model=model,
        positive=positive,
        negative=negative,
        latent=canvas(0),
        steps=steps,
        cfg=3.0,
        seed=5,
    )
    sheet.add(LATENT, "SaveLatent", samples=prior(0), filename_prefix="matrix")
    if not paint:
        return sheet.prompt
    latent = sheet.add(
        "decoder",
        "CascadeStudio_SampleDecoder",
        model=load(1),
        positive=positive,
        negative=negative,
        prior=prior(0),
        steps=2,
    )
    painted = sheet.add("paint", "CascadeStudio_DecodeStageA", latent=latent(0), vae=load(4))
    sheet.add(SAVED, "SaveImage", images=painted(0), filename_prefix="matrix")
    return sheet.prompt


def with_loras(sheet: Sheet, model: Any, clip: Any, without: Collection[str], strength: float) -> tuple[Any, Any]:
    """Stage C and the text encoder behind the three LoRAs."""
    if "our LoRA" not in without:
        ours = sheet.add(
            "our LoRA",
            "CascadeStudio_LoadLora",
            lora="matrix_one.safetensors",
            prior=model,
            clip=clip,
            strength_model=strength,
        )
        model, clip = ours(0), ours(2)
    if "stacked LoRA" not in without:
        stack = sheet.add("stack", "CascadeStudio_LoraStack", lora="matrix_two.safetensors", strength_model=0.8)
        stacked = sheet.add("stacked LoRA", "CascadeStudio_ApplyLoraStack", stack=stack(0), prior=model, clip=clip)
        model, clip = stacked(0), stacked(2)
    if "core's LoRA" not in without:
        core = sheet.add(
            "core's LoRA",
            "LoraLoader",
            model=model,
            clip=clip,
            lora_name="matrix_three.safetensors",
            strength_model=0.7,
            strength_clip=0.5,
        )
        model, clip = core(0), core(1)
    return model, clip
