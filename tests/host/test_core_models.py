"""Models that core built: in our samplers, and beside ours with the same weights and the same changes to them."""

from __future__ import annotations

import family as tiny_family
import pytest
import torch
from graphs import check_sentence
from node_inputs import GUIDANCE
from reference_nets import host_config
from world import Studio, changed, relative

from cascade_studio.stages import KINDS
from cascade_studio.stages.files.convert import to_official

TOLERANCE = 1e-4
SEED = 21
STAGES = ("prior", "decoder")


class Pair:
    """The same weights as a MODEL of ours and one that core's classes make, and the file that both come from.

    Core hard-codes image prompts of 768, so its Stage C has to have that width; matrices are stronger than the
    family's, so that every part of the networks counts.
    """

    def __init__(self, studio: Studio, stage: str, seed: int = 0) -> None:
        self.studio, self.stage = studio, stage
        weights = tiny_family.stage_c_weights() if stage == "prior" else tiny_family.stage_b_weights()
        if stage == "prior":
            rows = len(weights["clip_img_mapper.weight"])
            weights["clip_img_mapper.weight"] = tiny_family.tensor_for("clip_img", (rows, 768))
        torch.manual_seed(seed)
        strong = (".mapper", ".kv_mapper", ".out_proj", "channelwise.4", "_mapper.")
        for key, value in weights.items():
            if value.ndim >= 2 and any(part in key for part in strong):
                weights[key] = value + 0.03 * torch.randn_like(value) / value.shape[1] ** 0.5
        self.weights = tiny_family.split(weights)
        self.file = studio.write(f"diffusion_models/pair_{stage}_{seed}", self.weights)
        self.ours = studio.load(stage, self.file)
        self.core = self.core_patcher()

    def core_patcher(self):
        import comfy.model_patcher
        from comfy.supported_models import Stable_Cascade_B, Stable_Cascade_C

        prior, net_config = self.stage == "prior", self.ours.model.diffusion_model.config
        config = host_config(net_config)
        kind = Stable_Cascade_C if prior else Stable_Cascade_B
        made = kind({**config, "stable_cascade_stage": "c" if prior else "b"})
        made.set_inference_dtype(torch.float32, None)
        device = torch.device("cpu")
        model = made.get_model({}, "", device=device)
        model.diffusion_model.load_state_dict(self.weights)
        return comfy.model_patcher.CoreModelPatcher(model, load_device=device, offload_device=device)

    def sample(self, model, **prompts) -> torch.Tensor:
        """Core's SamplerCustom over three official noise levels, so that both models run at the same ones."""
        studio = self.studio
        given, latent = (studio.prompts, studio.canvas()[0]) if self.stage == "prior" else studio.decoder_prompts()
        graph = studio.graph()
        node = graph.add(
            "SamplerCustom",
            model=model,
            add_noise=True,
            noise_seed=SEED,
            cfg=2.0,
            **{**given, **prompts},
            sampler=graph.add("KSamplerSelect", sampler_name="euler")[0],
            sigmas=studio.call("CascadeStudio_Schedule", model=self.ours, steps=3),
            latent_image=latent,
        )
        return graph.run(node[0])["samples"]

    def compare(self, ours, core, plain: torch.Tensor | None = None, **prompts) -> None:
        result, expected = self.sample(ours, **prompts), self.sample(core, **prompts)
        assert relative(result, expected) <= TOLERANCE
        if plain is not None:
            assert relative(result, plain) > 100 * TOLERANCE


@pytest.fixture(scope="module")
def pairs(studio) -> dict[str, Pair]:
    return {stage: Pair(studio, stage) for stage in STAGES}


@pytest.fixture(scope="module")
def plain(pairs) -> dict[str, torch.Tensor]:
    return {stage: pair.sample(pair.ours) for stage, pair in pairs.items()}


@pytest.mark.parametrize("stage", STAGES)
def test_same_in_core_samplers(pairs, stage):
    pairs[stage].compare(pairs[stage].ours, pairs[stage].core)


