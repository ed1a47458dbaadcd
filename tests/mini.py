"""Cascade Mini in tests: its nets out of the shipped files, and eyes that tell what a picture shows.

The eyes are Mini's own vision tower, which learned from real pictures only, over a short list of subjects, and the
colour of the picture's rim.
"""
from __future__ import annotations

import os
from functools import cached_property
from pathlib import Path

import harness
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from stages import from_file

MINI = harness.REPOSITORY / "mini"
SUBJECTS = ("red apple", "robot", "pizza", "tiger", "hot dog", "sunflower", "rocket", "snowman", "octopus", "guitar",
            "bicycle", "cactus", "crown", "ghost", "bus", "evergreen tree", "umbrella", "watermelon", "soccer ball", "house",
            "frog", "key", "mushroom", "airplane")
"""Labels of the training data that look unlike each other."""


class Mini:
    """Every net in float32, loaded when it is first used."""

    def __init__(self, folder: Path = MINI) -> None:
        self.folder = folder
        os.environ.setdefault("CASCADE_STUDIO_HOST_PATH", str(harness.host_root()))

    def _net(self, name: str, **options: str) -> nn.Module:
        return from_file(self.folder / f"{name}.safetensors", dtype=torch.float32, **options)

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
        return self._net("vae/cascade_mini_stage_c_vae", expect="encoder")

    @cached_property
    def previewer(self) -> nn.Module:
        return self._net("vae/cascade_mini_stage_c_vae", expect="previewer")

    def _tower(self, net: nn.Module, name: str) -> nn.Module:
        tensors = load_file(self.folder / f"{name}.safetensors")
        net.load_state_dict({key: value.float() if value.is_floating_point() else value
                             for key, value in tensors.items() if key in net.state_dict()})
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
        from training.mini.generators import decode, told
        made = decode(self.stage_b, latent, told(self.text, prompts)[1], told(self.text, [""])[1], seeds)
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
    def names(self, background: str) -> Tensor:
        """Embeddings of all :data:`SUBJECTS` on ``background``."""
        from training.mini.generators import told
        return F.normalize(told(self.text, [f"a {name} on a {background} background" for name in SUBJECTS])[1], dim=-1)

    def subject(self, rgb: Tensor, background: str) -> list[str]:
        """What each picture shows, out of :data:`SUBJECTS`."""
        return [SUBJECTS[int(i)] for i in (self.seen(rgb) @ self.names(background).T).argmax(1)]

    def colour(self, rgb: Tensor) -> list[str]:
        """The named colour of each picture's background."""
        from training.mini.evaluate import colour_names
        return colour_names(rgb)
