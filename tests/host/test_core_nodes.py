"""Our MODEL, CLIP and VAE in core's sampling, LoRA, merge, save and compile nodes."""

from __future__ import annotations

import logging
import shutil

import pytest
import torch
from world import Studio, changed, relative

SEED = 5
KOHYA = "kohya.safetensors"


@pytest.fixture(scope="module")
def plain(studio) -> torch.Tensor:
    """Stage C without any change to the model."""
    return sample(studio, studio.parts.prior)


@pytest.fixture(scope="module")
def other(studio):
    """A Stage C whose weights are those of the family with every matrix a little stronger."""
    weights = {key: value * 1.1 if value.ndim > 1 else value for key, value in studio.nets["C"].state_dict().items()}
    return studio.load("prior", studio.write("diffusion_models/other_stage_c", weights))


def sample(studio: Studio, model, latent=None, **inputs) -> torch.Tensor:
    return studio.core_sample(model, latent or studio.canvas()[0], seed=SEED, **inputs)


def test_empty_latent_image(studio):
    """Core's empty latent for 1024x1024 becomes the canvas's own Stage C latent."""
    core = studio.call("EmptyLatentImage", width=1024, height=1024, batch_size=2)
    assert core["samples"].shape == (2, 4, 128, 128)
    result = sample(studio, studio.parts.prior, core)
    assert result.shape == (2, 16, 24, 24)
    assert torch.equal(result, sample(studio, studio.parts.prior, studio.canvas(1024, 1024, batch=2)[0]))


def test_empty_latent_image_for_the_decoder(studio):
    prompts, _ = studio.decoder_prompts()
    core = studio.call("EmptyLatentImage", width=256, height=256, batch_size=1)
    result = sample(studio, studio.parts.decoder, core, **prompts)
    assert torch.equal(result, sample(studio, studio.parts.decoder, studio.canvas()[1], **prompts))


def test_decoder_without_a_prior(studio):
    """A prompt that carries no Stage C latent stands for an empty one, as in core."""
    (prompts, latent), model = studio.decoder_prompts(), studio.parts.decoder
    codes = torch.zeros_like(studio.prior_latent["samples"])
    empty = {
        name: [[text, {**extra, "stable_cascade_prior": codes}] for text, extra in value]
        for name, value in studio.prompts.items()
    }
    bare = sample(studio, model, latent, **studio.prompts)
    assert relative(bare, sample(studio, model, latent, **empty)) <= 1e-5
    assert changed(bare, sample(studio, model, latent, **prompts))
    one = {**prompts, "negative": studio.negative}
    assert relative(sample(studio, model, latent, **one), sample(studio, model, latent, **prompts)) <= 1e-5


@pytest.mark.parametrize("stage", ["prior", "decoder"])
@pytest.mark.parametrize(
    "sampler, scheduler", [("euler", "normal"), ("dpmpp_2m_sde", "simple"), ("ddpm", "sgm_uniform")]
)
def test_ksampler(studio, stage, sampler, scheduler):
    if stage == "prior":
        model, latent, prompts = studio.parts.prior, studio.canvas(320, 256)[0], studio.prompts
    else:
        (prompts, latent), model = studio.decoder_prompts(), studio.parts.decoder
    given = dict(latent=latent, sampler_name=sampler, scheduler=scheduler, steps=3, **prompts)
    result = sample(studio, model, **given)
    assert result.shape == latent["samples"].shape and torch.isfinite(result).all() and result.std() > 0
    assert changed(sample(studio, model, **{**given, "negative": given["positive"]}), result)


@pytest.mark.parametrize("stage", ["prior", "decoder"])
def test_ksampler_advanced_in_two_parts(studio, stage):
    if stage == "prior":
        model, latent, prompts = studio.parts.prior, studio.canvas()[0], studio.prompts
    else:
        (prompts, latent), model = studio.decoder_prompts(), studio.parts.decoder
    common = dict(model=model, noise_seed=SEED, steps=4, cfg=2.0, sampler_name="euler", scheduler="simple", **prompts)

    def part(latent, **inputs):
        return studio.call("KSamplerAdvanced", **common, latent_image=latent, **inputs)

    whole = part(latent, add_noise="enable", start_at_step=0, end_at_step=4, return_with_leftover_noise="disable")
    half = part(latent, add_noise="enable", start_at_step=0, end_at_step=2, return_with_leftover_noise="enable")
    rest = part(half, add_noise="disable", start_at_step=2, end_at_step=4, return_with_leftover_noise="disable")
    assert changed(half["samples"], whole["samples"])
    assert relative(rest["samples"], whole["samples"]) <= 1e-4


