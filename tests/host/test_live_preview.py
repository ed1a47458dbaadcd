"""Live previews: the Previewer's picture reaches the host's progress callback, often enough and not too often."""

from __future__ import annotations

import copy
import gc
import weakref
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from world import FP32, Studio

SEED = 3
STEPS = 5
SIDE = 256
CELLS = 6


class Frames:
    """The pictures that the host's progress hook gets."""

    def __init__(self, studio: Studio) -> None:
        self.studio, self.pictures = studio, []

    def hook(self, value: float, total: float, preview: Any, prompt_id: Any = None, node_id: Any = None) -> None:
        if preview is not None:
            self.pictures.append(torch.from_numpy(np.array(preview[1])).float() / 255)

    def of(self, kind: str, method: str = "auto", **inputs: Any) -> list[torch.Tensor]:
        """The frames (h, w, 3) of running one node."""
        self.pictures.clear()
        graph = self.studio.graph()
        node = graph.add(kind, **inputs)
        graph.run(node[0], extra_data={"preview_method": method})
        return list(self.pictures)

    def of_prior(self, model: Any, **inputs: Any) -> list[torch.Tensor]:
        latent = self.studio.canvas(SIDE, SIDE)[0]
        return self.of(
            "CascadeStudio_SamplePrior",
            **{"model": model, "latent": latent, "steps": STEPS, "seed": SEED, **self.studio.prompts, **inputs},
        )

    def of_core(self, model: Any, **inputs: Any) -> list[torch.Tensor]:
        latent = self.studio.canvas(SIDE, SIDE)[0]
        return self.of(
            "KSampler",
            **{
                "model": model,
                "latent_image": latent,
                "steps": STEPS,
                "seed": SEED,
                "sampler_name": "euler",
                "scheduler": "simple",
                "cfg": 2.0,
                **self.studio.prompts,
                **inputs,
            },
        )


@pytest.fixture
def frames(studio) -> Iterator[Frames]:
    import comfy.utils

    before, found = comfy.utils.PROGRESS_BAR_HOOK, Frames(studio)
    comfy.utils.set_progress_bar_global_hook(found.hook)
    yield found
    comfy.utils.set_progress_bar_global_hook(before)


@pytest.fixture
def always(monkeypatch):
    """Every step is painted anew."""
    from cascade_studio.nodes.host.models import preview

    monkeypatch.setattr(preview, "INTERVAL", 0.0)
    monkeypatch.setattr(preview, "SHARE", float("inf"))


def last_x0(studio: Studio) -> torch.Tensor:
    """What the official sampler's last callback shows: its own result."""
    return studio.sample_prior(studio.canvas(SIDE, SIDE)[0], steps=STEPS, seed=SEED)["samples"]


def painted(studio: Studio, latent: torch.Tensor) -> torch.Tensor:
    """The Previewer's picture (h, w, 3) of the first latent."""
    return studio.nets["previewer"](latent[:1])[0].clamp(0, 1).movedim(0, -1)


def linear(latent: torch.Tensor) -> torch.Tensor:
    import comfy.latent_formats

    factors = torch.tensor(comfy.latent_formats.SC_Prior().latent_rgb_factors)
    return ((latent[0].movedim(0, -1) @ factors + 1) / 2).clamp(0, 1)


def near(given: torch.Tensor, expected: torch.Tensor) -> bool:
    return given.shape == expected.shape and bool((given - expected).abs().max() <= 1.5 / 255)


def test_our_sampler_shows_the_previewer(studio, frames, always):
    found = frames.of_prior(studio.parts.prior)
    assert len(found) == STEPS and found[0].shape == (8 * CELLS, 8 * CELLS, 3)
    assert near(found[-1], painted(studio, last_x0(studio)))
    assert all(not torch.equal(first, second) for first, second in zip(found, found[1:]))


