"""What the settings do to real pictures: Cascade Mini in the real host, each claim of the theory with a number."""
from __future__ import annotations

from types import SimpleNamespace

import eyes
import pytest
import torch
from mini import need
from mini_studio import MiniStudio, seen
from tools.scenes import Scene

SCENES = (Scene("red apple", "blue"), Scene("robot", "gray"), Scene("soccer ball", "green"), Scene("ghost", "blue"))
EACH = 2
TALL, WIDE = slice(44, 212), slice(44, 212)
"""The inner sixteen of Stage C's 36 cells, which is where inpainting works below."""


@pytest.fixture(scope="module")
def mini(host) -> MiniStudio:
    need()
    torch.set_num_threads(1)
    return MiniStudio(host)


@pytest.fixture(scope="module")
def painted(mini) -> SimpleNamespace:
    """Pictures of every scene at the official settings: RGB (EACH, 3, 256, 256) by scene."""
    return SimpleNamespace(rgb={scene: seen(mini.paint(scene, EACH)) for scene in SCENES})


def told_right(mini: MiniStudio, rgb: dict[Scene, torch.Tensor]) -> tuple[float, float, float]:
    """The share of pictures whose subject is told right, that of backgrounds, and how much they look as asked."""
    subjects, grounds, margins = [], [], []
    for scene, pictures in rgb.items():
        outlines = eyes.outlines().order(pictures, scene.background)
        towers = mini.eyes.subject(pictures, scene.background)
        subjects += [scene.subject in (order[0], tower) for order, tower in zip(outlines, towers)]
        grounds += [name == scene.background for name in eyes.colour(pictures)]
        margins += mini.eyes.margin(pictures, scene.subject, scene.background).tolist()
    return tuple(sum(values) / len(values) for values in (subjects, grounds, margins))


def test_pictures_show_what_was_asked(mini, painted, record_property):
    subjects, grounds, _ = told_right(mini, painted.rgb)
    record_property("subjects and backgrounds told right", (subjects, grounds))
    assert subjects >= 0.75 and grounds >= 0.85


def test_guidance_makes_pictures_follow_the_prompt(mini, painted, record_property):
    """cfg 1 is the model's own guess, cfg 4 goes beyond it in the direction of the words."""
    plain = {scene: seen(mini.paint(scene, EACH, cfg=1.0)) for scene in SCENES}
    at_1, at_4 = told_right(mini, plain), told_right(mini, painted.rgb)
    record_property("subject, background and likeness at cfg 1 and 4", (at_1, at_4))
    assert at_4[2] > at_1[2] + 0.01, "pictures look more like the prompt"
    assert at_4[0] >= at_1[0] and at_4[1] >= at_1[1], "and are told right at least as often"


def test_more_steps_come_nearer_to_the_exact_solution(mini, record_property):
    """ddim solves an equation step by step: its error falls with the number of steps."""
    def latent(steps: int) -> torch.Tensor:
        return mini.prior(SCENES[0].prompt, EACH, sampler="ddim", steps=steps)["samples"]

    exact = latent(64)
    errors = {steps: float((latent(steps) - exact).norm() / exact.norm()) for steps in (4, 8, 16)}
    record_property("relative error by steps", errors)
    assert errors[4] > 1.2 * errors[8] and errors[8] > 1.2 * errors[16], errors


def source(mini: MiniStudio, painted: SimpleNamespace) -> torch.Tensor:
    """The first scene's pictures as IMAGE."""
    return painted.rgb[SCENES[0]].movedim(1, -1)


OTHER = Scene("soccer ball", "yellow")
"""What pictures of the first scene are turned into."""


def encoded(mini: MiniStudio, image: torch.Tensor) -> dict:
    return mini.call("CascadeStudio_EncodeImage", image=image, vae=mini.parts.stage_c_vae)


