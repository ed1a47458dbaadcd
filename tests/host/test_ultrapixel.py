"""UltraPixel in the host: the large run follows a small picture, and everything else on the model keeps working."""

from __future__ import annotations

import pytest
import torch
from graphs import check_sentence
from world import Studio, changed, relative

SEED, SMALL, LARGE = 4, (256, 192), 2.0
GUIDE = "CascadeStudio_GuideStageC"


@pytest.fixture(scope="module")
def nets(studio):
    return studio.call("CascadeStudio_LoadUltraPixel", ultrapixel="ultrapixel_t2i.safetensors")


@pytest.fixture(scope="module")
def small(studio) -> dict:
    """A small picture that keeps what the model saw in its last step."""
    return studio.sample_prior(studio.canvas(*SMALL)[0], steps=2, seed=SEED, keep_features=True)


@pytest.fixture(scope="module")
def large(studio, small) -> dict:
    return studio.call("CascadeStudio_HighResolutionPrior", prior=small, scale=LARGE, method="guided")


def guided(studio: Studio, nets, small: dict, model=None, **inputs):
    given = {"positive": studio.positive, **inputs}
    return studio.call(GUIDE, model=model or studio.parts.prior, guide=nets, prior=small, **given)


def sample(studio: Studio, large: dict, model=None, **inputs) -> torch.Tensor:
    given = {"steps": 2, "seed": SEED, **inputs}
    return studio.sample_prior(large, model=model or studio.parts.prior, **given)["samples"]


@pytest.fixture(scope="module")
def plain(studio, large) -> torch.Tensor:
    return sample(studio, large)


@pytest.fixture(scope="module")
def followed(studio, nets, small, large) -> torch.Tensor:
    return sample(studio, large, guided(studio, nets, small))


def test_the_large_latent_is_empty_and_as_large_as_asked(small, large):
    canvas = large["cascade_studio_canvas"]
    assert (canvas.width, canvas.height) == (512, 384) and large["samples"].shape == canvas.prior_shape()
    assert not large["samples"].any() and "cascade_studio_features" not in large


def test_the_picture_follows_the_small_one(studio, nets, small, large, plain, followed):
    assert changed(followed, plain)
    other = {**small, "samples": small["samples"].flip(-1)}
    assert changed(sample(studio, large, guided(studio, nets, other)), followed)
    weak = sample(studio, large, guided(studio, nets, small, strength=0.3))
    assert relative(weak, plain) < relative(followed, plain)


def test_neutral_settings_change_nothing(studio, nets, small, large, plain):
    assert torch.equal(sample(studio, large, guided(studio, nets, small, strength=0.0)), plain)
    late = guided(studio, nets, small, start_percent=1.0)
    assert torch.equal(sample(studio, large, late), plain)
    kept = studio.sample_prior(studio.canvas(*SMALL)[0], steps=2, seed=SEED)
    assert relative(kept["samples"], small["samples"]) <= 1e-5, "what keeps features looks at the stream"
    assert "cascade_studio_features" not in kept
    assert "cascade_studio_guide" not in studio.parts.prior.additional_models


def test_part_of_the_run_alone(studio, nets, small, large, plain, followed):
    early = sample(studio, large, guided(studio, nets, small, end_percent=0.3))
    assert changed(early, plain) and changed(early, followed)


def test_it_is_the_pure_network_in_the_host(studio, nets, small, large):
    """One step of the host with the last step's features, beside stages/ alone."""
    from cascade_studio.stages.attention.guide import GuideHooks
    from cascade_studio.stages.files.load import from_file

    net = studio.nets["C"]
    guides = from_file(studio.models / "model_patches" / "ultrapixel_t2i.safetensors", dtype=torch.float32)
    maps, size = small["cascade_studio_features"].features, large["samples"].shape[2:]
    read = [each.read_features(given, size) for each, given in zip(guides.nets(), maps, strict=True)]
    model = guided(studio, nets, small, features="last step", encoding="exact")
    assert [each.shape[0] for each in maps] == [1] * 4
    x, hooks = torch.randn(large["samples"].shape), GuideHooks(net.config, guides.nets(), read)
    seen = {}

    def look(apply, given):
        out = apply(given["input"], given["timestep"], **given["c"])
        c = given["c"]
        sigma, r = given["timestep"], model.get_model_object("model_sampling").timestep(given["timestep"])
        scaled = model.get_model_object("model_sampling").calculate_input(sigma, given["input"])
        pure = net(scaled, r, c["clip_text"], c["clip_text_pooled"], c["clip_img"], hooks=hooks)
        seen["pure"] = model.get_model_object("model_sampling").calculate_denoised(sigma, pure, given["input"])
        seen["host"] = out
        return out

    model.set_model_unet_function_wrapper(look)
    sample(studio, {**large, "samples": x}, model, steps=1)
    assert relative(seen["host"], seen["pure"]) <= 1e-4