def test_core_shows_the_previewer(studio, frames, always):
    found = frames.of_core(studio.parts.prior)
    assert len(found) == STEPS and found[0].shape == (8 * CELLS, 8 * CELLS, 3)
    result = studio.core_sample(studio.parts.prior, studio.canvas(SIDE, SIDE)[0], steps=STEPS, seed=SEED)
    assert near(found[-1], painted(studio, result))


def test_without_a_previewer_the_preview_is_linear(studio, frames):
    bare = studio.load("prior", "stage_c.safetensors")
    found = frames.of_prior(bare)
    assert len(found) == STEPS and near(found[-1], linear(last_x0(studio)))


def test_the_prior_loader_takes_a_previewer(studio, frames, always):
    model = studio.call(
        "CascadeStudio_LoadPrior", prior="stage_c.safetensors", dtype="fp32", previewer="previewer.safetensors"
    )
    assert near(frames.of_prior(model)[-1], painted(studio, last_x0(studio)))
    inside = studio.call("CascadeStudio_LoadPrior", prior="stage_c.safetensors", dtype="fp32", previewer="none")
    assert near(frames.of_prior(inside)[-1], linear(last_x0(studio)))


def test_the_decoder_shows_its_latent(studio, frames):
    found = frames.of(
        "CascadeStudio_SampleDecoder", model=studio.parts.decoder, prior=studio.prior_latent, steps=2, **studio.prompts
    )
    assert len(found) == 2 and found[-1].shape == (64, 64, 3) and found[-1].std() > 0.01


def test_the_host_can_switch_previews_off(studio, frames):
    assert not frames.of_prior(studio.parts.prior, method="none")


def test_only_the_first_of_a_batch_is_shown(studio, frames, always):
    batch = studio.canvas(SIDE, SIDE, batch=2)[0]
    assert near(frames.of_prior(studio.parts.prior, latent=batch)[-1], frames.of_prior(studio.parts.prior)[-1])


def test_lora_clone_copy_and_merge_keep_it(studio, frames, always):
    graph = studio.graph()
    lora = graph.run(
        graph.add(
            "LoraLoader",
            model=studio.parts.prior,
            clip=studio.parts.clip,
            lora_name="kohya.safetensors",
            strength_model=0.0,
            strength_clip=0.0,
        )[0]
    )
    merged = studio.call("ModelMergeSimple", model1=studio.parts.prior, model2=studio.parts.prior, ratio=1.0)
    expected = painted(studio, last_x0(studio))
    for model in (studio.parts.prior.clone(), lora, merged):
        assert near(frames.of_prior(model)[-1], expected)


def test_a_copied_model_shares_the_loaded_previewer(studio):
    with torch.inference_mode(False):
        copied = copy.deepcopy(studio.parts.prior.model.latent_format)
    assert copied.vae is studio.parts.stage_c_vae and copied.latent_rgb_factors_reshape is not None


def test_a_model_loaded_a_second_time_has_it(studio):
    factory, arguments = studio.parts.prior.cached_patcher_init
    again = factory(*arguments, disable_dynamic=True)
    assert again.model.latent_format.vae is studio.parts.stage_c_vae
    assert again.cached_patcher_init == studio.parts.prior.cached_patcher_init


def test_it_is_no_part_of_the_weights(studio):
    model = studio.parts.prior.model
    assert not [key for key in model.state_dict() if "preview" in key]
    assert not [key for key in model.state_dict_for_saving(model.diffusion_model.state_dict()) if "preview" in key]


class Clock:
    """A clock that ``net`` moves by what a picture takes."""

    def __init__(self, cost: float) -> None:
        self.now, self.cost = 0.0, cost

    def __call__(self) -> float:
        return self.now


def painter(studio: Studio, clock: Clock) -> Any:
    from cascade_studio.nodes.host.models.preview import PreviewPainter

    made = PreviewPainter(studio.parts.stage_c_vae, clock)
    decoded = made.decode_latent

    def slow(latent: torch.Tensor) -> torch.Tensor:
        clock.now += clock.cost
        return decoded(latent)

    made.decode_latent = slow
    return made


