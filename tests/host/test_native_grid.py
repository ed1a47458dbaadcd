"""A model that was trained with cells of another size paints on its own grid wherever none was asked for."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from world import Studio

NATIVE = 1024 / 48


@pytest.fixture(scope="module")
def fine(studio) -> Iterator[Studio]:
    """The family as if it had been trained with half the pixels to a cell, and loaded anew."""
    parts = studio.parts
    nets = [parts.prior.model.diffusion_model, parts.decoder.model.diffusion_model]
    nets += [parts.stage_c_vae.first_stage_model.encoder]
    usual = [net.config for net in nets]
    form = parts.prior.model.latent_format
    for net in nets:
        net.config = replace(net.config, native_compression=NATIVE)
    ratio, form.spacial_downscale_ratio = form.spacial_downscale_ratio, 21
    yield studio
    form.spacial_downscale_ratio = ratio
    for net, config in zip(nets, usual):
        net.config = config


def grid(latent: dict[str, Any]) -> tuple[int, ...]:
    return tuple(latent["samples"].shape[2:])


def test_an_automatic_canvas_becomes_the_models_own(fine):
    prior = fine.sample_prior(fine.canvas(256, 256)[0], steps=1)
    assert grid(prior) == (12, 12)
    assert grid(fine.sample_decoder(prior, steps=1)) == (64, 64)


@pytest.mark.parametrize("compression, cells", [(42.67, 6), (32.0, 8), (21.33, 12)])
def test_what_was_asked_for_stays(fine, compression, cells):
    canvas = fine.call("CascadeStudio_Canvas", width=256, height=256, compression=compression)
    assert grid(fine.sample_prior(canvas, steps=1)) == (cells, cells)
    assert fine.core_sample(fine.parts.prior, canvas, seed=1, steps=1).shape[2:] == (cells, cells)


def test_cores_sampler_and_cores_latent_take_it_too(fine):
    for empty in (fine.canvas(256, 256)[0], fine.call("EmptyLatentImage", width=256, height=256, batch_size=1)):
        assert fine.core_sample(fine.parts.prior, empty, seed=1, steps=1).shape[2:] == (12, 12)
    bare = {"samples": fine.core_sample(fine.parts.prior, fine.canvas(256, 256)[0], seed=1, steps=1)}
    assert grid(fine.sample_decoder(bare, steps=1)) == (64, 64), "of a latent that knows no canvas"


def test_pictures_are_encoded_on_it(fine):
    image = torch.rand(1, 256, 320, 3)
    assert grid(fine.call("CascadeStudio_EncodeImage", image=image, vae=fine.parts.stage_c_vae)) == (12, 15)
    given = {"image": image, "vae": fine.parts.stage_c_vae, "target": fine.canvas(256, 256)[0]}
    assert grid(fine.call("CascadeStudio_EncodeImage", **given)) == (12, 12)
    given["compression"] = 32.0
    del given["target"]
    assert grid(fine.call("CascadeStudio_EncodeImage", **given)) == (8, 10)


def test_a_coder_without_an_encoder_knows_no_grid(fine, monkeypatch):
    """What is missing is told by the encoding itself."""
    from cascade_studio.nodes.host.models.use_vae import read_compression

    vae = fine.parts.stage_c_vae
    assert read_compression(vae) == NATIVE and read_compression(fine.parts.stage_a) is None
    monkeypatch.delattr(vae.first_stage_model, "encoder")
    assert read_compression(vae) is None
