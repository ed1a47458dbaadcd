"""Every node of the pack, for the host."""
from __future__ import annotations

from comfy_api.latest import ComfyExtension, io

from . import canvas, compare, conditioning, loaders, pictures, sampling


class CascadeStudioExtension(ComfyExtension):
    """What the host asks a pack for."""

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        areas = (loaders, canvas, sampling, conditioning, pictures, compare)
        return [node for area in areas for node in area.NODES]
