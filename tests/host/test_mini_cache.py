"""Cache for Cascade on Cascade Mini: as near to the exact picture as its help page says."""

from __future__ import annotations

import pytest
import torch
from mini_studio import MiniStudio, seen

from cascade_studio.stages.diffusion.reuse import CAREFUL, FAST, OFF
from mini import need
from tools.scenes import SHEET

LEAST = {CAREFUL: 34.0, FAST: 30.0}
"""dB of the PSNR, in the mean of three pictures."""


@pytest.fixture(scope="module")
def studio(host) -> MiniStudio:
    need()
    return MiniStudio(host)


def test_pictures_stay_near_the_exact_ones(studio):
    scenes = SHEET[:3]
    texts = {"positive": studio.texts([scene.prompt for scene in scenes]), "negative": studio.negative, "seed": 1}

    def paint(preset: str, **more: float) -> torch.Tensor:
        models = [
            studio.call("CascadeStudio_Cache", model=part, preset=preset)
            for part in (studio.parts.prior, studio.parts.decoder)
        ]
        prior = studio.sample_prior(studio.canvas(batch=len(scenes))[0], model=models[0], **texts)
        latent = studio.sample_decoder(prior, model=models[1], **texts, **more)
        return seen(studio.call("CascadeStudio_DecodeStageA", latent=latent, vae=studio.parts.stage_a))

    exact = paint(OFF)
    for preset, least in LEAST.items():
        error = (paint(preset, cfg=1.0) - exact).square().mean((1, 2, 3))
        assert float(-10 * error.log10().mean()) >= least, preset
