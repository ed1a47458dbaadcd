"""One workflow with everything that artists chain, as an API prompt of the tiny family's files.

Three LoRAs through three loaders (ours, a stack, core's), two ControlNets through two nodes (ours, core's), an image
prompt, a regional prompt with a picture and a ControlNet of its own, and the Previewer as live preview.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

import family as tiny_family
import torch
from forward import comfyui, low_rank, noise, official
from graphs import FILES, Prompt, Specs
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
    graph = Prompt(specs)
    files = {**FILES, **({"previewer": "none"} if "live preview" in without else {})}
    load = graph.add("CascadeStudio_Load", "load", **files, **FP32, preset="files below", missing_files="never")
    model, clip = with_loras(graph, load[0], load[2], without, lora)
    picture, mask = (
        graph.add("LoadImage", "picture", image=PICTURE)[0],
        graph.add("LoadImageMask", "mask", image=PICTURE, channel="red")[0],
    )
    canvas = graph.add("CascadeStudio_Canvas", "canvas", width=SIDE, height=SIDE)
    plain = [
        graph.add("CascadeStudio_EncodePrompt", name, clip=clip, text=text)[0]
        for name, text in (("prompt", "a wide valley at (dawn:1.3)"), ("negative", "blurry"))
    ]
    positive, negative = plain
    if "image prompt" not in without:
        seen = graph.add(
            "CascadeStudio_ImagePrompts",
            "image prompt",
            positive=positive,
            negative=negative,
            clip_vision=load[3],
            image_1=picture,
        )
        positive, negative = seen[0], seen[1]
    canny = graph.add("CascadeStudio_LoadControlNet", "canny net", controlnet="canny.safetensors", dtype="fp32")
    edges = graph.add("CascadeStudio_CannyHint", "edges", image=picture, latent=canvas[0])
    if "regional prompt" not in without:
        region = graph.add("CascadeStudio_EncodePrompt", "words", clip=clip, text=words)[0]
        if "the region's picture" not in without:
            region = graph.add(
                "CascadeStudio_ImagePrompts",
                "region's picture",
                positive=region,
                negative=plain[1],
                clip_vision=load[3],
                image_1=picture,
                crop="squash",
                weight_1=2.0,
            )[0]
        if "the region's ControlNet" not in without:
            region = graph.add(
                "CascadeStudio_ApplyControl",
                "region's net",
                positive=region,
                negative=plain[1],
                control_net=canny[0],
                image=edges[0],
                strength=2.0,
                end_percent=0.7,
            )[0]
        regional = graph.add("CascadeStudio_RegionalPrompt", "region", conditioning=positive, region=region, mask=mask)
        positive = regional[0]
    if "our ControlNet" not in without:
        ours = graph.add(
            "CascadeStudio_ApplyControl",
            "our net",
            positive=positive,
            negative=negative,
            control_net=canny[0],
            image=edges[0],
            strength=2.0,
            late=0.5,
        )
        positive, negative = ours[0], ours[1]
    if "core's ControlNet" not in without:
        net = graph.add("CascadeStudio_LoadControlNet", "paint net", controlnet="inpainting.safetensors", dtype="fp32")
        hint = graph.add("CascadeStudio_InpaintHint", "hole", image=picture, mask=mask, latent=canvas[0])
        core = graph.add(
            "ControlNetApplyAdvanced",
            "core's net",
            positive=positive,
            negative=negative,
            control_net=net[0],
            image=hint[0],
            strength=control,
            start_percent=0.0,
            end_percent=0.8,
        )
        positive, negative = core[0], core[1]
    prior = graph.add(
        "CascadeStudio_SamplePrior",
        SAMPLE,
        model=model,
        positive=positive,
        negative=negative,
        latent=canvas[0],
        steps=steps,
        cfg=3.0,
        seed=5,
    )
    graph.add("SaveLatent", LATENT, samples=prior[0], filename_prefix="matrix")
    if not paint:
        return graph.prompt
    latent = graph.add(
        "CascadeStudio_SampleDecoder",
        "decoder",
        model=load[1],
        positive=positive,
        negative=negative,
        prior=prior[0],
        steps=2,
    )
    painted = graph.add("CascadeStudio_DecodeStageA", "paint", latent=latent[0], vae=load[4])
    graph.add("SaveImage", SAVED, images=painted[0], filename_prefix="matrix")
    return graph.prompt


def with_loras(graph: Prompt, model: Any, clip: Any, without: Collection[str], strength: float) -> tuple[Any, Any]:
    """Stage C and the text encoder behind the three LoRAs."""
    if "our LoRA" not in without:
        ours = graph.add(
            "CascadeStudio_LoadLora",
            "our LoRA",
            lora="matrix_one.safetensors",
            prior=model,
            clip=clip,
            strength_model=strength,
        )
        model, clip = ours[0], ours[2]
    if "stacked LoRA" not in without:
        stack = graph.add("CascadeStudio_LoraStack", "stack", lora="matrix_two.safetensors", strength_model=0.8)
        stacked = graph.add("CascadeStudio_ApplyLoraStack", "stacked LoRA", stack=stack[0], prior=model, clip=clip)
        model, clip = stacked[0], stacked[2]
    if "core's LoRA" not in without:
        core = graph.add(
            "LoraLoader",
            "core's LoRA",
            model=model,
            clip=clip,
            lora_name="matrix_three.safetensors",
            strength_model=0.7,
            strength_clip=0.5,
        )
        model, clip = core[0], core[1]
    return model, clip
