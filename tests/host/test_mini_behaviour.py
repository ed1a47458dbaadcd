"""What the settings do to real pictures: Cascade Mini in the real host, each claim of the theory with a number."""

from __future__ import annotations

from collections.abc import Sequence

import eyes
import pytest
import torch
from mini_studio import MiniStudio, seen
from torch import Tensor
from torch.nn.functional import cosine_similarity

from mini import need
from tools import small
from tools.scenes import SHEET, Scene
from training.mini.data import read_split


@pytest.fixture(scope="module")
def mini(host) -> MiniStudio:
    need()
    torch.set_num_threads(1)
    return MiniStudio(host)


@pytest.fixture(scope="module")
def painted(mini) -> Tensor:
    """A picture of every scene of the sheet at the official settings: RGB (B, 3, 256, 256)."""
    return mini.paint_all(SHEET)


def told_right(mini: MiniStudio, rgb: Tensor, scenes: Sequence[Scene] = SHEET) -> tuple[float, float, float]:
    """The share of pictures whose subject an eye names, that of right backgrounds, and how much they look as asked."""
    subjects, grounds, margins = 0, 0, 0.0
    for picture, scene in zip(rgb.split(1), scenes):
        named = eyes.outlines().order(picture, scene.background)[0][0], mini.eyes.subject(picture, scene.background)[0]
        subjects += scene.subject in named
        grounds += eyes.has_ground(picture, scene.background)
        margins += float(mini.eyes.margin(picture, scene.subject, scene.background))
    return subjects / len(scenes), grounds / len(scenes), margins / len(scenes)


def test_pictures_show_what_was_asked(mini, painted, record_property):
    subjects, grounds, _ = told_right(mini, painted)
    record_property("subjects and backgrounds told right", (subjects, grounds))
    assert subjects >= 0.7 and grounds >= 0.9


def test_guidance_makes_pictures_follow_the_prompt(mini, record_property):
    """cfg 1 is the model's own guess, that of Mini's workflows goes beyond it in the direction of the words, from every
    seed, in their steps and in the prompts that it never saw.
    """
    subjects, prompts = read_split()
    asked = [Scene(subjects[prompt["subject"]].labels["en"], prompt["background"]) for prompt in prompts[::8]]
    words = mini.eyes.said([f"a {scene.prompt}" for scene in asked])
    positive = mini.texts([prompt["prompt"] for prompt in prompts[::8]])
    found, steps = {}, small.MINI_PRIOR_STEPS
    for cfg in (1.0, small.MINI_PRIOR_CFG):
        one, two = (mini.paint_all(asked, seed=seed, positive=positive, cfg=cfg, steps=steps) for seed in (1, 77))
        seen_one, seen_two = mini.eyes.seen(one), mini.eyes.seen(two)
        grounds = sum(eyes.has_ground(picture, scene.background) for picture, scene in zip(one.split(1), asked))
        found[cfg] = (
            float((seen_one * words).sum(1).mean()),
            float((seen_one * seen_two).sum(1).mean()),
            grounds / len(asked),
        )
    record_property("likeness, agreement of two seeds, backgrounds by cfg", found)
    own, guided = found.values()
    assert guided[0] > own[0] + 0.01, f"pictures look more like the prompt: {found}"
    assert guided[1] > own[1] + 0.01, "and leave less to chance"
    assert guided[2] >= 0.9, "the ground stays right"


def test_more_steps_come_nearer_to_the_exact_solution(mini, record_property):
    """ddim solves an equation step by step: its error falls with the number of steps."""

    def latent(steps: int) -> torch.Tensor:
        return mini.prior(SHEET[0].prompt, 2, sampler="ddim", steps=steps)["samples"]

    exact = latent(64)
    errors = {steps: float((latent(steps) - exact).norm() / exact.norm()) for steps in (4, 8, 16)}
    record_property("relative error by steps", errors)
    assert errors[4] > 1.2 * errors[8] and errors[8] > 1.2 * errors[16], errors


SOURCES = [0, 5, 6]
OTHERS = [Scene("key", SHEET[number].background) for number in SOURCES]
"""Three pictures of the sheet, and what they are turned into, on the same grounds."""


def encoded(mini: MiniStudio, image: Tensor) -> dict:
    return mini.call("CascadeStudio_EncodeImage", image=image, vae=mini.parts.stage_c_vae)


def test_image_to_image_keeps_the_less_the_more_is_denoised(mini, painted, record_property):
    source, kept, asked = painted[SOURCES], {}, {}
    latent = encoded(mini, source.movedim(1, -1))
    for denoise in (0.1, 0.2, 0.5):
        rgb = mini.paint_all(OTHERS, seed=5, latent=latent, denoise=denoise)
        kept[denoise] = float(eyes.correlation(rgb, source).mean())
        margins = [
            mini.eyes.margin(picture, scene.subject, scene.background) for picture, scene in zip(rgb.split(1), OTHERS)
        ]
        asked[denoise] = float(torch.cat(margins).mean())
    record_property("agreement with the source's outline, likeness to the prompt", (kept, asked))
    assert kept[0.1] > kept[0.2] + 0.04 and kept[0.2] > kept[0.5] + 0.04 and kept[0.1] > 0.8, kept
    assert asked[0.5] > asked[0.1] + 0.1, "at 0.5 the words have their way"


