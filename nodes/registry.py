"""Every node of the pack, for the host."""

from __future__ import annotations

from comfy_api.latest import ComfyExtension, io

from . import (
    canvas,
    compare,
    conditioning,
    control,
    custom_sampling,
    drafts,
    guidance,
    high_resolution,
    hints,
    image_prompts,
    inpaint,
    loaders,
    lora,
    merging,
    pictures,
    prompts,
    reports,
    sampling,
    training,
)


class CascadeStudioExtension(ComfyExtension):
    """What the host asks a pack for."""

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        areas = (
            loaders,
            canvas,
            sampling,
            custom_sampling,
            conditioning,
            pictures,
            inpaint,
            drafts,
            reports,
            lora,
            merging,
            control,
            hints,
            image_prompts,
            prompts,
            guidance,
            high_resolution,
            training,
            compare,
        )
        return [node for area in areas for node in area.NODES]
