"""Enlarging in the host, and Stage B as one MODEL: every tile follows the Stage C latent of its own part."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from graphs import check_sentence
from node_inputs import load_control_net
from small_extras import write_controlnets
from torch import Tensor
from world import Studio, changed, relative

from cascade_studio.stages.inputs.inpaint import resample_image, resize_image

SEED = 4
UPSCALE, ONE = "CascadeStudio_Upscale", "CascadeStudio_OneModel"


@pytest.fixture(scope="module")
def image() -> Tensor:
    return torch.rand(2, 150, 200, 3, generator=torch.Generator().manual_seed(0))


def given(studio: Studio, **inputs: Any) -> dict[str, Any]:
    parts = studio.parts
    return {"decoder": parts.decoder, "stage_a": parts.stage_a, "stage_c_vae": parts.stage_c_vae, **inputs}


def enlarge(studio: Studio, image: Tensor, **inputs: Any) -> Tensor:
    usual = {"steps": 1, "seed": SEED, "tile_size": 256, "tile_overlap": 64}
    return studio.call(UPSCALE, image=image, **studio.prompts, **given(studio, **{**usual, **inputs}))


# Upscale with Cascade


@pytest.fixture(scope="module")
def large(studio, image) -> Tensor:
    return enlarge(studio, image)


@pytest.mark.parametrize("scale", [1.0, 1.5, 4.0])
def test_the_picture_has_the_size_that_was_asked_for(studio, image, scale):
    result = enlarge(studio, image[:1], scale=scale, tile_batch=4)
    assert result.shape == (1, round(150 * scale), round(200 * scale), 3)


def test_a_picture_is_the_same_alone_and_in_a_batch(studio, image, large):
    assert large.shape == (2, 300, 400, 3)
    assert relative(enlarge(studio, image[1:], seed=SEED + 1), large[1:]) < 1e-4
    assert changed(enlarge(studio, image[1:], seed=SEED + 2), large[1:])


def test_less_noise_keeps_more_of_the_picture(studio, image):
    """Next to no noise gives what Stage A makes of the plainly enlarged picture."""
    plain = resize_image(image[:1], 400, 300)
    coded = studio.call("CascadeStudio_EncodeStageA", image=plain, vae=studio.parts.stage_a)
    kept = studio.call("CascadeStudio_DecodeStageA", latent=coded, vae=studio.parts.stage_a)
    errors = [
        float((enlarge(studio, image[:1], denoise=each, keep_source=0.0) - kept).square().mean())
        for each in (0.01, 1.0)
    ]
    assert errors[0] < 0.2 * errors[1], errors


def test_what_is_kept_of_the_picture(studio, image):
    """Made small again, the result is much nearer to the picture; a share of it lies between. What random nets paint
    leaves [0, 1] in many places and is all detail, so that it is not nearer still: test_source has pictures."""
    soft = resize_image(resize_image(image[:1], 50, 38), 200, 150)
    made = [enlarge(studio, soft, denoise=1.0, keep_source=share) for share in (0.0, 0.5, 1.0)]
    none, half, whole = (float((resample_image(each, 200, 150) - soft).square().mean()) for each in made)
    assert whole < 0.25 * none and whole < half < none


@pytest.mark.parametrize("side, shared", [(1024, 256), (256, 64), (192, 64)])
def test_a_new_node_has_tiles_of_the_models_size(studio, monkeypatch, side, shared):
    """As the canvas begins with it; what its tiles share fits into them."""
    from cascade_studio.nodes import upscale

    monkeypatch.setattr(upscale.native, "find_sides", lambda: upscale.native.Sides(side, 1024))
    inputs = upscale.CascadeStudioUpscale.define_schema().inputs
    defaults = {each.id: getattr(each, "default", None) for each in inputs}
    assert (defaults["tile_size"], defaults["tile_overlap"]) == (side, shared)


def test_the_super_resolution_net_steers_stage_c(studio, image, large):
    """Its strength and its prompt matter; without Stage C it is refused."""
    write_controlnets(studio.models)
    studio.host.folder_paths.filename_list_cache.clear()
    control = {"control_net": load_control_net("super_resolution"), "prior": studio.parts.prior, "prior_steps": 2}
    with_net = enlarge(studio, image[:1], **control)
    assert with_net.shape == large[:1].shape and changed(with_net, large[:1])
    assert changed(enlarge(studio, image[:1], **control, control_strength=0.0), with_net)
    idle = studio.graph()
    node = idle.add(UPSCALE, image=image[:1], **studio.prompts, **given(studio, prior=studio.parts.prior, steps=1))
    assert "control_net" in idle.execute(node[0]).ui[node.name]["text"][0]
    graph = studio.graph()
    node = graph.add(
        UPSCALE, image=image, **studio.prompts, **given(studio, control_net=control["control_net"], tile_size=256)
    )
    check_sentence(graph.error(node[0]), "control_net", "'prior'")


def test_what_does_not_fit_is_explained(studio, image):
    graph = studio.graph()
    tall = torch.rand(1, 64, 3000, 3)
    node = graph.add(UPSCALE, image=tall, **studio.prompts, **given(studio, scale=4.0))
    check_sentence(graph.error(node[0]), "8192", "12000")
    graph = studio.graph()
    node = graph.add(UPSCALE, image=image, **studio.prompts, **given(studio, tile_size=256, tile_overlap=192))
    check_sentence(graph.error(node[0]), "256 px", "192 px", "smaller overlap")


# One MODEL and one VAE, called as the tools of other packs do


EULER = {"sampler_name": "euler", "scheduler": "simple"}


def one(studio: Studio, **inputs: Any) -> tuple[Any, Any]:
    return tuple(studio.call(ONE, range(2), **given(studio, **inputs)))


def call_as_tools_do(studio: Studio, model: Any, vae: Any, tile: Tensor, **inputs: Any) -> Tensor:
    """VAEEncode → KSampler → VAEDecode of core, with one MODEL and one VAE."""
    graph = studio.graph()
    coded = graph.add("VAEEncode", pixels=tile, vae=vae)
    usual = {"seed": SEED, "steps": 2, "cfg": 2.0, "denoise": 0.5, **EULER}
    sampled = graph.add("KSampler", model=model, latent_image=coded[0], **{**studio.prompts, **usual, **inputs})
    return graph.run(graph.add("VAEDecode", samples=sampled[0], vae=vae)[0])


def paint_in_tiles(studio: Studio, image: Tensor, size: tuple[int, int], **inputs: Any) -> Tensor:
    """A tiled upscaler's loop: every tile cut out, painted and put back."""
    (model, vae), out, (down, across) = one(studio), image.clone(), size
    for top in range(0, image.shape[1], down):
        for left in range(0, image.shape[2], across):
            tile = image[:, top : top + down, left : left + across]
            out[:, top : top + down, left : left + across] = call_as_tools_do(studio, model, vae, tile, **inputs)
    return out