def test_core_guider_and_schedule(studio):
    """SamplerCustomAdvanced with core's own parts around our model."""
    graph, model = studio.graph(), studio.parts.prior
    node = graph.add(
        "SamplerCustomAdvanced",
        noise=graph.add("RandomNoise", noise_seed=SEED)[0],
        guider=graph.add("CFGGuider", model=model, cfg=2.0, **studio.prompts)[0],
        sampler=graph.add("KSamplerSelect", sampler_name="euler")[0],
        sigmas=graph.add("BasicScheduler", model=model, scheduler="simple", steps=2, denoise=1.0)[0],
        latent_image=studio.canvas()[0],
    )
    result, denoised = graph.run(node[0], node[1])
    assert torch.equal(result["samples"], sample(studio, model))
    assert relative(denoised["samples"], result["samples"]) <= 1e-5


def lora(studio: Studio, model, strength: float, clip_strength: float = 1.0):
    return studio.call(
        "LoraLoader",
        range(2),
        model=model,
        clip=studio.parts.clip,
        lora_name=KOHYA,
        strength_model=strength,
        strength_clip=clip_strength,
    )


def test_lora(studio, plain, caplog):
    with caplog.at_level(logging.WARNING):
        model, _ = lora(studio, studio.parts.prior, 1.0)
    assert not [record for record in caplog.records if "lora key not loaded" in record.getMessage()]
    strong = sample(studio, model)
    assert changed(strong, plain)
    assert changed(sample(studio, lora(studio, studio.parts.prior, -1.0)[0]), strong)
    assert torch.equal(sample(studio, lora(studio, studio.parts.prior, 0.0, 0.0)[0]), plain)
    assert torch.equal(sample(studio, studio.parts.prior), plain), "the LoRA stayed behind"


def test_lora_in_our_sampler(studio):
    latent = studio.canvas()[0]
    before = studio.sample_prior(latent, seed=SEED, steps=3)["samples"]
    model, _ = lora(studio, studio.parts.prior, 1.0)
    assert changed(studio.sample_prior(latent, seed=SEED, steps=3, model=model)["samples"], before)
    assert torch.equal(studio.sample_prior(latent, seed=SEED, steps=3)["samples"], before)


def hooked(studio: Studio, strength: float) -> dict:
    """The prompts with a LoRA hooked to both."""
    graph = studio.graph()
    hooks = graph.add("CreateHookLora", lora_name=KOHYA, strength_model=strength, strength_clip=1.0)[0]
    node = graph.add(
        "PairConditioningSetProperties",
        positive_NEW=studio.positive,
        negative_NEW=studio.negative,
        strength=1.0,
        set_cond_area="default",
        hooks=hooks,
    )
    return dict(zip(("positive", "negative"), graph.run(node[0], node[1])))


def test_hook_lora(studio, plain):
    """Hooked to all conditions, a LoRA does what it does on the model."""
    result = sample(studio, studio.parts.prior, **hooked(studio, 1.0))
    assert relative(result, sample(studio, lora(studio, studio.parts.prior, 1.0)[0])) <= 1e-4
    assert changed(result, plain)
    assert torch.equal(sample(studio, studio.parts.prior), plain)
    one = {**hooked(studio, 1.0), "negative": studio.negative}
    assert changed(sample(studio, studio.parts.prior, **one), result)


def test_hook_lora_through_the_text_encoder(studio, plain):
    """Set CLIP Hooks carries the hook from the text encoder to the sampler, ours included."""
    graph = studio.graph()
    hooks = graph.add("CreateHookLora", lora_name=KOHYA, strength_model=1.0, strength_clip=1.0)[0]
    clip = graph.add("SetClipHooks", clip=studio.parts.clip, apply_to_conds=True, schedule_clip=False, hooks=hooks)[0]
    positive = graph.run(graph.add("CLIPTextEncode", clip=clip, text="a small house by the sea")[0])
    bare = studio.text("a small house by the sea")
    latent = studio.canvas()[0]
    assert changed(*(sample(studio, studio.parts.prior, positive=each) for each in (positive, bare)))
    ours = [studio.sample_prior(latent, seed=SEED, steps=3, positive=each)["samples"] for each in (positive, bare)]
    assert changed(*ours)


