"""Core's areas, masks, time ranges and shift on our models, and what each network call then gets."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F
from world import Studio, changed, relative

from cascade_studio.nodes.host.models.model import crop_prior

SEED = 9


class Recorder:
    """A clone of a model that keeps what its network is called with, by the host's own wrapper."""

    def __init__(self, model) -> None:
        from comfy.patcher_extension import WrappersMP

        self.calls: list[dict] = []
        self.model = model.clone()
        self.model.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "recorder", self.record)

    def record(self, executor, x, r, context, control, options, **conditions):
        self.calls.append({"x": x.clone(), "r": r.clone(), **conditions})
        return executor(x, r, context, control, options, **conditions)


def stage(studio: Studio, name: str, recorded: bool = False, width: int = 320):
    """Model, prompts and empty latent of a stage, of a picture 256 high."""
    canvas = studio.canvas(width, 256)
    if name == "prior":
        prompts, latent, model = studio.prompts, canvas[0], studio.parts.prior
    else:
        prior = studio.sample_prior(canvas[0], seed=SEED, steps=2)
        (prompts, latent), model = studio.decoder_prompts(prior), studio.parts.decoder
    return Recorder(model) if recorded else model, prompts, latent


def area(studio: Studio, conditioning, width: float, height: float, x: float, y: float):
    return studio.call(
        "ConditioningSetAreaPercentage", conditioning=conditioning, width=width, height=height, x=x, y=y, strength=1.0
    )


def masked(studio: Studio, conditioning, mask: torch.Tensor, bounds: str = "default"):
    return studio.call("ConditioningSetMask", conditioning=conditioning, mask=mask, strength=1.0, set_cond_area=bounds)


def combined(studio: Studio, first, second):
    return studio.call("ConditioningCombine", conditioning_1=first, conditioning_2=second)


def sample(studio: Studio, model, prompts, latent, **inputs) -> torch.Tensor:
    return studio.core_sample(model, latent, seed=SEED, **{**prompts, **inputs})


@pytest.mark.parametrize("name", ["prior", "decoder"])
def test_an_area_of_everything_changes_nothing(studio, name):
    model, prompts, latent = stage(studio, name)
    whole = {key: area(studio, value, 1.0, 1.0, 0.0, 0.0) for key, value in prompts.items()}
    assert relative(sample(studio, model, whole, latent), sample(studio, model, prompts, latent)) <= 1e-5


@pytest.mark.parametrize("name", ["prior", "decoder"])
def test_regional_prompts(studio, name):
    """An area changes its own side of the picture, and less so the other one."""
    model, prompts, latent = stage(studio, name)
    other = studio.text("a purple dragon in a snow storm, oil on canvas")
    if name == "decoder":
        other = [[other[0][0], {**prompts["positive"][0][1], "pooled_output": other[0][1]["pooled_output"]}]]
    regional = combined(studio, prompts["positive"], area(studio, other, 0.5, 1.0, 0.5, 0.0))
    given = {**prompts, "cfg": 1.0, "steps": 1}
    plain = sample(studio, model, given, latent)
    difference = (sample(studio, model, {**given, "positive": regional}, latent) - plain).abs()
    half = plain.shape[-1] // 2
    assert changed(plain + difference, plain)
    assert not difference[..., :half].any()


@pytest.mark.parametrize("name", ["prior", "decoder"])
@pytest.mark.parametrize(
    "width, height, x, y", [(0.33, 0.41, 0.37, 0.23), (0.11, 0.13, 0.87, 0.05), (0.02, 0.02, 0.5, 0.5)]
)
def test_odd_areas(studio, name, width, height, x, y):
    """Areas of any number of cells at any cell."""
    recorder, prompts, latent = stage(studio, name, recorded=True)
    regional = combined(studio, prompts["positive"], area(studio, prompts["positive"], width, height, x, y))
    result = sample(studio, recorder.model, {**prompts, "positive": regional}, latent)
    assert result.shape == latent["samples"].shape and torch.isfinite(result).all()
    sizes = {tuple(call["x"].shape[2:]) for call in recorder.calls}
    assert tuple(latent["samples"].shape[2:]) in sizes and len(sizes) == 2