def test_both_sources_and_both_encodings(studio, nets, small, large, followed):
    """The extra pass sees the finished latent with a little noise, which is close to what the last step saw."""
    for inputs in ({"features": "last step"}, {"encoding": "exact"}):
        assert changed(sample(studio, large, guided(studio, nets, small, **inputs)), followed)


def test_a_batch_has_a_small_picture_each(studio, nets):
    """Picture i follows small picture i, together, alone, and where the batch does not fit into memory."""
    from cascade_studio.nodes.host.sampling import sample as sampling

    pair = studio.sample_prior(studio.canvas(*SMALL, batch=2)[0], steps=1, seed=SEED)
    large = studio.call("CascadeStudio_HighResolutionPrior", prior=pair, scale=LARGE, method="guided")
    model = guided(studio, nets, pair)
    both = sample(studio, large, model)
    second = {**pair, "samples": pair["samples"][1:]}
    alone = {**large, "samples": large["samples"][1:], "batch_index": [1]}
    assert relative(sample(studio, alone, guided(studio, nets, second))[0], both[1]) <= 1e-3
    calls, whole = [], sampling.sample_batch

    def run_out(model, positive, negative, latent, run, seeds):
        calls.append(len(latent["samples"]))
        if calls[-1] > 1:
            raise torch.OutOfMemoryError("out of memory")
        return whole(model, positive, negative, latent, run, seeds)

    sampling.sample_batch = run_out
    try:
        assert relative(sample(studio, large, model), both) <= 1e-3 and calls == [2, 1, 1]
    finally:
        sampling.sample_batch = whole
    one = {**large, "samples": large["samples"][:1].repeat(3, 1, 1, 1)}
    graph = studio.graph()
    node = graph.add(
        "CascadeStudio_SamplePrior",
        model=model,
        latent=one,
        steps=1,
        positive=studio.positive,
        negative=studio.negative,
    )
    check_sentence(graph.error(node[0]), "2 small pictures", "3 large ones")


def test_read_once_and_dropped_with_the_run(studio, nets, small, large, monkeypatch):
    from cascade_studio.stages.nets.guide import GuideNet

    calls, read = [], GuideNet.read_features
    monkeypatch.setattr(GuideNet, "read_features", lambda *a, **k: calls.append(1) or read(*a, **k))
    model = guided(studio, nets, small)
    before = dict(model.model_options["transformer_options"])
    sample(studio, large, model, steps=3)
    assert len(calls) == 4 and model.model_options["transformer_options"] == before
    sample(studio, large, model, steps=1)
    assert len(calls) == 8


def test_core_sampler_lora_regions_and_perturbed_attention(studio, nets, small, large):
    """What else is on the model acts in the guided run as well."""
    first = studio.core_sample(guided(studio, nets, small), large, seed=SEED, steps=2, **studio.prompts)
    tuned = studio.call("CascadeStudio_LoadLora", lora="official.safetensors", prior=studio.parts.prior)
    perturbed = studio.call("CascadeStudio_PerturbedAttention", model=studio.parts.prior, scale=3.0)
    for model in (tuned, perturbed):
        assert changed(
            studio.core_sample(guided(studio, nets, small, model), large, seed=SEED, **studio.prompts), first
        )
    mask = torch.zeros(1, 8, 8)
    mask[..., :4] = 1
    regional = studio.call(
        "CascadeStudio_RegionalPrompt", conditioning=studio.positive, region=studio.text("a boat"), mask=mask
    )
    model, prompts = guided(studio, nets, small), {**studio.prompts, "positive": regional}
    assert changed(studio.core_sample(model, large, seed=SEED, **prompts), first)
    recorded = studio.sample_prior(
        large, model=studio.call("CascadeStudio_PerturbedAttention", model=model), steps=1, keep_features=True
    )
    assert len(recorded["cascade_studio_features"].features) == 4


def test_the_lora_of_its_kind_is_a_pickle_of_numbers(studio):
    """The same change as the official file whose layers it numbers."""
    from safetensors.torch import load_file

    folder = studio.models / "loras"
    official = load_file(folder / "official.safetensors")
    layers = {key.replace("weights.", "module."): value for key, value in official.items() if "weights." in key}
    last = f"module.{len(layers) // 2}."
    token = {last + key.rpartition(".")[2]: value for key, value in official.items() if key.startswith("embeddings.")}
    torch.save({**layers, **token}, folder / "lora_cat.safetensors")
    latent, found = studio.canvas(*SMALL)[0], []
    for name in ("lora_cat.safetensors", "official.safetensors"):
        model, clip = studio.call(
            "CascadeStudio_LoadLora", (0, 2), lora=name, prior=studio.parts.prior, clip=studio.parts.clip
        )
        positive = studio.text("a cat [roubaobao]", clip=clip)
        found.append(studio.sample_prior(latent, model=model, positive=positive, steps=1, seed=SEED)["samples"])
    assert torch.equal(*found)


