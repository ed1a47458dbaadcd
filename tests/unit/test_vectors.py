"""A picture has the same bits alone and in a batch on a processor: products of few vectors round by their number."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from tiny import golden, tiny_net
from torch.nn import functional as F

from cascade_studio.stages.nets.vectors import map_vectors

INPUTS = {
    "stage_b_tiny": ("x", "r", "effnet", "clip"),
    "stage_c_tiny": ("x", "r", "clip_text", "clip_text_pooled", "clip_img"),
}


@pytest.fixture
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("c_in, c_out", [(64, 256), (192, 768), (1280, 8192)])
def test_vectors_are_mapped_as_if_alone(one_thread, c_in, c_out):
    weight, bias = torch.randn(c_out, c_in), torch.randn(c_out)
    x = torch.randn(9, 1, c_in)
    all_at_once = map_vectors(lambda rows: F.linear(rows, weight, bias), x)
    assert all_at_once.shape == (9, 1, c_out)
    for count in range(1, 9):
        assert torch.equal(map_vectors(lambda rows: F.linear(rows, weight, bias), x[:count]), all_at_once[:count])


@pytest.mark.parametrize("name", INPUTS)
def test_a_guided_picture_has_its_bits_whatever_is_beside_it(one_thread, name):
    """Guided, as samplers ask for it: twice in every pass."""
    net = tiny_net(name)
    first = [golden(name)[key][:1] for key in INPUTS[name]]
    with torch.no_grad():
        alone = net(*(torch.cat([each, each]) for each in first))
        for count in (3, 4, 6):
            many = net(*(torch.cat([each, each.flip(-1).expand(count - 1, *each.shape[1:])]) for each in first))
            assert torch.equal(many[:1], alone[:1])
