"""The LoRA for few steps: what the student is told leads to where the teacher went."""

from __future__ import annotations

import random

import pytest
import torch

from cascade_studio.stages.diffusion.sampling import alpha_sigma, logsnr, sample, sigma_from_logsnr, timesteps
from training.mini import few_steps
from training.mini.few_steps import SHIFT, TEACHER, FewSteps


class Net(torch.nn.Module):
    """Guesses noise from what it sees and what it is told, differently for other words."""

    config = type("Config", (), {"c_clip_img": 4})

    def forward(self, x, r, clip_text, clip_text_pooled, clip_img):
        return 0.7 * x + clip_text_pooled.mean(1)[:, None, None, None] + 0.1 * r[:, None, None, None]


def say(ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    hidden = ids[..., None].float().expand(*ids.shape, 4) / 50000
    return hidden, hidden.mean(1)


@pytest.fixture
def student(monkeypatch) -> FewSteps:
    made = FewSteps.__new__(FewSteps)
    made.steps, made.teacher, made.text, made.rng = 5, Net(), say, random.Random(0)
    made.levels = logsnr(timesteps(5), SHIFT)
    made.sigmas = sigma_from_logsnr(made.levels)
    monkeypatch.setattr(FewSteps, "draw_noise", lambda _, seeds: torch.randn(len(seeds), 16, 3, 3))
    monkeypatch.setattr(few_steps, "encode_prompts", lambda _, words: say(torch.ones(len(words), 24, dtype=torch.long)))
    return made


def test_each_pair_leads_in_one_step_to_where_the_teacher_stood_next(student):
    """Along the teacher's own way: the step of DDIM from one pair's place ends at that of the next."""
    torch.manual_seed(0)
    pairs = list(student.ask_teacher(torch.randint(0, 49000, (3, 24))))
    assert [pair[0] for pair in pairs] == list(range(5)) and TEACHER % 5 == 0
    for (number, x, epsilon, *_), (after, following, *_) in zip(pairs, pairs[1:]):
        a, next_a = (alpha_sigma(student.levels[index])[0] for index in (number, after))
        stepped = x / a + (student.sigmas[after] - student.sigmas[number]) * epsilon
        assert torch.allclose(stepped * next_a, following, atol=1e-5)


def test_the_last_pair_leads_to_the_picture(student, monkeypatch):
    taken = []
    monkeypatch.setattr(
        few_steps, "sample", lambda *given, **more: (taken.append(s) or s for s in sample(*given, **more))
    )
    *_, (number, x, epsilon, _, _) = student.ask_teacher(torch.randint(0, 49000, (2, 24)))
    denoised = x / alpha_sigma(student.levels[number])[0] - student.sigmas[number] * epsilon
    assert len(taken) == TEACHER and torch.allclose(denoised, taken[-1].denoised, atol=1e-5)


def test_steps_that_the_teacher_cannot_pair_are_refused():
    with pytest.raises(SystemExit, match="20 steps, which 6 do not divide"):
        FewSteps(None, 6)