def test_image_to_image_keeps_the_less_the_more_is_denoised(mini, painted, record_property):
    image = source(mini, painted)
    latent, kept, asked = encoded(mini, image), {}, {}
    for denoise in (0.2, 0.5, 0.9):
        rgb = seen(mini.decoded(mini.prior(OTHER.prompt, latent=latent, denoise=denoise), OTHER.prompt))
        kept[denoise] = float(eyes.correlation(rgb, seen(image)).mean())
        asked[denoise] = float(mini.eyes.margin(rgb, OTHER.subject, OTHER.background).mean())
    record_property("correlation with the source, likeness to the prompt", (kept, asked))
    assert kept[0.2] > kept[0.5] + 0.05 and kept[0.5] > kept[0.9] + 0.05 and kept[0.2] > 0.8, kept
    assert asked[0.9] > asked[0.2], asked


def test_a_larger_shift_puts_more_noise_on_the_source(mini, painted, record_property):
    """At the same denoise the latent keeps less of the source: shift s lowers the log signal-to-noise by 2 ln s."""
    latent = encoded(mini, source(mini, painted))
    before, kept = latent["samples"].flatten(1), {}
    for shift in (1.0, 2.0, 4.0):
        made = mini.prior(OTHER.prompt, latent=latent, denoise=0.4, shift=shift)["samples"].flatten(1)
        kept[shift] = float(torch.nn.functional.cosine_similarity(made, before).mean())
    record_property("similarity to the source by shift", kept)
    assert kept[1.0] > kept[2.0] + 0.02 and kept[2.0] > kept[4.0] + 0.02, kept


def test_image_variations_look_like_their_source(mini, painted, record_property):
    """An empty prompt and one picture: the result is nearer to that picture than to the others, with its background."""
    sources = torch.cat([painted.rgb[scene][:1] for scene in SCENES])
    made = []
    for picture in sources:
        prompts = mini.call("CascadeStudio_ImagePrompts", range(2), positive=mini.negative, negative=mini.negative,
                            clip_vision=mini.parts.clip_vision, image_1=picture.movedim(0, -1)[None])
        prior = mini.prior("", seed=5, positive=prompts[0], negative=prompts[1])
        made.append(seen(mini.decoded(prior, "")))
    table = mini.eyes.seen(torch.cat(made)) @ mini.eyes.seen(sources).T
    own = table.diagonal()
    others = (table.sum(1) - own) / (len(SCENES) - 1)
    grounds = [name == scene.background for name, scene in zip(eyes.colour(torch.cat(made)), SCENES)]
    record_property("similarity to the source, to the others, backgrounds", (own.tolist(), others.tolist(), grounds))
    assert (table.argmax(1) == torch.arange(len(SCENES))).float().mean() >= 0.75
    assert float((own - others).mean()) > 0.1 and sum(grounds) >= len(SCENES) - 1


def test_inpainting_follows_the_prompt_inside_and_touches_nothing_outside(mini, painted, record_property):
    image, scene = source(mini, painted)[:1], SCENES[0]
    wanted = Scene("soccer ball", scene.background)
    mask = torch.zeros(1, 256, 256)
    mask[:, TALL, WIDE] = 1
    part = mini.call("CascadeStudio_InpaintCrop", range(4), image=image, mask=mask, context=3.0, grow=0, feather=8,
                     target_size=256)
    latent = mini.call("SetLatentNoiseMask", samples=encoded(mini, part[0]), mask=part[2])
    made = mini.decoded(mini.prior(wanted.prompt, latent=latent), wanted.prompt)
    whole = mini.call("CascadeStudio_InpaintStitch", stitch=part[3], image=made)
    reach = torch.zeros(256, 256, dtype=torch.bool)
    reach[TALL.start - 8:TALL.stop + 8, WIDE.start - 8:WIDE.stop + 8] = True
    assert torch.equal(whole[:, ~reach], image[:, ~reach]), "every pixel beyond the feather is the old one"
    assert (whole - image)[:, TALL, WIDE].abs().mean() > 0.03
    names = [wanted.subject, scene.subject]
    before, after = (mini.eyes.likeness(seen(picture), scene.background)[0] for picture in (image, whole))
    lead = {moment: float(found[index(names[0])] - found[index(names[1])])
            for moment, found in (("before", before), ("after", after))}
    record_property("likeness to the new subject minus that to the old one", lead)
    assert lead["before"] < 0 < lead["after"], lead


def index(name: str) -> int:
    """The place of a subject among those that the eyes know."""
    return eyes.outlines().names.index(name)
