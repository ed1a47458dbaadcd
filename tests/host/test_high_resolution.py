"""Tile Stage B and Enlarge Stage C Latent in the host: exact where they promise it."""

from __future__ import annotations

import pytest
import torch
from graphs import check_sentence
from world import Studio, changed, relative

SEED = 4
PIECES, DROPPED = "pieces", ("tiles, shared norms", "tiles, own norms")


@pytest.fixture(scope="module")
def prior(studio) -> dict:
    return studio.sample_prior(studio.canvas(640, 448)[0], steps=1)


def tiled(studio: Studio, method: str, **inputs):
    given = {"tile_size": 256, "tile_overlap": 64, **inputs}
    return studio.call("CascadeStudio_TileDecoder", model=studio.parts.decoder, method=method, **given)


def sample(studio: Studio, prior: dict, model=None, **inputs) -> torch.Tensor:
    given = {"steps": 1, "seed": SEED, **inputs}
    return studio.sample_decoder(prior, model=model or studio.parts.decoder, **given)["samples"]


@pytest.fixture(scope="module")
def plain(studio, prior) -> torch.Tensor:
    return sample(studio, prior)


def test_pieces_change_nothing_but_memory(studio, prior, plain):
    assert relative(sample(studio, prior, tiled(studio, PIECES)), plain) <= 1e-5


@pytest.mark.parametrize("method", DROPPED)
def test_methods_of_older_workflows_are_done_in_pieces(studio, prior, plain, method):
    """They were 5 to 8 % off; the node says what it does in their place."""
    graph = studio.graph()
    node = graph.add(
        "CascadeStudio_TileDecoder", model=studio.parts.decoder, method=method, tile_size=256, tile_overlap=256
    )
    result = graph.execute(node[0])
    assert any("pieces" in text and method in text for text in result.ui[node.name]["text"])
    assert relative(sample(studio, prior, result.values[tuple(node[0])]), plain) <= 1e-5


def test_a_picture_of_one_piece_stays_as_it_is(studio, prior, plain):
    """But for rounding: without pieces the blocks write over the stream."""
    assert relative(sample(studio, prior, tiled(studio, PIECES, tile_size=4096)), plain) <= 1e-5


def test_core_samplers_patches_and_areas(studio, prior):
    """Pieces work below core's KSampler, with an attention patch, and on areas with a prior of their own."""
    prompts, latent = studio.decoder_prompts(prior)
    half = studio.call(
        "ConditioningSetAreaPercentage",
        conditioning=prompts["positive"],
        width=0.7,
        height=1.0,
        x=0.3,
        y=0.0,
        strength=1.0,
    )
    prompts["positive"] = studio.call("ConditioningCombine", conditioning_1=prompts["positive"], conditioning_2=half)

    def run(model, factor: float) -> torch.Tensor:
        model = model.clone()
        model.set_model_attn1_output_patch(lambda x, extra: x * factor)
        return studio.core_sample(model, latent, seed=SEED, steps=1, **prompts)

    expected = run(studio.parts.decoder, 1.0)
    assert relative(run(tiled(studio, PIECES), 1.0), expected) <= 1e-4
    assert changed(run(tiled(studio, PIECES), 5.0), expected)


def test_the_host_makes_room_for_a_part_only(studio):
    """The latent that the host is told of needs no more memory than that, and our own refusal knows it too."""
    from cascade_studio.nodes.host.sampling.tiles import TILES, estimate_tiled_memory, make_tiling, patch_tiles

    shape, decoder = [1, 4, 2048, 2048], studio.parts.decoder
    whole = decoder.model.memory_required(shape)
    told = []
    for model in (tiled(studio, PIECES), patch_tiles(decoder, make_tiling(TILES, 64, 16, 1))):
        wrappers = model.get_all_wrappers("prepare_sampling")
        assert len(wrappers) == 1
        wrappers[0](lambda model, shape, *args: told.append(shape), model, shape)
        assert estimate_tiled_memory(model, shape) < whole / 2
        assert decoder.model.memory_required(told[-1]) < 0.6 * whole
    assert estimate_tiled_memory(decoder, shape) == whole
    one, four = (
        estimate_tiled_memory(patch_tiles(decoder, make_tiling(TILES, 256, 64, count)), shape) for count in (1, 4)
    )
    assert four > 1.5 * one


def test_the_last_tiling_wins_and_the_model_stays(studio, prior, plain):
    first = tiled(studio, DROPPED[0])
    second = studio.call("CascadeStudio_TileDecoder", model=first, method=PIECES, tile_size=256, tile_overlap=64)
    assert relative(sample(studio, prior, second), plain) <= 1e-5
    assert torch.equal(sample(studio, prior), plain)
    assert not any("cascade_studio_tiles" in keys for keys in studio.parts.decoder.wrappers.values())


def test_wrong_inputs(studio):
    graph = studio.graph()
    node = graph.add("CascadeStudio_TileDecoder", model=studio.parts.prior)
    check_sentence(graph.error(node[0]), "Tile Stage B", "Stage C", "decoder")


# The second pass of Stage C


def enlarged(studio: Studio, prior: dict, **inputs) -> dict:
    return studio.call("CascadeStudio_HighResolutionPrior", prior=prior, **inputs)


def test_scale_one_changes_nothing(studio, prior):
    result = enlarged(studio, prior, scale=1.0)
    assert torch.equal(result["samples"], prior["samples"])


def test_the_picture_grows_and_is_guided(studio, prior):
    """The second pass starts from the first one's latent: the less noise, the more of it is left."""
    large = enlarged(studio, prior, scale=1.5)
    canvas = large["cascade_studio_canvas"]
    assert (canvas.width, canvas.height) == (960, 672)
    assert large["samples"].shape == canvas.prior_shape()
    guided = {denoise: studio.sample_prior(large, steps=2, denoise=denoise)["samples"] for denoise in (0.2, 0.8)}
    distances = [float((each - large["samples"]).square().mean()) for each in guided.values()]
    assert distances[0] < distances[1]
    other = {**large, "samples": large["samples"].flip(-1)}
    assert changed(
        studio.sample_prior(other, steps=2, denoise=0.5)["samples"],
        studio.sample_prior(large, steps=2, denoise=0.5)["samples"],
    )


def test_compression_makes_the_grid_smaller(studio, prior):
    """The other way to a large picture: the canvas itself with a high compression."""
    found = [
        enlarged(studio, prior, scale=2.0, compression=compression)["samples"].shape[-1]
        for compression in (64.0, 0.0, 32.0)
    ]
    assert found == sorted(found) and found[0] < found[-1]
    grids = [studio.canvas(2048, 2048, compression=compression)[0]["samples"].shape[-1] for compression in (64.0, 32.0)]
    assert grids == [32, 64]


def test_only_stage_c_latents_can_be_enlarged(studio):
    graph = studio.graph()
    node = graph.add("CascadeStudio_HighResolutionPrior", prior=studio.canvas()[1])
    check_sentence(graph.error(node[0]), "Enlarge Stage C Latent", "Stage B", "16")
    graph = studio.graph()
    large = {"samples": torch.ones(1, 16, 48, 48)}
    node = graph.add("CascadeStudio_HighResolutionPrior", prior=large, scale=8.0)
    check_sentence(graph.error(node[0]), "8192")