def merge(studio: Studio, first, second, ratio: float):
    return studio.call("ModelMergeSimple", model1=first, model2=second, ratio=ratio)


def test_merge(studio, other, plain):
    prior = studio.parts.prior
    full = sample(studio, other)
    assert changed(full, plain)
    assert torch.equal(sample(studio, merge(studio, prior, other, 1.0)), plain)
    assert relative(sample(studio, merge(studio, prior, other, 0.0)), full) <= 1e-5
    half = sample(studio, merge(studio, prior, other, 0.5))
    assert changed(half, plain) and changed(half, full)
    weights = {key: value * 1.05 if value.ndim > 1 else value for key, value in studio.nets["C"].state_dict().items()}
    between = studio.load("prior", studio.write("diffusion_models/between_stage_c", weights))
    assert relative(half, sample(studio, between)) <= 1e-4
    assert torch.equal(sample(studio, prior), plain)


def saved(studio: Studio, name: str, **parts) -> str:
    """Save with core's CheckpointSave; returns the name among the checkpoints."""
    graph = studio.graph()
    graph.add("CheckpointSave", filename_prefix=f"checkpoints/{name}", **parts)
    graph.run()
    files = sorted((studio.host.base / "output" / "checkpoints").glob(f"{name}_*.safetensors"))
    target = studio.models / "checkpoints" / f"{name}.safetensors"
    shutil.move(files[-1], target)
    studio.host.folder_paths.filename_list_cache.clear()
    return target.name


def test_saved_checkpoints(studio, other):
    """A merged and LoRA-patched prior, a decoder with text encoder and VAE: saved by core, loaded by us, the same."""
    parts = studio.parts
    merged = lora(studio, merge(studio, parts.prior, other, 0.3), 0.7)[0]
    prior = saved(studio, "merged_prior", model=merged, clip=parts.clip, vae=parts.stage_c_vae)
    decoder = saved(studio, "saved_decoder", model=parts.decoder, clip=parts.clip, vae=parts.stage_a)
    inside = dict.fromkeys(("text_encoder", "stage_a", "image_encoder", "previewer"), "from the checkpoint")
    graph = studio.graph()
    load = graph.add(
        "CascadeStudio_Load",
        prior=prior,
        decoder=decoder,
        **inside,
        clip_vision="none",
        prior_dtype="fp32",
        decoder_dtype="fp32",
        text_dtype="fp32",
        vae_dtype="fp32",
    )
    loaded = dict(zip((0, 1, 2, 4, 5), graph.run(*(load[slot] for slot in (0, 1, 2, 4, 5)))))
    assert relative(sample(studio, loaded[0]), sample(studio, merged)) <= 1e-5
    prompts, latent = studio.decoder_prompts()
    codes = [sample(studio, model, latent, **prompts) for model in (loaded[1], parts.decoder)]
    assert torch.equal(*codes)
    assert torch.equal(studio.text("hello", loaded[2])[0][0], studio.text("hello")[0][0])
    images = [studio.call("VAEDecode", samples={"samples": codes[0]}, vae=vae) for vae in (loaded[4], parts.stage_a)]
    assert torch.equal(*images)
    coders = loaded[5], parts.stage_c_vae
    previews = [studio.call("VAEDecode", samples=studio.prior_latent, vae=vae) for vae in coders]
    assert torch.equal(*previews)


def test_compiled(studio, plain):
    """Core's TorchCompileModel: no graph break, and the compiled net is the one that runs."""
    from torch._dynamo import utils

    torch._dynamo.reset()
    utils.counters.clear()
    model = studio.call("TorchCompileModel", model=studio.parts.prior, backend="inductor")
    result = sample(studio, model)
    assert not utils.counters["graph_break"], dict(utils.counters["graph_break"])
    assert utils.counters["stats"]["unique_graphs"] == 1
    assert relative(result, plain) <= 1e-3
    assert torch.equal(sample(studio, studio.parts.prior), plain)
