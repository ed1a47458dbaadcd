"""Live previews: while Stage C samples, the learned Previewer paints what the host's samplers show.

The host asks a latent format for ``latent_rgb_factors_reshape`` once a run, calls it with every step's x0, and
multiplies what comes back by ``latent_rgb_factors``. Ours hands out a painter that belongs to that run, and factors
that change nothing, so that core's samplers show the picture as ours do.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from typing import Any

import comfy.latent_formats
import comfy.model_management
import torch
from torch import Tensor

from ....stages.nets import previewer
from ....stages.nets.portable import average_areas
from ..out_of_memory import is_out_of_memory
from .load import load_diffusion

log = logging.getLogger(__name__)

INTERVAL = 0.1
"""Seconds from one picture to the next, at the least."""

SHARE = 0.05
"""The most that previews may take of a run's time; slow ones come less often."""

MOST_CELLS = 64
"""Larger latents are shrunk first: the host shows no more than 512 pixels a side."""

UNCHANGED = [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]]


class PreviewedPrior(comfy.latent_formats.SC_Prior):
    """The host's latent format of Stage C with ``ratio`` pixels to one cell, shown by the Previewer inside ``vae``."""

    def __init__(self, vae: Any, ratio: int):
        super().__init__()
        self.vae, self.spacial_downscale_ratio = vae, ratio
        self.latent_rgb_factors = UNCHANGED

    @property
    def latent_rgb_factors_reshape(self) -> PreviewPainter:
        """What the host's previewer calls before it multiplies by factors: here it paints."""
        return PreviewPainter(self.vae)

    def __deepcopy__(self, memo: dict[int, Any]) -> PreviewedPrior:
        return type(self)(self.vae, self.spacial_downscale_ratio)


class PreviewPainter:
    """Paints x0 (B, 16, h, w) of one run: the first picture as (1, 3, 8h, 8w) on the CPU, for the host's -1 to 1.

    It works with a copy of the Previewer, which is small, beside the running model where there is room for it and on
    the CPU where there is not, so that nothing is unloaded for a preview. Between two pictures it repeats the last one.
    """

    def __init__(self, vae: Any, clock: Callable[[], float] = time.perf_counter):
        self.vae, self.clock = vae, clock
        self.net: previewer.Previewer | None = None
        self.picture: Tensor | None = None
        self.due = 0.0
        self.painted = 0

    @torch.no_grad()
    def __call__(self, x0: Tensor) -> Tensor:
        if self.picture is not None and self.clock() < self.due:
            return self.picture
        latent = shrink_latent(x0[:1].float())
        if self.net is None:
            self.net = self.copy_net(choose_device(self.source, latent))
        latent.flatten()[0].item()  # waits for the step's own work, so that only the preview's is timed
        start = self.clock()
        self.picture = self.paint(latent)
        end = self.clock()
        warm = self.painted > 0  # the first one loads the device's programs, which says nothing of the next
        self.due = end + max(INTERVAL, (end - start) / SHARE if warm else 0.0)
        self.painted += 1
        return self.picture

    @property
    def source(self) -> previewer.Previewer:
        """The Previewer that was loaded, wherever its weights are now."""
        return self.vae.first_stage_model.previewer

    def copy_net(self, device: torch.device) -> previewer.Previewer:
        """The Previewer on ``device``, in the VAE's own dtype there and in float32 on the CPU."""
        dtype = torch.float32 if comfy.model_management.is_device_cpu(device) else self.vae.vae_dtype
        net = previewer.Previewer(self.source.config, dtype=dtype, device="meta").requires_grad_(False)
        net.load_state_dict(
            {
                key: value.to(device, dtype if value.is_floating_point() else value.dtype, copy=True)
                for key, value in self.source.state_dict().items()
            },
            assign=True,
        )
        return net

    def paint(self, latent: Tensor) -> Tensor:
        """The picture of ``latent``; where the device runs out of memory the rest of the run is painted on the CPU."""
        image, reason = None, ""
        try:
            image = self.decode_latent(latent)
        except Exception as error:  # a preview never ends a run
            reason = "There is no room for previews beside the model"
            if not is_out_of_memory(error):
                reason = f"The device cannot paint previews ({type(error).__name__}: {error})"
        if image is None:  # outside of the handler, whose traceback would keep the failed work's tensors alive
            log.info("%s; they are painted on the CPU.", reason)
            self.net = self.copy_net(torch.device("cpu"))
            image = self.decode_latent(latent)
        return image

    def decode_latent(self, latent: Tensor) -> Tensor:
        """A Stage C latent (B, 16, H, W) as RGB (B, 3, 8 H, 8 W) in [-1, 1]."""
        weight = next(self.net.parameters())
        image = self.net(latent.to(weight)).float().cpu()
        return image.nan_to_num(0.0).clamp(0.0, 1.0) * 2 - 1


def shrink_latent(latent: Tensor) -> Tensor:
    """``latent`` (1, 16, h, w) with at most :data:`MOST_CELLS` a side."""
    longest = max(latent.shape[-2:])
    if longest <= MOST_CELLS:
        return latent
    return average_areas(latent, tuple(max(1, side * MOST_CELLS // longest) for side in latent.shape[-2:]))


def choose_device(net: previewer.Previewer, latent: Tensor) -> torch.device:
    """The device of ``latent`` where the Previewer fits into its free memory, else the CPU."""
    device = latent.device
    if comfy.model_management.is_device_cpu(device):
        return device
    needed = comfy.model_management.module_size(net) + estimate_preview_memory(net, latent.shape)
    return device if needed < comfy.model_management.get_free_memory(device) else torch.device("cpu")


def estimate_preview_memory(net: previewer.Previewer, shape: Sequence[int]) -> int:
    """Bytes of one picture, in float32 for the sake of safety."""
    return net.memory(shape, torch.float32.itemsize)


def attach_previews(patcher: Any, vae: Any) -> Any:
    """``patcher``, a Stage C that was just loaded, with previews by the Previewer of ``vae`` if it has one."""
    if not hasattr(getattr(vae, "first_stage_model", None), "previewer"):
        return patcher
    patcher.model.latent_format = PreviewedPrior(vae, patcher.model.latent_format.spacial_downscale_ratio)
    patcher.cached_patcher_init = (load_previewed, (*patcher.cached_patcher_init[1], vae))
    return patcher


def load_previewed(path: str, kind: str, dtype: str, vae: Any, disable_dynamic: bool = False) -> Any:
    """As :func:`load_diffusion`, with previews; for hosts that load a model a second time."""
    return attach_previews(load_diffusion(path, kind, dtype, disable_dynamic), vae)
