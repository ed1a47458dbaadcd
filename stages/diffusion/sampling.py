"""Diffusion as Stable Cascade's official code ("GDF") defines it: schedule, noise condition, steps, guidance.

Everything is expressed in the log signal-to-noise ratio ``logsnr`` = ln(a²/b²) of the variance-preserving process
``x = a·x0 + b·noise``, a² + b² = 1. Times run from 1 (noise) to 0 (picture). Both diffusion stages predict the noise.
Steps and the sampling loop speak k-diffusion's language: ``sigma`` = b/a, ``x`` divided by a, ``denoised`` for x0.

The schedule is float32 on purpose, step by step as the official code rounds it: the networks embed 10000·r, so one
float32 ulp of r is 6e-4 rad. Compute it on the CPU for the same digits on every machine; it is a handful of numbers.
``logsnr``, ``a``, ``b`` and ``r`` are scalars or one value for each picture, (B,).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..errors import WrongInput
from ..nets.portable import choose_exact
from .official import OFFICIAL

COSINE_OFFSET = 0.008
VARIANCE_LIMITS = (0.0001, 0.9999)


# Schedule


def _float32(value: float | Tensor) -> Tensor:
    return torch.as_tensor(value).to(torch.float32)


def _cosine_start(like: Tensor) -> tuple[Tensor, Tensor]:
    """The offset s and the variance at t = 0, in float32 on the device of ``like``."""
    offset = like.new_full((), COSINE_OFFSET, dtype=torch.float32)  # filled in there: nothing is copied to a card
    return offset, torch.cos(offset / (1 + offset) * (math.pi / 2)) ** 2


def _cosine_logsnr(t: Tensor) -> Tensor:
    offset, start = _cosine_start(t)
    variance = torch.cos((offset + t) / (1 + offset) * (math.pi / 2)).clamp(0, 1) ** 2 / start
    variance = variance.clamp(*VARIANCE_LIMITS)
    return (variance / (1 - variance)).log()


LOGSNR_LIMITS: tuple[float, float] = tuple(_cosine_logsnr(torch.tensor([1.0, 0.0], dtype=torch.float32)).tolist())
"""logsnr at t = 1 and t = 0 without shift. Only the float32 rounding of 1 - 0.9999 makes them asymmetric."""


def logsnr(t: float | Tensor, shift: float = 1.0) -> Tensor:
    """Cosine schedule (Nichol & Dhariwal 2021) at time ``t``, lowered by 2·ln(shift) (Hoogeboom et al. 2023)."""
    if not shift > 0:
        raise WrongInput(f"The schedule shift is {shift}, but it has to be above 0: give 2 for Stage C, 1 for Stage B.")
    value = _cosine_logsnr(_float32(t).clamp(0, 1))
    if shift != 1:
        value = value + 2 * math.log(1 / shift)
    return value.clamp(*LOGSNR_LIMITS)


def noise_condition(logsnr: float | Tensor) -> Tensor:
    """The noise level r in [0, 1] that the networks are told: the unshifted cosine time of ``logsnr`` (official)."""
    value = _float32(logsnr)
    offset, start = _cosine_start(value)
    angle = ((value.sigmoid().clamp(0, 1) * start) ** 0.5).acos()
    return (angle / (math.pi / 2) * (1 + offset) - offset).clamp(0, 1)


def alpha_sigma(logsnr: float | Tensor) -> tuple[Tensor, Tensor]:
    """(a, b) of the variance-preserving process: a² = sigmoid(logsnr), b² = 1 - a² (Kingma et al. 2021)."""
    a_squared = _float32(logsnr).sigmoid()
    return a_squared.sqrt(), (1 - a_squared).sqrt()


def _widest(value: Tensor) -> Tensor:
    """Float64 where the device has it: b/a has to give back the same float32 logsnr that it was made from."""
    return value.to(choose_exact(value.device))


def sigma_from_logsnr(logsnr: float | Tensor) -> Tensor:
    """b/a, the noise level of k-diffusion and ComfyUI, whose ``x`` is ours divided by a (Karras et al. 2022)."""
    return torch.exp(_widest(torch.as_tensor(logsnr)) / -2).to(torch.float32)


def logsnr_from_sigma(sigma: float | Tensor) -> Tensor:
    """Inverse of :func:`sigma_from_logsnr`; sigma 0 gives +inf."""
    return (-2 * torch.log(_widest(torch.as_tensor(sigma)))).to(torch.float32)


def time_from_logsnr(logsnr: float | Tensor, shift: float = 1.0) -> Tensor:
    """Inverse of :func:`logsnr`; the clamped ends of the schedule, and all beyond them, are times 1 and 0."""
    value = _float32(logsnr)
    drop = 2 * math.log(shift)
    low, high = LOGSNR_LIMITS
    slack = 1e-4
    time = noise_condition(value + drop)
    time = torch.where(value <= max(low, low - drop) + slack, torch.ones_like(time), time)
    return torch.where(value >= min(high, high - drop) - slack, torch.zeros_like(time), time)


def timesteps(steps: int, start: float = 1.0, end: float = 0.0) -> Tensor:
    """The official ``steps + 1`` times, evenly spaced from ``start`` down to ``end``, float32."""
    if steps < 1:
        raise WrongInput(f"Sampling was asked for {steps} steps, but it needs at least 1.")
    if not 0 <= end < start <= 1:
        raise WrongInput(
            f"Sampling was asked to run from time {start} to {end}, but times fall from 1 (noise) to 0 "
            "(picture): give a start in (0, 1] and an end below it."
        )
    return torch.linspace(start, end, steps + 1, dtype=torch.float32)


def schedule_sigmas(steps: int, shift: float = 1.0, start: float = 1.0) -> Tensor:
    """Sigmas for k-diffusion style samplers: those of the official times but the last, then 0, float32 (steps + 1,).

    The official result is x0 as predicted at the last time above 0, which a step to sigma 0 returns. Very many steps
    (78 at shift 2) crowd into a clamped end of the schedule, where neighbouring sigmas are equal, as officially.
    """
    sigmas = sigma_from_logsnr(logsnr(timesteps(steps, start)[:-1], shift))
    return torch.cat([sigmas, sigmas.new_zeros(1)])


# Noising and single steps


def _per_image(value: float | Tensor, like: Tensor) -> Tensor:
    """A scalar or (B,) value shaped to multiply ``like`` (B, ...), in its dtype and on its device."""
    if not isinstance(value, Tensor) or (value.ndim == 0 and value.device.type == "cpu"):
        return like.new_full((), float(value))  # filled in there: nothing is copied to a card
    value = value.to(device=like.device, dtype=like.dtype)
    return value.reshape(-1, *[1] * (like.ndim - 1)) if value.ndim else value


def add_noise(x0: Tensor, noise: Tensor, logsnr: float | Tensor) -> Tensor:
    """x = a·x0 + b·noise (Ho et al. 2020)."""
    a, b = (_per_image(value, x0) for value in alpha_sigma(logsnr))
    return a * x0 + b * noise


def denoise(x: Tensor, epsilon: Tensor, logsnr: float | Tensor) -> Tensor:
    """The picture that ``epsilon`` implies: x0 = (x - b·epsilon) / a."""
    a, b = (_per_image(value, x) for value in alpha_sigma(logsnr))
    return (x - b * epsilon) / a


def _need_noise(noise: Tensor | None, name: str) -> Tensor:
    if noise is None:
        raise WrongInput(
            f"The {name} step adds noise, but none was given: give noise of the shape of x, "
            "or use step_ddim with eta 0."
        )
    return noise


def step_ddim(
    denoised: Tensor,
    epsilon: Tensor,
    sigma: float | Tensor,
    sigma_next: float | Tensor,
    noise: Tensor | None = None,
    eta: float = 0.0,
) -> Tensor:
    """DDIM (Song et al. 2021, eq. 12) from ``sigma`` to ``sigma_next``; ``eta`` 1 is DDPM, 0 is Euler's method.

    Returns x (B, C, H, W) at ``sigma_next``: denoised + sigma_down · epsilon + sigma_up · noise, in k-diffusion's
    words.
    """
    sigma, sigma_next = (_float32(level) for level in (sigma, sigma_next))
    if eta <= 0:
        return denoised + _per_image(sigma_next, denoised) * epsilon
    sigma_up = eta * sigma_next * (1 - (sigma_next / sigma) ** 2).clamp(min=0).sqrt()
    sigma_down = (sigma_next**2 - sigma_up**2).clamp(min=0).sqrt()
    noise = _need_noise(noise, "DDPM" if eta == 1 else "DDIM").to(denoised)
    return denoised + _per_image(sigma_down, denoised) * epsilon + _per_image(sigma_up, denoised) * noise


def step_ddpm(
    denoised: Tensor, epsilon: Tensor, sigma: float | Tensor, sigma_next: float | Tensor, noise: Tensor | None = None
) -> Tensor:
    """DDPM ancestral step (Ho et al. 2020), the official default: DDIM with eta 1, Euler ancestral of k-diffusion."""
    return step_ddim(denoised, epsilon, sigma, sigma_next, noise, eta=1.0)


# Guidance


def guide(cond: Tensor, uncond: Tensor, scale: float | Tensor, rescale: float = 0.7, per_image: bool = True) -> Tensor:
    """Classifier-free guidance (Ho & Salimans 2022) with the std rescale of Lin et al. (2023) on the prediction.

    ``cond`` and ``uncond`` are predicted noise, (B, C, H, W); ``scale`` is a number or (B,). The std is taken over
    each picture, or over the whole batch as in the official code, which lets a picture depend on its batch mates.
    """
    guided = torch.lerp(uncond, cond, _per_image(scale, cond))
    if rescale <= 0:
        return guided
    axes = tuple(range(1, cond.ndim)) if per_image else tuple(range(cond.ndim))
    wanted, given = (value.float().std(dim=axes, keepdim=True) for value in (cond, guided))
    return rescale * (guided * (wanted / (given + 1e-9)).to(guided.dtype)) + (1 - rescale) * guided


def guidance_scale(
    t: float | Tensor, scale: float, scale_end: float | None = None, interval: tuple[float, float] = (1.0, 0.0)
) -> float:
    """The scale at time ``t``: scale·t + scale_end·(1 - t), and 1 outside start >= t >= end (Kynkäänniemi et al. 2024).

    ``interval`` is (start, end), the official cfg_t_start and cfg_t_stop; both ends belong to it.
    """
    t = float(t)
    start, end = interval
    rounding = 1e-6
    if not end - rounding <= t <= start + rounding:
        return 1.0
    return scale if scale_end is None else scale * t + scale_end * (1 - t)


@dataclass(frozen=True)
class Guidance:
    """How strongly to follow the prompt; the fields are the arguments of :func:`guidance_scale` and :func:`guide`."""

    scale: float = OFFICIAL["stage_c"].cfg
    scale_end: float | None = None
    interval: tuple[float, float] = (1.0, 0.0)
    rescale: float = 0.7
    per_image: bool = True

    def scale_at(self, t: float | Tensor) -> float:
        """The scale at time ``t``; 1 means that the unconditional prediction is not needed."""
        return guidance_scale(t, self.scale, self.scale_end, self.interval)

    def __call__(self, cond: Tensor, uncond: Tensor, t: float | Tensor) -> Tensor:
        """The guided prediction at time ``t``."""
        return guide(cond, uncond, self.scale_at(t), self.rescale, self.per_image)


# Sampling


Predict = Callable[[Tensor, Tensor, bool], "tuple[Tensor, Tensor | None]"]


class Step(NamedTuple):
    """One sampling step: the predicted picture, ``x`` after the step (over a), and the (guided) predicted noise."""

    denoised: Tensor
    x: Tensor
    epsilon: Tensor


def pair_conditions(net: Callable[..., Tensor], cond: Mapping[str, Any], uncond: Mapping[str, Any]) -> Predict:
    """A predictor for :func:`sample` that runs ``net(x, r, **conditions)`` once on the batch of both conditions.

    Both mappings hold tensors (B, ...) under the same names.
    """
    if cond.keys() != uncond.keys():
        raise WrongInput(
            f"The conditions are {sorted(cond)} but the unconditional ones are {sorted(uncond)}: "
            "give both under the same names."
        )

    def predict(x: Tensor, r: Tensor, guided: bool) -> tuple[Tensor, Tensor | None]:
        if not guided:
            return net(x, r, **cond), None
        both = {name: torch.cat([cond[name], uncond[name]]) for name in cond}
        first, second = net(torch.cat([x, x]), torch.cat([r, r]), **both).chunk(2)
        return first, second

    return predict


def sample(
    predict: Predict,
    x: Tensor,
    *,
    timesteps: Tensor,
    shift: float = 1.0,
    step: Callable[..., Tensor] = step_ddpm,
    guidance: Guidance | None = None,
    noise: Callable[[Sequence[int]], Tensor] | None = None,
) -> Iterator[Step]:
    """The official sampling loop; the result is ``denoised`` of the last step it yields, not ``x``.

    ``predict(x, r, guided)`` returns the predicted noise and, if ``guided``, the unconditional one beside it, both of
    the shape of ``x`` (B, C, H, W); it is given the variance-preserving x and ``r`` (B,) float32. ``timesteps`` come
    from :func:`timesteps`, ``step`` is one of the steps above and ``noise(shape)`` gives each step's noise
    (:meth:`NoiseStreams.next`). ``x`` is noise, or a picture after :func:`add_noise`, in float32; it is not changed.
    """
    levels = logsnr(timesteps.cpu(), shift)
    sigmas = sigma_from_logsnr(levels)
    x = x / alpha_sigma(levels[0])[0].to(x)
    for index, (sigma, sigma_next) in enumerate(zip(sigmas[:-1], sigmas[1:])):
        t, level = timesteps[index], levels[index]
        guided = guidance if guidance is not None and guidance.scale_at(t) != 1 else None
        r = noise_condition(level).to(x.device).expand(len(x))
        epsilon, uncond = predict(x * alpha_sigma(level)[0].to(x), r, guided is not None)
        if guided is not None and uncond is not None:
            epsilon = guided(epsilon, uncond, t)
        denoised = x - sigma.to(x) * epsilon
        x = step(denoised, epsilon, sigma, sigma_next, None if noise is None else noise(x.shape).to(x))
        yield Step(denoised, x, epsilon)
