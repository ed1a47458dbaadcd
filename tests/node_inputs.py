"""Inputs for every node of the pack that takes objects, for tests that walk all nodes."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from world import Parts

from cascade_studio.stages.inputs import inpaint
from cascade_studio.stages.training.dataset import from_batch


def noise(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


GUIDANCE = ("PerturbedAttention", "SelfAttentionGuidance", "CFGZero", "TiledAttention", "Compile", "Cache")


def make_inputs(parts: Parts, control_net: Any = None) -> dict[str, dict[str, Any]]:
    """Inputs for every node that takes objects, with everything in them that a node could be tempted to change.

    ``control_net`` is the family's own unless it is given.
    """
    seen = SimpleNamespace(image_embeds=noise(1, 64))
    image_prompt = [{"clip_vision_output": seen, "strength": 1.0, "noise_augmentation": 0.0}]
    text, entries = parts.positive[0]
    prompts = {
        "positive": [
            [text, {**entries, "unclip_conditioning": image_prompt, "start_percent": 0.0}],
            [text * 0.5, {**entries, "area": (2, 2, 0, 0), "strength": 0.5}],
        ],
        "negative": parts.negative,
    }
    prior = {"samples": noise(2, 16, 3, 3), "noise_mask": torch.ones(1, 1, 6, 6), "batch_index": [5, 8], "mine": [1]}
    latent = {"samples": noise(2, 4, 32, 32), "noise_mask": torch.ones(2, 1, 32, 32), "mine": {"deep": noise(2)}}
    image = torch.rand(2, 130, 100, 4, generator=torch.Generator().manual_seed(0))
    mask = (noise(1, 130, 100) > 2).float()
    from cascade_studio.nodes.host.report import card

    done = card.StageReport("Stage C", 3, 3, 2, settings=(("seed", 3),))
    run = {"steps": 2, "denoise": 0.5}
    return {
        "CascadeStudio_SamplePrior": {"model": parts.prior, "latent": prior, **prompts, **run},
        "CascadeStudio_SampleDecoder": {"model": parts.decoder, "prior": prior, "latent": latent, **prompts, **run},
        "CascadeStudio_DecoderConditioning": {"prior": prior, **prompts},
        "CascadeStudio_Schedule": {"model": parts.prior, "shift": 3.0},
        "CascadeStudio_Guider": {"model": parts.prior, "cfg_end": 2.0, **prompts},
        "CascadeStudio_DecodeStageA": {"latent": latent, "vae": parts.stage_a},
        "CascadeStudio_EncodeStageA": {"image": image, "vae": parts.stage_a},
        "CascadeStudio_EncodeImage": {"image": image, "vae": parts.stage_c_vae},
        "CascadeStudio_DecodePreview": {"prior": prior, "vae": parts.stage_c_vae},
        "CascadeStudio_DraftBoard": {"prior": prior, "vae": parts.stage_c_vae, "chosen": "2"},
        "CascadeStudio_InpaintCrop": {"image": image, "mask": mask, "target_size": 0},
        "CascadeStudio_InpaintStitch": {"stitch": inpaint.cut_part(image, mask).stitch, "image": image},
        "CascadeStudio_ReportCard": {"latent": {**prior, card.REPORT: (done,)}, "image": image},
        "CascadeStudio_SaveImage": {"images": image, "report": (done,)},
        **make_large_inputs(parts, prompts, image, mask),
        **make_model_inputs(parts),
        **make_control_inputs(parts, prompts, image, control_net or load_control_net()),
        "CascadeStudio_TrainingSet": {"images": image, "captions": "a thing"},
        "CascadeStudio_TrainLora": {
            "model": parts.prior,
            "clip": parts.clip,
            "vae": parts.stage_c_vae,
            "steps": 2,
            "batch_size": 1,
            "training_set": from_batch(image, ["a thing"], 64),
            "sample_every": 1,
            "name": "kept",
        },
        "CascadeStudio_Train": {
            "model": parts.prior,
            "clip": parts.clip,
            "vae": parts.stage_c_vae,
            "steps": 2,
            "training_set": from_batch(image, ["a thing"], 64),
        },
        "CascadeStudio_FindLearningRate": {
            "model": parts.prior,
            "clip": parts.clip,
            "vae": parts.stage_c_vae,
            "steps": 2,
            "batch_size": 1,
            "training_set": from_batch(image, ["a thing"], 64),
        },
        "CascadeStudio_Compare": {"before": image[..., :3], "after": image[..., :3]},
        "CascadeStudio_TileDecoder": {"model": parts.decoder},
        "CascadeStudio_HighResolutionPrior": {"prior": prior},
        "CascadeStudio_GuideStageC": {
            "model": parts.prior,
            "guide": load_guide(),
            "prior": {key: value for key, value in prior.items() if key != "noise_mask"},
            "positive": parts.positive,
        },
        "CascadeStudio_EncodePrompt": {"clip": parts.clip, "text": "a (red:1.4) apple BREAK leaves AVG a (house:0.5)"},
        "CascadeStudio_RegionalPrompt": {
            "conditioning": prompts["positive"],
            "region": parts.negative,
            "mask": noise(1, 8, 8).clamp(0, 1),
        },
        **{f"CascadeStudio_{name}": {"model": parts.prior} for name in GUIDANCE},
    }


def make_large_inputs(parts: Parts, prompts: dict[str, Any], image: Tensor, mask: Tensor) -> dict[str, dict[str, Any]]:
    """Inputs for the nodes that work on parts and tiles of large pictures."""
    models = {"decoder": parts.decoder, "stage_a": parts.stage_a, "stage_c_vae": parts.stage_c_vae}
    plain = {name: value[:1] for name, value in prompts.items()}
    return {
        "CascadeStudio_Detailer": {
            **models,
            **plain,
            "image": image,
            "prior": parts.prior,
            "steps": 1,
            "decoder_steps": 1,
            "target_size": 64,
            "segments": ((130, 100), [{"bbox": [10, 10, 60, 60], "cropped_mask": None, "crop_region": [0, 0, 90, 90]}]),
            "mask": 1 - mask,
        },
        "CascadeStudio_Upscale": {**models, **plain, "image": image, "steps": 1, "tile_size": 128, "tile_overlap": 64},
        "CascadeStudio_SaliencyMask": {"image": image},
        "CascadeStudio_OneModel": {**models, "prior": parts.prior, "prior_denoise": 0.5},
    }


def make_model_inputs(parts: Parts) -> dict[str, dict[str, Any]]:
    """Inputs for the nodes that change or write models."""
    tuned = parts.prior.clone()
    tuned.add_patches({"diffusion_model.clf.1.weight": ("diff", (noise(16, 128, 1, 1),))})
    lora = {"lora": "official.safetensors"}
    return {
        "CascadeStudio_LoraStack": {**lora, "stack": ()},
        "CascadeStudio_ApplyLoraStack": {"stack": (), "prior": tuned, "decoder": parts.decoder, "clip": parts.clip},
        "CascadeStudio_ConvertLora": {**lora, "model": parts.prior, "clip": parts.clip, "layout": "ComfyUI"},
        "CascadeStudio_ExtractLora": {"tuned": tuned, "base": parts.prior},
        "CascadeStudio_MergeModels": {"model1": parts.prior, "model2": tuned},
        "CascadeStudio_AddDifference": {"model": parts.prior, "tuned": tuned, "base": parts.prior},
        "CascadeStudio_SaveModel": {"model": parts.prior, "layout": "official"},
    }


def make_control_inputs(
    parts: Parts, prompts: dict[str, Any], image: Tensor, control_net: Any
) -> dict[str, dict[str, Any]]:
    mask = torch.rand(1, 130, 100, generator=torch.Generator().manual_seed(1))
    latent = {"samples": noise(1, 16, 3, 3), "mine": [1]}
    return {
        "CascadeStudio_ApplyControl": {"control_net": control_net, "image": image[..., :3], "late": 0.5, **prompts},
        "CascadeStudio_CannyHint": {"image": image, "latent": latent},
        "CascadeStudio_InpaintHint": {"image": image, "mask": mask, "latent": latent, "grow": 3},
        "CascadeStudio_OutpaintCanvas": {"image": image, "mask": mask, "left": 8},
        "CascadeStudio_SuperResolutionHint": {"image": image, "vae": parts.stage_c_vae},
        "CascadeStudio_IdentityHint": {
            "image": image,
            "latent": latent,
            "boxes": torch.tensor([[5.0, 5, 60, 60]]),
            "embeddings": noise(1, 512),
        },
        "CascadeStudio_ImagePrompts": {
            "clip_vision": parts.clip_vision,
            "clip": parts.clip,
            "text_weight": 0.5,
            "image_1": image,
            "weight_1": -1.0,
            "end_percent": 0.5,
            **prompts,
        },
    }


def load_guide() -> Any:
    from cascade_studio.nodes.host.files import names
    from cascade_studio.nodes.host.models import load, load_guide

    return load_guide.load_guide(load.find_part(names.find("ultrapixel", "ultrapixel_t2i.safetensors"), "ultrapixel"))


def load_control_net(name: str = "canny") -> Any:
    from cascade_studio.nodes.host.conditioning import controlnet
    from cascade_studio.nodes.host.files import names

    return controlnet.load_control(names.find("controlnet", f"{name}.safetensors"))
