"""Cascade Mini in tests: its nets out of the shipped files, and eyes that tell what a picture shows.

The eyes are Mini's own vision tower, which learned from real pictures only, over a short list of subjects, and the
colour of the picture's rim.
"""

from __future__ import annotations

import os
from functools import cached_property
from pathlib import Path

import harness
import pytest
import torch
from eyes import colour
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from cascade_studio.stages import from_file
from tools import small
from training.mini.outlines import SUBJECTS

MINI = harness.REPOSITORY / "mini"


def need(*roles: str) -> None:
    """Fail where a file of Mini is absent that ships; skip the test where it does not ship yet.

    ``roles`` are those of :data:`tools.small.MINI_FILES`; :data:`tools.small.SHIPPED` says which of them ship.
    """
    absent = sorted(set(roles or small.PAINTS) - set(small.mini().files))
    missing = sorted(set(absent) & small.SHIPPED)
    if missing:
        pytest.fail(
            f"Cascade Mini ships its {', '.join(missing)}, which {'is' if len(missing) == 1 else 'are'} not in {MINI}.",
            pytrace=False,
        )
    if absent:
        pytest.skip(f"Cascade Mini's {', '.join(absent)} is not in the repository yet")


class Mini:
    """Every net in float32, loaded when it is first used."""

    def __init__(self, folder: Path = MINI) -> None:
        self.folder = folder
        os.environ.setdefault("CASCADE_STUDIO_HOST_PATH", str(harness.host_root()))

    def _net(self, name: str) -> nn.Module:
        return from_file(self.folder / f"{name}.safetensors", dtype=torch.float32)

    @cached_property
    def stage_a(self) -> nn.Module:
        return self._net("vae/cascade_mini_stage_a")

    @cached_property
    def stage_b(self) -> nn.Module:
        return self._net("diffusion_models/cascade_mini_stage_b")

    @cached_property
    def stage_c(self) -> nn.Module:
        return self._net("diffusion_models/cascade_mini_stage_c")

    @cached_property
    def encoder(self) -> nn.Module:
        return self._net("vae/cascade_mini_stage_c_vae").encoder

    @cached_property
    def previewer(self) -> nn.Module:
        return self._net("vae/cascade_mini_stage_c_vae").previewer

    def _tower(self, net: nn.Module, name: str) -> nn.Module:
        tensors = load_file(self.folder / f"{name}.safetensors")
        net.load_state_dict(
            {
                key: value.float() if value.is_floating_point() else value
                for key, value in tensors.items()
                if key in net.state_dict()
            }
        )
        return net.eval().requires_grad_(False)

    @cached_property
    def text(self) -> nn.Module:
        from training.mini.sizes import TEXT
        from training.mini.towers import TextTower

        return self._tower(TextTower(TEXT), "text_encoders/cascade_mini_text")

    @cached_property
    def vision(self) -> nn.Module:
        from training.mini.sizes import VISION
        from training.mini.towers import VisionTower

        return self._tower(VisionTower(VISION), "clip_vision/cascade_mini_vision")

    # Making pictures

    def picture(self, latent: Tensor, prompts: list[str], seeds: list[int]) -> Tensor:
        """Stage C latents → RGB (B, 3, 256, 256) in [0, 1], through Stage B and A."""
        from training.mini.nets import decode, encode_prompts

        made = decode(
            self.stage_b, latent, encode_prompts(self.text, prompts)[1], encode_prompts(self.text, [""])[1], seeds
        )
        with torch.no_grad():
            return self.stage_a.decode(made).float().clamp(0, 1)

    # Looking at pictures

    @torch.no_grad()
    def seen(self, rgb: Tensor) -> Tensor:
        """Embeddings (B, width), unit length, of RGB (B, 3, H, W) in [0, 1]."""
        from training.mini.scenes import for_vision
        from training.mini.sizes import VISION

        return F.normalize(self.vision(for_vision(rgb, VISION.image_size)), dim=-1)

    @torch.no_grad()
    def said(self, prompts: list[str]) -> Tensor:
        """Embeddings (N, width), unit length, of prompts."""
        from training.mini.nets import encode_prompts

        return F.normalize(encode_prompts(self.text, prompts)[1], dim=-1)

    def likeness(self, rgb: Tensor, background: str) -> Tensor:
        """Cosine (B, N) between each picture and each of :data:`SUBJECTS` on a named background."""
        return self.seen(rgb) @ self.said([f"a {name} on a {background} background" for name in SUBJECTS]).T

    def margin(self, rgb: Tensor, subject: str, background: str) -> Tensor:
        """How much more each picture looks like ``subject`` than like the others on average, (B,)."""
        found = self.likeness(rgb, background)
        asked = found[:, SUBJECTS.index(subject)]
        return asked - (found.sum(1) - asked) / (len(SUBJECTS) - 1)

    def subject(self, rgb: Tensor, background: str) -> list[str]:
        """What each picture shows, out of :data:`SUBJECTS`."""
        return [SUBJECTS[int(i)] for i in self.likeness(rgb, background).argmax(1)]

    def colour(self, rgb: Tensor) -> list[str]:
        """The named colour of each picture's background."""
        return colour(rgb)
