"""Picture sizes to grids and back: the published sizes, the promises over the whole range, and the refusals."""

from __future__ import annotations

import itertools
import math
import random
import time

import numpy as np
import pytest

from cascade_studio.stages.errors import WrongInput
from cascade_studio.stages.inputs.canvas import COMPRESSION, Canvas, plan_canvas, plan_canvas_for_prior

WORST = [(593, 657), (545, 609), (521, 537), (2217, 2529), (2241, 4129), (512, 8185), (8185, 8185)]


def check(canvas: Canvas, width: int, height: int) -> None:
    """What holds for every canvas, whatever its size."""
    assert (canvas.width, canvas.height) == (width, height)
    assert canvas.padded_width >= width and canvas.padded_height >= height
    assert canvas.padded_width % 8 == 0 and canvas.padded_height % 8 == 0
    assert canvas.prior_shape(3) == (3, 16, canvas.prior_height, canvas.prior_width)
    assert canvas.decoder_shape(3) == (3, 4, canvas.padded_height // 4, canvas.padded_width // 4)
    assert canvas.decoder_width % 2 == 0 and canvas.decoder_height % 2 == 0
    left, top, right, bottom = canvas.crop
    assert (right - left, bottom - top) == (width, height)
    assert 0 <= canvas.padded_width - right - left <= 1 and 0 <= canvas.padded_height - bottom - top <= 1
    across, down = canvas.decoder_width / canvas.prior_width, canvas.decoder_height / canvas.prior_height
    assert max(across, down) / min(across, down) <= 1.005
    assert canvas.stretch == pytest.approx(max(across, down) / min(across, down) - 1)
    assert canvas.compression == pytest.approx(4 * math.sqrt(across * down))
    assert canvas.padding == pytest.approx(canvas.padded_width * canvas.padded_height / (width * height) - 1)


@pytest.mark.parametrize(
    "side, cells",
    [
        (512, 12),
        (704, 17),
        (768, 18),
        (832, 20),
        (896, 21),
        (960, 23),
        (1024, 24),
        (1088, 26),
        (1152, 27),
        (1280, 30),
        (1536, 36),
        (2048, 48),
        (8192, 192),
    ],
)
def test_official_squares(side, cells):
    assert plan_canvas(side, side) == Canvas(side, side, side, side, cells, cells)
    assert cells == math.ceil(side / 42.67), "the official rule"


@pytest.mark.parametrize(
    "width, height, across, down",
    [(1536, 1024, 36, 24), (1152, 896, 27, 21), (768, 1280, 18, 30), (2048, 1024, 48, 24), (128, 256, 3, 6)],
)
def test_multiples_of_128_px_need_neither_padding_nor_stretch(width, height, across, down):
    canvas = plan_canvas(width, height)
    assert (canvas.prior_width, canvas.prior_height, canvas.padding) == (across, down, 0)
    assert canvas.stretch == pytest.approx(0, abs=1e-9) and canvas.compression == pytest.approx(1024 / 24)


def test_from_512_px_up_compression_and_padding_keep_their_bounds():
    """The padding is largest one pixel above a multiple of 8, and the grid depends on the multiple alone."""
    steps = range(65, 1025)
    pairs = [(8 * m - 7, 8 * n - 7) for m in steps[::16] for n in steps if n >= m]
    compressions, paddings = [], []
    for width, height in WORST + pairs + [(512, 8 * n - 7) for n in steps]:
        canvas = plan_canvas(width, height)
        assert canvas.stretch <= 0.005 and max(canvas.padded_width, canvas.padded_height) <= 8192, canvas
        compressions.append(canvas.compression)
        paddings.append(canvas.padding)
    assert 38 <= min(compressions) and max(compressions) <= 48
    assert max(paddings) <= 0.06
    assert sorted(paddings)[len(paddings) // 2] <= 0.01


@pytest.mark.parametrize("other", [64, 100, 1080])
def test_every_side_from_64_to_8192(other):
    for side in range(64, 8193):
        canvas = plan_canvas(side, other)
        check(canvas, side, other)
        assert 31.9 <= canvas.compression <= 64.1
        assert min(canvas.prior_width, canvas.prior_height) >= 2


@pytest.mark.parametrize("least, most", [(64, 0.6), (128, 0.36), (256, 0.17), (384, 0.11), (448, 0.07)])
def test_padding_of_small_pictures_is_bounded(least, most):
    sides = range(least + 1, 512, 8)
    assert max(plan_canvas(width, height).padding for width, height in itertools.product(sides, sides)) <= most


def test_random_sizes_both_ways_up():
    rng = random.Random(7)
    for _ in range(3000):
        width, height = rng.randint(64, 8192), rng.randint(64, 8192)
        canvas, turned = plan_canvas(width, height), plan_canvas(height, width)
        check(canvas, width, height)
        assert (turned.padded_width, turned.padded_height) == (canvas.padded_height, canvas.padded_width)
        assert (turned.prior_width, turned.prior_height) == (canvas.prior_height, canvas.prior_width)
        assert plan_canvas_for_prior(canvas.prior_height, canvas.prior_width, width, height) == canvas


@pytest.mark.parametrize("compression", [16, 20.5, 28, 32, 36.5, 42, 48, 55.0, 64])
def test_asked_compression_is_met_where_the_padding_allows_it(compression):
    rng = random.Random(11)
    for least in (512, 1024):
        for _ in range(400):
            width, height = rng.randint(least, 8192), rng.randint(least, 8192)
            canvas = plan_canvas(width, height, compression)
            check(canvas, width, height)
            assert canvas.padding <= 0.06
            if least == 1024:
                assert compression / 1.061 <= canvas.compression <= compression * 1.061, (width, height)
    assert max(plan_canvas(width, height, compression).padding for width, height in WORST) <= 0.06
    assert plan_canvas(1024, 1024, 32).prior_shape() == (1, 16, 32, 32)
    assert plan_canvas(1024, 1024, 64).prior_shape() == (1, 16, 16, 16)


@pytest.mark.parametrize("compression", [None, 28, 42.67, 64])
def test_the_official_grid_is_each_side_rounded_up(compression):
    """What the official code makes of the buckets of SDXL and of odd sizes: it looks at no aspect."""
    given = {} if compression is None else {"compression": compression}
    for width, height in [(640, 1536), (768, 1344), (832, 1216), (896, 1152), (1024, 1024), (1000, 900), (1366, 777)]:
        canvas = plan_canvas(width, height, official=True, **given)
        cells = [math.ceil(side / (compression or 42.67)) for side in (width, height)]
        assert [canvas.prior_width, canvas.prior_height] == cells
        latents = math.ceil(width / 8) * 2, math.ceil(height / 8) * 2
        assert (canvas.decoder_width, canvas.decoder_height) == latents
        assert (canvas.width, canvas.height) == (width, height) and canvas.padding < 0.02
    assert plan_canvas(768, 1344, official=True).stretch > 0.005 > plan_canvas(768, 1344).stretch


def test_plan_is_fast_enough_for_a_user_interface():
    rng = random.Random(13)
    sizes = WORST + [(rng.randint(64, 8192), rng.randint(64, 8192)) for _ in range(100)]
    for size in sizes:
        laps = []
        for _ in range(5):
            start = time.thread_time()
            plan_canvas(*size)
            laps.append(time.thread_time() - start)
        assert min(laps) < 0.005, size


def test_a_prior_alone_gives_a_decoder_grid_of_its_aspect():
    assert plan_canvas_for_prior(24, 24).decoder_shape()[2:] == (256, 256)
    assert plan_canvas_for_prior(18, 36).decoder_shape()[2:] == (192, 384)
    assert plan_canvas_for_prior(24, 24, compression=32) == Canvas(768, 768, 768, 768, 24, 24)
    for rows, columns in itertools.product(range(1, 191, 5), range(1, 191, 3)):
        canvas = plan_canvas_for_prior(rows, columns)
        check(canvas, canvas.width, canvas.height)
        assert canvas.prior_shape()[2:] == (rows, columns) and canvas.padding == 0
        assert 0.93 <= canvas.compression / COMPRESSION <= 1.06


def test_a_prior_with_a_size_covers_the_size():
    canvas = plan_canvas_for_prior(24, 24, width=1000, height=700)
    check(canvas, 1000, 700)
    assert canvas.decoder_shape() == (1, 4, 250, 250)
    assert canvas.crop == (0, 150, 1000, 850)
    assert plan_canvas_for_prior(23, 24, 1000, 1000).decoder_shape()[2:] == (250, 260)
    assert plan_canvas_for_prior(40, 40, 1024, 1024).compression == pytest.approx(25.6)


def test_encoder_size_gives_the_stage_c_grid():
    assert plan_canvas(1024, 1536).encoder_size == (768, 1152)


def test_descriptions_are_one_plain_sentence():
    assert plan_canvas(1024, 1024).describe() == (
        "1024 x 1024 px on 24 x 24 Stage C cells and 256 x 256 Stage B latents, compression 42.7."
    )
    assert "padded to 520 x 520 px (2.7% more area)" in plan_canvas(513, 513).describe()
    assert "outside the 32 to 64" in plan_canvas_for_prior(40, 40, 1024, 1024).describe()
    assert "outside" not in plan_canvas(64, 64).describe()
    assert plan_canvas(64, 64).compression == 32


def test_whole_numbers_of_any_kind_are_sizes():
    assert plan_canvas(np.int64(1000), np.uint16(999)) == plan_canvas(1000, 999)
    assert hash(plan_canvas(1000, 999)) == hash(plan_canvas(1000, 999))


@pytest.mark.parametrize("bad", [0, -8, 63, 8193, 10**30, 512.0, 512.5, math.nan, math.inf, "512", None, True])
def test_impossible_sizes_are_refused_in_a_sentence(bad):
    for name, size in (("width", (bad, 512)), ("height", (512, bad))):
        with pytest.raises(WrongInput, match=rf"^The {name} is .* whole number of pixels from 64 to 8192.*\.$"):
            plan_canvas(*size)
        if bad is not None:
            with pytest.raises(WrongInput, match=f"The {name} is "):
                plan_canvas_for_prior(24, 24, *size)


@pytest.mark.parametrize("bad", [0, 15.9, 64.1, -1, math.nan, math.inf, "42", True])
def test_impossible_compressions_are_refused_in_a_sentence(bad):
    with pytest.raises(WrongInput, match=r"^The compression is .* from 16 to 64 .* leave it out"):
        plan_canvas(1024, 1024, bad)
    with pytest.raises(WrongInput, match=r"^The compression is "):
        plan_canvas_for_prior(24, 24, compression=bad)


@pytest.mark.parametrize(
    "call, message",
    [
        ({"prior_height": 0, "prior_width": 24}, "Stage C latent's height is 0"),
        ({"prior_height": 24, "prior_width": 2.5}, "Stage C latent's width is 2.5"),
        ({"prior_height": 300, "prior_width": 24}, "would become a picture of 1024 x 12800 px"),
        ({"prior_height": 24, "prior_width": 24, "width": 1024}, "Only one of width and height"),
        (
            {"prior_height": 24, "prior_width": 24, "width": 1024, "height": 1024, "compression": 42},
            "already settle it",
        ),
        ({"prior_height": 2, "prior_width": 2, "width": 64, "height": 8192}, "a compression of 4096.0"),
        ({"prior_height": 256, "prior_width": 256, "width": 1024, "height": 1024}, "a compression of 4.0"),
        ({"prior_height": 100, "prior_width": 300, "width": 4096, "height": 8192}, "aspect of the picture"),
    ],
)
def test_grids_that_cannot_work_are_refused(call, message):
    with pytest.raises(WrongInput, match=message):
        plan_canvas_for_prior(**call)
