"""A LoRA with which Mini's Stage C needs few steps and no second, unguided pass.

    python3 dev.py run -m training.mini.few_steps --minutes 20 [--steps 5]    # learns, then measures

It reads what ``restore`` and ``judge`` left in the work folder of the plan.

Progressive distillation (Salimans & Ho 2022, arXiv 2202.00512) in one go, of a guided teacher (Meng et al. 2022,
2210.03142): the teacher paints random captions in many guided steps of DDIM, and from each time at which the student
will stand, that is told which noise leads it in one step to where the teacher went in several. Writes the LoRA into the
work folder, and results_few_steps.md beside it.
"""

from __future__ import annotations

import argparse
import logging
import random
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import fmean

import torch
from torch import Tensor

from cascade_studio.commands.places import cache_root
from cascade_studio.stages.diffusion.noise import NoiseStreams
from cascade_studio.stages.diffusion.official import OFFICIAL
from cascade_studio.stages.diffusion.sampling import (
    Guidance,
    alpha_sigma,
    logsnr,
    noise_condition,
    pair_conditions,
    sample,
    sigma_from_logsnr,
    step_ddim,
    timesteps,
)
from cascade_studio.stages.training.export import comfyui_names, metadata, save_tensors
from cascade_studio.stages.training.lora_layers import Lora
from cascade_studio.stages.training.losses import epsilon_losses, velocity_weight
from cascade_studio.stages.training.optimiser import EMA, Optimiser, scale_rate
from cascade_studio.stages.training.settings import Settings
from tools.small import MINI_PRIOR_CFG

from .captions import batch_tokens
from .compose import PAINTED, random_colour
from .evaluate import Painter, format_shares
from .eyes import Eyes
from .loop import Place
from .nets import TRAINING, encode_prompts, load_trained
from .scenes import Scenes
from .sizes import PLANS

log = logging.getLogger(__name__)

TEACHER, PICTURES, BATCH, RATE, RANK, WARM_UP = 20, 40, 40, 5e-4, 16, 60
"""Steps of the teacher, pictures that it paints at once, pairs in an update, learning rate, rank of the LoRA, and
thousandths of the time in which the rate rises."""
BLOCKS = (".attn", ".channelwise", ".kv_mapper", ".mapper")
SHIFT = OFFICIAL["stage_c"].shift
Pair = tuple[int, Tensor, Tensor, Tensor, Tensor]
"""Which of the student's steps, where it stands, the noise it is to tell, hidden states and pooled text."""


