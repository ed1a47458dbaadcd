"""Every number format that the loader offers paints Cascade Mini's picture: close to that of fp32, of its subject."""

from __future__ import annotations

import pytest
import torch
from mini_studio import MiniStudio, seen

from mini import need
from tools.scenes import FIRST as SCENE


@pytest.fixture(scope="module")
def studio(host) -> MiniStudio:
    need()
    return MiniStudio(host)


def paint(studio: MiniStudio) -> tuple[torch.Tensor, torch.Tensor]:
    """Stage B's latent and the picture."""
    words = {"positive": studio.text(SCENE.prompt), "negative": studio.negative, "seed": 1}
    latent = studio.sample_decoder(studio.prior(SCENE.prompt, steps=10), steps=6, cfg=1.0, **words)
    return latent["samples"], studio.call("CascadeStudio_DecodeStageA", latent=latent, vae=studio.parts.stage_a)


@pytest.fixture(scope="module")
def exact(studio) -> tuple[torch.Tensor, torch.Tensor]:
    return paint(studio)


def offered(host, name: str) -> list[str]:
    declared = host.nodes.NODE_CLASS_MAPPINGS["CascadeStudio_Load"].INPUT_TYPES()
    return {**declared["required"], **declared.get("optional", {})}[name][1]["options"]


@pytest.mark.parametrize("name", ["prior_dtype", "decoder_dtype", "text_dtype"])
def test_every_format_paints_the_picture(host, studio, exact, name):
    found = {}
    for dtype in offered(host, name):
        latent, picture = paint(MiniStudio(host, **{name: dtype}))
        error = float((latent - exact[0]).norm() / exact[0].norm())
        found[dtype] = (round(float(latent.std() / exact[0].std()), 3), round(error, 3))
        assert studio.eyes.subject(seen(picture), SCENE.background) == [SCENE.subject], f"{dtype}: {found}"
    assert all(0.9 < ratio < 1.1 for ratio, _ in found.values()), found
