"""The schedule, the steps, guidance and noise, each against its definition; the sampling goldens are beside this."""

from __future__ import annotations

import math

import pytest
import torch
from steps import step_lcm
from tiny import golden

from cascade_studio.stages.diffusion import sampling as d
from cascade_studio.stages.diffusion.noise import NoiseStreams, list_image_seeds
from cascade_studio.stages.errors import WrongInput

SHIFTS = (0.5, 1.0, 2.0, 3.0)
# The specification's test vectors for 20 steps at shift 2.
R = [
    0.9936,
    0.9750,
    0.9497,
    0.9240,
    0.8975,
    0.8701,
    0.8413,
    0.8110,
    0.7785,
    0.7436,
    0.7056,
    0.6640,
    0.6179,
    0.5665,
    0.5089,
    0.4441,
    0.3715,
    0.2906,
    0.2018,
    0.1063,
    0.0071,
]
LOGSNR = [
    -9.2102,
    -6.4863,
    -5.0878,
    -4.2562,
    -3.6515,
    -3.1665,
    -2.7532,
    -2.3851,
    -2.0460,
    -1.7242,
    -1.4109,
    -1.0982,
    -0.7783,
    -0.4425,
    -0.0799,
    0.3251,
    0.7966,
    1.3784,
    2.1643,
    3.4349,
    7.8238,
]


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


# Schedule


@pytest.mark.parametrize("shift", [1, 2, 3])
def test_schedule_goldens(shift):
    """Compared where float32 rounding is even: a² for logsnr, whose last digits depend on a machine's cosine."""
    expected = {name: golden("schedule")[f"{name}_shift{shift}"] for name in ("logsnr", "r", "a", "b")}
    levels = d.logsnr(torch.linspace(1, 0, 21), shift)
    assert (levels.sigmoid() - expected["logsnr"].sigmoid()).abs().max() <= 2e-7
    assert (levels - expected["logsnr"])[:18].abs().max() <= 1e-5
    assert (d.noise_condition(expected["logsnr"]) - expected["r"]).abs().max() <= 2e-7
    for given, name in zip(d.alpha_sigma(expected["logsnr"]), "ab"):
        assert (given / expected[name] - 1).abs().max() <= 1e-6


def test_specification_vectors():
    levels = d.logsnr(d.timesteps(20), 2)
    assert levels.tolist() == pytest.approx(LOGSNR, abs=6e-5)
    assert d.noise_condition(levels).tolist() == pytest.approx(R, abs=6e-5)
    assert d.logsnr(torch.tensor([0.95, 0.5, 0.05])).tolist() == pytest.approx([-5.1, -0.0246, 4.8212], abs=6e-5)
    assert d.noise_condition(d.logsnr(torch.tensor([1.0, 0.0]))).tolist() == pytest.approx([0.9936, 0.0023], abs=6e-5)


def test_limits_carry_the_rounding_of_float32():
    assert d.LOGSNR_LIMITS[0] == pytest.approx(-math.log(9999), abs=2e-6)
    assert d.LOGSNR_LIMITS[1] == pytest.approx(9.21007, abs=2e-5), "ln 9999 = 9.21024 is what float64 gives"


@pytest.mark.parametrize("shift", SHIFTS)
def test_logsnr_is_clamped_before_and_after_the_shift(shift):
    low, high = d.LOGSNR_LIMITS
    drop = 2 * math.log(shift)
    assert d.logsnr(1.5, shift) == d.logsnr(1, shift) == pytest.approx(max(low, low - drop), abs=1e-5)
    assert d.logsnr(-1, shift) == d.logsnr(0, shift) == pytest.approx(min(high, high - drop), abs=1e-5)
    levels = d.logsnr(torch.linspace(1, 0, 501), shift)
    assert (levels.diff() >= 0).all()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_every_dtype_gets_a_float32_schedule(dtype):
    t = torch.tensor([0.75, 0.25], dtype=dtype)
    assert torch.equal(d.logsnr(t, 2), d.logsnr(t.float(), 2))
    level = d.logsnr(t).to(dtype)
    values = (
        d.logsnr(t),
        d.noise_condition(level),
        *d.alpha_sigma(level),
        d.sigma_from_logsnr(level),
        d.logsnr_from_sigma(t),
        d.time_from_logsnr(level),
    )
    assert {value.dtype for value in values} == {torch.float32}


