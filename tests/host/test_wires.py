"""Every kind of latent over every LATENT input: sampled, fitted to its picture, or refused in a sentence."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from graphs import check_sentence
from world import Studio, changed

from cascade_studio.stages.inputs.canvas import plan_canvas

SIDE, STEPS = 256, {"steps": 1}
WORKS, REFUSED = "works", "refused"


@pytest.fixture(scope="module")
def kinds(studio) -> dict[str, dict[str, Any]]:
    """The latents that come over wires: ours, core's, and ours after core's nodes that count 8 px a cell."""
    prior = studio.prior_latent
    decoder = studio.sample_decoder(prior, **STEPS)
    core = studio.call("StableCascade_EmptyLatentImage", range(2), width=SIDE, height=SIDE, compression=42)
    wide = studio.sample_prior(studio.canvas(2 * SIDE, SIDE)[0], **STEPS)
    scale = {"upscale_method": "nearest-exact"}
    return {
        "canvas C": studio.canvas(SIDE, SIDE)[0],
        "canvas B": studio.canvas(SIDE, SIDE)[1],
        "sampled C": prior,
        "sampled B": decoder,
        "wide B": studio.sample_decoder(wide, **STEPS),
        "core's empty SD3": studio.call("EmptySD3LatentImage", width=SIDE, height=SIDE, batch_size=1),
        "core's empty": studio.call("EmptyLatentImage", width=SIDE, height=SIDE, batch_size=1),
        "core's empty C": core[0],
        "core's empty B": core[1],
        "C upscaled by pixels": studio.call(
            "LatentUpscale", samples=prior, width=512, height=512, crop="disabled", **scale
        ),
        "C upscaled by 1.5": studio.call("LatentUpscaleBy", samples=prior, scale_by=1.5, **scale),
        "C cropped by pixels": studio.call("LatentCrop", samples=wide, width=64, height=64, x=0, y=0),
        "C cropped to nothing": {**prior, "samples": prior["samples"][..., 6:]},
        "another model's": {"samples": torch.ones(1, 8, 32, 32)},
        "a video's": {"samples": torch.ones(1, 16, 3, 32, 32)},
    }


def consumers(studio: Studio) -> dict[str, dict[str, Any]]:
    """What a node with LATENT inputs is given beside them."""
    parts, image = studio.parts, torch.rand(1, 64, 64, 3)
    return {
        "SamplePrior": {"model": parts.prior, **studio.prompts, **STEPS},
        "SampleDecoder": {"model": parts.decoder, "prior": studio.prior_latent, **studio.prompts, **STEPS},
        "DecoderConditioning": studio.prompts,
        "DecodeStageA": {"vae": parts.stage_a},
        "DecodePreview": {"vae": parts.stage_c_vae},
        "DraftBoard": {"vae": parts.stage_c_vae, "chosen": "1"},
        "HighResolutionPrior": {},
        "GuideStageC": {
            "model": parts.prior,
            "guide": studio.call("CascadeStudio_LoadUltraPixel", ultrapixel="ultrapixel_t2i.safetensors"),
            "positive": studio.positive,
        },
        "EncodeImage": {"image": image, "vae": parts.stage_c_vae},
        "CannyHint": {"image": image},
        "InpaintHint": {"image": image, "mask": torch.ones(1, 64, 64)},
        "IdentityHint": {"image": image, "boxes": torch.tensor([[5.0, 5, 60, 60]]), "embeddings": torch.ones(1, 512)},
        "ReportCard": {},
    }


MADE_OF_NOTHING = dict.fromkeys(
    ("canvas C", "canvas B", "core's empty C", "core's empty B", "core's empty SD3", "core's empty"), REFUSED
)
NO_PRIOR = dict.fromkeys(
    ("canvas B", "sampled B", "wide B", "core's empty B", "C cropped to nothing", "another model's", "a video's"),
    REFUSED,
)
RESIZED = {"C upscaled by pixels": REFUSED, "C upscaled by 1.5": WORKS, "C cropped by pixels": WORKS}
FINISHED_C = {**NO_PRIOR, **MADE_OF_NOTHING, "sampled C": WORKS, **RESIZED}
START_C = {**NO_PRIOR, **dict.fromkeys(("canvas C", "sampled C", "core's empty C", *RESIZED), WORKS), **RESIZED}
FITTED = dict.fromkeys(("core's empty SD3", "core's empty"), SIDE)
NO_DECODER = {
    **dict.fromkeys(("canvas C", "sampled C", "core's empty C", *RESIZED), REFUSED),
    **dict.fromkeys(("C cropped to nothing", "another model's", "a video's"), REFUSED),
}
EXPECTED = {
    ("SamplePrior", "latent"): {**START_C, **FITTED},
    ("SampleDecoder", "prior"): FINISHED_C,
    ("SampleDecoder", "latent"): {
        **NO_DECODER,
        **dict.fromkeys(("canvas B", "sampled B", "core's empty B"), WORKS),
        "wide B": REFUSED,
        **FITTED,
    },
    ("DecoderConditioning", "prior"): FINISHED_C,
    ("DecodePreview", "prior"): {**FINISHED_C, "C upscaled by pixels": WORKS},
    ("DraftBoard", "prior"): {**FINISHED_C, "C upscaled by pixels": WORKS},
    ("HighResolutionPrior", "prior"): FINISHED_C,
    ("GuideStageC", "prior"): FINISHED_C,
    ("DecodeStageA", "latent"): {**NO_DECODER, **MADE_OF_NOTHING, "sampled B": WORKS, "wide B": WORKS},
    ("CannyHint", "latent"): {**START_C, **FITTED},
    ("InpaintHint", "latent"): {**START_C, **FITTED},
    ("IdentityHint", "latent"): {**START_C, **FITTED},
    ("EncodeImage", "target"): {**START_C, **FITTED},
}
"""What becomes of each kind: a side in pixels stands for "fitted to a picture of that size"."""

EVERYTHING = {("ReportCard", "latent")}
"""Inputs that read what a latent carries beside its values."""


def latent_inputs(host: Any) -> set[tuple[str, str]]:
    found = set()
    for name, node in host.nodes.NODE_CLASS_MAPPINGS.items():
        if not name.startswith("CascadeStudio_"):
            continue
        types = node.INPUT_TYPES()
        for key, spec in {**types.get("required", {}), **types.get("optional", {})}.items():
            if spec[0] == "LATENT":
                found.add((name.removeprefix("CascadeStudio_"), key))
    return found


def test_every_latent_input_is_told_of(host, studio):
    assert latent_inputs(host) == set(EXPECTED) | EVERYTHING


@pytest.mark.parametrize("node, name", EXPECTED, ids=[f"{node}-{name}" for node, name in EXPECTED])
def test_latents(studio, kinds, node, name):
    assert set(EXPECTED[node, name]) == set(kinds)
    for kind, outcome in EXPECTED[node, name].items():
        graph = studio.graph()
        given = {**consumers(studio)[node], name: kinds[kind]}
        made = graph.add(f"CascadeStudio_{node}", **given)
        if outcome == REFUSED:
            check_sentence(graph.error(made[0]), "latent")
            continue
        result = graph.run(made[0])
        if outcome == SIDE and node == "SamplePrior":
            canvas = plan_canvas(SIDE, SIDE)
            assert result["samples"].shape == canvas.prior_shape(), kind
            assert result["cascade_studio_canvas"] == canvas, kind
        if outcome == SIDE and node == "SampleDecoder":
            assert result["samples"].shape[2:] == (SIDE // 4, SIDE // 4), kind


def test_what_another_node_did_to_a_latent_is_said(studio, kinds, caplog):
    studio.sample_decoder(kinds["C upscaled by 1.5"], **STEPS)
    assert "another node changed it to 9 x 9 cells" in caplog.text
    caplog.clear()
    studio.sample_decoder(kinds["sampled C"], **STEPS)
    assert "another node" not in caplog.text


def test_a_decoder_without_a_prior_is_said(studio, caplog):
    """In a core sampler it runs as in core, on a prior of zeros, but not in silence."""
    prompts, latent = studio.decoder_prompts()
    studio.core_sample(studio.parts.decoder, latent, **{**prompts, "negative": studio.negative})
    assert "without a Stage C latent" not in caplog.text
    studio.core_sample(studio.parts.decoder, latent, **studio.prompts)
    assert "without a Stage C latent" in caplog.text


def test_a_canvas_far_from_the_models_own_size_is_said(studio, caplog):
    """The tiny family is of the official configuration, made for 1024 px."""
    studio.sample_prior(studio.canvas(1024, 1024)[0], **STEPS)
    assert "was trained on" not in caplog.text
    studio.sample_prior(studio.canvas(SIDE, SIDE)[0], **STEPS)
    assert "trained on pictures of about 1024 x 1024 px; the canvas has 256 x 256" in caplog.text


@pytest.mark.parametrize("stage", ["prior", "decoder"])
def test_what_is_placed_into_a_latent_by_pixels_is_said(studio, caplog, stage):
    """Core counts 8 px a cell; the place is told in pixels of the picture. What changes all cells, or none, is fine."""
    prior = studio.prior_latent
    latent = prior if stage == "prior" else studio.sample_decoder(prior, **STEPS)
    small = {"samples": torch.ones(1, *latent["samples"].shape[1:2], 2, 2)}

    def told(given: dict[str, Any]) -> str:
        caplog.clear()
        if stage == "prior":
            studio.sample_decoder(given, **STEPS)
        else:
            studio.sample_decoder(prior, latent=given, denoise=0.5, **STEPS)
        return caplog.text

    composite = studio.call("LatentComposite", samples_to=latent, samples_from=small, x=8, y=16, feather=0)
    masked = studio.call("LatentCompositeMasked", destination=latent, source=small, x=8, y=16, resize_source=False)
    cell = 256 / latent["samples"].shape[-1]
    place = "from {:.0f}, {:.0f} px to {:.0f}, {:.0f} px of the picture".format(*(cell * n for n in (1, 2, 3, 4)))
    for given in (composite, masked):
        assert place in told(given) and f"{8 / cell:.3g} times the pixels" in caplog.text
    for given in (
        latent,
        studio.call("LatentBlend", samples1=latent, samples2=latent, blend_factor=0.5),
        studio.call("LatentMultiply", samples=latent, multiplier=0.9),
        studio.call("SetLatentNoiseMask", samples=latent, mask=torch.ones(1, 64, 64)),
        studio.call("LatentFromBatch", samples=latent, batch_index=0, length=1),
        studio.call("RepeatLatentBatch", samples=latent, amount=1),
    ):
        assert "A node before" not in told(given)


# Areas in pixels


def area(studio: Studio, text: Any, **given: Any) -> Any:
    kind = "ConditioningSetArea" if isinstance(given["width"], int) else "ConditioningSetAreaPercentage"
    return studio.call(kind, conditioning=text, strength=1.0, **given)


@pytest.mark.parametrize("stage", ["prior", "decoder"])
@pytest.mark.parametrize("size", [(512, 256), (1000, 328)])
@pytest.mark.parametrize("side", ["left", "right"])
def test_an_area_in_pixels_is_where_the_picture_has_it(studio, stage, size, side):
    """Half of the picture in pixels is half of it as a part, and changes nothing in the other half."""
    width, height = size
    canvas = studio.canvas(width, height)[0]
    first, second = studio.positive, studio.text("something else entirely, a green banana")
    x = 0 if side == "left" else width // 16 * 8
    given = {"width": width - x if x else width // 16 * 8, "height": height, "x": x, "y": 0}

    def sample(extra: Any) -> torch.Tensor:
        both = studio.call("ConditioningCombine", conditioning_1=first, conditioning_2=extra) if extra else first
        run = {"positive": both, "seed": 3, "steps": 1, "cfg": 1.0}
        if stage == "prior":
            return studio.sample_prior(canvas, **run)["samples"]
        return studio.sample_decoder(studio.sample_prior(canvas, seed=3, steps=1), **run)["samples"]

    plain, found = sample(None), sample(area(studio, second, **given))
    difference = (found - plain).abs().amax((0, 1, 2))
    cells = len(difference)
    inside = (
        slice(0, round(cells * given["width"] / width)) if side == "left" else slice(round(cells * x / width), None)
    )
    untouched = torch.ones(cells, dtype=torch.bool)
    untouched[inside] = False
    untouched[max(0, round(cells * x / width) - 1) : round(cells * x / width) + 1] = False
    untouched[max(0, (inside.stop or cells) - 1) : (inside.stop or 0) + 1] = False
    assert changed(found, plain) and difference[inside].max() > 0
    assert untouched.any() and not difference[untouched].any()


def test_an_area_in_the_guider(studio):
    """Core's custom sampling with our guider has them where our sampler node has them."""
    latent = studio.canvas(512, 256)[0]
    second = studio.text("something else entirely, a green banana")
    extra = area(studio, second, width=256, height=256, x=256, y=0)
    positive = studio.call("ConditioningCombine", conditioning_1=studio.positive, conditioning_2=extra)
    graph = studio.graph()
    model = studio.parts.prior
    result = graph.run(
        graph.add(
            "SamplerCustomAdvanced",
            noise=graph.add("RandomNoise", noise_seed=3)[0],
            guider=graph.add("CascadeStudio_Guider", model=model, positive=positive, negative=studio.negative)[0],
            sampler=graph.add("CascadeStudio_Sampler")[0],
            sigmas=graph.add("CascadeStudio_Schedule", model=model, steps=2)[0],
            latent_image=latent,
        )[0]
    )
    expected = studio.sample_prior(latent, positive=positive, seed=3, steps=2)
    assert torch.equal(result["samples"], expected["samples"])


def test_an_area_outside_of_the_picture_is_refused(studio):
    extra = area(studio, studio.positive, width=256, height=256, x=512, y=0)
    graph = studio.graph()
    latent = studio.canvas(256, 256)[0]
    given = {"model": studio.parts.prior, "positive": extra, "negative": studio.negative, "latent": latent}
    check_sentence(graph.error(graph.add("CascadeStudio_SamplePrior", **given, **STEPS)[0]), "512", "256 x 256", "Move")
