"""What Cascade Mini is asked to paint in each bundled workflow: words and backgrounds that it learned."""

from __future__ import annotations

from dataclasses import dataclass

from .titles import title_of


@dataclass(frozen=True)
class Scene:
    """A subject by its label in the training data, and a background colour that it was seen on."""

    subject: str
    background: str

    @property
    def prompt(self) -> str:
        """What the picture shows, in words."""
        return f"{self.subject} on a {self.background} background"


FIRST = Scene("red apple", "blue")
"""The first picture, and the picture that workflows which load one are given."""

_SCENES = {
    "a_first_picture": FIRST,
    "text_to_image": Scene("sunflower", "green"),
    "text_to_image_lite": Scene("robot", "gray"),
    "text_to_image_all_in_one": Scene("guitar", "yellow"),
    "text_to_image_core_ksampler": Scene("soccer ball", "teal"),
    "text_to_image_core_loaders": Scene("cactus", "blue"),
    "text_to_image_custom_sampling": Scene("ghost", "blue"),
    "low_memory": Scene("house", "pink"),
    "image_to_image": Scene("soccer ball", "blue"),
    "image_variation": FIRST,
    "reconstruction": FIRST,
    "canny": Scene("red apple", "yellow"),
    "inpaint": FIRST,
    "outpaint": FIRST,
    "super_resolution": FIRST,
    "high_resolution_2k": Scene("evergreen tree", "blue"),
    "high_resolution_4k": Scene("umbrella", "blue"),
    "detailer": FIRST,
    "saliency": FIRST,
    "upscale": FIRST,
    "upscale_steered": FIRST,
    "other_tools": FIRST,
    "draft_board": Scene("robot", "gray"),
    "lora_stack": Scene("robot", "purple"),
    "lora_schedule": Scene("frog", "blue"),
    "merge": Scene("frog", "purple"),
    "lora_control_regional": Scene("red apple", "pink"),
    "guidance": Scene("soccer ball", "green"),
    "fast": Scene("rocket", "blue"),
    "train_lora": Scene("mushroom", "green"),
}
"""By recipe."""

SCENES = {title_of(recipe): scene for recipe, scene in _SCENES.items()}
"""By workflow."""

SILENT = {title_of("image_variation"), title_of("reconstruction")}
"""Workflows that show their scene because their picture does; their prompt stays empty."""

SHEET = (
    FIRST,
    Scene("robot", "gray"),
    Scene("pizza", "green"),
    Scene("frog", "purple"),
    Scene("sunflower", "green"),
    Scene("ghost", "blue"),
    Scene("snowman", "purple"),
    Scene("cactus", "blue"),
    Scene("rocket", "blue"),
    Scene("guitar", "yellow"),
    Scene("bus", "purple"),
    Scene("house", "pink"),
)
"""For the sheet in the README."""
