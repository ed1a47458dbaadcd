"""What a graphics card waits for while it samples, counted on a pretended one."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from pretend import CARD, pretended_card
from world import Studio

from cascade_studio.nodes import guidance
from cascade_studio.nodes.host.sampling import live

SEED = 5


def sample(studio: Studio, stage: str, model: Any, steps: int, prompts: dict[str, Any]) -> Any:
    if stage == "prior":
        return studio.sample_prior(studio.canvas()[0], model=model, seed=SEED, steps=steps, **prompts)
    return studio.sample_decoder(studio.prior_latent, model=model, seed=SEED, steps=steps, **prompts)


GUIDED = {
    "PerturbedAttention": {"scale": 2.0, "blocks": "everywhere", "end": 0.7, "rescale": 0.5},
    "SelfAttentionGuidance": {"scale": 0.5, "blur": 1.0, "threshold": 1.0, "start": 0.2, "end": 0.7},
    "CFGZero": {"strength": 1.0, "zero_steps": 1},
    "TiledAttention": {"window": 2, "shift": True},
}
"""Every node of nodes/guidance.py, with settings that act in a part of the run where it knows parts."""


def test_every_guidance_is_watched():
    assert {f"CascadeStudio_{name}" for name in GUIDED} == {node.define_schema().node_id for node in guidance.NODES}


INTERVAL = {"cfg_end": 1.5, "guidance_end": 0.7}


@pytest.mark.parametrize(
    "stage, controlled, settings",
    [
        ("prior", False, {}),
        ("decoder", False, {"sampler": "ddim", **INTERVAL}),
        ("prior", False, {"sampler": "lcm", "cached": True}),
        ("prior", True, {}),
        *(("prior", False, {"guidance": name}) for name in GUIDED),
        *(("decoder", False, {"guidance": name}) for name in GUIDED),
    ],
    ids=[
        *("ddpm", "ddim, guided in part", "lcm, cached", "ControlNet"),
        *(f"{name}, {stage}" for stage in ("prior", "decoder") for name in GUIDED),
    ],
)
def test_no_step_waits(studio, monkeypatch, stage, controlled, settings):
    """Six steps ask the card for no more than three do: not our lines, nor those of the host that they run."""
    import comfy.model_management

    monkeypatch.setattr(live, "find_choice", lambda: "none")  # a live preview has to read the picture
    prompts, settings = dict(studio.prompts), dict(settings)
    assert studio.prior_latent["samples"].isfinite().all()  # made before the card is there
    with pretended_card(monkeypatch) as card:
        model = studio.load(stage, "stage_c.safetensors" if stage == "prior" else "stage_b.safetensors")
        if controlled:
            net = studio.call("CascadeStudio_LoadControlNet", controlnet="canny.safetensors", dtype="fp32")
            mask = torch.zeros(1, 48, 48)
            mask[:, :, 24:] = 1
            made = studio.call(
                "CascadeStudio_ApplyControl",
                range(2),
                control_net=net,
                image=torch.rand(1, 48, 48, 3),
                strength=1.0,
                mask=mask,
                **prompts,
            )
            prompts = {"positive": made[0], "negative": made[1]}
        if name := settings.pop("guidance", None):
            model = studio.call(f"CascadeStudio_{name}", model=model, **GUIDED[name])
        if settings.pop("cached", False):
            model = studio.call("CascadeStudio_Cache", model=model, preset="fast")
        found = []
        for steps in (3, 6):
            card.events.clear()
            sample(studio, stage, model, steps, {**prompts, **settings})
            found.append(dict(card.events))
        comfy.model_management.free_memory(1e30, CARD)
        monkeypatch.undo()
    few, many = found
    more = {key: many[key] - few.get(key, 0) for key in many if many[key] > few.get(key, 0)}
    assert not more, "asked for at every step:\n" + "\n".join(f"{number} x {key}" for key, number in more.items())