@pytest.mark.parametrize(
    "inputs", [{}, {"cfg": 3.0, "rescale": 0.0, "shift": 1.5, "sampler": "ddim"}], ids=["defaults", "others"]
)
def test_core_models_in_our_samplers(studio, pairs, inputs):
    """Both stages of core through our sampler nodes: the latents of ours."""
    latent = studio.canvas(320, 256, batch=2)[0]
    prior = pairs["prior"]
    codes = [
        studio.sample_prior(latent, model=model, seed=SEED, steps=4, **inputs) for model in (prior.ours, prior.core)
    ]
    assert relative(codes[0]["samples"], codes[1]["samples"]) <= TOLERANCE
    decoder = pairs["decoder"]
    results = [
        studio.sample_decoder(codes[0], model=model, seed=SEED, steps=3, **inputs)["samples"]
        for model in (decoder.ours, decoder.core)
    ]
    assert relative(*results) <= TOLERANCE


def test_prompts_that_a_core_model_cannot_hear(studio, pairs):
    """Regions and token weights are not silently left out; Stage B hears the base prompt of either alone."""
    pair, mask = pairs["prior"], torch.ones(1, 8, 8)
    regional = studio.call(
        "CascadeStudio_RegionalPrompt", conditioning=studio.positive, region=studio.negative, mask=mask
    )
    weighted = studio.call("CascadeStudio_EncodePrompt", clip=studio.parts.clip, text="a (b:2)", weighting="attention")
    for prompt, words in ((regional, "regions (Regional Prompt)"), (weighted, "token weights")):
        graph = studio.graph()
        given = {"model": pair.core, "positive": prompt, "negative": studio.negative}
        check_sentence(
            graph.error(graph.add("CascadeStudio_SamplePrior", latent=studio.canvas()[0], **given)[0]),
            words,
            "another loader",
            "Load Stable Cascade",
        )
        graph = studio.graph()
        check_sentence(graph.error(graph.add("CascadeStudio_Guider", **given)[0]), words)


@pytest.mark.parametrize("kind", GUIDANCE)
def test_nodes_that_work_inside_our_networks_refuse_others(studio, pairs, kind):
    """There they would do nothing and say nothing."""
    graph = studio.graph()
    node = graph.add(f"CascadeStudio_{kind}", model=pairs["prior"].core)
    check_sentence(graph.error(node[0]), "another loader", "Load Stable Cascade")


def test_core_model_in_our_guider_and_schedule(studio, pairs):
    pair, results = pairs["prior"], []
    for model in (pair.ours, pair.core):
        graph = studio.graph()
        results.append(
            graph.run(
                graph.add(
                    "SamplerCustomAdvanced",
                    noise=graph.add("RandomNoise", noise_seed=SEED)[0],
                    guider=graph.add("CascadeStudio_Guider", model=model, cfg_end=2.0, **studio.prompts)[0],
                    sampler=graph.add("CascadeStudio_Sampler")[0],
                    sigmas=graph.add("CascadeStudio_Schedule", model=model, steps=4)[0],
                    latent_image=studio.canvas()[0],
                )[0]
            )["samples"]
        )
    assert relative(*results) <= TOLERANCE


def lora_file(pair: Pair, key: str) -> str:
    """A LoRA on one weight, under the name that core gives it, strong enough to be seen."""
    shape, name = pair.weights[f"{key}.weight"].shape, "lora_unet_" + key.replace(".", "_")
    torch.manual_seed(1)
    kernel = shape[2:]
    up, down = torch.randn(shape[0], 4, *kernel), torch.randn(4, shape[1], *kernel) / shape[1] ** 0.5
    tensors = {f"{name}.lora_up.weight": up, f"{name}.lora_down.weight": down, f"{name}.alpha": torch.tensor(4.0)}
    return pair.studio.write(f"loras/{pair.stage}_{key.replace('.', '_')}", tensors)


CHANGED = [
    ("prior", "down_blocks.0.1.mapper_sca", 1.0),
    ("prior", "up_blocks.1.1.mapper_crp", 1.0),
    ("prior", "down_blocks.1.2.kv_mapper.1", 3.0),
    ("decoder", "down_blocks.2.1.mapper_sca", 1.0),
    ("decoder", "pixels_mapper.2", 1.0),
    ("decoder", "up_blocks.0.2.kv_mapper.1", 9.0),
]


@pytest.mark.parametrize("stage, key, strength", CHANGED)
def test_lora(studio, pairs, plain, stage, key, strength):
    pair = pairs[stage]
    name = lora_file(pair, key)
    models = [
        studio.call("LoraLoaderModelOnly", model=model, lora_name=name, strength_model=strength)
        for model in (pair.ours, pair.core)
    ]
    pair.compare(*models, plain[stage])
    assert torch.equal(pair.sample(pair.ours), plain[stage]), "the LoRA stayed behind"


