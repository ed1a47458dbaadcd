"""Every bundled workflow as a recipe, by file name."""
from __future__ import annotations

from ..flow import Recipe
from . import pictures, text_to_image
from .blocks import BLOCKS  # noqa: F401

RECIPES: dict[str, Recipe] = {recipe.__name__: recipe for area in (text_to_image, pictures) for recipe in area.RECIPES}
