"""No node changes what it is given: the host keeps it for other nodes and for the next run."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from graphs import Graph, Parts
from sources import node_classes
from torch import Tensor

from cascade_studio.stages.inputs import inpaint
from cascade_studio.stages.training.dataset import from_batch


def snapshot(value: Any) -> Any:
    """A deep copy of tensors and containers; of a model, what another node could change in it."""
    if isinstance(value, Tensor):
        return value.clone()
    if isinstance(value, dict):
        return {key: snapshot(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(snapshot(each) for each in value)
    if hasattr(value, "model_options"):
        return snapshot(
            {
                "options": value.model_options,
                "objects": value.object_patches,
                "patches": value.patches,
                "weights": value.model.state_dict(),
                "wrappers": value.wrappers,
                "callbacks": value.callbacks,
            }
        )
    if hasattr(value, "patcher"):
        return snapshot(value.patcher)
    return value


def same(first: Any, second: Any) -> bool:
    if isinstance(first, Tensor):
        return first.dtype == second.dtype and first.shape == second.shape and torch.equal(first, second)
    if isinstance(first, dict):
        return list(first) == list(second) and all(same(first[key], second[key]) for key in first)
    if isinstance(first, (list, tuple)):
        return len(first) == len(second) and all(map(same, first, second))
    return first is second or first == second


def noise(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


GUIDANCE = ("PerturbedAttention", "SelfAttentionGuidance", "CFGZero", "TiledAttention")


def given(parts: Parts) -> dict[str, dict[str, Any]]:
    """Inputs for every node that takes objects, with everything in them that a node could be tempted to change."""
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
        **given_models(parts),
        **given_to_control(parts, prompts, image),
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
        "CascadeStudio_Compare": {"before": image[..., :3], "after": image[..., :3]},
        "CascadeStudio_TileDecoder": {"model": parts.decoder},
        "CascadeStudio_HighResolutionPrior": {"prior": prior},
        "CascadeStudio_EncodePrompt": {"clip": parts.clip, "text": "a (red:1.4) apple BREAK leaves AVG a (house:0.5)"},
        "CascadeStudio_RegionalPrompt": {
            "conditioning": prompts["positive"],
            "region": parts.negative,
            "mask": noise(1, 8, 8).clamp(0, 1),
        },
        **{f"CascadeStudio_{name}": {"model": parts.prior} for name in GUIDANCE},
    }


def given_models(parts: Parts) -> dict[str, dict[str, Any]]:
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


NEW_EACH_TIME = {
    "CascadeStudio_" + name
    for name in (
        "Guider",
        "ApplyLoraStack",
        "ConvertLora",
        "ExtractLora",
        "MergeModels",
        "AddDifference",
        "SaveModel",
        "ApplyControl",
        "ImagePrompts",
        "TileDecoder",
        "RegionalPrompt",
        "TrainingSet",
        "TrainLora",
        *GUIDANCE,
    )
}
"""Nodes whose result is an object of its own, or a file of its own."""


def given_to_control(parts: Parts, prompts: dict[str, Any], image: Tensor) -> dict[str, dict[str, Any]]:
    mask = torch.rand(1, 130, 100, generator=torch.Generator().manual_seed(1))
    latent = {"samples": noise(1, 16, 3, 3), "mine": [1]}
    return {
        "CascadeStudio_ApplyControl": {"control_net": control_net(), "image": image[..., :3], "late": 0.5, **prompts},
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


def control_net() -> Any:
    from cascade_studio.nodes.host.conditioning import controlnet
    from cascade_studio.nodes.host.files import names

    return controlnet.load_control(names.find("controlnet", "canny.safetensors"))


NO_OBJECTS = {"CascadeStudio_Canvas", "CascadeStudio_Sampler", "CascadeStudio_TrainingSettings"}


TAKERS = {name for name in node_classes() if not name.startswith("CascadeStudio_Load")} - NO_OBJECTS
"""The pack's nodes that take more than widgets; each needs an entry in ``given``."""


def test_every_node_is_here(host, parts):
    assert TAKERS == set(given(parts))


@pytest.mark.parametrize("kind", sorted(TAKERS))
def test_inputs_are_kept(host, parts, kind):
    inputs = given(parts)[kind]
    slots = range(1 if host.nodes.NODE_CLASS_MAPPINGS[kind].RETURN_TYPES else 0)  # Compare only shows something
    before = {name: snapshot(value) for name, value in inputs.items()}
    graph = Graph(host)
    node = graph.add(kind, **inputs)
    first = graph.run(*(node[slot] for slot in slots))
    changed = [name for name, value in inputs.items() if not same(before[name], snapshot(value))]
    assert not changed
    if kind not in NEW_EACH_TIME:
        kept = snapshot(first)
        graph = Graph(host)
        node = graph.add(kind, **inputs)
        second = graph.run(*(node[slot] for slot in slots))
        assert same(kept, second), "the same inputs gave something else"
        assert same(kept, first), "the second run changed the result of the first"


@pytest.mark.parametrize("stage", ["C", "B"])
def test_core_sampling_with_our_nodes_keeps_inputs(host, parts, stage):
    inputs = given(parts)["CascadeStudio_SamplePrior" if stage == "C" else "CascadeStudio_SampleDecoder"]
    model, latent = inputs["model"], inputs["latent"]
    prompts = {name: inputs[name] for name in ("positive", "negative")}
    before = snapshot([model, latent, prompts])
    graph = Graph(host)
    node = graph.add(
        "SamplerCustomAdvanced",
        latent_image=latent,
        noise=graph.add("RandomNoise", noise_seed=0)[0],
        guider=graph.add("CascadeStudio_Guider", model=model, **prompts)[0],
        sampler=graph.add("CascadeStudio_Sampler", sampler="lcm")[0],
        sigmas=graph.add("CascadeStudio_Schedule", model=model, steps=2)[0],
    )
    graph.run(node[0])
    assert same(before, snapshot([model, latent, prompts]))