class FewSteps:
    """Student and teacher: one net, with and without the LoRA."""

    def __init__(self, place: Place, steps: int) -> None:
        if TEACHER % steps:
            raise SystemExit(f"The teacher takes {TEACHER} steps, which {steps} do not divide. Give 4, 5 or 10.")
        self.place, self.steps = place, steps
        self.teacher = load_trained(place, "stage_c", backend=TRAINING)
        self.text = load_trained(place, "text", "stage_c")
        self.student = load_trained(place, "stage_c", backend=TRAINING).requires_grad_(False)
        self.lora = Lora(self.student, RANK, float(RANK), BLOCKS).requires_grad_()
        self.ema = EMA(self.lora, 0.995)
        self.optimiser = Optimiser(self.lora.parameters(), RATE, betas=(0.9, 0.98), weight_decay=0.0)
        self.rng = random.Random(place.seed + 11)
        self.scenes = Scenes(self.rng, shades=0.15, **PAINTED)
        self.levels = logsnr(timesteps(steps), SHIFT)
        self.sigmas = sigma_from_logsnr(self.levels)

    def draw_captions(self, count: int) -> Tensor:
        """Tokens (count, length) of random captions of different subjects."""
        subjects = self.rng.sample(range(len(self.scenes.subjects)), count)
        colours = [random_colour(self.scenes.subjects[i], self.rng, shades=0.15) for i in subjects]
        return batch_tokens(self.scenes.fragments(subjects, colours, bare=0.4))

    @torch.no_grad()
    def ask_teacher(self, ids: Tensor) -> Iterator[Pair]:
        """The pairs of one batch of captions, for every step of the student."""
        (said, pooled), (empty, empty_pooled) = self.text(ids), encode_prompts(self.text, [""] * len(ids))
        image = pooled.new_zeros(len(ids), self.teacher.config.c_clip_img)
        cond = {"clip_text": said, "clip_text_pooled": pooled, "clip_img": image}
        uncond = {"clip_text": empty[:, : said.shape[1]], "clip_text_pooled": empty_pooled, "clip_img": image}
        seeds = [self.rng.getrandbits(32) for _ in ids]
        x = self.draw_noise(seeds)
        share = TEACHER // self.steps
        painted = sample(
            pair_conditions(self.teacher, cond, uncond),
            x,
            timesteps=timesteps(TEACHER),
            shift=SHIFT,
            step=step_ddim,
            guidance=Guidance(MINI_PRIOR_CFG),
        )
        x = x / alpha_sigma(self.levels[0])[0].to(x)
        for index, step in enumerate(painted, 1):
            if index % share:
                continue
            stood, number = x, index // share - 1
            last = number == self.steps - 1
            x = step.denoised if last else step.x
            sigma, after = self.sigmas[number], 0.0 if last else self.sigmas[number + 1]
            epsilon = (stood - x) / (sigma - after)
            yield number, stood * alpha_sigma(self.levels[number])[0], epsilon, said, pooled

    def draw_noise(self, seeds: list[int]) -> Tensor:
        """The noise (B, 16, h, w) that each of ``seeds`` begins with."""
        canvas = self.place.sizes.canvas
        return NoiseStreams(seeds).next((len(seeds), 16, canvas.prior_height, canvas.prior_width))

    def learn(self, pairs: list[Pair], factor: float) -> float:
        """One update on a mixture of pairs; returns the loss of v."""
        chosen = [(pair, self.rng.randrange(len(pair[1]))) for pair in self.rng.choices(pairs, k=BATCH)]
        x, wanted, text, pooled = (torch.stack([pair[part][row] for pair, row in chosen]) for part in (1, 2, 3, 4))
        level = torch.stack([self.levels[pair[0]] for pair, _ in chosen])
        image = pooled.new_zeros(len(x), self.student.config.c_clip_img)
        self.optimiser.clear()
        with self.place.autocast():
            predicted = self.student(
                x, noise_condition(level), clip_text=text, clip_text_pooled=pooled, clip_img=image
            ).float()
        loss = (epsilon_losses(predicted, wanted) * velocity_weight(level)).mean()
        loss.backward()
        self.optimiser.update(factor)
        self.ema.update(self.lora)
        return float(loss.detach())

    def train(self, minutes: float, kept: int = 40) -> None:
        """Ask the teacher for a batch, and learn from the ``kept`` latest ones as often as that gave pairs."""
        started, pairs, losses = time.monotonic(), list[Pair](), list[float]()
        while (used := time.monotonic() - started) < 60 * minutes:
            with self.place.autocast():
                pairs = [*pairs, *self.ask_teacher(self.draw_captions(PICTURES))][-kept * self.steps :]
            factor = scale_rate("cosine", 1 + int(999 * used / (60 * minutes)), 1000, WARM_UP)
            losses += [self.learn(pairs, factor) for _ in range(3 * self.steps * PICTURES // BATCH)]
            log.info("few steps: %d updates, loss %.4f", len(losses), fmean(losses[-15:]))
        self.lora.load_state_dict(self.ema.tensors)

    def save(self, folder: Path) -> Path:
        """The LoRA as core's loader reads it."""
        name = f"cascade_mini_{self.steps}_steps"
        updates = self.optimiser.updates
        settings = Settings(
            name=name,
            steps=max(1, updates),
            batch_size=BATCH,
            accumulation=1,
            learning_rate=RATE,
            rank=RANK,
            alpha=float(RANK),
            blocks=BLOCKS,
            loss_weight="velocity",
        )
        told = metadata(settings, name, updates)
        path = folder / f"{name}.safetensors"
        save_tensors(comfyui_names(self.lora, self.ema.tensors), path, told)
        return path


@torch.no_grad()
def measure(student: FewSteps) -> list[str]:
    """The held-out prompts, through Stage B and A, as ``evaluate`` measures them; what the plan's results.md says
    of the teacher is of the same prompts and seeds.
    """
    painter, scenes = Painter(student.place), Scenes(random.Random(student.place.seed + 7))
    painter.nets["stage_c"] = student.student
    eyes, asked = Eyes(student.place, scenes), scenes.prompts
    prompts, seeds = [p["prompt"] for p in asked], [p["seed"] for p in asked]
    image = painter.picture(prompts, seeds, steps=student.steps, cfg=1.0, step=step_ddim)
    row = f"{student.steps} steps of DDIM with the LoRA, cfg 1"
    found = {row: eyes.measure(image, [p["subject"] for p in asked], [p["background"] for p in asked])}
    return format_shares("200 held-out prompts", found)


def main() -> None:
    """Learn, save and measure."""
    parser = argparse.ArgumentParser(prog="training.mini.few_steps", description=__doc__.split("\n")[0])
    parser.add_argument("--plan", choices=PLANS, default="shipped", help="whose work folder (default: shipped)")
    parser.add_argument("--work", type=Path, default=cache_root() / "mini-few-steps", help="where the LoRA goes")
    parser.add_argument("--steps", type=int, default=5, help="of the student (default: 5)")
    parser.add_argument("--minutes", type=float, default=20.0, help="of learning (default: 20)")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    torch.set_num_threads(options.threads)
    sizes = PLANS[options.plan]
    place = Place(sizes.work, torch.device("cpu"), sizes=sizes)
    student = FewSteps(place, options.steps)
    student.train(options.minutes)
    options.work.mkdir(parents=True, exist_ok=True)
    log.info("%s", student.save(options.work))
    table = options.work / "results_few_steps.md"
    table.write_text("\n".join(measure(student)) + "\n", encoding="utf-8")
    log.info("%s", table.read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
