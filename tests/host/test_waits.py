"""What a graphics card waits for while it samples, counted on a pretended one."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from pretend import CARD, pretended_card
from world import Studio

SEED = 5
SAMPLER = ("pack/sample.py", "pack/sampling.py")
"""The loop over the steps, which looks at sigmas and brings the pictures' own noise to the card."""


def sample(studio: Studio, stage: str, model: Any, steps: int, prompts: dict[str, Any]) -> Any:
    if stage == "prior":
        return studio.sample_prior(studio.canvas()[0], model=model, seed=SEED, steps=steps, **prompts)
    return studio.sample_decoder(studio.prior_latent, model=model, seed=SEED, steps=steps, **prompts)


@pytest.mark.parametrize("stage, controlled", [("prior", False), ("decoder", False), ("prior", True)])
def test_no_step_waits(studio, monkeypatch, stage, controlled):
    """Beside the loop itself, six steps ask the card for no more than three do."""
    import comfy.model_management

    prompts = dict(studio.prompts)
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
        found = []
        for steps in (3, 6):
            card.events.clear()
            sample(studio, stage, model, steps, prompts)
            found.append(card.of_pack())
        comfy.model_management.free_memory(1e30, CARD)
        monkeypatch.undo()
    few, many = found
    more = {key: many[key] - few.get(key, 0) for key in many if many[key] > few.get(key, 0)}
    more = {key: number for key, number in more.items() if not key[1].startswith(SAMPLER)}
    assert not more, "asked for at every step:\n" + "\n".join(f"{number} x {key}" for key, number in more.items())
