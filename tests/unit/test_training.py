"""The training objectives against their equations and the schedule golden, and the statistics of initial weights."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from tiny import golden
from torch import nn

from cascade_studio.stages.diffusion import sampling
from cascade_studio.stages.nets.blocks import GlobalResponseNorm, Projections, ResBlock as UNetResBlock, TimestepBlock
from cascade_studio.stages.nets.initial import initialise_stage_a, initialise_unet
from cascade_studio.stages.nets.stage_a import StageA, StageAConfig
from cascade_studio.stages.nets.stage_a_blocks import StageAResBlock
from cascade_studio.stages.nets.stage_b import StageB, StageBConfig
from cascade_studio.stages.nets.stage_c import StageC, StageCConfig
from cascade_studio.stages.training import losses as t, optimiser as optimisers

C = StageCConfig(
    c_cond=128,
    c_hidden=(128, 128),
    nhead=(2, 2),
    blocks=((2, 2), (2, 2)),
    c_clip_text=64,
    c_clip_text_pooled=64,
    c_clip_img=64,
)
B = StageBConfig(
    c_cond=64,
    c_hidden=(32, 32, 64, 64),
    nhead=(-1, -1, 1, 1),
    blocks=((1, 1, 1, 1), (1, 1, 1, 1)),
    block_repeat=((1, 1, 1, 1), (2, 1, 1, 1)),
    c_clip=64,
)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=generator(seed))


# Times, noising, losses


def test_times_cover_the_official_range():
    times = t.sample_times(100_000, generator())
    assert times.min() >= 0.001 and times.max() <= 1
    assert (times == 1).float().mean() == pytest.approx(0.001, abs=4e-4), "1 - rand + 0.001 is clamped at 1"
    assert times.mean() == pytest.approx(0.501, abs=5e-3)


@pytest.mark.parametrize("shift", [1, 2])
def test_noised_is_the_schedule(shift):
    table = golden("schedule")
    times, x0, noise = torch.linspace(1, 0, 21), randn(21, 4, 3, 2), randn(21, 4, 3, 2, seed=1)
    seen = t.add_training_noise(x0, noise, times, shift)
    a, b = (table[f"{name}_shift{shift}"][:, None, None, None] for name in "ab")
    assert (seen.x - (a * x0 + b * noise)).abs().max() <= 2e-6
    assert (seen.r - table[f"r_shift{shift}"]).abs().max() <= 1e-4
    assert seen.noise is noise
    back = sampling.denoise(seen.x, seen.noise, seen.logsnr)
    assert (back - x0)[1:].abs().max() <= 1e-4


def test_epsilon_losses_are_means_of_samples():
    predicted, noise = randn(3, 4, 5, 2), randn(3, 4, 5, 2, seed=1)
    losses = t.epsilon_losses(predicted.bfloat16(), noise)
    assert losses.dtype == torch.float32
    wanted = [float(((predicted[i].bfloat16().float() - noise[i]) ** 2).mean()) for i in range(3)]
    assert losses.tolist() == pytest.approx(wanted, rel=1e-6)


def test_p2_weight_golden():
    table = golden("schedule")
    assert torch.allclose(t.p2_weight(table["logsnr_shift1"]), table["p2_weight"], rtol=1e-5, atol=0)
    assert t.p2_weight(torch.tensor(1.0), k=2, gamma=0.5, scale=3) == pytest.approx((2 + math.exp(3)) ** -0.5)


def test_velocity_weight_turns_noise_errors_into_those_of_v():
    level = sampling.logsnr(torch.linspace(0.02, 1, 9))
    a, b = (value[:, None] for value in sampling.alpha_sigma(level))
    x0, noise, error = randn(9, 50), randn(9, 50, seed=1), randn(9, 50, seed=2)
    predicted = noise + error
    guess = (a * x0 + b * noise - b * predicted) / a
    v_errors = ((a * predicted - b * guess) - (a * noise - b * x0)).square().mean(1)
    weighted = t.epsilon_losses(predicted, noise) * t.velocity_weight(level, 1e5)
    assert torch.allclose(weighted, v_errors, rtol=2e-3)
    assert t.velocity_weight(torch.tensor([-9.0, 40.0])).tolist() == [1000, 1]


# Adaptive weights


def test_adaptive_weights_follow_the_official_average():
    weights, logsnr = t.AdaptiveLossWeight(), torch.tensor([-9.2, 0.01, 7.8])
    assert weights.weights(logsnr).tolist() == [1, 1, 1]
    weights.update(logsnr, torch.tensor([0.5, 2.0, 3.0]))
    assert weights.weights(logsnr).tolist() == pytest.approx([1 / (0.99 + 0.01 * v) for v in (0.5, 2.0, 3.0)])
    assert (weights.losses != 1).sum() == 3
    edges = torch.linspace(-10, 10, 299)
    assert weights.indices(torch.tensor([-11.0, float(edges[7]), 11.0])).tolist() == [0, 7, 299]
    assert len(weights.losses) == 300


def test_adaptive_weights_count_duplicates_in_any_order():
    """Five equal losses in a bucket are five steps of the average; different ones give the same in every order."""
    one, many = t.AdaptiveLossWeight(), t.AdaptiveLossWeight()
    for _ in range(5):
        one.update(torch.tensor([0.5]), torch.tensor([0.2]))
    many.update(torch.full((5,), 0.5), torch.full((5,), 0.2))
    assert torch.allclose(one.losses, many.losses, atol=1e-7)
    losses = torch.tensor([0.1, 0.9, 0.4])
    forward, backward = t.AdaptiveLossWeight(), t.AdaptiveLossWeight()
    forward.update(torch.zeros(3), losses)
    backward.update(torch.zeros(3), losses.flip(0))
    assert torch.allclose(forward.losses, backward.losses)
    here = float(forward.losses[forward.indices(torch.zeros(1))])
    assert here == pytest.approx(0.99**3 + (1 - 0.99**3) * float(losses.mean()))


def test_adaptive_weights_are_clamped_and_saved():
    weights = t.AdaptiveLossWeight(decay=0.0)
    weights.update(torch.tensor([-5.0, 5.0]), torch.tensor([0.0, 1e9]))
    assert weights.weights(torch.tensor([-5.0, 5.0])).tolist() == pytest.approx([1e7, 1e-7])
    other = t.AdaptiveLossWeight()
    other.load_state_dict(weights.state_dict())
    assert torch.equal(other.losses, weights.losses)


# Noise kinds


def test_offset_noise_moves_whole_channels():
    noise = randn(200, 4, 16, 16)
    moved = t.offset_noise(noise, 0.1, generator(1)) - noise
    assert (moved - moved[:, :, :1, :1]).abs().max() <= 1e-6
    assert moved[:, :, 0, 0].std() == pytest.approx(0.1, rel=0.1)


def test_pyramid_noise_has_unit_variance_and_the_weights_of_its_levels():
    """A mean over blocks of 2^k cells keeps the levels that are constant there and averages out the rest."""
    noise = randn(400, 4, 64, 64)
    out = t.pyramid_noise(noise, generator=generator(1))
    assert out.var() == pytest.approx(1, abs=0.02)
    levels = range(2, 7)  # 16 to 1 cells a side
    total = 1 + sum(0.75 ** (2 * level) for level in levels)
    means = nn.functional.avg_pool2d(out, 4)
    wanted = (1 / 16 + sum(0.75 ** (2 * level) for level in levels)) / total
    assert means.var() == pytest.approx(wanted, rel=0.03)


def test_pyramid_noise_uses_both_axes():
    """64 x 16 cells: level 1 (32 x 8) is too high, levels 2 to 4 fit, at level 5 the width would be 0."""
    noise = randn(400, 4, 64, 16)
    out = t.pyramid_noise(noise, generator=generator(1))
    total = 1 + sum(0.75 ** (2 * level) for level in (2, 3, 4))
    coarse = nn.functional.avg_pool2d(out, 16)
    wanted = (1 / 256 + sum(0.75 ** (2 * level) * 4 ** (level - 4) for level in (2, 3, 4))) / total
    assert coarse.shape[-2:] == (4, 1)
    assert coarse.var() == pytest.approx(wanted, rel=0.1)
    assert torch.equal(t.pyramid_noise(randn(1, 4, 64, 64), sizes=(99, 99)), randn(1, 4, 64, 64))


# Conditions


def test_condition_dropout():
    keep = t.keep_mask(20_000, 0.05, generator())
    assert keep.float().mean() == pytest.approx(0.95, abs=0.005)
    condition, empty = randn(3, 7, 4), randn(1, 7, 4, seed=1)
    kept = t.replace_dropped(condition, torch.tensor([True, False, True]), empty)
    assert torch.equal(kept[0], condition[0]) and torch.equal(kept[1], empty[0])
    assert not t.replace_dropped(condition, torch.tensor([False] * 3)).any()


# EMA and optimiser


def test_ema_averages_after_its_start():
    net = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2)).bfloat16()
    ema = optimisers.EMA(net, decay=0.9, start=1)
    values = []
    for step in range(3):
        nn.init.constant_(net[0].weight, float(step + 1))
        net[1].num_batches_tracked += 1
        ema.update(net)
        values.append(float(ema.tensors["0.weight"][0, 0]))
    assert values == pytest.approx([1, 1.1, 1.29], rel=1e-6), "float32, although the net is bfloat16"
    other = optimisers.EMA(net, decay=0.9)
    other.load_state_dict(ema.state_dict())
    averaged = other.copy_of(net)
    assert float(averaged[0].weight[0, 0]) == pytest.approx(1.29, rel=4e-3)
    assert int(averaged[1].num_batches_tracked) == 3
    assert not any(p.requires_grad for p in averaged.parameters()) and net[0].weight.requires_grad


def test_optimiser_warms_up_and_clips():
    weight = nn.Parameter(torch.zeros(4))
    optimiser = optimisers.Optimiser([weight], lr=0.1, weight_decay=0.0, warm_up=4)
    assert optimiser.step(100 * weight.sum()) == pytest.approx(200)
    assert weight.grad.norm() == pytest.approx(1, rel=1e-4)
    assert weight.detach().tolist() == pytest.approx([-0.025] * 4, rel=1e-4), "a quarter of the rate"
    optimiser.step(weight.sum(), factor=0.5)
    assert optimiser.inner.param_groups[0]["lr"] == pytest.approx(0.025)
    before = weight.detach().clone()
    assert math.isnan(optimiser.step(weight.sum() * math.nan)) and torch.equal(weight, before)
    twin = optimisers.Optimiser([nn.Parameter(weight.detach().clone())], lr=0.1, weight_decay=0.0, warm_up=4)
    twin.load_state_dict(copy.deepcopy(optimiser.state_dict()))
    for one in (optimiser, twin):
        one.step((one.parameters[0] * torch.arange(4.0)).sum())
    assert torch.equal(twin.parameters[0], weight)


# Initial weights


@pytest.mark.parametrize(("kind", "config"), [(StageC, C), (StageB, B)])
def test_initial_unet(kind, config):
    torch.manual_seed(0)
    net = kind(config)
    for parameter in net.parameters():
        nn.init.constant_(parameter, math.nan)
    initialise_unet(net)
    net.requires_grad_(False)
    for name, parameter in net.named_parameters():
        if "up_upscalers" not in name or kind is StageC:  # transposed convolutions keep what PyTorch gave them
            assert torch.isfinite(parameter).all(), name
    assert not net.clf[1].weight.any() and not net.clf[1].bias.any()
    width, c_in = net.embedding[1].weight.shape[:2]
    assert net.embedding[1].weight.abs().max() <= 0.02 * math.sqrt(6 / (width + c_in))
    for module in net.modules():
        if isinstance(module, GlobalResponseNorm):
            assert not module.gamma.any() and not module.beta.any()
        elif isinstance(module, TimestepBlock):
            assert not any(getattr(module, name).weight.any() for name in module.names)
        elif isinstance(module, UNetResBlock):
            rows, columns = module.channelwise[4].weight.shape
            std = math.sqrt(2 / (rows + columns) / sum(config.blocks[0]))
            assert module.channelwise[4].weight.std() == pytest.approx(std, rel=0.05)
        elif isinstance(module, Projections):
            std = math.sqrt(2 / (4 * module.to_q.weight.shape[0]))
            assert module.to_v.weight.std() == pytest.approx(std, rel=0.05)
    assert (net.clip_txt_mapper if kind is StageC else net.clip_mapper).weight.std() == pytest.approx(0.02, rel=0.05)


@pytest.mark.parametrize("config", [B, C])
def test_a_fresh_unet_predicts_zero_and_learns(config):
    torch.manual_seed(0)
    net = StageB(config) if isinstance(config, StageBConfig) else StageC(config)
    initialise_unet(net)
    if isinstance(net, StageB):
        nn.init.normal_(net.up_upscalers[0][1].weight, std=0.1)
        arguments = randn(2, 4, 16, 16), torch.rand(2), randn(2, 16, 3, 3), randn(2, 64)
    else:
        arguments = randn(2, 16, 4, 4), torch.rand(2), randn(2, 7, 64), randn(2, 64)
    optimiser, losses = optimisers.Optimiser(net.parameters(), lr=4e-3), []
    for _ in range(20):
        loss = t.epsilon_losses(net(*arguments), arguments[0]).mean()
        losses.append(float(loss.detach()))
        assert not math.isnan(optimiser.step(loss))
    assert losses[0] == pytest.approx(float(arguments[0].square().mean()), rel=1e-5)
    assert losses[-1] < 0.7 * losses[0]


def test_initial_stage_a_has_closed_gates_and_unit_latents():
    torch.manual_seed(0)
    net = StageA(StageAConfig(c_hidden=32, bottleneck_blocks=2, codebook_size=16))
    initialise_stage_a(net)
    assert not any(m.gammas.any() for m in net.modules() if isinstance(m, StageAResBlock))
    net.down_blocks[-1][1].train()
    latent = net.encode(torch.rand(4, 3, 64, 64, generator=generator())).detach()
    assert latent.std() == pytest.approx(1, abs=0.02)
