"""Variations: noise turned from one seed's towards another's."""

from __future__ import annotations

import pytest
import torch

from cascade_studio.stages.diffusion.noise import NoiseStreams
from cascade_studio.stages.diffusion.seeds import COMFYUI, OFFICIAL, BatchSeed, Seeds, slerp
from cascade_studio.stages.errors import WrongInput

SHAPE = (2, 16, 24, 24)


def noise(*seeds: int) -> torch.Tensor:
    return NoiseStreams(seeds).next((len(seeds), *SHAPE[1:]))


def angle(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    a, b = first.flatten(1).double(), second.flatten(1).double()
    return ((a * b).sum(1) / (a.norm(dim=1) * b.norm(dim=1))).clamp(-1, 1).acos()


def test_ends_are_the_noises_themselves():
    first, second = noise(1, 2), noise(3, 4)
    assert slerp(first, second, 0) is first and slerp(first, second, 1) is second


@pytest.mark.parametrize("amount", [0.1, 0.5, 0.8])
def test_the_way_is_an_arc(amount):
    """The angle grows evenly, and the length is that of noise: a straight mix of the two would be shorter."""
    first, second = noise(1, 2), noise(3, 4)
    mixed = slerp(first, second, amount)
    assert torch.allclose(angle(first, mixed), amount * angle(first, second), atol=1e-5)
    assert torch.allclose(angle(mixed, second), (1 - amount) * angle(first, second), atol=1e-5)
    assert abs(float(mixed.std()) - 1) < 0.02
    straight = (1 - amount) * first + amount * second
    assert float(straight.std()) < float(mixed.std()) - 0.05


def test_equal_noises_stay():
    first = noise(1, 2)
    assert torch.allclose(slerp(first, first.clone(), 0.3), first, atol=1e-6)
    assert torch.equal(slerp(torch.zeros(2, 3), torch.zeros(2, 3), 0.5), torch.zeros(2, 3))


def test_pictures_do_not_mix():
    whole = slerp(noise(1, 2), noise(3, 4), 0.4)
    assert torch.equal(whole[1:], slerp(noise(2), noise(4), 0.4))


def test_seeds():
    shape = (2, 4, 8, 8)
    plain, none = Seeds((5, 6)), Seeds((5, 6), (7, 8), 0.0)
    expected = NoiseStreams([5, 6], 1).next(shape)
    assert torch.equal(plain.open_stream(1).next(shape), expected) and torch.equal(
        none.open_stream(1).next(shape), expected
    )
    full = Seeds((5, 6), (7, 8), 1.0)
    assert torch.equal(full.open_stream().next(shape), NoiseStreams([7, 8]).next(shape))
    half = Seeds((5, 6), (7, 8), 0.5)
    streams = half.open_stream()
    first, second = streams.next(shape), streams.next(shape)
    assert not torch.equal(first, second), "every step has noise of its own"
    alone = half.take(1).open_stream()
    assert torch.equal(alone.next((1, 4, 8, 8)), first[1:]) and torch.equal(alone.next((1, 4, 8, 8)), second[1:])
    assert len(half) == 2 and len(half.take(0)) == 1


def test_errors_are_sentences():
    with pytest.raises(WrongInput, match="variation strength is 1.5"):
        slerp(noise(1), noise(2), 1.5)
    with pytest.raises(WrongInput, match="one shape"):
        slerp(noise(1), noise(2, 3), 0.5)
    with pytest.raises(WrongInput, match="1 seeds of variations"):
        Seeds((1, 2), (3,), 0.5).open_stream()


def test_one_generator_for_a_batch():
    """Official: it goes on from the start into the steps. ComfyUI: the steps have a new one, with seed + 1 on a CPU."""
    shape = (3, 16, 4, 4)
    generator = torch.Generator().manual_seed(7)
    drawn = [torch.randn(shape, generator=generator) for _ in range(3)]
    start, steps = BatchSeed(OFFICIAL, 7, (0, 1, 2), (0, 1, 2)).open()
    assert all(torch.equal(source.next(shape), each) for source, each in zip((start, steps, steps), drawn))
    start, steps = BatchSeed(COMFYUI, 7, (0, 1, 2), (0, 1, 2)).open()
    assert torch.equal(start.next(shape), drawn[0])
    assert torch.equal(steps.next(shape), torch.randn(shape, generator=torch.Generator().manual_seed(8)))


def test_a_picture_of_a_batch_keeps_its_part_of_the_noise():
    shape = (3, 16, 4, 4)
    for noise_of in (OFFICIAL, COMFYUI):
        seed = BatchSeed(noise_of, 2**64 - 1, (0, 1, 2), (0, 1, 2), other=5, strength=0.3)
        whole = [source.next(shape) for source in seed.open()]
        alone = [source.next((1, *shape[1:])) for source in seed.take(2).open()]
        assert len(seed.take(2)) == 1
        for one, every in zip(alone, whole):
            torch.testing.assert_close(one, every[2:])
    chosen = BatchSeed(COMFYUI, 3, (2,), (0,)).open()[0].next((1, *shape[1:]))
    assert torch.equal(chosen, torch.randn(shape, generator=torch.Generator().manual_seed(3))[2:])