def test_the_schedule_ignores_the_default_dtype():
    torch.set_default_dtype(torch.float64)
    try:
        inside = d.logsnr(0.3, 2), d.noise_condition(0.7), d.timesteps(7), d.schedule_sigmas(7, 2)
    finally:
        torch.set_default_dtype(torch.float32)
    outside = d.logsnr(0.3, 2), d.noise_condition(0.7), d.timesteps(7), d.schedule_sigmas(7, 2)
    assert all(a.dtype == torch.float32 and torch.equal(a, b) for a, b in zip(inside, outside))


@pytest.mark.parametrize("shift", SHIFTS)
def test_time_is_the_inverse_of_the_schedule(shift):
    t = torch.linspace(0.02, 0.98, 97)
    assert (d.time_from_logsnr(d.logsnr(t, shift), shift) - t).abs().max() < 1e-4
    ends = torch.cat([d.logsnr(torch.tensor([1.0, 0.0]), shift), torch.tensor([-41.4, math.inf])])
    assert d.time_from_logsnr(ends, shift).tolist() == [1, 0, 1, 0]
    again = d.logsnr_from_sigma(d.sigma_from_logsnr(ends))
    assert d.time_from_logsnr(again, shift).tolist() == [1, 0, 1, 0]


def test_sigma_is_b_over_a_and_gives_the_same_condition_back():
    levels = d.logsnr(torch.linspace(1, 0, 2001), 2)
    sigmas = d.sigma_from_logsnr(levels)
    a, b = d.alpha_sigma(levels[:1800])
    assert (sigmas[:1800] * a / b - 1).abs().max() < 1e-5
    again = d.noise_condition(d.logsnr_from_sigma(sigmas))
    assert (again - d.noise_condition(levels)).abs().max() <= 3e-7
    assert (again == d.noise_condition(levels)).float().mean() > 0.9
    assert d.logsnr_from_sigma(0.0) == math.inf and d.noise_condition(math.inf) <= 1e-6
    assert d.noise_condition(d.logsnr_from_sigma(1e9)) == 1


@pytest.mark.parametrize("shift", SHIFTS)
@pytest.mark.parametrize("steps", [1, 10, 20, 50, 1000])
def test_schedule_sigmas_are_the_official_times_then_zero(steps, shift):
    sigmas = d.schedule_sigmas(steps, shift)
    assert sigmas.dtype == torch.float32 and sigmas[-1] == 0 and len(sigmas) == steps + 1
    assert (sigmas.diff() <= 0).all() and (sigmas.unique_consecutive().diff() < 0).all()
    levels = d.logsnr(torch.linspace(1, 0, steps + 1), shift).double()
    assert torch.equal(sigmas[:-1], torch.exp(-levels[:-1] / 2).float())
    if steps <= 50 and shift <= 3:
        assert (sigmas.diff() < 0).all()
    assert d.schedule_sigmas(steps, shift, start=0.6)[0] == pytest.approx(float(torch.exp(-d.logsnr(0.6, shift) / 2)))


@pytest.mark.parametrize(
    "call",
    [
        lambda: d.timesteps(0),
        lambda: d.timesteps(5, 0.0),
        lambda: d.timesteps(5, 1.2),
        lambda: d.timesteps(5, 0.5, 0.5),
        lambda: d.timesteps(5, math.nan),
        lambda: d.logsnr(0.5, 0),
        lambda: d.logsnr(0.5, -1),
        lambda: d.logsnr(0.5, math.nan),
    ],
)
def test_impossible_schedules_are_refused(call):
    with pytest.raises(WrongInput, match=r"(needs|has to be|give) .*\.$"):
        call()


# Noising and steps

HERE, THERE = (d.sigma_from_logsnr(d.logsnr(t, 2)) for t in (0.7, 0.4))