@pytest.mark.parametrize("cost, step", [(0.001, 0.01), (0.02, 0.05), (0.2, 0.3), (0.001, 2.0)])
def test_previews_are_limited(studio, cost, step):
    """At most one in 100 ms, and after the first at most 5 % of the time, whatever it costs."""
    clock = Clock(cost)
    made = painter(studio, clock)
    steps = 100
    for index in range(steps):
        picture = made(torch.randn(1, 16, 3, 3, generator=torch.Generator().manual_seed(index)))
        assert picture.shape == (1, 3, 24, 24) and picture.abs().max() <= 1
        clock.now += step
    assert made.painted <= 1 + clock.now / 0.1
    assert (made.painted - 2) * cost <= 0.05 * clock.now
    assert made.painted >= min(steps, int(clock.now / max(0.1 + step, 20 * cost + 2 * step)))


def test_large_latents_are_shrunk(studio):
    made = painter(studio, Clock(0.0))
    assert made(torch.randn(1, 16, 96, 48)).shape == (1, 3, 512, 256)


def test_broken_values_do_not_break_a_preview(studio):
    made = painter(studio, Clock(0.0))
    assert torch.isfinite(made(torch.full((1, 16, 3, 3), float("nan")))).all()


def test_no_room_means_the_processor(studio, monkeypatch):
    """A device without room for a copy is left alone; one that runs out while painting is left for the processor."""
    import comfy.model_management

    from cascade_studio.nodes.host.models import preview

    net, latent = studio.parts.stage_c_vae.first_stage_model.previewer, torch.empty(1, 16, 24, 24, device="meta")
    monkeypatch.setattr(comfy.model_management, "is_device_cpu", lambda device: device.type == "cpu")
    monkeypatch.setattr(comfy.model_management, "get_free_memory", lambda device: 0)
    assert preview.choose_device(net, latent) == torch.device("cpu")
    monkeypatch.setattr(comfy.model_management, "get_free_memory", lambda device: 2**40)
    assert preview.choose_device(net, latent) == torch.device("meta")
    made = preview.PreviewPainter(studio.parts.stage_c_vae)
    failures = [torch.cuda.OutOfMemoryError("out of memory")]
    decoded = made.decode_latent

    def failing(latent: torch.Tensor) -> torch.Tensor:
        if failures:
            raise failures.pop()
        return decoded(latent)

    made.decode_latent = failing
    assert made(torch.randn(1, 16, 3, 3)).shape == (1, 3, 24, 24) and not failures


def test_nothing_is_loaded_or_kept_for_a_preview(studio, frames, monkeypatch):
    """The VAE is not loaded for it, and the copy that painted is gone after the run."""
    import comfy.model_management

    from cascade_studio.nodes.host.models import preview

    made, loaded = [], []
    build, load = preview.PreviewPainter.copy_net, comfy.model_management.load_models_gpu

    def copied(self, device):
        net = build(self, device)
        made.append(weakref.ref(net))
        return net

    monkeypatch.setattr(preview.PreviewPainter, "copy_net", copied)
    monkeypatch.setattr(
        comfy.model_management,
        "load_models_gpu",
        lambda models, *args, **kwargs: (loaded.extend(models), load(models, *args, **kwargs))[1],
    )
    frames.of_prior(studio.parts.prior)
    gc.collect()
    assert len(made) == 1 and made[0]() is None
    assert not any(model.model is studio.parts.stage_c_vae.first_stage_model for model in loaded)


def test_all_in_one_checkpoints_bring_theirs(studio, frames, always):
    """The Previewer inside the Stage C checkpoint."""
    inside = dict.fromkeys(("text_encoder", "stage_a", "image_encoder", "previewer"), "from the checkpoint")
    prior = studio.call(
        "CascadeStudio_Load",
        prior="stable_cascade_stage_c.safetensors",
        decoder="stable_cascade_stage_b.safetensors",
        **inside,
        clip_vision="none",
        **FP32,
    )
    assert frames.of_prior(prior)[-1].shape == (8 * CELLS, 8 * CELLS, 3)
