"""Cascade Mini as the host loaded it, and short ways to paint with it; its eyes see what came out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from world import FP32, Studio

from cascade_studio.nodes.checkpoints.catalogue import load
from mini import Mini
from tools import small
from tools.scenes import Scene

PRESET = load().presets["cascade-mini"].title


class MiniStudio(Studio):
    """As :class:`studio.Studio`, with Mini's files by their preset; ``eyes`` are its pure nets."""

    def __init__(self, host: Any, **formats: str) -> None:
        loading = {**files(), "preset": PRESET, "missing_files": "never", **FP32, **formats}
        super().__init__(host, host.models, **loading)
        self.eyes = Mini()

    def prior(
        self, prompt: str, count: int = 1, seed: int = 1, latent: dict[str, Any] | None = None, **inputs: Any
    ) -> dict[str, Any]:
        """Sampled Stage C latents of one prompt, at 256 pixels."""
        given = {"positive": self.text(prompt), "negative": self.negative, "seed": seed, **inputs}
        return self.sample_prior(latent or self.canvas(batch=count)[0], **given)

    def decoded(self, prior: dict[str, Any], prompt: str, seed: int = 1) -> Tensor:
        """Pictures (B, H, W, 3) of Stage C latents, by Stage B at cfg 1 and Stage A."""
        latent = self.sample_decoder(prior, positive=self.text(prompt), negative=self.negative, seed=seed, cfg=1.0)
        return self.call("CascadeStudio_DecodeStageA", latent=latent, vae=self.parts.stage_a)

    def texts(self, prompts: list[str]) -> Any:
        """One conditioning with a prompt for each picture of a batch."""
        given = [self.text(prompt)[0] for prompt in prompts]
        return [
            [
                torch.cat([words for words, _ in given]),
                {"pooled_output": torch.cat([more["pooled_output"] for _, more in given])},
            ]
        ]

    def paint_all(self, scenes: Sequence[Scene], seed: int = 1, positive: Any = None, **inputs: Any) -> Tensor:
        """One picture of each scene, RGB (B, 3, H, W), in one batch; ``inputs`` are those of the Stage C sampler.

        ``positive`` says it in other words than the scenes' prompts.
        """
        positive = positive or self.texts([scene.prompt for scene in scenes])
        given = {"latent": self.canvas(batch=len(scenes))[0], **inputs}
        prior = self.sample_prior(positive=positive, negative=self.negative, seed=seed, **given)
        latent = self.sample_decoder(prior, positive=positive, negative=self.negative, seed=seed, cfg=1.0)
        return seen(self.call("CascadeStudio_DecodeStageA", latent=latent, vae=self.parts.stage_a))

    def paint(self, scene: Scene, count: int = 1, seed: int = 1, **inputs: Any) -> Tensor:
        """Pictures (B, H, W, 3) of a scene."""
        return self.decoded(self.prior(scene.prompt, count, seed, **inputs), scene.prompt, seed)


def files() -> dict[str, str]:
    """Mini's file for every file input of Load Stable Cascade."""
    return {role: name for role, name in small.mini().files.items() if role in small.PAINTS}


def seen(pictures: Tensor) -> Tensor:
    """IMAGE (B, H, W, 3) → what the eyes take, (B, 3, H, W)."""
    return pictures.float().movedim(-1, 1)
