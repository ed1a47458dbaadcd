"""Every node of core from MODEL to MODEL, on both stages: it acts, changes nothing, or says why it cannot."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from graphs import check_sentence
from inprocess import PromptError
from torch.nn import functional as F
from world import Studio, changed, relative

STAGES = ("prior", "decoder")
EVERYWHERE = {"start_percent": 0.0, "end_percent": 1.0}
SETTINGS: dict[str, dict[str, Any]] = {
    "HyperTile": {"tile_size": 32, "swap_size": 1, "max_depth": 3},
    "SkipLayerGuidanceSD3": {"layers": "0", **EVERYWHERE},
    "SkipLayerGuidanceDiT": {"double_layers": "0", "single_layers": "", **EVERYWHERE},
    "SkipLayerGuidanceDiTSimple": {"double_layers": "0", "single_layers": "", **EVERYWHERE},
    "ModelSamplingStableCascade": {"shift": 3.0},
    "PatchModelAddDownscale": {"block_number": 1, **EVERYWHERE},
    "FreSca": {"scale_high": 3.0, "scale_low": 0.3, "freq_cutoff": 3},
}
"""Where a node's defaults are neutral, or mean blocks that the small family does not have."""

NOTHING = {
    "of another architecture": ("ChromaRadianceOptions", "FluxKVCache", "ScaleROPE"),
    "the parameters that they multiply have other names, in core's own Cascade as well": (
        *("UNetSelfAttentionMultiply", "UNetCrossAttentionMultiply", "UNetTemporalAttentionMultiply"),
    ),
    "neutral at their defaults or without more hardware": (
        *("ModelComputeDtype", "SelectModelDevice", "MultiGPU_WorkUnits", "DifferentialDiffusion"),
        *("ContextWindowsManual", "TorchCompileModel", "EasyCache"),
    ),
    "a prompt against an empty one at equal scale": ("PerpNeg",),
}
"""Nodes that change nothing, and why."""

OF_OTHERS = {
    "ModelNoiseScale": "multiplier",
    "HiDreamO1PatchSeamSmoothing": "multiplier",
    "TripoSplatSamplingPreview": "q_token_length",
}
"""Nodes that read an attribute of their own architecture, which core's own Cascade does not have either."""

OWN_TESTS = ("Lora", "ModelMerge", "Hypernetwork", "TorchCompile")
"""Parts of names: what needs other files or two models; see test_core_nodes.py and test_merging.py."""

ACTS = (
    *("APG", "CFGNorm", "CFGOverride", "CFGZeroStar", "Epsilon Scaling", "FreSca", "FreeU", "FreeU_V2", "HyperTile"),
    *("Mahiro", "ModelSamplingStableCascade", "NAGuidance", "PerturbedAttentionGuidance", "RenormCFG", "RescaleCFG"),
    *("SelfAttentionGuidance", "SkipLayerGuidanceSD3", "SkipLayerGuidanceDiT", "SkipLayerGuidanceDiTSimple", "TCFG"),
    *("TemporalScoreRescaling", "TomePatchModel"),
)
"""What has to change the picture of Stage C; a host that is older than one of them is excused."""


@pytest.fixture(scope="module")
def plain(studio) -> dict[str, torch.Tensor]:
    return {stage: sample(studio, stage, getattr(studio.parts, stage)) for stage in STAGES}


def sample(studio: Studio, stage: str, model: Any) -> torch.Tensor:
    """A picture of 512 px in three steps; patches that draw numbers draw the same ones."""
    random.seed(0)
    torch.manual_seed(0)
    if stage == "prior":
        return studio.core_sample(model, studio.canvas(512, 512)[0], steps=3, seed=1)
    prompts, latent = studio.decoder_prompts()
    return studio.core_sample(model, latent, steps=3, seed=1, **prompts)


def objects(studio: Studio, stage: str) -> dict[str, Any]:
    parts = studio.parts
    return {
        "MODEL": getattr(parts, stage),
        "CONDITIONING": studio.negative,
        "CLIP": parts.clip,
        "CLIP_VISION": parts.clip_vision,
        "VAE": parts.stage_a,
        "LATENT": studio.prior_latent,
    }


def patched(studio: Studio, name: str, stage: str) -> Any:
    """The MODEL that node ``name`` gives for that of ``stage``."""
    node = studio.host.nodes.NODE_CLASS_MAPPINGS[name]
    given = {}
    for key, spec in node.INPUT_TYPES().get("required", {}).items():
        options = spec[1] if len(spec) > 1 else {}
        if isinstance(spec[0], str) and spec[0] in objects(studio, stage):
            given[key] = objects(studio, stage)[spec[0]]
        elif "default" not in options:
            choices = spec[0] if isinstance(spec[0], list) else options.get("options", [])
            given.update({key: choices[0]} if choices else {})
    return studio.call(name, tuple(node.RETURN_TYPES).index("MODEL"), **{**given, **SETTINGS.get(name, {})})


def core_nodes(studio: Studio) -> Iterator[str]:
    """The nodes to try: core's, from MODEL to MODEL, without inputs of other kinds than the family has."""
    for name, node in sorted(studio.host.nodes.NODE_CLASS_MAPPINGS.items()):
        if name.startswith("CascadeStudio") or "MODEL" not in tuple(getattr(node, "RETURN_TYPES", ())):
            continue
        kinds = {spec[0] for spec in node.INPUT_TYPES().get("required", {}).values() if isinstance(spec[0], str)}
        simple = {"INT", "FLOAT", "STRING", "BOOLEAN", "COMBO", *objects(studio, "prior")}
        if "MODEL" in kinds and kinds <= simple and not any(part in name for part in OWN_TESTS):
            yield name


