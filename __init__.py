"""Cascade Studio: Stable Cascade for ComfyUI, all three stages."""

from __future__ import annotations

OLDEST_HOST = (0, 16, 3)

WEB_DIRECTORY = "./web"


def check_host() -> None:
    """Raise one clear sentence when the host is too old."""
    from comfyui_version import __version__

    numbers = tuple(int(part) for part in __version__.split(".")[:3] if part.isdigit())
    if numbers < OLDEST_HOST:
        wanted = ".".join(map(str, OLDEST_HOST))
        raise RuntimeError(f"Cascade Studio needs ComfyUI {wanted} or newer; this is {__version__}. Update ComfyUI.")


async def comfy_entrypoint():
    """Called by the host: the extension with all nodes."""
    check_host()
    from .nodes.registry import CascadeStudioExtension

    return CascadeStudioExtension()
