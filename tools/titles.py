"""What people call the bundled workflows: the names of their files, which ComfyUI shows as titles and searches.

The first one has the fewest words, so that a search for what all have in common lists it first, and of all it is the
first by the alphabet.
"""

from __future__ import annotations

FAMILY = "Stable Cascade"

WORDS = {
    "a_first_picture": "first picture",
    "text_to_image": "text to image",
    "text_to_image_lite": "text to image, lite models",
    "text_to_image_all_in_one": "text to image, all-in-one files",
    "text_to_image_core_loaders": "text to image with core loaders",
    "text_to_image_core_ksampler": "text to image with KSampler",
    "text_to_image_custom_sampling": "text to image, custom sampling",
    "low_memory": "low memory, lite models",
    "image_to_image": "image to image",
    "image_variation": "variations of a picture",
    "reconstruction": "what each stage keeps",
    "canny": "outlines by ControlNet canny",
    "inpaint": "inpaint a masked part",
    "outpaint": "outpaint beyond the borders",
    "super_resolution": "upscale with super resolution",
    "high_resolution_2k": "large picture, 2K",
    "high_resolution_4k": "large picture, 4K",
    "ultrapixel_2k": "large picture guided by UltraPixel, 2K",
    "ultrapixel_4k": "large picture guided by UltraPixel, 4K",
    "detailer": "paint details anew, detailer",
    "saliency": "paint what stands out anew",
    "upscale": "upscale in tiles, close to the picture",
    "upscale_steered": "upscale in tiles, steered by super resolution",
    "other_tools": "one MODEL for other tools",
    "draft_board": "many drafts, draft board",
    "lora_stack": "LoRA stack of two",
    "lora_schedule": "LoRA on a schedule",
    "train_lora": "train a LoRA",
    "merge": "merge two models",
    "lora_control_regional": "regional prompts, LoRA, ControlNet",
    "guidance": "guidance side by side",
    "fast": "quicker, some steps left out",
}
"""By the name of the recipe."""

SEARCHED = "cascade"
"""What one types to find them."""


def title_of(recipe: str) -> str:
    """The name of a workflow's file, without its ending; one that has no words here is called after its recipe."""
    return f"{FAMILY} - {WORDS.get(recipe) or recipe.replace('_', ' ')}"


FIRST = title_of("a_first_picture")
"""The one that a search for what all have in common lists first."""
