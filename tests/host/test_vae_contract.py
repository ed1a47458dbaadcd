"""Our VAE objects are VAEs of this host: every attribute, every way in and out, and what reloads them."""

from __future__ import annotations

from collections.abc import Iterator

import family as tiny_family
import pytest
import torch
from world import relative

TOLERANCE = 1e-4
EXACT = 1e-5


@pytest.fixture(autouse=True)
def inference() -> Iterator[None]:
    """As the host runs nodes."""
    with torch.inference_mode():
        yield


@pytest.fixture(scope="module")
def stage_a(studio) -> tuple:
    """Stage A of the published size as our VAE and as core's: core knows no other."""
    import comfy.sd

    shapes = tiny_family.stage_a_shapes({"c_hidden": 384, "bottleneck_blocks": 12, "codebook_size": 8192})
    weights = {key: value.clone() for key, value in tiny_family.weights_for(shapes).items()}
    weights["out_block.0.bias"] = weights["out_block.0.bias"] + 0.5
    name = studio.write("vae/published_stage_a", weights)
    ours = studio.call("CascadeStudio_LoadStageA", stage_a=name, vae_dtype="fp32")
    return ours, comfy.sd.VAE(sd=weights, dtype=torch.float32)


@pytest.fixture(scope="module")
def stage_c(studio) -> tuple:
    """Image encoder and Previewer of the published sizes, as our VAE and as core's."""
    import comfy.sd

    from cascade_studio.stages import EncoderConfig, ImageEncoder, Previewer, PreviewerConfig

    def weights_of(net: torch.nn.Module) -> dict[str, torch.Tensor]:
        return tiny_family.weights_for({key: tuple(value.shape) for key, value in net.state_dict().items()})

    weights = tiny_family.prior_coder(
        weights_of(ImageEncoder(EncoderConfig(), device="meta")),
        weights_of(Previewer(PreviewerConfig(), device="meta")),
    )
    name = studio.write("vae/published_stage_c_vae", weights)
    ours = studio.call("CascadeStudio_LoadImageEncoder", image_encoder=name, previewer=name, vae_dtype="fp32")
    return ours, comfy.sd.VAE(sd=dict(weights), dtype=torch.float32)


@pytest.fixture(params=["stage_a", "stage_c"])
def both(request) -> tuple:
    """(ours, core's) of either kind."""
    return request.getfixturevalue(request.param)


def picture(width: int, height: int, batch: int = 1) -> torch.Tensor:
    torch.manual_seed(4)
    small = torch.rand(batch, 3, 6, 6)
    return torch.nn.functional.interpolate(small, (height, width), mode="bicubic").clamp(0, 1).movedim(1, -1)


def latent(vae, width: int, height: int, batch: int = 1) -> torch.Tensor:
    torch.manual_seed(5)
    return torch.randn(batch, vae.latent_channels, height, width)


DIFFERENT = {
    "first_stage_model",
    "patcher",
    "size",
    "memory_used_encode",
    "memory_used_decode",
    "process_input",
    "process_output",
    "downscale_ratio",
    "upscale_ratio",
}
"""What is compared by its effect, or of another kind on purpose."""


def test_attributes(both):
    """Whatever a node may read on a VAE of this host is there on ours, and means the same."""
    ours, core = both
    assert not set(vars(core)) - set(vars(ours)), "attributes that the host sets and we do not"
    for name in set(vars(core)) - DIFFERENT:
        assert getattr(ours, name) == getattr(core, name), name
    assert isinstance(ours, type(core))
    assert ours.size == ours.model_size() > 0
    for name in ("memory_used_encode", "memory_used_decode"):
        used = getattr(ours, name)((1, 4, 64, 64) if "decode" in name else (1, 3, 256, 256), torch.float32)
        assert isinstance(used, (int, float)) and used > 0
    for name in ("spacial_compression_encode", "spacial_compression_decode", "temporal_compression_decode"):
        assert getattr(ours, name)() == getattr(core, name)(), name


def test_same_saved_keys(both):
    """``get_sd`` is what CheckpointSave writes."""
    ours, core = both
    mine, theirs = ours.get_sd(), core.get_sd()
    counters = {key for key in theirs if key.endswith("num_batches_tracked")}
    statistics = {"encoder.mean", "encoder.std"}  # of the picture; core keeps them as buffers
    assert set(mine) - counters == set(theirs) - counters - statistics
    for key in set(mine) & set(theirs):
        assert torch.equal(mine[key].float(), theirs[key].float()), key


def test_same_pictures_and_latents(both):
    ours, core = both
    pixels = picture(160, 96, 2)
    assert relative(ours.encode(pixels), core.encode(pixels)) <= TOLERANCE
    codes = latent(ours, 12, 9, 2)
    mine, theirs = ours.decode(codes), core.decode(codes)
    assert mine.shape == theirs.shape and mine.dtype == theirs.dtype and mine.device == theirs.device
    assert relative(mine, theirs.clamp(0, 1)) <= TOLERANCE


def test_clamped(both):
    """Pictures lie in [0, 1]; core's Stage A leaves that to whoever saves them."""
    ours, _ = both
    image = ours.decode(20 * latent(ours, 8, 8))
    assert float(image.min()) == 0.0 and float(image.max()) == 1.0


