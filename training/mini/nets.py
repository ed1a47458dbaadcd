"""The nets of Mini by name, their results in the work folder, and sampling as the nodes do it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cascade_studio.stages.diffusion.noise import NoiseStreams
from cascade_studio.stages.diffusion.sampling import Guidance, pair_conditions, sample, step_ddpm, timesteps
from cascade_studio.stages.nets.backend import Backend
from cascade_studio.stages.nets.encoder import ImageEncoder
from cascade_studio.stages.nets.previewer import Previewer
from cascade_studio.stages.nets.stage_a import StageA
from cascade_studio.stages.nets.stage_b import StageB
from cascade_studio.stages.nets.stage_c import StageC
from tools.small import MINI_DECODER_STEPS, MINI_PRIOR_CFG, MINI_PRIOR_STEPS

from .captions import batch_tokens
from .codes import load_code
from .loop import Place, frozen, grid
from .precondition import Exact, ExactConv
from .scenes import Reader, for_encoder
from .sizes import SHIPPED, Sizes
from .towers import TextTower, VisionTower

KINDS = {
    "stage_a": StageA,
    "encoder": ImageEncoder,
    "previewer": Previewer,
    "text": TextTower,
    "vision": VisionTower,
    "stage_b": StageB,
    "stage_c": StageC,
}
RESULTS = {
    "stage_a": ("stage_a",),
    "encoder": ("encoder", "previewer"),
    "language": ("text", "vision"),
    "stage_b": ("stage_b",),
    "stage_c": ("stage_c", "text"),
    "refine": ("stage_b",),
    "words": ("text",),
    "new_words": ("text",),
}
"""The nets in the result of each part; Stage C tunes the text encoder of the language part."""
FURTHER = ("refine", "words", "new_words")
"""Parts that train on what others made."""


def configs(sizes: Sizes) -> dict[str, Any]:
    """The config of every net by its name."""
    return {name: getattr(sizes, name) for name in KINDS}


def build(sizes: Sizes, name: str, **options: Any) -> nn.Module:
    """A net without its weights."""
    return KINDS[name](getattr(sizes, name), **options)


def load_trained(place: Place, name: str, part: str | None = None, **options: Any) -> nn.Module:
    """A net out of the result of ``part`` (default: the last that trained it so far); eval mode, no gradients.

    ``options`` are those of its constructor.
    """
    parts = [part] if part else [part for part, nets in RESULTS.items() if name in nets]
    path = next((place.weights(part) for part in reversed(parts) if place.weights(part).is_file()), None)
    if path is None:
        raise SystemExit(f"{place.work} has no {name} yet: train {' or '.join(parts)} first.")
    net = build(place.sizes, name, **options)
    net.load_state_dict(torch.load(path, map_location="cpu")[name])
    return frozen(net).to(place.device)


def load_encoder(place: Place) -> Reader:
    """The trained image encoder."""
    net = load_trained(place, "encoder")
    return lambda rgb: net(for_encoder(rgb.to(place.device), place.sizes.canvas))


def load_code_reader(place: Place) -> Reader:
    """The code that the image encoder learns to give."""
    code = load_code(place)
    return lambda rgb: code.encode(rgb.cpu()).to(place.device)


def load_reader(place: Place) -> Reader:
    """The code if there is one, or the image encoder."""
    return load_code_reader(place) if place.weights("code").is_file() else load_encoder(place)


def small_attention(
    q: Tensor, k: Tensor, v: Tensor, heads: int, options: Any = None, mask: Tensor | None = None
) -> Tensor:
    """Attention by plain products: for 36 cells PyTorch's fused kernel takes three times as long to train on a CPU."""
    q, k, v = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (q, k, v))
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
    scores = scores if mask is None else scores + mask[:, None]
    return (scores.float().softmax(-1).to(v.dtype) @ v).transpose(1, 2).flatten(2)


TRAINING = Backend(Linear=Exact, Conv2d=ExactConv, attention=small_attention)


