"""Loaders: every layout of the files gives the same networks; dtypes, flags and replaced files."""

from __future__ import annotations

import copy
import os
import shutil
from dataclasses import fields

import family as tiny_family
import pytest
import torch
from graphs import FILES
from safetensors.torch import load_file
from world import FP32, Parts, Studio, changed, relative

SEED = 13
ALL_IN_ONE = {
    "prior": "stable_cascade_stage_c.safetensors",
    "decoder": "stable_cascade_stage_b.safetensors",
    **{role: "from the checkpoint" for role in FILES if role not in ("prior", "decoder")},
}


@pytest.fixture(scope="module")
def studio(host, family) -> Studio:
    """The family in yet more layouts, and in fp32 files the numbers that every rounded file holds."""
    studio = Studio.of(host, family, **FP32)
    for stage, weights in (("stage_c", tiny_family.stage_c_weights()), ("stage_b", tiny_family.stage_b_weights())):
        split = tiny_family.split(weights)
        layouts = {
            "fp32": weights,
            "split": split,
            "prefixed": tiny_family.prefixed("model.diffusion_model.", split),
            "diffusers": tiny_family.diffusers(weights),
            "new_fp8": tiny_family.fp8_scaled(weights, new=True),
            "bf16_rounded": rounded(weights, torch.bfloat16),
            "fp16_rounded": rounded(weights, torch.float16),
            "fp8_rounded": opened(tiny_family.fp8_scaled(weights)),
        }
        for name, tensors in layouts.items():
            studio.write(f"diffusion_models/{stage}_{name}", tensors)
    return studio


def rounded(weights: dict[str, torch.Tensor], dtype: torch.dtype) -> dict[str, torch.Tensor]:
    return {key: value.to(dtype).float() for key, value in weights.items()}