@pytest.mark.parametrize("batch, width, height", [(1, 40, 33), (2, 17, 50)])
@pytest.mark.parametrize("tile", [1, 8, 24])
def test_tiles_of_stage_a_are_exact(studio, batch, width, height, tile):
    vae = studio.parts.stage_a
    codes = latent(vae, width, height, batch)
    whole = vae.decode(codes)
    tiled = vae.decode_tiled(codes, tile_x=tile, tile_y=tile, overlap=0)
    assert whole.shape == tiled.shape == (batch, 4 * height, 4 * width, 3)
    assert float((whole - tiled).abs().max()) <= EXACT
    pixels = picture(4 * width, 4 * height, batch)
    latents = vae.encode(pixels), vae.encode_tiled(pixels, tile_x=4 * tile, tile_y=4 * tile, overlap=0)
    assert relative(*latents) <= EXACT


def test_published_stage_a_in_tiles(stage_a):
    ours, _ = stage_a
    codes = latent(ours, 40, 33)
    assert float((ours.decode_tiled(codes, tile_x=16, tile_y=16, overlap=4) - ours.decode(codes)).abs().max()) <= EXACT


def test_previewer_in_tiles(stage_c):
    """The host's own tiling, which blends: close, not exact."""
    ours, core = stage_c
    codes = latent(ours, 24, 24)
    mine = ours.decode_tiled(codes, tile_x=16, tile_y=16, overlap=4)
    assert mine.shape == ours.decode(codes).shape == (1, 192, 192, 3)
    assert relative(mine, core.decode_tiled(codes, tile_x=16, tile_y=16, overlap=4).clamp(0, 1)) <= TOLERANCE


def test_core_nodes(studio):
    """VAEDecode, VAEDecodeTiled, VAEEncode and VAEEncodeTiled with both of our VAEs."""
    exact = studio.parts.stage_a
    for vae, width, height in ((exact, 40, 33), (studio.parts.stage_c_vae, 24, 20)):
        codes = {"samples": latent(vae, width, height)}
        whole = studio.call("VAEDecode", samples=codes, vae=vae)
        tiled = studio.call("VAEDecodeTiled", samples=codes, vae=vae, tile_size=64, overlap=32)
        assert whole.shape == tiled.shape and whole.dtype == torch.float32
        assert torch.equal(whole, vae.decode(codes["samples"]))
        assert vae is not exact or float((whole - tiled).abs().max()) <= EXACT
    pixels = picture(192, 160)
    for vae, shape in ((exact, (1, 4, 40, 48)), (studio.parts.stage_c_vae, (1, 16, 5, 6))):
        whole = studio.call("VAEEncode", pixels=pixels, vae=vae)["samples"]
        assert whole.shape == shape and torch.equal(whole, vae.encode(pixels))
        tiled = studio.call("VAEEncodeTiled", pixels=pixels, vae=vae, tile_size=64, overlap=0)["samples"]
        assert tiled.shape == shape
        assert vae is not exact or relative(tiled, whole) <= EXACT


def test_progress_of_tiles(studio):
    graph = studio.graph()
    vae = studio.parts.stage_a
    node = graph.add("VAEDecodeTiled", samples={"samples": latent(vae, 40, 33)}, vae=vae, tile_size=64, overlap=32)
    progress = [(value, total) for name, value, total in graph.execute(node[0]).progress if name == node.name]
    values, totals = zip(*progress)
    assert len(set(totals)) == 1 and totals[0] > 1
    assert list(values) == sorted(values) and values[-1] == totals[0]


PATCHERS = {
    "prior": lambda parts: parts.prior,
    "decoder": lambda parts: parts.decoder,
    "text encoder": lambda parts: parts.clip.patcher,
    "stage a": lambda parts: parts.stage_a.patcher,
    "stage c vae": lambda parts: parts.stage_c_vae.patcher,
}


@pytest.mark.parametrize("name", PATCHERS)
def test_reloading_factories(monkeypatch, studio, name):
    """``cached_patcher_init`` builds the same model anew, and without streaming where the host asks for that."""
    import comfy.model_patcher

    class Streaming(comfy.model_patcher.ModelPatcher):
        """Stands for the patcher that hosts with an NVIDIA card use."""

    monkeypatch.setattr(comfy.model_patcher, "CoreModelPatcher", Streaming)
    patcher = PATCHERS[name](studio.parts)
    factory, arguments, *index = patcher.cached_patcher_init
    for options, kind in (({}, Streaming), ({"disable_dynamic": True}, comfy.model_patcher.ModelPatcher)):
        made = factory(*arguments, **options)
        made = made[index[0]] if index else made
        assert type(made) is kind
        before, after = patcher.model.state_dict(), made.model.state_dict()
        assert made.model is not patcher.model and set(before) == set(after)
        assert all(torch.equal(before[key], after[key]) for key in before)
    assert patcher.clone().cached_patcher_init == patcher.cached_patcher_init


def test_clip_vision_reloads_as_in_core(studio):
    """Core's own CLIP vision loader sets no factory on this host; ours need not either, but has the same patcher."""
    import comfy.model_patcher

    assert type(studio.parts.clip_vision.patcher) is comfy.model_patcher.CoreModelPatcher