def test_noising_and_denoising_are_inverse_for_one_level_or_one_each():
    x0, noise = randn(3, 4, 5, 6), randn(3, 4, 5, 6, seed=1)
    levels = d.logsnr(torch.tensor([0.9, 0.5, 0.1]))
    x = d.add_noise(x0, noise, levels)
    torch.testing.assert_close(d.denoise(x, noise, levels), x0, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(x[1:2], d.add_noise(x0[1:2], noise[1:2], levels[1]))
    a, b = d.alpha_sigma(levels)
    assert (a**2 + b**2).tolist() == pytest.approx([1, 1, 1], abs=1e-6)


def test_ddim_follows_the_probability_flow():
    x0, noise = randn(2, 4, 3, 3), randn(2, 4, 3, 3, seed=1)
    torch.testing.assert_close(d.step_ddim(x0, noise, HERE, THERE), x0 + THERE * noise)


def test_ddpm_samples_the_posterior():
    """Mean and variance of q(x_s | x_t, x0), Ho et al. 2020, eq. 6 and 7, computed apart in float64."""
    x0, epsilon = randn(2, 4, 3, 3).double(), randn(2, 4, 3, 3, seed=1).double()
    (a, b), (a_next, b_next) = (
        (1 / (1 + level**2).sqrt(), level / (1 + level**2).sqrt()) for level in (HERE.double(), THERE.double())
    )
    kept = a / a_next
    mean = kept * b_next**2 / b**2 * (a * x0 + b * epsilon) + a_next * (1 - kept**2) / b**2 * x0
    spread = (b_next**2 / b**2 * (1 - kept**2)).sqrt()
    zeros = torch.zeros_like(x0)
    torch.testing.assert_close(d.step_ddpm(x0, epsilon, HERE, THERE, zeros), mean / a_next, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(
        d.step_ddpm(zeros, zeros, HERE, THERE, zeros + 1), (spread / a_next).expand_as(x0), rtol=1e-6, atol=1e-6
    )


def test_lcm_noises_the_picture_afresh():
    x0, noise = randn(2, 4, 3, 3), randn(2, 4, 3, 3, seed=1)
    torch.testing.assert_close(step_lcm(x0, x0 * 7, HERE, THERE, noise), x0 + THERE * noise)


@pytest.mark.parametrize("step", [d.step_ddim, d.step_ddpm, step_lcm])
def test_steps_end_cleanly(step):
    x0, epsilon, noise = randn(2, 4, 3, 3), randn(2, 4, 3, 3, seed=1), randn(2, 4, 3, 3, seed=2)
    assert torch.equal(step(x0, epsilon, HERE, 0.0, noise), x0)
    for shift in SHIFTS:
        for times in ((1.0, 0.0), (1.0, 0.999), (1.0, 1.0)):
            sigma, sigma_next = (d.sigma_from_logsnr(d.logsnr(t, shift)) for t in times)
            assert step(x0, epsilon, sigma, sigma_next, noise).isfinite().all()


def test_a_step_to_the_same_level_draws_noise_and_changes_nothing():
    x0, epsilon, noise = randn(2, 4, 3, 3), randn(2, 4, 3, 3, seed=1), randn(2, 4, 3, 3, seed=2)
    assert torch.equal(d.step_ddpm(x0, epsilon, HERE, HERE, noise), x0 + HERE * epsilon)


@pytest.mark.parametrize("eta, name", [(1.0, "DDPM"), (0.5, "DDIM")])
def test_a_noisy_step_without_noise_says_so(eta, name):
    with pytest.raises(WrongInput, match=f"The {name} step adds noise, but none was given"):
        d.step_ddim(randn(1, 4, 3, 3), randn(1, 4, 3, 3), HERE, THERE, eta=eta)


# Guidance


def test_guidance_formula():
    cond, uncond = randn(2, 4, 6, 6), randn(2, 4, 6, 6, seed=1)
    plain = uncond + 4 * (cond - uncond)
    torch.testing.assert_close(d.guide(cond, uncond, 4, rescale=0), plain, atol=1e-5, rtol=1e-5)
    batchwise = plain * (0.7 * cond.std() / plain.std() + 0.3)
    torch.testing.assert_close(d.guide(cond, uncond, 4, per_image=False), batchwise, atol=1e-5, rtol=1e-5)
    for index in range(2):
        one = plain[index] * (0.7 * cond[index].std() / plain[index].std() + 0.3)
        torch.testing.assert_close(d.guide(cond, uncond, 4)[index], one, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(d.guide(cond, uncond, 1), cond)


def test_per_image_guidance_does_not_see_the_batch():
    cond, uncond = randn(3, 4, 6, 6), randn(3, 4, 6, 6, seed=1)
    loud = torch.tensor([1.0, 1.0, 30.0]).view(3, 1, 1, 1)
    alone = d.guide(cond[:1], uncond[:1], 4)
    assert torch.equal(d.guide(cond * loud, uncond, 4)[:1], alone)
    assert not torch.allclose(d.guide(cond * loud, uncond, 4, per_image=False)[:1], alone, atol=1e-2)
    scales = torch.tensor([4.0, 2.0, 1.0])
    torch.testing.assert_close(d.guide(cond, uncond, scales)[1:2], d.guide(cond[1:2], uncond[1:2], 2))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_guidance_in_half_precision(dtype):
    cond, uncond = 500 * randn(2, 4, 64, 64), 500 * randn(2, 4, 64, 64, seed=1)
    low = d.guide(cond.to(dtype), uncond.to(dtype), 4)
    assert low.dtype == dtype
    assert (low.float() - d.guide(cond, uncond, 4)).abs().max() <= 0.02 * cond.std() * 4
    nothing = torch.zeros(2, 4, 8, 8, dtype=dtype)
    assert torch.equal(d.guide(nothing, nothing, 4), nothing)


@pytest.mark.parametrize(
    "t, arguments, expected",
    [
        (0.3, (4.0,), 4.0),
        (0.25, (6.0, 2.0), 3.0),
        (1.0, (6.0, 2.0), 6.0),
        (0.0, (6.0, 2.0), 2.0),
        (0.6, (4.0, None, (0.6, 0.2)), 4.0),
        (0.2, (4.0, None, (0.6, 0.2)), 4.0),
        (0.65, (4.0, None, (0.6, 0.2)), 1.0),
        (0.15, (4.0, None, (0.6, 0.2)), 1.0),
        (0.4, (6.0, 2.0, (0.6, 0.2)), 3.6),
        (0.7, (6.0, 2.0, (0.6, 0.2)), 1.0),
    ],
)
def test_guidance_scale(t, arguments, expected):
    for time in (t, torch.tensor(t)):
        assert d.guidance_scale(time, *arguments) == pytest.approx(expected, abs=1e-6)


# Noise


def draw_image_noise(seed, index, shape, stream=0):
    """The first noise of picture ``index`` of a batch with ``seed``; ``shape`` is one picture's, (C, H, W)."""
    return NoiseStreams([seed + index], stream).next((1, *shape))[0]


def test_every_picture_has_its_own_noise():
    """Picture i of seed S is picture 0 of seed S + i, for the first noise and for every later one."""
    shapes = [(3, 16, 6, 6), (3, 4, 24, 24), (3, 2)]
    batch = NoiseStreams(list_image_seeds(41, 3))
    alone = [NoiseStreams([41 + index]) for index in range(3)]
    for turn, shape in enumerate(shapes):
        noise = batch.next(shape)
        assert noise.shape == shape and noise.dtype == torch.float32 and noise.device.type == "cpu"
        for index in range(3):
            assert torch.equal(noise[index : index + 1], alone[index].next((1, *shape[1:])))
            if turn == 0:
                assert torch.equal(noise[index], draw_image_noise(41, index, shape[1:]))
                assert torch.equal(noise[index], draw_image_noise(41 + index, 0, shape[1:]))


def test_the_first_stream_is_that_of_a_plain_seed():
    assert torch.equal(draw_image_noise(7, 0, (16, 6, 6)), randn(1, 16, 6, 6, seed=7)[0])


def test_streams_are_independent_of_each_other_and_of_neighbours():
    noises = [draw_image_noise(seed, 0, (4096,), stream) for seed in range(8) for stream in range(3)]
    correlation = torch.corrcoef(torch.stack(noises)) - torch.eye(24)
    assert correlation.abs().max() < 0.1
    assert abs(float(torch.stack(noises).mean())) < 0.02 and abs(float(torch.stack(noises).std()) - 1) < 0.02


def test_seeds_wrap_around():
    assert list_image_seeds(2**64 - 1, 3) == [2**64 - 1, 0, 1]
    assert torch.equal(draw_image_noise(2**64 - 1, 1, (8,)), draw_image_noise(0, 0, (8,)))
    assert draw_image_noise(2**64 - 1, 0, (8,), stream=1).isfinite().all()


@pytest.mark.parametrize("shape", [(2, 4, 3, 3), ()])
def test_noise_for_another_batch_is_refused(shape):
    with pytest.raises(WrongInput, match="asked from 3 seeds"):
        NoiseStreams([1, 2, 3]).next(shape)


# Sampling


def muddle(x: torch.Tensor, r: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
    """A stand-in network: nonlinear, and different for every picture, noise level and condition."""
    c, r = (value.view(-1, 1, 1, 1) for value in (c, r))
    return torch.tanh(x.roll(1, -1) * c + torch.sin(9 * r)) * (c + 0.5)


def predictor(count: int) -> d.Predict:
    return d.pair_conditions(
        muddle, {"c": torch.linspace(1, 2, 3)[:count]}, {"c": torch.tensor([-1.0, 0.3, 3.0])[:count]}
    )


def draw(count: int, guidance: d.Guidance, step=d.step_ddpm) -> list[d.Step]:
    seeds = list_image_seeds(5, count)
    x = NoiseStreams(seeds).next((count, 4, 6, 6))
    return list(
        d.sample(
            predictor(count),
            x,
            timesteps=d.timesteps(6, 0.6),
            shift=2,
            step=step,
            guidance=guidance,
            noise=NoiseStreams(seeds, stream=1).next,
        )
    )


@pytest.mark.parametrize("step", [d.step_ddpm, step_lcm])
def test_a_picture_of_a_batch_is_reproducible_alone(step):
    batch, alone = (draw(count, d.Guidance(), step)[-1].denoised for count in (3, 1))
    torch.testing.assert_close(batch[:1], alone, atol=1e-5, rtol=1e-5)
    official = [draw(count, d.Guidance(per_image=False), step)[-1].denoised for count in (3, 1)]
    assert not torch.allclose(official[0][:1], official[1], atol=1e-3), "the batch-wide std is visible"


@pytest.mark.parametrize("step", [d.step_ddim, d.step_ddpm, step_lcm])
@pytest.mark.parametrize("start", [1.0, 0.4])
def test_a_perfect_predictor_recovers_the_picture(step, start):
    picture, noise = randn(2, 4, 6, 6), randn(2, 4, 6, 6, seed=1)
    seen = []

    def perfect(x, r, guided):
        level = d.logsnr(d.timesteps(5, start)[len(seen)], 2)
        seen.append(r)
        a, b = d.alpha_sigma(level)
        return (x - a * picture) / b, None

    x = d.add_noise(picture, noise, d.logsnr(start, 2))
    kept = x.clone()
    steps = list(
        d.sample(perfect, x, timesteps=d.timesteps(5, start), shift=2, step=step, noise=NoiseStreams([1, 2]).next)
    )
    torch.testing.assert_close(steps[-1].denoised, picture, atol=1e-3, rtol=1e-3)
    assert len(steps) == 5 and torch.equal(x, kept)
    assert all(r.shape == (2,) and r.dtype == torch.float32 for r in seen)
    assert torch.stack(seen)[:, 0].tolist() == d.noise_condition(d.logsnr(d.timesteps(5, start)[:-1], 2)).tolist()


def test_the_unconditional_pass_runs_only_where_it_counts():
    calls = []

    def count(x, r, guided):
        calls.append(guided)
        return x, torch.zeros_like(x) if guided else None

    x = randn(1, 4, 6, 6)
    list(d.sample(count, x, timesteps=d.timesteps(10), step=d.step_ddim, guidance=d.Guidance(4.0, interval=(0.8, 0.3))))
    assert calls == [False] * 2 + [True] * 6 + [False] * 2
    calls.clear()
    list(d.sample(count, x, timesteps=d.timesteps(3), step=d.step_ddim, guidance=d.Guidance(1.0)))
    list(d.sample(count, x, timesteps=d.timesteps(3), step=d.step_ddim))
    assert not any(calls)


def test_pairing_goes_by_name():
    x, r = randn(2, 4, 6, 6), torch.tensor([0.5, 0.5])
    one, two = torch.ones(2), torch.full((2,), 2.0)

    def net(x, r, first, second):
        return (first - 3 * second).view(-1, 1, 1, 1).expand_as(x)

    predict = d.pair_conditions(net, {"first": one, "second": two}, {"second": one, "first": two})
    cond, uncond = predict(x, r, True)
    assert cond.unique().tolist() == [-5] and uncond.unique().tolist() == [-1]
    assert predict(x, r, False)[0].unique().tolist() == [-5] and predict(x, r, False)[1] is None
    with pytest.raises(WrongInput, match=r"\['first'\].*\['first', 'second'\]"):
        d.pair_conditions(net, {"first": one}, {"first": one, "second": two})