@pytest.mark.parametrize("size, denoise", [((64, 64), 0.2), ((128, 96), 0.5), ((128, 192), 1.0)])
def test_a_tiled_upscaler_paints_every_tile_after_its_own_picture(studio, size, denoise):
    """A change in one tile reaches no other, and every tile follows what was in it."""
    image = torch.rand(2, 128, 192, 3, generator=torch.Generator().manual_seed(1))
    other = image.clone()
    other[:, -size[0] :, -size[1] :] = other[:, -size[0] :, -size[1] :].flip(2)
    first, second = (paint_in_tiles(studio, each, size, denoise=denoise) for each in (image, other))
    assert first.shape == image.shape and changed(first, image)
    untouched = torch.ones(128, 192, dtype=torch.bool)
    untouched[-size[0] :, -size[1] :] = False
    assert torch.equal(first[:, untouched], second[:, untouched])
    assert changed(second[:, ~untouched], first[:, ~untouched])


def test_the_prior_is_that_of_the_encoded_picture(studio):
    """The same tile by hand: decode what was encoded, encode it for Stage C, and hand that to core's KSampler."""
    tile = torch.rand(2, 128, 192, 3, generator=torch.Generator().manual_seed(2))
    model, vae = one(studio)
    by_tool = call_as_tools_do(studio, model, vae, tile)
    graph = studio.graph()
    coded = graph.add("VAEEncode", pixels=tile, vae=vae)
    seen = graph.add("VAEDecode", samples=coded[0], vae=vae)
    canvas = graph.add("CascadeStudio_Canvas", width=192, height=128, grid="official")
    prior = graph.add("CascadeStudio_EncodeImage", image=seen[0], vae=studio.parts.stage_c_vae, target=canvas[0])
    prompts = graph.add("CascadeStudio_DecoderConditioning", prior=prior[0], **studio.prompts)
    sampled = graph.add(
        "KSampler", model=studio.parts.decoder, latent_image=coded[0], positive=prompts[0], negative=prompts[1],
        seed=SEED, steps=2, cfg=2.0, sampler_name="euler", scheduler="simple", denoise=0.5,
    )  # fmt: skip
    by_hand = graph.run(graph.add("VAEDecode", samples=sampled[0], vae=vae)[0])
    assert relative(by_tool, by_hand) < 1e-4


def test_stage_c_may_paint_the_tile_first(studio):
    """A face detailer's call: one part, with a mask on the latent, a prompt, and Stage C in front of Stage B."""
    tile = torch.rand(1, 128, 128, 3, generator=torch.Generator().manual_seed(3))
    results = []
    for text in ("a red lamp", "a blue whale"):
        for denoise in (0.0, 0.6):
            model, vae = one(studio, prior=studio.parts.prior, prior_denoise=denoise, steps=2)
            results.append(call_as_tools_do(studio, model, vae, tile, positive=studio.text(text), cfg=1.0))
    assert changed(results[1], results[0]) and changed(results[3], results[1])
    graph = studio.graph()
    coded = graph.add("VAEEncode", pixels=tile, vae=vae)
    mask = torch.zeros(1, 128, 128)
    mask[:, 32:96, 32:96] = 1
    masked = graph.add("SetLatentNoiseMask", samples=coded[0], mask=mask)
    sampled = graph.add(
        "KSampler", model=model, latent_image=masked[0], steps=2, denoise=0.6, **EULER, **studio.prompts
    )
    before, after = graph.run(coded[0], sampled[0])
    assert not changed(after["samples"][..., :6, :], before["samples"][..., :6, :])
    assert changed(after["samples"][..., 10:20, 10:20], before["samples"][..., 10:20, 10:20])


def test_a_model_without_a_picture_is_explained(studio):
    model, vae = one(studio)
    graph = studio.graph()
    empty = graph.add("EmptyLatentImage", width=256, height=256, batch_size=1)
    coded = graph.add("VAEEncode", pixels=torch.rand(1, 32, 48, 3), vae=vae)
    for latent, words in ((empty, ("empty latent", "VAE")), (coded, ("48 x 32 px", "64"))):
        node = graph.add("KSampler", model=model, latent_image=latent[0], **EULER, **studio.prompts)
        check_sentence(graph.error(node[0]), *words)
    graph = studio.graph()
    node = graph.add(ONE, **given(studio, prior_denoise=0.5))
    check_sentence(graph.error(node[0]), "prior_denoise", "'prior'")
