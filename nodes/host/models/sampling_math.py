"""The official schedule as a ComfyUI model sampling: sigmas, shift and noise condition in float32."""

from __future__ import annotations

import comfy.model_sampling
import torch
from torch import Tensor

from ....stages.diffusion import sampling as diffusion


class CascadeSampling(comfy.model_sampling.StableCascadeSampling, comfy.model_sampling.EPS):
    """ComfyUI's Stable Cascade sampling with the official clamps and noise condition.

    ``sigma`` is b/a of the variance-preserving process, ``timestep`` the noise condition r that the networks
    embed. Core clamps only after the shift, so its smallest sigma at shift 2 is 0.010 instead of 0.020.
    """

    def set_parameters(self, shift: float = 1.0, cosine_s: float = 8e-3) -> None:
        self.shift = shift
        self.cosine_s = torch.tensor(cosine_s)
        self._init_alpha_cumprod = torch.cos(self.cosine_s / (1 + self.cosine_s) * torch.pi * 0.5) ** 2
        self.num_timesteps = 10000
        self.set_sigmas(self.sigma(torch.arange(1, self.num_timesteps + 1) / self.num_timesteps))

    def sigma(self, timestep: Tensor | float) -> Tensor:
        t = torch.as_tensor(timestep, dtype=torch.float32)
        return diffusion.sigma_from_logsnr(diffusion.logsnr(t, self.shift))

    def timestep(self, sigma: Tensor) -> Tensor:
        return diffusion.noise_condition(diffusion.logsnr_from_sigma(sigma.float()))


def with_shift(shift: float) -> CascadeSampling:
    """A sampling object with this shift, for an object patch."""
    sampling = CascadeSampling()
    sampling.set_parameters(shift)
    return sampling