# Sampling, as the nodes do it


def encode_prompts(text: nn.Module, prompts: list[str]) -> tuple[Tensor, Tensor]:
    """Hidden states (B, 77, width) and pooled text (B, width) of prompts as written."""
    device = next(text.parameters()).device
    return text(batch_tokens([[prompt] if prompt else [] for prompt in prompts]).to(device))


@torch.no_grad()
def paint(
    net: StageC,
    text: nn.Module,
    prompts: list[str],
    seeds: list[int],
    *,
    steps: int = MINI_PRIOR_STEPS,
    cfg: float = MINI_PRIOR_CFG,
    shift: float = 2.0,
    image: Tensor | None = None,
    grid_size: tuple[int, int] | None = None,
    step: Callable[..., Tensor] = step_ddpm,
) -> Tensor:
    """Stage C latents of ``prompts``, one seed each; ``grid_size``: cells down and across, if not those that ship;
    ``step``: the sampler's.
    """
    (said, pooled), (said_empty, pooled_empty) = (
        encode_prompts(text, prompts),
        encode_prompts(text, [""] * len(prompts)),
    )
    image = pooled.new_zeros(len(prompts), net.config.c_clip_img) if image is None else image
    cond = {"clip_text": said, "clip_text_pooled": pooled, "clip_img": image}
    uncond = {"clip_text": said_empty, "clip_text_pooled": pooled_empty, "clip_img": torch.zeros_like(image)}
    rows, columns = grid_size or (SHIPPED.canvas.prior_height, SHIPPED.canvas.prior_width)
    return _sample(net, cond, uncond, seeds, (16, rows, columns), steps, cfg, shift, said.device, step=step)


def paint_sheet(place: Place, net: StageC, text: nn.Module, asked: list[dict[str, Any]]) -> Tensor:
    """Sixteen of the prompts ``asked`` as one picture: by the decoder of the code if there is one, or the Previewer."""
    canvas, prompts = place.sizes.canvas, [prompt["prompt"] for prompt in asked[::12]][:16]
    latent = paint(net, text, prompts, list(range(16)), grid_size=(canvas.prior_height, canvas.prior_width))
    if place.weights("code").is_file():
        return grid(F.interpolate(load_code(place).decode(latent.cpu()), size=(192, 192), mode="area"), 8)
    return grid(F.interpolate(load_trained(place, "previewer")(latent).cpu(), size=(192, 192)), 8)


@torch.no_grad()
def decode(
    net: StageB,
    effnet: Tensor,
    pooled: Tensor,
    empty: Tensor,
    seeds: list[int],
    *,
    steps: int = MINI_DECODER_STEPS,
    cfg: float = 1.1,
    shift: float = 1.0,
) -> Tensor:
    """Stage A latents for Stage C latents (B, 16, h, w) and pooled text (B, width)."""
    cond = {"effnet": effnet, "clip": pooled}
    uncond = {"effnet": torch.zeros_like(effnet), "clip": empty.expand_as(pooled)}
    shape = SHIPPED.canvas.decoder_shape()[1:]
    return _sample(net, cond, uncond, seeds, shape, steps, cfg, shift, effnet.device)


def _sample(
    net: nn.Module,
    cond: dict[str, Any],
    uncond: dict[str, Any],
    seeds: list[int],
    shape: tuple[int, ...],
    steps: int,
    cfg: float,
    shift: float,
    device: torch.device,
    *,
    step: Callable[..., Tensor] = step_ddpm,
) -> Tensor:
    start = NoiseStreams(seeds).next((len(seeds), *shape)).to(device)
    for taken in sample(
        pair_conditions(net, cond, uncond),
        start,
        timesteps=timesteps(steps),
        shift=shift,
        guidance=Guidance(cfg),
        step=step,
        noise=NoiseStreams(seeds, 1).next,
    ):
        last = taken.denoised
    return last