@pytest.mark.parametrize("stage, key, strength", CHANGED)
def test_hook_lora(studio, pairs, plain, stage, key, strength):
    pair = pairs[stage]
    hooks = studio.call("CreateHookLoraModelOnly", lora_name=lora_file(pair, key), strength_model=strength)
    prompts = studio.prompts if stage == "prior" else studio.decoder_prompts()[0]
    positive, negative = studio.call(
        "PairConditioningSetProperties",
        range(2),
        positive_NEW=prompts["positive"],
        negative_NEW=prompts["negative"],
        strength=1.0,
        set_cond_area="default",
        hooks=hooks,
    )
    pair.compare(pair.ours, pair.core, plain[stage], positive=positive, negative=negative)
    one = {**prompts, "positive": positive}
    pair.compare(pair.ours, pair.core, **one)
    assert torch.equal(pair.sample(pair.ours), plain[stage]), "the hook stayed behind"


@pytest.mark.parametrize("stage", STAGES)
def test_merge(studio, pairs, plain, stage):
    """A merge changes all weights at once, those of constant inputs among them."""
    pair, other = pairs[stage], Pair(studio, stage, seed=1)
    merged = [
        studio.call("ModelMergeSimple", model1=first, model2=second, ratio=0.4)
        for first, second in ((pair.ours, other.ours), (pair.core, other.core), (pair.ours, other.core))
    ]
    pair.compare(*merged[:2])
    assert changed(pair.sample(merged[0]), plain[stage])
    assert relative(pair.sample(merged[2]), pair.sample(merged[0])) <= TOLERANCE, "ours with core's"


def test_image_prompt(studio, pairs, plain):
    from types import SimpleNamespace

    torch.manual_seed(2)
    image = SimpleNamespace(image_embeds=torch.randn(1, 768))
    positive = studio.call(
        "unCLIPConditioning",
        conditioning=studio.positive,
        clip_vision_output=image,
        strength=2.0,
        noise_augmentation=0.0,
    )
    pair = pairs["prior"]
    pair.compare(pair.ours, pair.core, positive=positive)
    assert changed(pair.sample(pair.ours, positive=positive), plain["prior"])


PUBLISHED_NETS = [(kind, name) for kind in ("stage_c", "stage_b") for name in KINDS[kind].published]


def shapes(net: torch.nn.Module) -> dict[str, tuple[int, ...]]:
    return {key: tuple(value.shape) for key, value in net.state_dict().items()}


@pytest.mark.parametrize("kind, name", PUBLISHED_NETS)
@pytest.mark.parametrize("layout", ["split", "fused"])
def test_full_size_files_in_core_loaders(monkeypatch, studio, kind, name, layout):
    """Core's loader builds the published sizes from their tensors (here without data); our samplers accept them."""
    import comfy.sd
    import comfy.supported_models as supported

    from cascade_studio.nodes.host import latents
    from cascade_studio.stages import StageB, StageC

    config = KINDS[kind].published[name]
    net = (StageC if kind == "stage_c" else StageB)(config, dtype=torch.bfloat16, device="meta")
    tensors = net.state_dict()
    if layout == "fused":
        tensors = to_official(tensors)
        assert any(key.endswith("in_proj_weight") for key in tensors)
    made = supported.Stable_Cascade_C.get_model, supported.Stable_Cascade_B.get_model
    for owner, original in zip((supported.Stable_Cascade_C, supported.Stable_Cascade_B), made):
        monkeypatch.setattr(
            owner,
            "get_model",
            lambda self, sd, prefix="", device=None, original=original: original(
                self, sd, prefix, device=torch.device("meta")
            ),
        )
    patcher = comfy.sd.load_diffusion_model_state_dict(dict(tensors))
    own, other = ("Stage C", "Stage B") if kind == "stage_c" else ("Stage B", "Stage C")
    assert shapes(patcher.model.diffusion_model) == shapes(net)
    latents.check_model(patcher, own, "a sampler")
    with pytest.raises(ValueError, match=f"{own} model"):
        latents.check_model(patcher, other, "a sampler")