def test_a_larger_shift_puts_more_noise_on_the_source(mini, painted, record_property):
    """At the same denoise the latent keeps less of the source: shift s lowers the log signal-to-noise by 2 ln s."""
    latent, kept = encoded(mini, painted[SOURCES].movedim(1, -1)), {}
    positive = mini.texts([scene.prompt for scene in OTHERS])
    for shift in (1.0, 2.0, 4.0):
        made = mini.sample_prior(latent, positive=positive, negative=mini.negative, seed=5, denoise=0.2, shift=shift)
        kept[shift] = float(cosine_similarity(made["samples"].flatten(1), latent["samples"].flatten(1)).mean())
    record_property("similarity to the source by shift", kept)
    assert kept[1.0] > kept[2.0] + 0.02 and kept[2.0] > kept[4.0] + 0.02, kept


VARIED = [0, 1, 5, 7]


def test_image_variations_look_like_their_source(mini, painted, record_property):
    """An empty prompt and one picture: the result is nearer to that picture than to the others, with its background."""
    sources, scenes, made = painted[VARIED], [SHEET[number] for number in VARIED], []
    for picture in sources:
        prompts = mini.call(
            "CascadeStudio_ImagePrompts",
            range(2),
            positive=mini.negative,
            negative=mini.negative,
            clip_vision=mini.parts.clip_vision,
            image_1=picture.movedim(0, -1)[None],
        )
        prior = mini.prior("", seed=5, positive=prompts[0], negative=prompts[1])
        made.append(seen(mini.decoded(prior, "")))
    table = mini.eyes.seen(torch.cat(made)) @ mini.eyes.seen(sources).T
    own = table.diagonal()
    others = (table.sum(1) - own) / (len(scenes) - 1)
    grounds = [eyes.has_ground(picture, scene.background) for picture, scene in zip(made, scenes)]
    record_property("similarity to the source, to the others, backgrounds", (own.tolist(), others.tolist(), grounds))
    assert (table.argmax(1) == torch.arange(len(scenes))).float().mean() >= 0.75
    assert float((own - others).mean()) > 0.1 and sum(grounds) >= len(scenes) - 1


INNER = slice(44, 212)
"""The inner sixteen of Stage C's 36 cells, down and across."""


def test_inpainting_follows_the_prompt_inside_and_touches_nothing_outside(mini, painted, record_property):
    image, scene = painted[:1].movedim(1, -1), SHEET[0]
    wanted = Scene("soccer ball", scene.background)
    mask = torch.zeros(1, 256, 256)
    mask[:, INNER, INNER] = 1
    part = mini.call(
        "CascadeStudio_InpaintCrop", range(4), image=image, mask=mask, context=3.0, grow=0, feather=8, target_size=256
    )
    latent = mini.call("SetLatentNoiseMask", samples=encoded(mini, part[0]), mask=part[2])
    made = mini.decoded(mini.prior(wanted.prompt, latent=latent), wanted.prompt)
    whole = mini.call("CascadeStudio_InpaintStitch", stitch=part[3], image=made)
    reach = torch.zeros(256, 256, dtype=torch.bool)
    reach[INNER.start - 8 : INNER.stop + 8, INNER.start - 8 : INNER.stop + 8] = True
    assert torch.equal(whole[:, ~reach], image[:, ~reach]), "every pixel beyond the feather is the old one"
    assert (whole - image)[:, INNER, INNER].abs().mean() > 0.03
    names = [wanted.subject, scene.subject]
    before, after = (mini.eyes.likeness(seen(picture), scene.background)[0] for picture in (image, whole))
    lead = {
        moment: float(found[index(names[0])] - found[index(names[1])])
        for moment, found in (("before", before), ("after", after))
    }
    record_property("likeness to the new subject minus that to the old one", lead)
    assert lead["before"] < 0 < lead["after"], lead


def index(name: str) -> int:
    """The place of a subject among those that the eyes know."""
    return eyes.outlines().names.index(name)


def test_prompts_of_one_batch_are_their_single_pictures_up_to_rounding(mini):
    """`studio.py batch` sends different prompts one by one, since on other devices sums of another size may round
    otherwise."""
    prompts, given = [scene.prompt for scene in SHEET[:2]], {"negative": mini.negative, "steps": 4}
    together = mini.sample_prior(mini.canvas(batch=2)[0], positive=mini.texts(prompts), seed=5, **given)["samples"]
    alone = [mini.prior(prompt, seed=5 + number, steps=4)["samples"] for number, prompt in enumerate(prompts)]
    assert (together - torch.cat(alone)).abs().max() < 1e-5
