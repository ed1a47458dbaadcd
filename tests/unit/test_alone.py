"""A stream that nobody else looks at is written over, and nothing of what comes out changes but its rounding."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from test_compiled import CLOSE, NETS, given_to
from tiny import TOLERANCE, golden, relative, tiny_net
from torch import Tensor, nn

from cascade_studio.stages.nets import alone
from cascade_studio.stages.nets.backend import TORCH
from cascade_studio.stages.nets.blocks import ResBlock
from cascade_studio.stages.nets.hooks import BlockHooks

SIZES = ((1, 8, 8), (2, 8, 16), (3, 24, 24))
INPUTS = {
    "stage_b_tiny": ("x", "r", "effnet", "clip"),
    "stage_c_tiny": ("x", "r", "clip_text", "clip_text_pooled", "clip_img"),
}


class Looks(BlockHooks):
    """A hook that changes nothing, and is not known to."""

    def attention_block(self, place: Any, x: Tensor, time: Tensor) -> Tensor:
        return x


@pytest.fixture()
def groups(monkeypatch) -> list[int]:
    """How many groups ran alone."""
    seen: list[int] = []
    real = alone.run_group_alone

    def run(*given: Any) -> Tensor:
        seen.append(1)
        return real(*given)

    monkeypatch.setattr("cascade_studio.stages.nets.unet.run_group_alone", run)
    return seen


@pytest.mark.parametrize("name", NETS)
def test_golden(name, groups):
    tensors = golden(name)
    with torch.inference_mode():
        given = tiny_net(name)(*(tensors[key] for key in INPUTS[name]))
    assert groups
    assert relative(given, tensors["out"]) <= TOLERANCE


@pytest.mark.parametrize("dtype", CLOSE, ids=lambda dtype: str(dtype).removeprefix("torch."))
@pytest.mark.parametrize("name", NETS)
def test_alone_and_watched_are_the_same(name, dtype, groups):
    net = tiny_net(name, dtype)
    for seed, size in enumerate(SIZES):
        given = given_to(net, size, dtype, seed)
        before = {key: value.clone() for key, value in given.items()}
        with torch.inference_mode():
            free = net(**given)
            ran = len(groups)
            watched = net(**given, hooks=Looks())
        assert len(groups) == ran > 0, "a hook that looks keeps the stream from being written over"
        assert relative(free, watched) < CLOSE[dtype]
        assert all(torch.equal(given[key], value) for key, value in before.items())


class Calls(nn.Linear):
    """A layer of another class: only itself knows how it computes."""


@pytest.mark.parametrize("what", ["called", "no bias at hand", "hung on one layer"])
@pytest.mark.parametrize("name", NETS)
def test_layers_that_do_not_lend(name, what, groups):
    given = given_to(tiny_net(name), SIZES[1], torch.float32)
    backend = {
        "called": replace(TORCH, Linear=Calls),
        "no bias at hand": replace(TORCH, read_bias=lambda layer, like: None),
        "hung on one layer": TORCH,
    }[what]
    plain = tiny_net(name)
    net = type(plain)(plain.config, backend=backend).requires_grad_(False)
    net.load_state_dict(plain.state_dict())
    seen: list[Tensor] = []
    if what == "hung on one layer":
        block = next(each for each in net.modules() if isinstance(each, ResBlock))
        block.channelwise[4].register_forward_hook(lambda layer, given, out: seen.append(out))
    with torch.inference_mode():
        expected = plain(**given, hooks=Looks())
        found = net(**given)
    assert groups and relative(found, expected) < 1e-5
    assert bool(seen) == (what == "hung on one layer")


def test_what_a_hook_hands_in_is_its_own():
    """A hook that runs a group and compares finds what it handed in as it was."""

    class Compares(BlockHooks):
        kept: Tensor | None = None
        copy: Tensor | None = None

        def replaces_group(self, place: Any) -> bool:
            return place.kind == "middle"

        def replace_group(self, place: Any, x: Tensor, run: Any) -> Tensor:
            self.kept, self.copy = x, x.clone()
            return run(x) + 0 * x

    net, hooks = tiny_net("stage_c_tiny"), Compares()
    with torch.inference_mode():
        net(**given_to(net, SIZES[0], torch.float32), hooks=hooks)
    assert torch.equal(hooks.kept, hooks.copy)