@pytest.mark.parametrize("stage", STAGES)
def test_every_node(studio, plain, stage):
    nothing = {name for names in NOTHING.values() for name in names}
    seen, wrong = set(), []
    for name in core_nodes(studio):
        seen.add(name)
        try:
            result = sample(studio, stage, patched(studio, name, stage))
        except PromptError as error:
            check_sentence(str(error), *([f"'{OF_OTHERS[name]}'", "Take it off"] if name in OF_OTHERS else []))
            assert name not in ACTS, str(error)
            continue
        assert name not in OF_OTHERS and torch.isfinite(result).all(), name
        difference = relative(result, plain[stage])
        if name in nothing and difference > 1e-4:
            wrong.append(f"{name} changes the picture by {difference:.1e}")
        if name in ACTS and stage == "prior" and difference <= 1e-4:
            wrong.append(f"{name} changes nothing ({difference:.1e})")
    assert not wrong
    assert {"FreeU", "HyperTile", "TomePatchModel", "PatchModelAddDownscale", "PerturbedAttentionGuidance"} <= seen


def test_what_other_architectures_have_is_said_and_looks_like_any_missing_attribute(studio):
    """Neither core's sampling nor its nets of Stable Cascade have what these nodes read."""
    from comfy.ldm.cascade.stage_b import StageB
    from comfy.ldm.cascade.stage_c import StageC
    from comfy.model_sampling import StableCascadeSampling

    core, ours = [StableCascadeSampling(), StageB, StageC], []
    for stage in STAGES:
        model = getattr(studio.parts, stage).model
        ours += [model, model.model_sampling, model.diffusion_model]
    for part in [*core, *ours]:
        assert not any(hasattr(part, name) for name in OF_OTHERS.values())
    for part in ours:
        assert getattr(part, "multiplier", 3) == 3
        with pytest.raises(AttributeError) as told:
            part.multiplier  # noqa: B018 - the look is the test
        check_sentence(str(told.value), "'multiplier'")
        with pytest.raises(AttributeError, match="object has no attribute '_multiplier'"):
            part._multiplier  # noqa: B018


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("after_skip", [True, False])
def test_deep_shrink(studio, plain, stage, after_skip):
    """Shrunk in the first group and never enlarged by a skip, the picture has its own size at the end."""

    def shrink(factor: float) -> torch.Tensor:
        def patch(x: torch.Tensor, options: dict[str, Any]) -> torch.Tensor:
            size = [round(side * factor) for side in x.shape[-2:]]
            return x if options["block"] != ("input", 0) else F.interpolate(x, size, mode="bilinear")

        model = getattr(studio.parts, stage).clone()
        method = "set_model_input_block_patch_after_skip" if after_skip else "set_model_input_block_patch"
        getattr(model, method)(patch)
        return sample(studio, stage, model)

    assert relative(shrink(1.0), plain[stage]) <= 1e-5  # rounding: test_core_patches.ROUNDING
    small = shrink(0.5)
    assert small.shape == plain[stage].shape and torch.isfinite(small).all()
    assert stage == "decoder" or changed(small, plain[stage])


def test_a_skipped_group_leaves_the_control_maps_in_step(studio):
    """Skip-layer guidance leaves a whole group out; the maps of the ResBlocks after it stay theirs."""
    net = studio.parts.prior.model.diffusion_model
    torch.manual_seed(0)
    x, r = torch.randn(1, 16, 6, 6), torch.tensor([0.3])
    conditions = {"clip_text": torch.randn(1, 5, 64), "clip_text_pooled": torch.randn(1, 1, 64)}
    down = sum(n * repeat for n, repeat in zip(net.config.blocks[0], net.config.block_repeat[0]))
    options = {"patches_replace": {"dit": {("double_block", down): lambda args, extra: args}}}
    blocks = net.config.res_blocks
    maps = [torch.randn(1, 128, 6, 6) for _ in range(blocks)]

    def run(control: list[torch.Tensor | None], options: dict[str, Any]) -> torch.Tensor:
        with torch.inference_mode():
            return net(x, r, control={"input": control[::-1]}, transformer_options=options, **conditions)

    skipped = run(maps, options)
    first = sum(isinstance(block, type(net.down_blocks[0][0])) for level in net.down_blocks for block in level)
    without = [None if index == first else value for index, value in enumerate(maps)]
    assert torch.equal(run(without, options), skipped), "the skipped group's own map is not heard"
    assert changed(run(maps, {}), skipped)
    shifted = [*maps[:first], *maps[first + 1 :], None]
    assert changed(run(shifted, options), skipped)


def test_a_patch_that_leaves_other_tokens_is_told(studio):
    model = studio.parts.prior.clone()
    model.set_model_attn1_output_patch(lambda x, extra: x[:, :-1])
    graph = studio.graph()
    given = {"model": model, **studio.prompts, "latent_image": studio.canvas()[0], "steps": 1}
    node = graph.add("KSampler", **given, sampler_name="euler", scheduler="simple")
    check_sentence(graph.error(node[0]), "tokens", "6 x 6 cells", "take it off")
