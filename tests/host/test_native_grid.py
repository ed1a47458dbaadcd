"""A model that was trained with cells of another size paints on its own grid wherever none was asked for."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from inprocess import PromptError
from world import Studio

from cascade_studio.nodes.host import latents
from cascade_studio.nodes.host.latents import CANVAS, RATIO
from cascade_studio.stages.inputs.canvas import plan_canvas

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


def sample_by_core(fine: Studio, width: int, height: int) -> dict[str, Any]:
    """A finished Stage C latent as core's KSampler hands it on: on the model's cells, with the canvas it was given."""
    empty = fine.canvas(width, height)[0]
    samples = fine.core_sample(fine.parts.prior, empty, seed=1, steps=1)
    return {key: value for key, value in {**empty, "samples": samples}.items() if key != RATIO}


@pytest.mark.parametrize("width, height", [(256, 256), (200, 248), (512, 320), (160, 128)])
def test_what_cores_sampler_made_keeps_the_size_of_its_canvas(fine, width, height):
    prior, text = sample_by_core(fine, width, height), fine.text("a")
    told = {"positive": text, "negative": text, "prior": prior, "model": fine.parts.decoder}
    for latent in (fine.call("CascadeStudio_DecoderConditioning", 2, **told), fine.sample_decoder(prior, steps=1)):
        canvas = latent[CANVAS]
        assert (canvas.width, canvas.height) == (width, height) and canvas.prior_shape()[2:] == grid(prior)
    with pytest.raises(PromptError, match="Stage C model"):
        fine.call("CascadeStudio_DecoderConditioning", **{**told, "model": fine.parts.prior})


@pytest.mark.parametrize("scale", [1.5, 2.0])
@pytest.mark.parametrize("compression", [0.0, 32.0])
def test_enlarged_latents_are_not_taken_for_the_canvas(fine, scale, compression):
    empty = fine.call("CascadeStudio_Canvas", width=256, height=256, compression=compression)
    prior = fine.sample_prior(empty, steps=1)
    wide = {**prior, "samples": torch.nn.functional.interpolate(prior["samples"], scale_factor=scale)}
    canvas = fine.sample_decoder(wide, steps=1)[CANVAS]
    assert canvas.width == canvas.height == round(wide["samples"].shape[-1] * NATIVE / 8) * 8


def test_the_published_cells_are_left_as_they_are():
    """Where the model has no cells of its own an empty latent keeps its size, enlarged or of another shape."""
    canvas = plan_canvas(1024, 1024)
    for width, height in ((1024, 1024), (1280, 768), (2048, 1024), (256, 256)):
        empty = latents.make_empty_decoder(plan_canvas(width, height), 1)
        assert latents.fit_empty_decoder(empty, canvas) is empty
    enlarged = {**empty, "samples": torch.zeros(1, 4, 512, 512)}
    assert latents.fit_empty_decoder(enlarged, canvas, NATIVE) is enlarged


@pytest.mark.parametrize("width, height", [(256, 256), (200, 248), (320, 512)])
def test_a_stage_b_latent_of_the_canvas_gets_the_models_cells(fine, width, height):
    """As a script does that loads a saved Stage C latent and tells the size by a canvas."""
    empty, decoder = fine.canvas(width, height)
    prior = fine.sample_prior(empty, steps=1)
    bare = {"samples": prior["samples"]}
    whole = fine.sample_decoder(prior, steps=1)
    told = fine.sample_decoder(bare, latent=decoder, steps=1)
    assert told[CANVAS] == whole[CANVAS] and torch.equal(told["samples"], whole["samples"])


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
