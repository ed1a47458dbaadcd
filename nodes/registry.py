"""Every node of the pack, for the host."""
from __future__ import annotations

from comfy_api.latest import ComfyExtension, io

from . import canvas, conditioning, drafts, inpaint, loaders, pictures, reports, sampling
from . import canvas, conditioning, loaders, lora, merging, pictures, sampling
from . import canvas, conditioning, control, hints, image_prompts, loaders, pictures, sampling
from . import canvas, conditioning, guidance, high_resolution, loaders, pictures, prompts, sampling
from . import canvas, conditioning, loaders, pictures, sampling, training
from . import canvas, compare, conditioning, loaders, pictures, sampling


class CascadeStudioExtension(ComfyExtension):
    """What the host asks a pack for."""

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        areas = (loaders, canvas, sampling, conditioning, pictures, inpaint, drafts, reports)
        areas = (loaders, canvas, sampling, conditioning, pictures, lora, merging)
        areas = (loaders, canvas, sampling, conditioning, pictures, control, hints, image_prompts)
        areas = (loaders, canvas, sampling, conditioning, pictures, prompts, guidance, high_resolution)
        areas = (loaders, canvas, sampling, conditioning, pictures, training)
        areas = (loaders, canvas, sampling, conditioning, pictures, compare)
        return [node for area in areas for node in area.NODES]
