"""Stage B in pieces is Stage B; in tiles each follows its own part of the prior, and no border shows."""

from __future__ import annotations

import math
import random
from functools import cache

import pytest
import torch
from measured import measured_peak
from tiny import relative, tiny_net
from torch import Tensor
from torch.nn import functional as F

from cascade_studio.stages.attention.layers import Changes, LayeredHooks, TokenLayer
from cascade_studio.stages.attention.tiles import (
    PIECES,
    TILES,
    PieceHooks,
    Tile,
    Tiling,
    count_piece_elements,
    feather,
    place_tiles,
    run_in_tiles,
)
from cascade_studio.stages.diffusion import sampling
from cascade_studio.stages.diffusion.noise import NoiseStreams
from cascade_studio.stages.errors import WrongInput
from cascade_studio.stages.inputs.resize import crop_prior
from cascade_studio.stages.nets.backend import torch_attention
from cascade_studio.stages.nets.memory import activation_memory, pieces_memory
from cascade_studio.stages.nets.stage_b import StageB, StageBConfig
from mini import Mini, need
from tools.scenes import SHEET
from training.mini.nets import paint

STEP = 16


@pytest.fixture(scope="module")
def net() -> StageB:
    return tiny_net("stage_b_tiny")


@pytest.fixture(scope="module")
def given(net) -> dict[str, Tensor]:
    torch.manual_seed(0)
    return {
        "x": torch.randn(2, 4, 98, 128),
        "r": torch.tensor([0.3, 0.6]),
        "effnet": torch.randn(2, 16, 9, 12),
        "clip": torch.randn(2, 1, net.config.c_clip),
    }


@pytest.fixture(scope="module")
def whole(net, given) -> Tensor:
    with torch.inference_mode():
        return net(**given)


def caller(net: StageB, r: Tensor, clip: Tensor):
    """The network as :func:`run_in_tiles` calls it."""

    def call(x: Tensor, prior: Tensor, count: int, changes: Changes) -> Tensor:
        r_each, clip_each = (value.repeat_interleave(count, 0) for value in (r, clip))
        return net(x, r_each, prior, clip_each, None, None, LayeredHooks(changes, torch_attention))

    return call


def tiled(net: StageB, given: dict[str, Tensor], tiling: Tiling) -> Tensor:
    call = caller(net, given["r"], given["clip"])
    with torch.inference_mode():
        if tiling.method == PIECES:
            return call(given["x"], given["effnet"], 1, Changes(blocks=PieceHooks(tiling.tile**2)))
        return run_in_tiles(call, given["x"], given["effnet"], tiling, STEP)


def psnr(image: Tensor, expected: Tensor, peak: float) -> float:
    error = (image - expected).square().mean()
    return math.inf if error == 0 else float(10 * torch.log10(peak**2 / error))


def border_contrast(x: Tensor, lines: list[int]) -> float:
    """How much steeper ``x`` (B, C, H, W) is across the columns ``lines`` than across all others."""
    steep = (x[..., 1:] - x[..., :-1]).abs().mean(dim=(0, 1, 2))
    at = torch.zeros(len(steep), dtype=torch.bool)
    at[[line - 1 for line in lines]] = True
    return float(steep[at].mean() / steep[~at].mean())


# Cutting and blending


