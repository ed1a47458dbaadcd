"""Every node of the pack, for the host."""
from __future__ import annotations

from comfy_api.latest import ComfyExtension, io

from . import canvas, conditioning, loaders, pictures, sampling, training


class CascadeStudioExtension(ComfyExtension):
    """What the host asks a pack for."""

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        areas = (loaders, canvas, sampling, conditioning, pictures, training)
        return [node for area in areas for node in area.NODES]
