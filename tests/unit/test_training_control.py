"""How a new ControlNet begins: its trunk, and the layers that heed it."""

from __future__ import annotations

import pytest
import torch
from lessons import run_of
from torch import nn

from cascade_studio.stages.training import cache, control
from cascade_studio.stages.training.objectives import stack_hints
from cascade_studio.stages.training.seeding import generator


def begin(**changes):
    """A run of a ControlNet just before its first step, and its hints one by one."""
    run = run_of("controlnet", **changes)
    hints = [stack_hints([row], [generator(0)], False) for row in run.trainer.rows]
    return run, hints


@torch.no_grad()
def shrink(net: nn.Module, factor: float) -> None:
    """Make the features of a trunk smaller."""
    last = [module for module in net.backbone.modules() if isinstance(module, nn.BatchNorm2d)][-1]
    for parameter in (last.weight, last.bias):
        parameter.mul_(factor)


@pytest.mark.parametrize("steps", [0, 3])
def test_what_the_last_layers_are_handed_is_of_one_size(steps):
    run, hints = begin(trunk_steps=steps)
    net = run.task.control
    shrink(net, 0.01)
    before = control.measure_hidden(net, hints)
    run.task.prepare(run.trainer, lambda done, of: None)
    wanted = control.HANDED / net.config.trunk.c_features
    assert all(abs(size / wanted - 1) < 0.02 for size in control.measure_hidden(net, hints))
    assert all(abs(size / wanted - 1) > 0.3 for size in before)
    assert all(not projection[2].weight.any() for projection in net.projections), "nothing is changed yet"


def test_a_net_that_goes_on_is_left_as_it_is():
    run, hints = begin()
    run.task.fresh = False
    for projection in run.task.control.projections:
        nn.init.normal_(projection[2].weight)
    before = run.task.control(hints[0])
    run.task.prepare(run.trainer, lambda done, of: None)
    after = run.task.guide(hints[0])
    written = run.task.write(run.trainer.result()).tensors
    run.task.control.load_state_dict(written)
    again = run.task.control(hints[0])
    for index, values in before.items():
        assert torch.allclose(after[index], values, rtol=1e-4, atol=1e-5), index
        assert torch.allclose(again[index], values, rtol=1e-4, atol=1e-5), index


def test_a_channel_that_the_loss_hangs_on_moves_less():
    """Adam moves every weight alike; what that changes in the end is evened out."""
    run, hints = begin(warm_up=1, learning_rate=1e-3)
    run.task.prepare(run.trainer, lambda done, of: None)
    gains, pulls = run.task.guide.gains, run.task.measure_pulls(run.trainer)
    assert gains.max() <= control.MOST_GAIN and gains.min() > 0 and 0.5 <= float(gains.median()) <= 1.5
    strong, weak = pulls.flatten().topk(8).indices, pulls.flatten().topk(8, largest=False).indices
    assert gains.flatten()[strong].max() < gains.flatten()[weak].min()
    run.trainer.update()
    with torch.no_grad():
        maps = torch.stack(list(run.task.guide(hints[0]).values())).abs().mean((1, 3, 4)).flatten()
    assert maps[strong].mean() < maps[weak].mean()


def test_norms_are_those_of_the_hints():
    run, hints = begin()
    net = run.task.control
    control.fit_norms(net, hints)
    first = next(module for module in net.backbone.modules() if isinstance(module, nn.BatchNorm2d))
    seen = []
    first.register_forward_hook(lambda _, given, made: seen.append((made - first.bias[:, None, None]).detach()))
    with torch.no_grad():
        for hint in hints:
            net(hint)
    made = torch.cat(seen) / first.weight.detach()[:, None, None]
    assert made.mean((0, 2, 3)).abs().max() < 0.05 and (made.std((0, 2, 3)) - 1).abs().max() < 0.15
    assert not first.training


def test_small_features_are_heeded_as_soon_as_large_ones():
    """Trunks that differ by their scale alone make the same maps after a step."""
    made = []
    for factor in (1.0, 0.01):
        run, hints = begin(trunk_steps=0, warm_up=1)
        net = run.task.control
        shrink(net, factor)
        net.backbone.requires_grad_(False)
        run.task.prepare(run.trainer, lambda done, of: None)
        run.trainer.update()
        with torch.no_grad():
            made.append(run.task.guide(hints[0])[net.config.proj_blocks[0]])
    ratio = made[1].abs().mean() / made[0].abs().mean()
    assert made[0].abs().mean() > 0 and ratio > 0.2


def test_hints_kept_in_different_ways_are_seen_alike():
    """A resized picture may lie a hair outside of [0, 1]; a batch of bytes and such ones is still in [0, 1]."""
    edges = (torch.rand(1, 8, 8, generator=torch.Generator().manual_seed(0)) > 0.8).float()
    kept, above = cache.shrink(edges), cache.shrink(edges * (1 + 1e-6) - 1e-7)
    assert kept.dtype == above.dtype == torch.uint8 and torch.equal(kept, above)
    assert cache.shrink(3 * edges - 1).dtype == torch.float16
    seen = stack_hints([{"hint": kept}, {"hint": edges.half()}], [generator(0), generator(1)], False)
    assert torch.equal(seen[0], edges) and torch.equal(seen[1], edges)