def opened(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The numbers in an fp8 file: each weight times its scale."""
    found = {}
    for key, value in weights.items():
        if key == "scaled_fp8" or key.endswith("scale_weight"):
            continue
        scale = weights.get(key[: -len("weight")] + "scale_weight") if key.endswith(".weight") else None
        found[key] = value.float() if scale is None else value.float() * scale
    return found


def result(studio: Studio, stage: str, model) -> torch.Tensor:
    """One call of the network at half noise, through the host's model."""
    torch.manual_seed(0)
    config = model.model.diffusion_model.config
    x = 3 * torch.randn(1, config.c_in, 12, 12)
    if stage == "prior":
        conditions = {
            "c_crossattn": studio.positive[0][0],
            "clip_text_pooled": torch.randn(1, 1, config.c_clip_text_pooled),
        }
    else:
        conditions = {"clip": torch.randn(1, 1, config.c_clip), "effnet": torch.randn(1, 16, 3, 3)}
    import comfy.model_management

    comfy.model_management.load_models_gpu([model])
    with torch.inference_mode():
        return model.model.apply_model(x, torch.tensor([2.0]), transformer_options={}, **conditions)


LAYOUTS = [
    ("_split", "_fp32"),
    ("_prefixed", "_fp32"),
    ("_diffusers", "_fp32"),
    ("", "_bf16_rounded"),
    ("_diffusers_fp16", "_fp16_rounded"),
    ("_fp8_scaled", "_fp8_rounded"),
    ("_new_fp8", "_fp8_rounded"),
]


@pytest.mark.parametrize("stage, kind", [("prior", "stage_c"), ("decoder", "stage_b")])
@pytest.mark.parametrize("layout, reference", LAYOUTS)
def test_layouts(studio, stage, kind, layout, reference):
    """Every layout and format is read as the numbers that it holds; the reference is a plain official file of them."""
    model = studio.load(stage, f"{kind}{layout}.safetensors")
    expected = result(studio, stage, studio.load(stage, f"{kind}{reference}.safetensors"))
    assert relative(result(studio, stage, model), expected) <= 1e-5


@pytest.mark.parametrize("stage, kind", [("prior", "stage_c"), ("decoder", "stage_b")])
def test_old_and_new_fp8_are_one(studio, stage, kind):
    """Both ways to note the scales give the same weights."""
    old, new = (studio.load(stage, f"{kind}{end}.safetensors") for end in ("_fp8_scaled", "_new_fp8"))
    assert torch.equal(result(studio, stage, old), result(studio, stage, new))
    assert any("float8" in str(value.dtype) for value in old.model.diffusion_model.state_dict().values())


def picture(studio: Studio, load) -> dict[str, torch.Tensor]:
    """Everything that the outputs of a loader make of one prompt."""
    names = (entry.name for entry in fields(Parts))
    parts = dict(zip(names, load))
    positive, negative = studio.text("a lighthouse", parts["clip"]), studio.text("", parts["clip"])
    prompts = {"positive": positive, "negative": negative}
    prior = studio.sample_prior(studio.canvas()[0], model=parts["prior"], seed=SEED, steps=2, **prompts)
    latent = studio.sample_decoder(prior, model=parts["decoder"], seed=SEED, steps=2, **prompts)
    image = studio.call("CascadeStudio_DecodeStageA", latent=latent, vae=parts["stage_a"])
    preview = studio.call("CascadeStudio_DecodePreview", prior=prior, vae=parts["stage_c_vae"])
    codes = studio.call("CascadeStudio_EncodeImage", image=image, vae=parts["stage_c_vae"])["samples"]
    vision = studio.call("CLIPVisionEncode", clip_vision=parts["clip_vision"], image=image, crop="center")
    return {
        "prior": prior["samples"],
        "latent": latent["samples"],
        "image": image,
        "preview": preview,
        "codes": codes,
        "vision": vision.image_embeds,
        "text": positive[0][0],
    }


def test_all_in_one(studio):
    """The all-in-one checkpoints give what the split files do; their VAEs are stored in half precision."""
    files = dict(FILES)
    for role in ("stage_a", "image_encoder", "previewer"):
        weights = load_file(studio.models / "vae" / FILES[role])
        files[role] = studio.write(f"vae/half_{role}", tiny_family.cast(weights, torch.float16))
    apart = picture(studio, studio.call("CascadeStudio_Load", range(6), **files, **FP32))
    whole = picture(studio, studio.call("CascadeStudio_Load", range(6), **ALL_IN_ONE, **FP32))
    for name, expected in apart.items():
        assert relative(whole[name], expected) <= 1e-5, name


def test_single_loaders(studio):
    """One network at a time: what Load Stable Cascade gives."""
    coder = {"image_encoder": FILES["image_encoder"], "previewer": FILES["previewer"]}
    singles = [
        studio.load("prior", FILES["prior"]),
        studio.load("decoder", FILES["decoder"]),
        studio.call("CascadeStudio_LoadTextEncoder", text_encoder=FILES["text_encoder"], dtype="fp32"),
        studio.call("CascadeStudio_LoadClipVision", clip_vision=FILES["clip_vision"]),
        studio.call("CascadeStudio_LoadStageA", stage_a=FILES["stage_a"], vae_dtype="fp32"),
        studio.call("CascadeStudio_LoadImageEncoder", **coder, vae_dtype="fp32"),
    ]
    together = picture(studio, studio.call("CascadeStudio_Load", range(6), **FILES, **FP32))
    apart = picture(studio, singles)
    assert all(torch.equal(together[name], apart[name]) for name in together)


def test_stage_c_vae_file(studio):
    """Encoder and Previewer in one file, as core's all-in-one checkpoints hold them."""
    name = "stage_c_vae.safetensors"
    one = studio.call("CascadeStudio_LoadImageEncoder", image_encoder=name, previewer=name, vae_dtype="fp32")
    codes, image, two = torch.randn(1, 16, 5, 5), torch.rand(1, 96, 128, 3), studio.parts.stage_c_vae
    assert relative(one.decode(codes), two.decode(codes)) <= 1e-6
    assert relative(one.encode(image), two.encode(image)) <= 1e-6


def test_half_a_stage_c_vae(studio):
    """Either half alone; the other one is missed in a sentence."""
    encoder = studio.call("CascadeStudio_LoadImageEncoder", image_encoder=FILES["image_encoder"], previewer="none")
    previewer = studio.call("CascadeStudio_LoadImageEncoder", image_encoder="none", previewer=FILES["previewer"])
    image, codes = torch.rand(1, 96, 96, 3), {"samples": torch.ones(1, 16, 5, 5)}
    assert encoder.encode(image).shape == (1, 16, 3, 3) and previewer.decode(codes["samples"]).shape == (1, 40, 40, 3)
    for node, inputs in (
        ("CascadeStudio_DecodePreview", {"prior": codes, "vae": encoder}),
        ("CascadeStudio_EncodeImage", {"image": image, "vae": previewer}),
    ):
        graph = studio.graph()
        text = graph.error(graph.add(node, **inputs)[0])
        assert "Choose the" in text and text.endswith(".")


def test_parts_that_are_not_wanted(studio):
    load = studio.call(
        "CascadeStudio_Load",
        range(6),
        **{**FILES, "image_encoder": "none", "previewer": "none", "clip_vision": "none"},
        **FP32,
    )
    assert load[3] is None and load[5] is None and None not in (*load[:3], load[4])


@pytest.mark.parametrize(
    "choice, storage",
    [
        ("fp32", torch.float32),
        ("bf16", torch.bfloat16),
        ("fp16", torch.float16),
        ("fp8_e4m3fn", torch.float8_e4m3fn),
        ("fp8_e5m2", torch.float8_e5m2),
    ],
)
@pytest.mark.parametrize("flags", [{}, {"fp32_unet": True}, {"fp8_e4m3fn_unet": True}, {"bf16_unet": True}])
def test_choice_beats_flags(monkeypatch, studio, choice, storage, flags):
    set_flags(monkeypatch, **flags)
    for stage, file in (("prior", "stage_c.safetensors"), ("decoder", "stage_b.safetensors")):
        model = studio.load(stage, file, choice)
        weights = [value for key, value in model.model.diffusion_model.state_dict().items() if value.ndim > 1]
        assert model.model.get_dtype() == storage
        if storage.itemsize > 1:
            assert {value.dtype for value in weights} == {storage}
        else:  # the finest levels stay in more bits: stages/files/eight_bits.py
            small = sum(value.numel() for value in weights if value.dtype == storage)
            assert small >= 0.4 * sum(value.numel() for value in weights)  # the tiny family rounds badly
            assert len({value.dtype for value in weights} - {storage}) == 1


def set_flags(monkeypatch, **flags) -> None:
    """The host's switches as if it was started with these alone."""
    from comfy.cli_args import args

    monkeypatch.setattr(args, "fp32_unet", False)
    for name, value in flags.items():
        assert hasattr(args, name)
        monkeypatch.setattr(args, name, value)


@pytest.mark.parametrize(
    "flag, storage",
    [
        ("fp32_unet", torch.float32),
        ("bf16_unet", torch.bfloat16),
        ("fp16_unet", torch.float16),
        ("fp8_e4m3fn_unet", torch.float8_e4m3fn),
        ("fp8_e5m2_unet", torch.float8_e5m2),
    ],
)
def test_auto_follows_flags(monkeypatch, studio, flag, storage):
    set_flags(monkeypatch, **{flag: True})
    for stage, file in (("prior", "stage_c.safetensors"), ("decoder", "stage_b.safetensors")):
        assert studio.load(stage, file, "auto").model.get_dtype() == storage


@pytest.mark.parametrize("bf16", [False, True])
def test_auto_asks_the_processor(monkeypatch, studio, bf16):
    """Without flags, a processor with instructions for bf16 keeps and computes both stages in it, and says so."""
    from cascade_studio.nodes.host import machine

    set_flags(monkeypatch)
    monkeypatch.setattr(machine, "processor_has_bf16", lambda: bf16)
    expected = torch.bfloat16 if bf16 else torch.float32
    for stage, kind in (("prior", "Stage C"), ("decoder", "Stage B")):
        graph = studio.graph()
        load = graph.add(f"CascadeStudio_Load{stage.title()}", **{stage: FILES[stage]})
        result = graph.execute(load[0])
        model = result.values[(load.name, 0)]
        assert model.model.get_dtype() == model.model.get_dtype_inference() == expected
        assert result.ui[load.name]["text"][0].startswith(f"{kind} in {'bf16' if bf16 else 'fp32'}: this processor ")
        again = model.cached_patcher_init[0](*model.cached_patcher_init[1], disable_dynamic=True)
        assert again.model.get_dtype() == expected


def test_short_memory_keeps_weights_in_eight_bits(monkeypatch, studio):
    """What is computed then is what the same 8 bits give when the node asks for them."""
    from cascade_studio.nodes.host import machine

    set_flags(monkeypatch)
    monkeypatch.setattr(machine, "processor_has_bf16", lambda: False)
    monkeypatch.setattr(machine, "measure_room", lambda device: 1)
    chosen = studio.load("prior", FILES["prior"], "fp8_e4m3fn")
    advised = studio.load("prior", FILES["prior"], "auto")
    assert advised.model.get_dtype() == torch.float8_e4m3fn and advised.model.get_dtype_inference() == torch.float32
    assert torch.equal(result(studio, "prior", advised), result(studio, "prior", chosen))


@pytest.mark.parametrize(
    "flags, choice, expected",
    [
        ({"bf16_vae": True}, "auto", torch.bfloat16),
        ({"fp16_vae": True}, "auto", torch.float16),
        ({"bf16_vae": True}, "fp32", torch.float32),
        ({"fp32_vae": True}, "bf16", torch.bfloat16),
        ({}, "auto", torch.float32),
    ],
)
def test_vae_dtypes(monkeypatch, studio, flags, choice, expected):
    set_flags(monkeypatch, **flags)
    stage_a = studio.call("CascadeStudio_LoadStageA", stage_a=FILES["stage_a"], vae_dtype=choice)
    coder = studio.call(
        "CascadeStudio_LoadImageEncoder",
        image_encoder=FILES["image_encoder"],
        previewer=FILES["previewer"],
        vae_dtype=choice,
    )
    for vae in (stage_a, coder):
        assert vae.vae_dtype == expected
        floats = {value.dtype for value in vae.first_stage_model.state_dict().values() if value.is_floating_point()}
        assert floats == {expected}


@pytest.mark.parametrize("cpu_vae", [True, False])
@pytest.mark.parametrize("choice", ["auto", "gpu", "cpu"])
def test_vae_device(monkeypatch, studio, cpu_vae, choice):
    """``--cpu-vae`` is followed unless the node says where; a made-up device stands for the graphics card."""
    import comfy.model_management

    set_flags(monkeypatch, cpu_vae=cpu_vae)
    card, cpu = torch.device("meta"), torch.device("cpu")
    monkeypatch.setattr(comfy.model_management, "get_torch_device", lambda: card)
    expected = {"auto": cpu if cpu_vae else card, "gpu": card, "cpu": cpu}[choice]
    vae = studio.call("CascadeStudio_LoadStageA", stage_a=FILES["stage_a"], vae_dtype="fp32", vae_device=choice)
    coder = studio.call(
        "CascadeStudio_LoadImageEncoder",
        image_encoder=FILES["image_encoder"],
        previewer="none",
        vae_dtype="fp32",
        vae_device=choice,
    )
    assert {vae.device, vae.patcher.load_device, coder.device, coder.patcher.load_device} == {expected}


@pytest.mark.parametrize("choice", ["fp32", "bf16", "fp16"])
def test_text_dtype(studio, choice):
    from cascade_studio.nodes.host.models.load import DTYPES

    clip = studio.call("CascadeStudio_LoadTextEncoder", text_encoder=FILES["text_encoder"], dtype=choice)
    weights = {value.dtype for key, value in clip.cond_stage_model.state_dict().items() if key.endswith("fc1.weight")}
    assert weights == {DTYPES[choice]}
    assert relative(studio.text("a cat", clip)[0][0], studio.text("a cat")[0][0]) <= 0.05


@pytest.mark.parametrize("dtype", ["bf16", "fp16", "fp8_e4m3fn", "fp8_e4m3fn_fast"])
def test_pictures_in_other_dtypes(studio, dtype):
    """Half precision and 8 bits sample finite latents that still depend on the prompt."""
    prior = studio.load("prior", "stage_c.safetensors", dtype)
    decoder = studio.load("decoder", "stage_b.safetensors", dtype)
    for model in (prior, decoder):
        assert model.model.model_config.optimizations["fp8"] == dtype.endswith("fast"), "the host's fast products"
    latent = studio.sample_prior(studio.canvas()[0], model=prior, seed=SEED, steps=2)
    assert torch.isfinite(latent["samples"]).all()
    swapped = studio.sample_prior(studio.canvas()[0], model=prior, seed=SEED, steps=2, positive=studio.negative)
    assert changed(swapped["samples"], latent["samples"])
    assert torch.isfinite(studio.sample_decoder(latent, model=decoder, seed=SEED, steps=2)["samples"]).all()


def test_replaced_files_are_loaded_again(studio):
    """The same prompt in the same executor: cached, until the file changes on disk."""
    path = studio.models / "diffusion_models" / "replaced.safetensors"
    shutil.copy(studio.models / "diffusion_models" / "stage_c_fp32.safetensors", path)
    studio.host.folder_paths.filename_list_cache.clear()
    executor, graph = studio.host.executor(), studio.graph()
    load = graph.add("CascadeStudio_LoadPrior", prior=path.name, dtype="fp32")
    node = graph.add(
        "CascadeStudio_SamplePrior", model=load[0], **studio.prompts, latent=studio.canvas()[0], seed=SEED, steps=2
    )

    def execute():
        return studio.host.execute(copy.deepcopy(graph.prompt), tuple(node[0]), executor=executor)

    first, again = execute(), execute()
    assert first.success and load.name in first.executed
    assert load.name not in again.executed and node.name not in again.executed
    weights = {key: 1.2 * value if value.ndim > 1 else value for key, value in tiny_family.stage_c_weights().items()}
    stamp = os.stat(path).st_mtime_ns
    studio.write("diffusion_models/replaced", weights)
    os.utime(path, ns=(stamp + 10**9, stamp + 10**9))
    after = execute()
    assert load.name in after.executed
    slot = (node.name, 0)
    assert changed(after.values[slot]["samples"], first.values[slot]["samples"])


def test_every_loader_notices_replaced_files(studio):
    nodes = {
        "CascadeStudio_LoadPrior": "prior",
        "CascadeStudio_LoadDecoder": "decoder",
        "CascadeStudio_LoadStageA": "stage_a",
        "CascadeStudio_LoadTextEncoder": "text_encoder",
        "CascadeStudio_LoadClipVision": "clip_vision",
        "CascadeStudio_LoadImageEncoder": "image_encoder",
    }
    folders = {
        "prior": "diffusion_models",
        "decoder": "diffusion_models",
        "stage_a": "vae",
        "image_encoder": "vae",
        "previewer": "vae",
        "text_encoder": "text_encoders",
        "clip_vision": "clip_vision",
    }
    mappings = studio.host.nodes.NODE_CLASS_MAPPINGS
    for kind, role in [
        *nodes.items(),
        *(("CascadeStudio_Load", role) for role in FILES),
        ("CascadeStudio_LoadImageEncoder", "previewer"),
    ]:
        path = studio.models / folders[role] / FILES[role]
        known = mappings[kind].fingerprint_inputs
        before, same = known(**FILES), known(**FILES)
        stamp = os.stat(path).st_mtime_ns
        os.utime(path, ns=(stamp + 10**9, stamp + 10**9))
        after = known(**FILES)
        os.utime(path, ns=(stamp, stamp))
        assert before == same != after, (kind, role)
        assert known(**FILES) == before


@pytest.mark.parametrize("stage, shift", [("prior", 2.0), ("decoder", 1.0)])
def test_loading_makes_no_sampling_of_the_hosts(studio, monkeypatch, stage, shift):
    """The host's own table is ten thousand calls a load; ours is one, with the values that single calls give."""
    import comfy.model_base
    import comfy.model_sampling

    from cascade_studio.nodes.host.models.model import CascadeSampling

    def refuse(*_):
        raise AssertionError("the host's own table was made")

    with monkeypatch.context() as patch:
        patch.setattr(comfy.model_sampling.StableCascadeSampling, "set_parameters", refuse)
        model = studio.load(stage, FILES[stage], dtype="bf16")
    sampling = model.get_model_object("model_sampling")
    assert type(sampling) is CascadeSampling and sampling.shift == shift
    assert model.model.model_type == comfy.model_base.ModelType.STABLE_CASCADE
    for number in (1, 2, 777, 5000, 9999, 10000):
        one = sampling.sigma(torch.tensor(number) / 10000)
        torch.testing.assert_close(sampling.sigmas[number - 1], one, rtol=1e-5, atol=0)