def test_tiles_cover_everything_and_their_weights_sum_to_one():
    picks = random.Random(1)
    for _ in range(300):
        step = picks.choice((8, 16))
        tile = step * picks.randrange(3, 12)
        overlap = picks.randrange(1, tile // 2 + 1)
        length = picks.randrange(4, 700)
        size, begins = place_tiles(length, tile, overlap, step)
        assert begins[0] == 0 and begins[-1] + size == length and size <= tile + step
        assert all(begin % step == 0 for begin in begins)
        assert all(0 < later - earlier <= size - overlap for earlier, later in zip(begins, begins[1:]))
        weights = feather(length, size, begins)
        total = torch.zeros(length)
        for begin, row in zip(begins, weights):
            total[begin : begin + size] += row
        torch.testing.assert_close(total, torch.ones(length), rtol=0, atol=1e-6)
        assert weights.min() >= 0 and (len(begins) > 1 or weights.min() == 1)


def test_weights_of_tiles_fade_without_a_step():
    _, begins = place_tiles(256, 96, 32, 16)
    weights = feather(256, 96, begins)
    assert weights[0, 0] == 1 and weights[0, -1] < 0.02 and weights[1, 0] < 0.02
    assert (weights[:, 1:] - weights[:, :-1]).abs().max() < 0.1


def test_weights_of_a_plane():
    tiles, weights = Tiling(TILES, 64, 16).cut((98, 130), STEP)
    total = torch.zeros(98, 130)
    for tile, share in zip(tiles, weights):
        tile.cut(total).add_(share)
    assert len(tiles) == 6
    torch.testing.assert_close(total, torch.ones(98, 130), rtol=0, atol=1e-6)


def test_overlap_without_room_is_refused():
    with pytest.raises(WrongInput, match="64 px smaller"):
        place_tiles(400, 64, 60, 16)


# Pieces


@pytest.mark.parametrize("tile", [40, 90, 200])
def test_pieces_are_exact(net, given, whole, tile):
    assert relative(tiled(net, given, Tiling(PIECES, tile)), whole) <= 1e-5


def test_pieces_in_float16(given):
    half = tiny_net("stage_b_tiny", torch.float16)
    halves = {key: value[:1].half() if key != "r" else value[:1] for key, value in given.items()}
    halves["x"] = halves["x"][..., :34, :48]
    with torch.inference_mode():
        expected = half(**halves)
    assert relative(tiled(half, halves, Tiling(PIECES, 40)), expected) <= 0.02


def test_every_wide_layer_is_cut(net, given, monkeypatch):
    """No response norm sees more numbers at once than were allowed, except where one row holds more."""
    seen, allowed = [], 30_000
    for module in net.modules():
        if type(module).__name__ == "GlobalResponseNorm":
            monkeypatch.setattr(
                module, "factors", lambda x, *given, m=module: seen.append(x) or type(m).factors(m, x, *given)
            )
    call = caller(net, given["r"], given["clip"])
    with torch.inference_mode():
        call(given["x"], given["effnet"], 1, Changes(blocks=PieceHooks(allowed)))
    assert max(x.numel() for x in seen if x.shape[1] > 1) <= allowed
    assert len({x.shape[2] for x in seen}) == 4, "some level was left out"


# Tiles


def test_one_tile_is_the_whole(net, given, whole):
    assert torch.equal(tiled(net, given, Tiling(TILES, 128)), whole)


def relative_power(given: Tensor, expected: Tensor) -> float:
    return float((given - expected).square().mean() / expected.square().mean())


def test_tile_batches_change_nothing(net, given):
    one, several = (tiled(net, given, Tiling(TILES, 64, 16, batch)) for batch in (1, 3))
    assert relative(several, one) <= 1e-5


def test_without_global_layers_tiles_are_exact_inside(given):
    """What is left of the difference is global: a net without attention and response norms is cut without a trace."""
    net = tiny_net("stage_b_tiny", level_config=("CT", "CT", "CT", "CT"))
    for name, parameter in net.named_parameters():
        if name.endswith(("gamma", "beta")):
            parameter.zero_()
    with torch.inference_mode():
        whole = net(**given)
    out = tiled(net, given, Tiling(TILES, 96, 48))
    plain = tiled(tiny_net("stage_b_tiny"), given, Tiling(TILES, 96, 48))
    assert relative_power(out, whole) < 1e-3 < relative_power(plain, whole) * 10


def test_no_border_shows(net, given, whole):
    _, begins = place_tiles(128, 64, 16, STEP)
    lines = sorted({edge for begin in begins for edge in (begin, begin + 64)} - {0, 128})
    out = tiled(net, given, Tiling(TILES, 64, 16))
    assert abs(border_contrast(out, lines) / border_contrast(whole, lines) - 1) <= 0.05
    hard = whole.clone()
    Tile(0, 0, 98, 64).cut(hard).add_(1)
    assert abs(border_contrast(hard, lines) / border_contrast(whole, lines) - 1) > 0.05, "the measure sees no border"


def test_each_tile_gets_its_own_part_of_the_prior(net, given):
    """With a prior that is different on its right half, the left tiles do not change."""
    other = given["effnet"].clone()
    other[..., 7:] += 3
    tiling = Tiling(TILES, 64, 16)
    before, after = (tiled(net, {**given, "effnet": prior}, tiling) for prior in (given["effnet"], other))
    difference = (after - before).abs().amax(dim=(0, 1, 2))
    assert difference[:32].max() == 0 and difference[64:].min() > 0
    cut = crop_prior(given["effnet"], (98, 128), (64, 64, 0, 0))
    stretched = F.interpolate(given["effnet"], (49, 64), mode="bilinear", align_corners=True)
    torch.testing.assert_close(cut, stretched[..., :32, :32], rtol=0, atol=1e-4)


def test_tokens_that_stand_for_several_count_so(net):
    """Twice the same token is the same as one of weight 2, and a token of weight 0 is not there."""
    torch.manual_seed(3)
    q, k = torch.randn(1, 5, 64), torch.randn(1, 7, 64)
    twice = torch.cat([k, k[:, -1:]], dim=1)
    weights = torch.tensor([[1.0, 1.0, 1.0, 2.0]])

    def with_weights(weights: Tensor, k: Tensor) -> Tensor:
        return TokenLayer(weights).attend(
            None,
            q,
            k,
            k,
            k.shape[1] - weights.shape[1],
            None,
            lambda q, k, v, n, mask: torch_attention(q, k, v, 2, mask=mask),
        )

    torch.testing.assert_close(with_weights(weights, k), torch_attention(q, twice, twice, 2), rtol=0, atol=1e-5)
    weights = torch.tensor([[1.0, 1.0, 1.0, 0.0]])
    torch.testing.assert_close(with_weights(weights, k), torch_attention(q, k[:, :-1], k[:, :-1], 2), rtol=0, atol=1e-5)


# Memory


WIDE = {
    "c_hidden": (64, 96, 128, 128),
    "nhead": (-1, -1, 2, 2),
    "blocks": ((1, 1, 1, 1), (1, 1, 1, 1)),
    "block_repeat": ((1, 1, 1, 1), (2, 1, 1, 1)),
    "c_cond": 64,
    "c_clip": 64,
}
SETUP = f"""
from cascade_studio.stages.nets.stage_b import StageB, StageBConfig
from cascade_studio.stages.attention.tiles import *
from cascade_studio.stages.attention.layers import Changes, LayeredHooks
from cascade_studio.stages.nets.backend import torch_attention
net = StageB(StageBConfig(**{WIDE}))
for each in net.parameters(): torch.nn.init.normal_(each, std=0.02)
def run(x, prior, count, changes):
    hooks = LayeredHooks(changes, torch_attention)
    return net(x, torch.rand(len(x)), prior, torch.zeros(1, 1, 64), None, None, hooks)
def warm(): run(torch.zeros(1, 4, 32, 32), torch.zeros(1, 16, 3, 3), 1, Changes())
prior = torch.randn(1, 16, 8, 8)
"""


SIDE = 384


@cache
def peak_of(call: str) -> int:
    return measured_peak(SETUP, f"x = torch.randn(1, 4, {SIDE}, {SIDE})", call)


def test_at_most_half_the_memory():
    """Measured on this network, and estimated for the published one at 2048 and 4096 pixels."""
    pieces = f"run(x, prior, 1, Changes(blocks=PieceHooks(count_piece_elements({Tiling(PIECES, 96)}, 64))))"
    plain = peak_of("run(x, prior, 1, Changes())")
    for call in (pieces, f"run_in_tiles(run, x, prior, {Tiling(TILES, 96, 32)}, 16)"):
        assert peak_of(call) <= plain / 2, f"{peak_of(call) / plain:.2f} of {plain / 2**20:.0f} MiB"
    assert peak_of(pieces) <= pieces_memory(StageBConfig(**WIDE), 1, SIDE, SIDE, 4, STRIDES, 24**2 * 4 * 64)
    published = StageBConfig()
    for size in (512, 1024):
        estimate = pieces_memory(published, 2, size, size, 2, STRIDES, ELEMENTS)
        assert estimate <= 0.55 * activation_memory(published, 2, size, size, 2, STRIDES)


STRIDES = 1, 2, 4, 8
ELEMENTS = count_piece_elements(Tiling(), StageBConfig.c_hidden[0])


def test_8192_pixels_fit_into_12_gb():
    """By plan, in bf16: what a pass with guidance holds in pieces at the node's defaults, and the weights."""
    published = StageBConfig()
    with torch.device("meta"):
        weights = sum(each.numel() for each in StageB(published).parameters()) * 2
    needed = weights + pieces_memory(published, 2, 2048, 2048, 2, STRIDES, ELEMENTS)
    assert needed <= 12e9, f"{needed / 1e9:.1f} GB"
    assert weights + activation_memory(published, 2, 2048, 2048, 2, STRIDES) > 12e9, "it fits without pieces as well"


# A trained net


@torch.inference_mode()
def four_pictures() -> Tensor:
    """The Stage C latent of a 512 px picture with four of Mini's subjects in it, (1, 16, 12, 12)."""
    mini = Mini()
    one, two, three, four = paint(mini.stage_c, mini.text, [scene.prompt for scene in SHEET[:4]], [1] * 4)
    return torch.cat([torch.cat([one, two], 2), torch.cat([three, four], 2)], 1)[None]


def test_mini_pictures(record_property):
    """A 512 px picture in pieces and tiles against the untiled one."""
    need("prior", "text_encoder", "decoder", "stage_a")
    mini, prior = Mini(), four_pictures()
    with torch.inference_mode():
        pictures = {
            method: mini.stage_a.decode(painted(mini.stage_b, prior, method)).clamp(0, 1)
            for method in (None, PIECES, TILES)
        }
    found = psnr(pictures[PIECES], pictures[None], 1.0)
    record_property("psnr of pieces", found)
    assert found >= 60
    size, begins = place_tiles(128, *MINI_TILES, STEP)
    lines = sorted({4 * edge for begin in begins for edge in (begin, begin + size)} - {0, 512})
    steep = {
        method: border_contrast(pictures[method], lines) + border_contrast(pictures[method].mT, lines)
        for method in (TILES, None)
    }
    assert steep[TILES] <= 1.05 * steep[None], "borders of tiles are seen"


MINI_TILES = 80, 32


def painted(net: StageB, prior: Tensor, method: str | None) -> Tensor:
    """Ten official steps of Stage B on a 512 px latent."""
    clip = torch.zeros(1, 1, net.config.c_clip)

    def predict(x: Tensor, r: Tensor, guided: bool) -> tuple[Tensor, None]:
        call = caller(net, r, clip)
        if method in (None, PIECES):
            changes = Changes() if method is None else Changes(blocks=PieceHooks(20_000))
            return call(x, prior, 1, changes), None
        return run_in_tiles(call, x, prior, Tiling(method, *MINI_TILES), STEP), None

    noise = NoiseStreams([1], stream=1).next
    *_, last = sampling.sample(
        predict,
        NoiseStreams([1]).next((1, 4, 128, 128)),
        timesteps=sampling.timesteps(10, 1.0),
        shift=1.0,
        step=sampling.step_ddpm,
        noise=noise,
    )
    return last.denoised
