"""Live samples: what the network paints while it learns."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..diffusion.sampling import Guidance, NoiseStreams, paired, sample, timesteps
from .objectives import Row, repeated


@torch.no_grad()
def painted(
    net: nn.Module,
    row: Row,
    empty: Row,
    shape: Sequence[int],
    *,
    seed: int = 0,
    steps: int = 20,
    cfg: float = 4.0,
    shift: float = 2.0,
    device: torch.device | str = "cpu",
    bfloat16: bool = False,
) -> Tensor:
    """The Stage C latent (1, 16, h, w) of one prompt ("text", "pooled") at ``shape`` (16, h, w), sampled officially."""
    device = torch.device(device)
    text = row["text"].float()
    told = {"clip_text": text, "clip_text_pooled": row["pooled"].float()}
    untold = {"clip_text": repeated(empty["text"], len(text)), "clip_text_pooled": empty["pooled"].float()}
    cond, uncond = ({name: value[None].to(device) for name, value in part.items()} for part in (told, untold))
    start = NoiseStreams([seed]).next((1, *shape)).to(device)
    with torch.autocast(device.type, torch.bfloat16, enabled=bfloat16):
        steps_made = sample(
            paired(net, cond, uncond),
            start,
            timesteps=timesteps(steps),
            shift=shift,
            guidance=Guidance(cfg),
            noise=NoiseStreams([seed], 1).next,
        )
        *_, last = steps_made
    return last.x0.float()
