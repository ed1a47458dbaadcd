"""What a network paints while it learns: Stage C latents of prompts, and their pictures through Stage B and Stage A."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..diffusion.noise import NoiseStreams
from ..diffusion.official import OFFICIAL
from ..diffusion.sampling import Guidance, pair_conditions, sample, timesteps
from ..inputs.canvas import plan_canvas_for_prior
from ..nets.stage_a import StageA
from ..nets.stage_b import StageB
from .objectives import Row, repeat_tokens


@torch.no_grad()
def sample_latent(
    net: nn.Module,
    row: Row,
    empty: Row,
    shape: Sequence[int],
    *,
    seed: int = 0,
    steps: int = OFFICIAL["stage_c"].steps,
    cfg: float = OFFICIAL["stage_c"].cfg,
    shift: float = OFFICIAL["stage_c"].shift,
    device: torch.device | str = "cpu",
    bfloat16: bool = False,
) -> Tensor:
    """The Stage C latent (1, 16, h, w) of one prompt ("text", "pooled") at ``shape`` (16, h, w), sampled officially."""
    device = torch.device(device)
    text = row["text"].float()
    told = {"clip_text": text, "clip_text_pooled": row["pooled"].float()}
    untold = {"clip_text": repeat_tokens(empty["text"], len(text)), "clip_text_pooled": empty["pooled"].float()}
    cond, uncond = ({name: value[None].to(device) for name, value in part.items()} for part in (told, untold))
    start = NoiseStreams([seed]).next((1, *shape)).to(device)
    with torch.autocast(device.type, torch.bfloat16, enabled=bfloat16):
        steps_made = sample(
            pair_conditions(net, cond, uncond),
            start,
            timesteps=timesteps(steps),
            shift=shift,
            guidance=Guidance(cfg),
            noise=NoiseStreams([seed], 1).next,
        )
        *_, last = steps_made
    return last.denoised.float()


@torch.no_grad()
def decode_latent(
    stage_b: StageB,
    stage_a: StageA,
    latent: Tensor,
    pooled: Tensor,
    empty: Tensor,
    *,
    seed: int = 0,
    device: torch.device | str = "cpu",
    bfloat16: bool = False,
) -> Tensor:
    """The picture (1, 3, H, W) in [0, 1] of a Stage C latent (1, 16, h, w), sampled officially with the pooled text of
    its prompt and of the empty one, (1, width) each."""
    official, device = OFFICIAL["stage_b"], torch.device(device)
    latent = latent.float().to(device)
    compression = stage_b.config.native_compression
    shape = plan_canvas_for_prior(latent.shape[2], latent.shape[3], compression=compression).decoder_shape()[1:]
    cond = {"effnet": latent, "clip": pooled.float().to(device)}
    uncond = {"effnet": torch.zeros_like(latent), "clip": empty.float().to(device)}
    with torch.autocast(device.type, torch.bfloat16, enabled=bfloat16):
        *_, last = sample(
            pair_conditions(stage_b, cond, uncond),
            NoiseStreams([seed]).next((1, *shape)).to(device),
            timesteps=timesteps(official.steps),
            shift=official.shift,
            guidance=Guidance(official.cfg),
            noise=NoiseStreams([seed], 1).next,
        )
        return stage_a.decode(last.denoised.float()).float().clamp(0, 1)
