"""NaN is told as what it came from, never as a LoRA or a damaged file; and Cancel is heard inside of a long step."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from graphs import check_sentence
from inprocess import PromptError
from world import Studio

RUN = {"steps": 1, "seed": 1}
INNOCENT = ("LoRA on it is damaged", "download the file again", "take the LoRA off")


def check_blame(text: str, *words: str) -> None:
    check_sentence(text, *words)
    assert not any(innocent in text for innocent in INNOCENT), text


def failing(studio: Studio, stage: str, **given: Any) -> str:
    """What the sampler of ``stage`` says of these inputs."""
    graph = studio.graph()
    kind, latent = ("SamplePrior", "latent") if stage == "prior" else ("SampleDecoder", "prior")
    first = studio.canvas()[0] if stage == "prior" else studio.prior_latent
    inputs = {"model": getattr(studio.parts, stage), **studio.prompts, latent: first, **RUN, **given}
    return graph.error(graph.add(f"CascadeStudio_{kind}", **inputs)[0])


def floats_of(host: Any, kind: str) -> list[str]:
    types = host.nodes.NODE_CLASS_MAPPINGS[f"CascadeStudio_{kind}"].INPUT_TYPES()
    return [name for name, spec in {**types["required"], **types.get("optional", {})}.items() if spec[0] == "FLOAT"]


@pytest.mark.parametrize("stage, kind", [("prior", "SamplePrior"), ("decoder", "SampleDecoder")])
def test_every_number_of_a_sampler(host, studio, stage, kind):
    """The host lets NaN through its own limits."""
    names = floats_of(host, kind)
    assert {"cfg", "shift", "denoise", "rescale", "guidance_start", "variation_strength"} <= set(names)
    for name in names:
        check_blame(failing(studio, stage, **{name: math.nan}), name, "nan", "no number")


def spoiled(conditioning: Any, key: str | None = None) -> Any:
    """A conditioning with one NaN in its text, or in what it holds under ``key``."""
    [[text, extra]] = conditioning
    text, extra = text.clone(), {**extra, "pooled_output": extra["pooled_output"].clone()}
    (text if key is None else extra[key]).flatten()[3] = math.nan
    return [[text, extra]]


def test_prompts_and_what_is_in_them(studio):
    with pytest.raises(PromptError) as refused:
        studio.call("CascadeStudio_EncodePrompt", clip=studio.parts.clip, text="a (red:nan) apple")
    check_blame(str(refused.value), "prompt", "weight nan")
    check_blame(failing(studio, "prior", positive=spoiled(studio.positive)), "the text of a prompt")
    for stage in ("prior", "decoder"):
        pooled = spoiled(studio.positive, "pooled_output")
        check_blame(failing(studio, stage, positive=pooled), "the pooled text of a prompt")
    vision = studio.call(
        "CLIPVisionEncode",
        clip_vision=studio.parts.clip_vision,
        image=torch.full((1, 64, 64, 3), math.nan),
        crop="center",
    )
    pictured = studio.call(
        "unCLIPConditioning",
        conditioning=studio.positive,
        clip_vision_output=vision,
        strength=1.0,
        noise_augmentation=0.0,
    )
    check_blame(failing(studio, "prior", positive=pictured), "an image prompt")


def test_latents_and_masks(studio):
    bad = {**studio.prior_latent, "samples": studio.prior_latent["samples"].clone()}
    bad["samples"][0, 0, 0, 0] = math.nan
    check_blame(failing(studio, "prior", latent=bad, denoise=0.5), "Stage C was given", "in the latent")
    check_blame(failing(studio, "decoder", prior=bad), "Stage C latent")
    masked = {**studio.prior_latent, "noise_mask": torch.full((1, 1, 6, 6), math.nan)}
    check_blame(failing(studio, "prior", latent=masked, denoise=0.5), "mask of the latent")


@pytest.mark.parametrize("stage", ["prior", "decoder"])
def test_cancel_is_heard_inside_of_a_step(studio, stage):
    """A step of a large picture takes minutes on a CPU: it ends at the next group of blocks, not at its own end."""
    calls = []

    def stop(function, *arguments, **keywords):
        calls.append(1)
        if len(calls) == 1:
            studio.host.interrupt()
        return function(*arguments, **keywords)

    model = getattr(studio.parts, stage).clone()
    model.model_options.setdefault("transformer_options", {})["optimized_attention_override"] = stop
    graph = studio.graph()
    kind, latent = ("SamplePrior", "latent") if stage == "prior" else ("SampleDecoder", "prior")
    first = studio.canvas()[0] if stage == "prior" else studio.prior_latent
    node = graph.add(f"CascadeStudio_{kind}", model=model, **studio.prompts, **{latent: first}, **RUN, cfg=1.0)
    assert graph.execute(node[0]).interrupted
    assert len(calls) == 1
