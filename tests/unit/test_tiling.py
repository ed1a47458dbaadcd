"""Tiles cover everything once, and equal the whole picture."""

from __future__ import annotations

import random

import pytest
import torch
from recipe import weights_for
from tiny import relative

from cascade_studio.stages.errors import WrongInput
from cascade_studio.stages.nets.exact_tiles import Grid, largest_window, run_tiled, spans
from cascade_studio.stages.nets.stage_a import StageA, StageAConfig


@pytest.fixture(scope="module")
def net() -> StageA:
    net = StageA(StageAConfig(c_hidden=16, codebook_size=8))
    net.load_state_dict(weights_for({key: value.shape for key, value in net.state_dict().items()}))
    return net.requires_grad_(False)


def test_spans_cover_once_with_context():
    picks = random.Random(5)
    for _ in range(500):
        margin = picks.randrange(0, 15)
        length, window = picks.randrange(1, 400), picks.randrange(2 * margin + 1, 200)
        found = spans(length, window, margin)
        assert [cell for span in found for cell in range(span.start, span.stop)] == list(range(length))
        for span in found:
            assert 0 <= span.first <= span.start < span.stop <= span.last <= length
            assert span.last - span.first == found[0].last - found[0].first <= window
            assert span.first == 0 or span.start - span.first >= margin
            assert span.last == length or span.last - span.stop >= margin


def test_window_without_room_is_refused():
    with pytest.raises(WrongInput, match="at least 27 cells"):
        spans(100, 26, 13)


@pytest.mark.parametrize("seed", range(4))
def test_decode_tiles_equal_the_whole(net, seed):
    picks = random.Random(seed)
    torch.manual_seed(seed)
    latent = torch.randn(1 + seed % 2, 4, picks.randrange(20, 100), picks.randrange(54, 120))
    with torch.inference_mode():
        tiled = net.decode_tiled(latent, tile=picks.randrange(1, 90))
        assert relative(tiled, net.decode(latent)) <= 1e-5


@pytest.mark.parametrize("seed", range(4))
def test_encode_tiles_equal_the_whole(net, seed):
    picks = random.Random(seed)
    torch.manual_seed(seed)
    image = torch.rand(1 + seed % 2, 3, 4 * picks.randrange(3, 60), 4 * picks.randrange(10, 60))
    with torch.inference_mode():
        assert relative(net.encode_tiled(image, tile=picks.randrange(1, 40)), net.encode(image)) <= 1e-5


def test_published_width_in_tiles():
    net = StageA()
    net.load_state_dict(weights_for({key: value.shape for key, value in net.state_dict().items()}))
    latent = torch.randn(1, 4, 14, 60)
    with torch.inference_mode():
        assert relative(net.decode_tiled(latent, tile=1), net.decode(latent)) <= 1e-5


def test_one_cell_too_little_context_shows(net):
    latent = torch.randn(1, 4, 30, 120)
    grid = Grid.cut((30, 120), (53, 53), net.config.decode_margin - 1, 1, 4)
    with torch.inference_mode():
        whole = net.decode(latent)
        assert not torch.equal(run_tiled(net.decode, latent, torch.empty_like(whole), grid), whole)
        shallow = Grid.cut((30, 120), (53, 53), 4, 1, 4)
        assert relative(run_tiled(net.decode, latent, torch.empty_like(whole), shallow), whole) > 1e-3


def test_out_progress_and_interrupt(net):
    latent, seen = torch.randn(2, 4, 60, 90), []

    def stop(done: int, total: int) -> None:
        seen.append((done, total))
        if done == 3:
            raise InterruptedError

    out = torch.zeros(2, 3, 240, 360, dtype=torch.float64)
    with torch.inference_mode():
        with pytest.raises(InterruptedError):
            net.decode_tiled(latent, tile=60, out=out, on_tile=stop)
        assert seen == [(1, 4), (2, 4), (3, 4)] and out[0].all() and not out[1, :, :, 300:].any()
        assert net.decode_tiled(latent, tile=60, out=out) is out
        torch.testing.assert_close(out, net.decode(latent).double(), rtol=0, atol=1e-5)


def test_largest_window():
    assert largest_window(10_000, lambda side: side * side, smallest=8) == 100
    assert largest_window(10, lambda side: side * side, smallest=8) == 8
