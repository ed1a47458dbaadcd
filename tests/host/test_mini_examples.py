"""Mini's example LoRAs and ControlNet do what they were trained for, on Mini, in the real host."""

from __future__ import annotations

from typing import Any

import eyes
import pytest
import torch
from mini_studio import MiniStudio, seen

from mini import need
from tools import small
from tools.scenes import Scene

SCENES = (Scene("rocket", "blue"), Scene("house", "pink"), Scene("snowman", "purple"), Scene("frog", "purple"))


@pytest.fixture(scope="module")
def mini(host) -> MiniStudio:
    need()
    torch.set_num_threads(1)
    return MiniStudio(host)


@pytest.mark.parametrize("role", ["lora", "another lora"])
def test_a_lora_changes_the_style_and_keeps_the_subject(mini, role, record_property):
    need(role)

    def styled(strength: float) -> Any:
        return mini.call(
            "CascadeStudio_LoadLora",
            prior=mini.parts.prior,
            clip=mini.parts.clip,
            lora=small.mini().files[role],
            strength_model=strength,
        )

    kept, changes = [], []
    for scene in SCENES:
        plain, made = (seen(mini.paint(scene, model=styled(strength))) for strength in (0.0, 1.0))
        changes.append(float((plain - made).abs().mean()))
        kept.append(scene.subject in eyes.outlines().order(made, scene.background)[0][:3])
    record_property("change of the pictures, subjects kept", (changes, kept))
    assert min(changes) > 0.01 and sum(kept) >= len(SCENES) - 1


def test_core_loader_lists_and_uses_the_example_lora(mini):
    """Once, in its list and in ours, where it stays last; and it does with ours what our loader does."""
    from cascade_studio.nodes.host.files import names

    need("lora")
    lora, prior, listed = small.mini().files["lora"], mini.parts.prior, names.Library().list_local("lora")
    assert mini.host.folder_paths.get_filename_list("loras").count(lora) == 1
    assert listed[-1] == lora and listed.count(lora) == 1
    ours = mini.call(
        "CascadeStudio_LoadLora", prior=prior, clip=mini.parts.clip, lora=lora, strength_model=1.0, strength_clip=0.0
    )
    core = mini.call("LoraLoaderModelOnly", model=prior, lora_name=lora, strength_model=1.0)
    one, other = (mini.prior(SCENES[0].prompt, model=model, steps=4)["samples"] for model in (ours, core))
    assert torch.allclose(one, other, atol=1e-4)


def edges(rgb: torch.Tensor) -> torch.Tensor:
    """Where neighbouring pixels differ, at 64 pixels, (B, N), unit length, without their mean."""
    small_rgb = torch.nn.functional.interpolate(rgb, size=(64, 64), mode="area")
    found = (small_rgb[..., 1:, 1:] - small_rgb[..., :-1, 1:]).abs().mean(1) + (
        small_rgb[..., 1:, 1:] - small_rgb[..., 1:, :-1]
    ).abs().mean(1)
    found = found.flatten(1)
    return torch.nn.functional.normalize(found - found.mean(1, keepdim=True), dim=1)


def test_the_controlnet_makes_edges_agree(mini, record_property):
    """Edges of one picture, mirrored, and words for the same subject on another ground: with the net the new picture
    faces the other way as well, which nothing else tells it."""
    need("controlnet_canny")
    net = mini.call("CascadeStudio_LoadControlNet", controlnet=small.mini().files["controlnet_canny"])
    found = []
    for scene in SCENES[:3]:
        image = mini.paint(scene, seed=11).flip(2)
        latent = mini.canvas()[0]
        hint = mini.call("CascadeStudio_CannyHint", image=image, latent=latent)
        other = Scene(scene.subject, "yellow")
        prompts = mini.call(
            "CascadeStudio_ApplyControl",
            range(2),
            positive=mini.text(other.prompt),
            negative=mini.negative,
            control_net=net,
            image=hint,
        )
        free = mini.paint(other, seed=3)
        held = mini.decoded(mini.prior(other.prompt, seed=3, positive=prompts[0], negative=prompts[1]), other.prompt, 3)
        found.append([float((edges(seen(picture)) * edges(seen(image))).sum()) for picture in (free, held)])
    free, held = torch.tensor(found).mean(0).tolist()
    record_property("agreement of edges without and with the net", (free, held))
    assert held > free + 0.05
