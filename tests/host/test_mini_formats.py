"""Every number format that the loader offers paints Cascade Mini's picture: close to that of fp32, of its subject."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from mini_studio import PRESET, MiniStudio, files, seen
from world import FP32, NAMES

from mini import need
from tools.scenes import FIRST as SCENE


@pytest.fixture(scope="module")
def studio(host) -> MiniStudio:
    need()
    return MiniStudio(host)


def paint(studio: MiniStudio, **formats: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Stage B's latent and the picture, with a loader of these formats."""
    graph = studio.graph()
    load = graph.add("CascadeStudio_Load", **files(), preset=PRESET, missing_files="never", **{**FP32, **formats})
    parts: dict[str, Any] = dict(zip(NAMES, graph.run(*(load[slot] for slot in range(len(NAMES))))))
    graph = studio.graph()
    words, empty = (graph.add("CLIPTextEncode", clip=parts["clip"], text=text)[0] for text in (SCENE.prompt, ""))
    given = {"positive": words, "negative": empty, "seed": 1}
    canvas = graph.add("CascadeStudio_Canvas", width=256, height=256)
    prior = graph.add("CascadeStudio_SamplePrior", model=parts["prior"], latent=canvas[0], steps=10, **given)
    latent = graph.add("CascadeStudio_SampleDecoder", model=parts["decoder"], prior=prior[0], steps=6, cfg=1.0, **given)
    image = graph.add("CascadeStudio_DecodeStageA", latent=latent[0], vae=parts["stage_a"])
    made, picture = graph.run(latent[0], image[0])
    return made["samples"], picture


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
        latent, picture = paint(studio, **{name: dtype})
        error = float((latent - exact[0]).norm() / exact[0].norm())
        found[dtype] = (round(float(latent.std() / exact[0].std()), 3), round(error, 3))
        assert studio.eyes.subject(seen(picture), SCENE.background) == [SCENE.subject], f"{dtype}: {found}"
    assert all(0.9 < ratio < 1.1 for ratio, _ in found.values()), found
