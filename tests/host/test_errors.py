"""What bad input gets: a sentence that names the input, what was given, what is needed and what to do."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from graphs import Graph, check_sentence
from world import Parts, check_works

KSAMPLER = {"seed": 0, "steps": 1, "cfg": 2.0, "sampler_name": "euler", "scheduler": "simple"}
STAGE_C, STAGE_B = "CascadeStudio_SamplePrior", "CascadeStudio_SampleDecoder"


@pytest.fixture(autouse=True)
def next_run_works(host: Any, parts: Parts) -> Iterator[None]:
    """Whatever a test does wrong, the run after it gives what the first one gave."""
    yield
    check_works(host)


def noise(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def latent(*shape: int, **more: Any) -> dict[str, Any]:
    return {"samples": noise(*shape), **more}


def error_of(host: Any, kind: str, **inputs: Any) -> str:
    """What a user reads when this node runs."""
    graph = Graph(host)
    return graph.error(graph.add(kind, **inputs)[0])


# Latents on the wrong wire

PRIOR_LATENT, DECODER_LATENT = (1, 16, 3, 3), (1, 4, 32, 32)
WIRES = [
    (STAGE_C, "latent", DECODER_LATENT, ("Sample Stage C", "Stage B latent", "16 channels", "Wire")),
    (STAGE_C, "latent", (1, 4, 256, 256), ("Sample Stage C", "Stage B latent", "16 channels", "Wire")),
    (STAGE_B, "prior", DECODER_LATENT, ("Sample Stage B", "Stage B latent", "16 channels", "Wire")),
    (STAGE_B, "latent", PRIOR_LATENT, ("Sample Stage B", "Stage C latent", "4 channels", "Wire")),
    ("CascadeStudio_DecoderConditioning", "prior", DECODER_LATENT, ("Decoder Conditioning", "Stage B", "16", "Wire")),
    ("CascadeStudio_DecodeStageA", "latent", PRIOR_LATENT, ("Decode Stage A", "Stage C latent", "4 channels", "Wire")),
    ("CascadeStudio_DecodePreview", "prior", DECODER_LATENT, ("Preview Stage C", "Stage B latent", "16", "Wire")),
    (STAGE_C, "latent", (1, 8, 3, 3), ("Sample Stage C", "another model", "16 channels", "Wire")),
    (STAGE_C, "latent", (1, 16, 1, 3, 3), ("Sample Stage C", "(1, 16, 1, 3, 3)", "16 channels", "Wire")),
    (STAGE_C, "latent", (1, 16, 0, 3), ("Sample Stage C", "(1, 16, 0, 3)", "16 channels", "Wire")),
    ("CascadeStudio_DecodeStageA", "latent", (1, 16, 3, 8, 8), ("Decode Stage A", "4 channels", "Wire")),
]


def needed(parts: Parts, kind: str) -> dict[str, Any]:
    """Good inputs for the wires of a node."""
    sampling = {"steps": 1, **parts.prompts}
    return {
        STAGE_C: {"model": parts.prior, "latent": latent(*PRIOR_LATENT), **sampling},
        STAGE_B: {"model": parts.decoder, "prior": latent(*PRIOR_LATENT), **sampling},
        "CascadeStudio_DecoderConditioning": {"prior": latent(*PRIOR_LATENT), **parts.prompts},
        "CascadeStudio_DecodeStageA": {"latent": latent(*DECODER_LATENT), "vae": parts.stage_a},
        "CascadeStudio_DecodePreview": {"prior": latent(*PRIOR_LATENT), "vae": parts.stage_c_vae},
        "CascadeStudio_EncodeStageA": {"image": torch.rand(1, 64, 64, 3), "vae": parts.stage_a},
        "CascadeStudio_EncodeImage": {"image": torch.rand(1, 64, 64, 3), "vae": parts.stage_c_vae},
    }[kind]


@pytest.mark.parametrize("kind, name, shape, words", WIRES)
def test_latent_on_the_wrong_wire(host, parts, kind, name, shape, words):
    check_sentence(error_of(host, kind, **{**needed(parts, kind), name: latent(*shape)}), *words)


def test_zero_stage_b_latent_in_our_stage_c_sampler(host, parts):
    zeros = {"samples": torch.zeros(1, 4, 256, 256), "downscale_ratio_spacial": 4}
    text = error_of(host, STAGE_C, **{**needed(parts, STAGE_C), "latent": zeros})
    check_sentence(text, "Sample Stage C", "Stage B latent", "16 channels", "Wire")


def test_video_latent(host, parts):
    text = error_of(host, STAGE_C, **{**needed(parts, STAGE_C), "latent": {"samples": SimpleNamespace(is_nested=True)}})
    check_sentence(text, "Sample Stage C", "several parts", "16 channels", "Wire")


@pytest.mark.parametrize(
    "samples, words",
    [
        (noise(1, 4, 32, 32), ("Stage C", "Stage B (decoder) latent", "16 channels", "connect")),
        (torch.zeros(1, 4, 256, 256), ("Stage C", "256x256 cells", "Stage B latent", "Wire")),
        (torch.zeros(1, 4, 8, 128), ("Stage C", "128x8 cells", "Stage B latent", "Wire")),
    ],
    ids=["noise", "zeros", "zeros of 128 cells"],
)
def test_stage_b_latent_in_core_sampler_with_the_prior(host, parts, samples, words):
    text = error_of(host, "KSampler", model=parts.prior, latent_image={"samples": samples}, **parts.prompts, **KSAMPLER)
    check_sentence(text, *words)


def test_grids_up_to_127_cells_are_sampled_by_core(host, parts):
    graph = Graph(host)
    node = graph.add(
        "KSampler", model=parts.prior, latent_image={"samples": torch.zeros(1, 16, 2, 127)}, **parts.prompts, **KSAMPLER
    )
    assert graph.run(node[0])["samples"].shape == (1, 16, 2, 127)


def test_our_sampler_may_ask_for_larger_grids(host, parts):
    graph = Graph(host)
    inputs = {**needed(parts, STAGE_C), "latent": {"samples": torch.zeros(1, 16, 2, 140)}}
    assert graph.run(graph.add(STAGE_C, **inputs)[0])["samples"].shape == (1, 16, 2, 140)


def test_the_canvas_says_how_large_its_empty_latents_are(host, parts):
    """Core resizes an empty latent that carries its ratio, so even the wrong output of the canvas ends well."""
    graph = Graph(host)
    canvas = graph.add("CascadeStudio_Canvas", width=1024, height=1024)
    node = graph.add("KSampler", model=parts.prior, latent_image=canvas[1], **parts.prompts, **KSAMPLER)
    assert graph.run(node[0])["samples"].shape == (1, 16, 24, 24)


def test_stage_c_latent_in_core_sampler_with_the_decoder(host, parts):
    inputs = {"model": parts.decoder, "latent_image": latent(*PRIOR_LATENT), **parts.prompts, **KSAMPLER}
    text = error_of(host, "KSampler", **inputs)
    check_sentence(text, "Stage B", "Stage C (prior) latent", "4 channels", "connect")


@pytest.mark.parametrize("kind", ["VAEDecode", "VAEDecodeTiled"])
@pytest.mark.parametrize(
    "vae, shape, words",
    [
        ("stage_a", PRIOR_LATENT, ("Stage A got", "Stage C latent", "4 channels", "Put the Stage B sampler")),
        ("stage_c_vae", DECODER_LATENT, ("Previewer got", "Stage B latent", "16 channels", "Stage A")),
    ],
)
def test_core_decode_of_the_other_latent(host, parts, kind, vae, shape, words):
    check_sentence(error_of(host, kind, samples=latent(*shape), vae=getattr(parts, vae)), *words)


def test_prior_that_is_no_latent_of_stage_c_in_core_sampler(host, parts):
    conditioned = [[parts.positive[0][0], {**parts.positive[0][1], "stable_cascade_prior": noise(1, 4, 24, 24)}]]
    text = error_of(
        host,
        "KSampler",
        model=parts.decoder,
        latent_image=latent(*DECODER_LATENT),
        positive=conditioned,
        negative=parts.negative,
        **KSAMPLER,
    )
    check_sentence(text, "Stage B got a prior", "(1, 4, 24, 24)", "Stage C latent", "Wire")


# Models and VAEs of another kind


def foreign_model() -> Any:
    """A Stable Diffusion MODEL without its network."""
    import comfy.model_patcher
    import comfy.supported_models

    model = comfy.supported_models.SD15({"in_channels": 4, "disable_unet_model_creation": True}).get_model({})
    return comfy.model_patcher.CoreModelPatcher(model, torch.device("cpu"), torch.device("cpu"))


def foreign_vae() -> Any:
    """A Stable Diffusion VAE (the small TAESD)."""
    import comfy.sd

    return comfy.sd.VAE(sd={"taesd_decoder.1.weight": torch.zeros(64, 4, 3, 3)})


@pytest.mark.parametrize(
    "kind, given, words",
    [
        (STAGE_C, "decoder", ("Sample Stage C", "a Stable Cascade Stage B model", "'model' input", "'prior' output")),
        (STAGE_B, "prior", ("Sample Stage B", "a Stable Cascade Stage C model", "'model' input", "'decoder' output")),
        (STAGE_C, None, ("Sample Stage C", "BaseModel", "'model' input", "'prior' output")),
        (STAGE_B, None, ("Sample Stage B", "BaseModel", "'model' input", "'decoder' output")),
    ],
)
def test_model_of_another_kind(host, parts, kind, given, words):
    model = getattr(parts, given) if given else foreign_model()
    check_sentence(error_of(host, kind, **{**needed(parts, kind), "model": model}), *words)


VAES = [
    ("CascadeStudio_DecodeStageA", "stage_c_vae", ("Decode Stage A", "Stage C VAE", "'vae' input", "'stage_a' output")),
    ("CascadeStudio_EncodeStageA", "stage_c_vae", ("Encode Stage A", "Stage C VAE", "'vae' input", "'stage_a' output")),
    ("CascadeStudio_DecodeStageA", None, ("Decode Stage A", "another model's VAE", "'vae' input", "'stage_a' output")),
    ("CascadeStudio_EncodeStageA", None, ("Encode Stage A", "another model's VAE", "'vae' input", "'stage_a' output")),
    ("CascadeStudio_EncodeImage", "stage_a", ("Encode for Stage C", "got Stage A", "'vae'", "'stage_c_vae' output")),
    ("CascadeStudio_DecodePreview", "stage_a", ("Preview Stage C", "got Stage A", "'vae'", "'stage_c_vae' output")),
    ("CascadeStudio_EncodeImage", None, ("Encode for Stage C", "another model's VAE", "'vae'", "'stage_c_vae' output")),
    ("CascadeStudio_DecodePreview", None, ("Preview Stage C", "another model's VAE", "'vae'", "'stage_c_vae' output")),
]


@pytest.mark.parametrize("kind, given, words", VAES)
def test_vae_of_another_kind(host, parts, kind, given, words):
    vae = getattr(parts, given) if given else foreign_vae()
    check_sentence(error_of(host, kind, **{**needed(parts, kind), "vae": vae}), *words)


@pytest.mark.parametrize(
    "chosen, kind, words",
    [
        (
            {"image_encoder": "none"},
            "CascadeStudio_EncodeImage",
            ("Previewer only", "cannot encode", "Choose", "loader"),
        ),
        (
            {"previewer": "none"},
            "CascadeStudio_DecodePreview",
            ("image encoder only", "cannot show", "Choose", "loader"),
        ),
        ({"image_encoder": "none"}, "VAEEncode", ("Previewer only", "cannot encode", "Choose", "loader")),
        ({"previewer": "none"}, "VAEDecode", ("image encoder only", "cannot show", "Choose", "loader")),
    ],
)
def test_half_a_stage_c_vae(host, parts, chosen, kind, words):
    graph = Graph(host)
    files = {"image_encoder": "effnet_encoder.safetensors", "previewer": "previewer.safetensors", **chosen}
    vae = graph.run(graph.add("CascadeStudio_LoadImageEncoder", **files)[0])
    core = {"VAEEncode": {"pixels": torch.rand(1, 64, 64, 3)}, "VAEDecode": {"samples": latent(*PRIOR_LATENT)}}
    check_sentence(error_of(host, kind, **{**(core.get(kind) or needed(parts, kind)), "vae": vae}), *words)


# Conditioning


def changed(conditioning: Any, **extra: Any) -> Any:
    """A copy with other entries; None takes one out."""
    text, entries = conditioning[0]
    entries = {key: value for key, value in {**entries, **extra}.items() if value is not None}
    return [[text, entries]]


def sample_inputs(parts: Parts, kind: str) -> dict[str, Any]:
    if kind != "KSampler":
        return needed(parts, kind)
    return {"model": parts.prior, "latent_image": latent(*PRIOR_LATENT), **parts.prompts, **KSAMPLER}


@pytest.mark.parametrize("kind", [STAGE_C, STAGE_B, "KSampler"])
@pytest.mark.parametrize("wire", ["positive", "negative"])
def test_conditioning_without_pooled_output(host, parts, kind, wire):
    inputs = {**sample_inputs(parts, kind), wire: changed(parts.positive, pooled_output=None)}
    stage = "Stage B" if kind == STAGE_B else "Stage C"
    check_sentence(error_of(host, kind, **inputs), stage, "without pooled output", "CLIP Text Encode", "Wire")


@pytest.mark.parametrize("kind", [STAGE_C, STAGE_B, "KSampler"])
@pytest.mark.parametrize("width", [768, 2048])
def test_conditioning_of_another_width(host, parts, kind, width):
    inputs = {**sample_inputs(parts, kind), "positive": [[noise(1, 77, width), {"pooled_output": noise(1, width)}]]}
    stage = "Stage B" if kind == STAGE_B else "Stage C"
    check_sentence(error_of(host, kind, **inputs), stage, f"{width} wide", "needs 64", "CLIP output")


@pytest.mark.parametrize("kind", [STAGE_C, "KSampler"])
def test_text_of_another_width_with_a_fitting_pooled_output(host, parts, kind):
    inputs = {**sample_inputs(parts, kind), "positive": [[noise(1, 77, 2048), parts.positive[0][1]]]}
    check_sentence(error_of(host, kind, **inputs), "Stage C", "2048 wide", "needs 64", "CLIP output")


@pytest.mark.parametrize("kind", [STAGE_C, "KSampler"])
def test_image_prompt_of_another_width(host, parts, kind):
    seen = SimpleNamespace(image_embeds=noise(1, 1024))
    image = [{"clip_vision_output": seen, "strength": 1.0, "noise_augmentation": 0.0}]
    inputs = {**sample_inputs(parts, kind), "positive": changed(parts.positive, unclip_conditioning=image)}
    check_sentence(error_of(host, kind, **inputs), "Stage C", "1024 wide", "needs 64", "CLIP vision")


# Sizes


@pytest.mark.parametrize(
    "given, words",
    [
        ({"width": 32}, ("width is 32", "64 to 8192", "larger")),
        ({"height": 9000}, ("height is 9000", "8192", "smaller")),
        ({"width": 500.5}, ("got the number 500.5 on 'width'", "whole number")),
        ({"height": -8}, ("height is -8", "64 to 8192")),
        ({"compression": 10.0}, ("compression is 10", "16 to 64")),
        ({"compression": 80.0}, ("compression is 80", "16 to 64")),
    ],
)
def test_size_that_another_node_sends(host, parts, given, words):
    """The host checks the numbers of widgets; those over a wire come unchecked."""
    graph = Graph(host)
    node = graph.add(
        "CascadeStudio_Canvas",
        **{"width": 512, "height": 512, **{name: graph.give(value) for name, value in given.items()}},
    )
    check_sentence(graph.error(node[0]), *words)


def test_size_in_the_widgets(host, parts):
    text = error_of(host, "CascadeStudio_Canvas", width=32, height=9000)
    assert "Value 32 smaller than min of 64: width" in text and "Value 9000 bigger than max of 8192: height" in text


@pytest.mark.parametrize("kind", ["CascadeStudio_EncodeStageA", "CascadeStudio_EncodeImage"])
@pytest.mark.parametrize(
    "shape, words",
    [((1, 64, 20, 3), ("width is 20", "64", "larger")), ((1, 8200, 64, 3), ("height is 8200", "8192", "smaller"))],
)
def test_picture_of_an_impossible_size(host, parts, kind, shape, words):
    check_sentence(error_of(host, kind, **{**needed(parts, kind), "image": torch.zeros(shape)}), *words)


def test_stage_c_latent_of_a_picture_that_is_too_large(host, parts):
    huge = {"samples": torch.zeros(1, 16, 2, 400)}
    check_sentence(error_of(host, STAGE_B, **{**needed(parts, STAGE_B), "prior": huge}), "400 x 2", "8192", "smaller")


@pytest.mark.parametrize("kind, stage", [(STAGE_C, "Stage C"), (STAGE_B, "Stage B")])
def test_size_that_does_not_fit_into_memory(host, parts, monkeypatch, kind, stage):
    import comfy.model_management

    monkeypatch.setattr(comfy.model_management, "get_total_memory", lambda *args, **kwargs: 1024)
    check_sentence(error_of(host, kind, **needed(parts, kind)), stage, "GiB", "this device has", "smaller picture")


def test_types_of_errors_are_shown_without_a_path(host):
    """The host shows where a class comes from, and for a pack that is the path of its folder."""
    from cascade_studio.stages import errors

    def walk(kind: type) -> Iterator[type]:
        yield kind
        for below in kind.__subclasses__():
            yield from walk(below)

    kinds = {kind.__name__: host.execution.full_type_name(kind) for kind in walk(errors.CascadeError)}
    assert kinds == {name: f"cascade_studio.{name}" for name in kinds} and {"UnreadableFile", "NotFetched"} <= set(
        kinds
    )
