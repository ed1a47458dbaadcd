"""Every bundled workflow as a recipe, by the name of its file."""

from __future__ import annotations

from ...titles import title_of
from ..flow import Recipe
from . import control, detail, large, lora, pictures, prompts, text_to_image
from .blocks import BLOCKS  # noqa: F401

AREAS = (text_to_image, pictures, control, large, detail, lora, prompts)
RECIPES: dict[str, Recipe] = {title_of(recipe.__name__): recipe for area in AREAS for recipe in area.RECIPES}
