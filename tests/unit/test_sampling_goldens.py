"""The official sampler's recorded trajectories, on our networks with the same weights."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from steps import step_lcm
from tiny import golden, index, relative, tiny_net
from torch import Tensor

from cascade_studio.stages.diffusion import sampling as d

STEPS = {"ddpm": d.step_ddpm, "ddim": d.step_ddim, "lcm": step_lcm}
RUNS = [
    "sample_stage_c",
    "sample_stage_c_image_ddpm",
    "sample_stage_c_image_ddim",
    "sample_stage_c_image_lcm",
    "sample_stage_b",
]
MODELS = {"sample_stage_b": "stage_b_tiny"}


class Run:
    """One recorded trajectory and what is needed to walk it again."""

    def __init__(self, name: str) -> None:
        config = index()[name]["config"]
        self.record = golden(name)
        self.model = MODELS.get(name, "stage_c_tiny")
        assert config.get("model", self.model) == self.model
        self.count, self.shift, self.start = config["timesteps"], config["shift"], config["t_start"]
        self.step = STEPS[config["sampler"]]
        scale, scale_end = config["cfg"] if isinstance(config["cfg"], list) else (config["cfg"], None)
        self.guidance = d.Guidance(scale, scale_end, rescale=config["cfg_rho"], per_image=False)
        self.timesteps = d.timesteps(self.count, self.start)
        self.levels = d.logsnr(self.timesteps, self.shift)
        self.sigmas = d.sigma_from_logsnr(self.levels)

    def predictor(self) -> d.Predict:
        names = ["effnet", "clip"] if self.model == "stage_b_tiny" else ["clip_text", "clip_text_pooled", "clip_img"]
        cond = {name: self.record[name] for name in names}
        uncond = {name: self.record.get(f"uncond_{name}", torch.zeros_like(self.record[name])) for name in names}
        return d.pair_conditions(network(self.model), cond, uncond)

    def before(self, step: int) -> Tensor:
        return self.record["out_x"][step - 1] if step else self.record["x_init"]


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """Nets this small lose more to a crowded machine's threads than they gain."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@cache
def network(name: str) -> torch.nn.Module:
    return tiny_net(name)


@cache
def recorded(name: str) -> Run:
    return Run(name)


@pytest.mark.parametrize("name", RUNS)
def test_every_step_from_the_recorded_x(name):
    run = recorded(name)
    predict = run.predictor()
    for i in range(run.count):
        x, here, there = run.before(i), run.levels[i], run.levels[i + 1]
        cond, uncond = predict(x, d.noise_condition(here).expand(len(x)), True)
        epsilon = run.guidance(cond, uncond, run.timesteps[i])
        assert (epsilon - run.record["out_eps"][i]).abs().max() <= 1e-2
        epsilon = run.record["out_eps"][i]
        x0 = d.denoise(x, epsilon, here)
        assert relative(x0, run.record["out_x0"][i]) <= 1e-4
        after = run.step(x0, epsilon, run.sigmas[i], run.sigmas[i + 1], run.record["noise"][i])
        assert relative(after * d.alpha_sigma(there)[0], run.record["out_x"][i]) <= 1e-4


@pytest.mark.parametrize("name", RUNS)
def test_the_whole_trajectory(name):
    run = recorded(name)
    noise = iter(run.record["noise"])
    steps = list(
        d.sample(
            run.predictor(),
            run.record["x_init"],
            timesteps=run.timesteps,
            shift=run.shift,
            step=run.step,
            guidance=run.guidance,
            noise=lambda shape: next(noise),
        )
    )
    assert len(steps) == run.count == len(run.record["out_x0"])
    for i, step in enumerate(steps):
        assert relative(step.denoised, run.record["out_x0"][i]) <= 1e-3, i
        assert relative(step.x * d.alpha_sigma(run.levels[i + 1])[0], run.record["out_x"][i]) <= 1e-3, i
        assert relative(step.epsilon, run.record["out_eps"][i]) <= 1e-3, i


@pytest.mark.parametrize("name", RUNS)
def test_sigmas_lead_to_the_official_result(name):
    """The same trajectory as a host walks it: x / a over ``schedule_sigmas``, the condition taken from sigma."""
    run = recorded(name)
    predict, sigmas = run.predictor(), d.schedule_sigmas(run.count, run.shift, run.start)
    x = run.record["x_init"] / d.alpha_sigma(run.levels[0])[0]
    for i, (sigma, sigma_next) in enumerate(zip(sigmas[:-1], sigmas[1:])):
        here = d.logsnr_from_sigma(sigma)
        scaled = x * d.alpha_sigma(here)[0]
        cond, uncond = predict(scaled, d.noise_condition(here).expand(len(x)), True)
        epsilon = run.guidance(cond, uncond, d.time_from_logsnr(here, run.shift))
        x0 = d.denoise(scaled, epsilon, here)
        x = run.step(x0, epsilon, sigma, sigma_next, run.record["noise"][i])
    assert torch.equal(x, x0)
    assert relative(x, run.record["out_x0"][-1]) <= 1e-3


def test_ddim_is_eulers_method_over_the_sigmas():
    run = recorded("sample_stage_c_image_ddim")
    predict, sigmas = run.predictor(), d.schedule_sigmas(run.count, run.shift, run.start)
    x = run.record["x_init"] / d.alpha_sigma(run.levels[0])[0]
    for i, (sigma, sigma_next) in enumerate(zip(sigmas[:-1], sigmas[1:])):
        here = d.logsnr_from_sigma(sigma)
        cond, uncond = predict(x / (1 + sigma**2).sqrt(), d.noise_condition(here).expand(len(x)), True)
        x = x + (sigma_next - sigma) * run.guidance(cond, uncond, run.timesteps[i])
    assert relative(x, run.record["out_x0"][-1]) <= 1e-3