def stretched(prior: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    return F.interpolate(prior, size, mode="bilinear", align_corners=True)


@pytest.mark.parametrize("width, height, x, y", [(0.5, 1.0, 0.5, 0.0), (0.25, 0.5, 0.25, 0.5), (0.5, 0.25, 0.0, 0.75)])
def test_an_area_of_stage_b_sees_its_own_part_of_the_prior(studio, width, height, x, y):
    """Stretched over the area's cells, the prior that the network gets is that part of the whole stretched prior."""
    recorder, prompts, latent = stage(studio, "decoder", recorded=True, width=256)
    prior = prompts["positive"][0][1]["stable_cascade_prior"]
    regional = area(studio, prompts["positive"], width, height, x, y)
    sample(studio, recorder.model, {**prompts, "positive": regional, "steps": 1, "cfg": 1.0}, latent)
    [call] = recorder.calls
    full = [side // 2 for side in latent["samples"].shape[2:]]
    cells = [side // 2 for side in call["x"].shape[2:]]
    top, left = round(y * full[0]), round(x * full[1])
    assert cells == [round(height * full[0]), round(width * full[1])]
    expected = stretched(prior, full)[..., top : top + cells[0], left : left + cells[1]]
    assert relative(stretched(call["effnet"], cells), expected) <= 1e-5
    assert changed(stretched(prior, cells), expected), "the whole prior would pass as well"


@pytest.mark.parametrize(
    "rows, columns", [((7, 20), (40, 3)), ((9, 9), (21, 45)), ((33, 31), (64, 1)), ((64, 0), (48, 0))]
)
def test_crop_of_a_ramp(rows, columns):
    """A ramp stretched over the grid stays a ramp: cell i of an area lies at start / 2 + i of the full grid's cells."""
    grid = (64, 66)
    y, x = torch.linspace(-1, 1, 5), torch.linspace(-3, 2, 9)
    prior = torch.stack(torch.meshgrid(y, x, indexing="ij"))[None]
    (height, top), (width, left) = rows, columns
    found = crop_prior(prior, grid, [height, width, top, left])
    axes = [(height, top, grid[0], -1, 1), (width, left, grid[1], -3, 2)]
    for channel, (size, start, full, low, high) in enumerate(axes):
        cells = (start / 2 + torch.arange(-(-size // 2))).clamp(max=full / 2 - 1)
        expected = low + (high - low) * cells / (full / 2 - 1)
        line = found[0, channel, :, 0] if channel == 0 else found[0, channel, 0]
        torch.testing.assert_close(line, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["prior", "decoder"])
def test_masks(studio, name):
    """Two prompts behind two masks that share the picture: each half is the half of its own prompt's picture."""
    model, prompts, latent = stage(studio, name)
    given = {**prompts, "cfg": 1.0, "steps": 1}
    first, second = prompts["positive"], prompts["negative"]
    right = torch.zeros(1, *latent["samples"].shape[2:])
    half = right.shape[-1] // 2
    right[..., half:] = 1
    both = combined(studio, masked(studio, first, 1 - right), masked(studio, second, right))
    result = sample(studio, model, {**given, "positive": both}, latent)
    alone = [sample(studio, model, {**given, "positive": each}, latent) for each in (first, second)]
    assert relative(result[..., :half], alone[0][..., :half]) <= 1e-5
    assert relative(result[..., half:], alone[1][..., half:]) <= 1e-5
    bounds = combined(studio, first, masked(studio, second, right, "mask bounds"))
    assert changed(sample(studio, model, {**given, "positive": bounds}, latent), alone[0])


def test_mask_of_a_picture_size(studio):
    """Masks of any size are scaled to the latent; a mask of ones changes nothing."""
    model, prompts, latent = stage(studio, "decoder")
    ones = {**prompts, "positive": masked(studio, prompts["positive"], torch.ones(1, 256, 320))}
    assert relative(sample(studio, model, ones, latent), sample(studio, model, prompts, latent)) <= 1e-5


@pytest.mark.parametrize("name, key", [("prior", "clip_text_pooled"), ("decoder", "clip")])
def test_time_ranges(studio, name, key):
    """The first prompt is heard in the first half of the schedule only, the second one after it."""
    recorder, prompts, latent = stage(studio, name, recorded=True)
    other = studio.text("something else entirely")
    if name == "decoder":
        other = [[other[0][0], {**prompts["positive"][0][1], "pooled_output": other[0][1]["pooled_output"]}]]

    def part(conditioning, start: float, end: float):
        return studio.call("ConditioningSetTimestepRange", conditioning=conditioning, start=start, end=end)

    scheduled = combined(studio, part(prompts["positive"], 0.0, 0.5), part(other, 0.5, 1.0))
    given = {**prompts, "positive": scheduled, "steps": 5, "cfg": 1.0}
    result = sample(studio, recorder.model, given, latent)
    pooled = [each[0][1]["pooled_output"].flatten() for each in (prompts["positive"], other)]
    heard = [[torch.equal(call[key].flatten(), each) for each in pooled] for call in recorder.calls]
    assert [True, True] not in heard and len(heard) == 5
    switch = next(i for i, (_, second) in enumerate(heard) if second)
    assert 0 < switch < 5 and heard == [[True, False]] * switch + [[False, True]] * (5 - switch)
    times = [float(call["r"][0]) for call in recorder.calls]
    assert times == sorted(times, reverse=True)
    assert not torch.equal(result, sample(studio, recorder.model, {**given, "positive": prompts["positive"]}, latent))
    always = part(prompts["positive"], 0.0, 1.0)
    assert torch.equal(
        sample(studio, recorder.model, {**given, "positive": always}, latent),
        sample(studio, recorder.model, {**given, "positive": prompts["positive"]}, latent),
    )


@pytest.mark.parametrize("shift", [1.0, 3.5])
def test_shift_on_the_wire_wins(studio, shift):
    """ModelSamplingStableCascade before our sampler acts as the sampler's own number would."""
    latent = studio.canvas()[0]
    model = studio.call("ModelSamplingStableCascade", model=studio.parts.prior, shift=shift)
    result = studio.sample_prior(latent, model=model, seed=SEED, steps=4)["samples"]
    expected = studio.sample_prior(latent, seed=SEED, steps=4, shift=shift)["samples"]
    assert relative(result, expected) <= 1e-3
    assert changed(result, studio.sample_prior(latent, seed=SEED, steps=4)["samples"])
    sigmas = studio.call("CascadeStudio_Schedule", model=model, steps=5)
    assert torch.equal(sigmas, studio.call("CascadeStudio_Schedule", model=studio.parts.prior, steps=5, shift=shift))
    assert changed(studio.core_sample(model, latent), studio.core_sample(studio.parts.prior, latent))


def test_image_prompt(studio):
    """Core's CLIP vision and unCLIP nodes with our CLIP VISION and prior."""
    vision = studio.call(
        "CLIPVisionEncode", clip_vision=studio.parts.clip_vision, image=torch.rand(1, 64, 64, 3), crop="center"
    )

    def prompt(strength: float):
        return studio.call(
            "unCLIPConditioning",
            conditioning=studio.positive,
            clip_vision_output=vision,
            strength=strength,
            noise_augmentation=0.0,
        )

    latent, model = studio.canvas()[0], studio.parts.prior
    plain = studio.core_sample(model, latent)
    assert relative(studio.core_sample(model, latent, positive=prompt(0.0)), plain) <= 1e-5
    strong = studio.core_sample(model, latent, positive=prompt(5.0))
    assert changed(strong, plain)
    twice = studio.call(
        "unCLIPConditioning", conditioning=prompt(5.0), clip_vision_output=vision, strength=3.0, noise_augmentation=0.0
    )
    assert changed(studio.core_sample(model, latent, positive=twice), strong)