def test_a_scheduled_lora_and_a_controlnet(studio, nets, small, large, followed):
    """Hooks give the positive prompt a pass of its own; a ControlNet acts where its prompt is wired."""
    hook = studio.call("CreateHookLora", lora_name="kohya.safetensors", strength_model=1.0, strength_clip=0.0)
    hooked = studio.call("SetClipHooks", clip=studio.parts.clip, hooks=hook, apply_to_conds=True, schedule_clip=False)
    positive = studio.text("a red fox", clip=hooked)
    model = guided(studio, nets, small, positive=positive)
    assert changed(sample(studio, large, model, positive=positive), followed)
    net = studio.call("CascadeStudio_LoadControlNet", controlnet="canny.safetensors", dtype="fp32")
    given = {"control_net": net, "image": torch.rand(1, 192, 256, 3), "strength": 2.0}
    steered = studio.call("CascadeStudio_ApplyControl", range(2), **given, **studio.prompts)
    prompts = dict(zip(("positive", "negative"), steered, strict=True))
    model = guided(studio, nets, small)
    assert changed(sample(studio, large, model, **prompts), followed)
    assert changed(sample(studio, large, guided(studio, nets, small, positive=steered[0])), followed)


def test_partly_loaded_and_compiled(studio, nets, small, large, followed):
    """The host may keep weights of the model and of the guide off the card, and compile the network."""
    import comfy.model_management as management
    from comfy_api.torch_helpers import set_torch_compile_wrapper

    model = guided(studio, nets, small)
    for patcher in (model, nets):
        patcher.partially_load(patcher.load_device, 0)
    assert torch.equal(sample(studio, large, model), followed)
    compiled = model.clone()
    set_torch_compile_wrapper(compiled, backend="eager")
    assert relative(sample(studio, large, compiled), followed) <= 1e-3
    management.unload_all_models()


def test_the_host_loads_the_guide_and_makes_room_for_it(studio, nets, small):
    from cascade_studio.nodes.host.sampling.guide import measure_guide

    model, shape = guided(studio, nets, small), [2, 16, 96, 96]
    assert nets in model.get_nested_additional_models()
    told = {}
    (wrapper,) = model.get_all_wrappers("prepare_sampling")
    wrapper(lambda model, shape: told.update(shape=shape), model, shape)
    need = model.model.memory_required(shape) + measure_guide(model, shape)
    assert need <= model.model.memory_required(told["shape"]) <= 1.05 * need
    assert measure_guide(studio.parts.prior, shape) == 0


def test_the_last_guide_wins_and_the_model_stays(studio, nets, small, large, plain, followed):
    other = {**small, "samples": small["samples"].flip(-2)}
    twice = guided(studio, nets, small, guided(studio, nets, other))
    assert torch.equal(sample(studio, large, twice), followed)
    assert torch.equal(sample(studio, large), plain)


def test_an_encoded_picture_guides_as_well(studio, nets, large, followed):
    image = torch.rand(1, 192, 256, 3, generator=torch.Generator().manual_seed(3))
    encoded = studio.call("CascadeStudio_EncodeImage", image=image, vae=studio.parts.stage_c_vae)
    assert changed(sample(studio, large, guided(studio, nets, encoded)), followed)


def test_wrong_inputs(studio, nets, small, large):
    area = studio.call(
        "ConditioningSetAreaPercentage", conditioning=studio.positive, width=0.5, height=1.0, x=0.0, y=0.0, strength=1.0
    )
    changed_since = {**small, "samples": small["samples"] + 1}
    huge = studio.canvas(2048, 2048)[0]
    cases = (
        ({"model": studio.parts.decoder}, ("Stage C", "Stage B")),
        ({"guide": studio.parts.prior}, ("model patch", "Load UltraPixel Guide")),
        ({"prior": large}, ("empty", "Sample Stage C")),
        ({"prior": {**huge, "samples": huge["samples"] + 1}}, ("at most 1024", "1024 x 1024")),
        ({"prior": changed_since, "features": "last step"}, ("changed by another node", "keep_features")),
        ({"features": "last step", "prior": {"samples": small["samples"]}}, ("holds none", "keep_features")),
        ({"positive": area}, ("areas", "Regional Prompt")),
    )
    for inputs, words in cases:
        graph = studio.graph()
        given = {"model": studio.parts.prior, "guide": nets, "prior": small, "positive": studio.positive, **inputs}
        check_sentence(graph.error(graph.add(GUIDE, **given)[0]), *words)
    both = studio.call("ConditioningCombine", conditioning_1=studio.positive, conditioning_2=area)
    model, graph = guided(studio, nets, small), studio.graph()
    node = graph.add(
        "CascadeStudio_SamplePrior", model=model, latent=large, steps=1, positive=both, negative=studio.negative
    )
    check_sentence(graph.error(node[0]), "area", "Regional Prompt")
