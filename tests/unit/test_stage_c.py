"""Stage C against the records of the official code."""

from __future__ import annotations

import pytest
import torch
from recipe import weights_for
from tiny import TOLERANCE, fused_keys, golden, index, relative, split_qkv, tiny_net, tiny_weights

from cascade_studio.stages.errors import WrongInput
from cascade_studio.stages.nets.stage_c import StageC, StageCConfig

LITE = {"c_cond": 1536, "c_hidden": (1536, 1536), "nhead": (24, 24), "blocks": ((4, 12), (12, 4))}
INPUTS = ("x", "r", "clip_text", "clip_text_pooled")


@pytest.fixture(scope="module")
def net() -> StageC:
    return tiny_net("stage_c_tiny")


@pytest.fixture(scope="module")
def tensors() -> dict[str, torch.Tensor]:
    return golden("stage_c_tiny")


def inputs(tensors: dict[str, torch.Tensor]) -> list[torch.Tensor]:
    return [tensors[name] for name in INPUTS]


@pytest.mark.parametrize(
    "out, images, conds",
    [("out", "clip_img", ()), ("out_three_images", "clip_img_three", ()), ("out_sca_crp", "clip_img", ("sca", "crp"))],
)
def test_golden(net, tensors, out, images, conds):
    given = net(*inputs(tensors), tensors[images], **{name: tensors[name] for name in conds})
    assert relative(given, tensors[out]) <= TOLERANCE


def test_golden_control(net, tensors):
    control = [tensors.get(f"control_{i}") for i in range(6)]
    before = [None if each is None else each.clone() for each in control]
    assert relative(net(*inputs(tensors), tensors["clip_img"], control=control), tensors["out_control"]) <= TOLERANCE
    assert all(a is b is None or torch.equal(a, b) for a, b in zip(control, before))
    short = net(*inputs(tensors), tensors["clip_img"], control=control[:4])
    padded = net(*inputs(tensors), tensors["clip_img"], control=[*control[:4], None, None])
    assert torch.equal(short, padded) and relative(short, tensors["out_control"]) > 0.01


def test_golden_lora(tensors):
    lora = golden("stage_c_tiny_lora")
    keys = index()["stage_c_tiny"]["keys"]
    official = weights_for(keys)
    blocks = [key.removesuffix("in_proj_weight") for key in keys if key.endswith("in_proj_weight")]
    for i, block in enumerate(blocks):
        for j, name in enumerate(("out_proj.weight", "in_proj_weight")):
            up, down = (lora[f"weights.{2 * i + j}.lora_{way}"] for way in ("up", "down"))
            official[block + name] += up @ down / len(down)
    net = StageC(StageCConfig(**index()["stage_c_tiny"]["config"]))
    net.load_state_dict(split_qkv(official))
    out = golden("stage_c_tiny_lora")["out"]
    assert relative(net(*inputs(tensors), tensors["clip_img"]), out) <= TOLERANCE
    assert relative(tensors["out"], out) > 0.01


@pytest.mark.parametrize("config, count, keys", [({}, 3_589_103_632, 1294), (LITE, 1_030_785_040, 654)])
def test_published_sizes(config, count, keys):
    net = StageC(StageCConfig(**config), device="meta")
    assert sum(p.numel() for p in net.parameters()) == count
    assert len(fused_keys(net.state_dict())) == keys
    assert net.config.res_blocks == (32 if config else 64)


def test_official_keys(net):
    assert net.state_dict().keys() == tiny_weights("stage_c_tiny").keys()
    assert fused_keys(net.state_dict()) == index()["stage_c_tiny"]["keys"].keys()


def test_conditions_broadcast(net, tensors):
    x, r, text, pooled = inputs(tensors)
    image = torch.zeros(2, 1, net.config.c_clip_img)
    text, pooled = text[:1].repeat(2, 1, 1), pooled[:1].repeat(2, 1, 1)
    expected = net(x, r, text, pooled, image, sca=torch.zeros(2))
    assert relative(net(x, r, text[:1], pooled[:1, 0]), expected) < 1e-5
    assert relative(net(x, r, text, pooled[:, 0], image[:, 0]), expected) < 1e-5
    assert relative(net(x, r, text[:1], pooled, image[:1]), expected) < 1e-5


@pytest.mark.parametrize(
    "changes",
    [
        {"switch_level": (True,)},
        {"block_repeat": ((2, 1), (3, 2))},
        {"level_config": ("CFT", "TCAA"), "c_r": 33},
        {"self_attn": False, "kernel_size": 5, "patch_size": 2, "t_conds": ()},
        {
            "c_hidden": (64, 128, 192),
            "nhead": (1, 2, 3),
            "blocks": ((1, 1, 1), (1, 2, 1)),
            "block_repeat": ((1, 1, 1), (1, 2, 1)),
            "level_config": ("CT", "CTA", "CTA"),
            "switch_level": (False, True),
            "self_attn": (True, True, False),
        },
    ],
    ids=",".join,
)
def test_other_configurations_run(tensors, changes):
    net = tiny_net("stage_c_tiny", **changes)
    x, r, text, pooled = inputs(tensors)
    control = [tensors["control_0"]] + [None] * net.config.res_blocks if net.config.c_hidden[0] == 128 else None
    out = net(x[..., :8], r, text, pooled, control=control)
    assert out.shape == x[..., :8].shape and out.isfinite().all()
    apart = [
        net(
            x[i : i + 1, :, :, :8],
            r[i : i + 1],
            text[i : i + 1],
            pooled[i : i + 1],
            control=control and [control[0][i : i + 1]],
        )
        for i in range(2)
    ]
    assert relative(torch.cat(apart), out) < 1e-5


@pytest.mark.parametrize(
    "change, words",
    [
        ({"x": torch.zeros(2, 4, 32, 32)}, ("Stage B", "16 channels", "Stage C")),
        ({"clip_text": torch.zeros(2, 77, 64)}, ("clip_text", "64", "96")),
        ({"clip_text_pooled": torch.zeros(3, 96)}, ("clip_text_pooled", "batch")),
        ({"clip_img": torch.zeros(2, 1, 32)}, ("clip_img", "32", "64")),
        ({"control": [None, torch.zeros(2, 2048, 12, 10)]}, ("ResBlock 1", "2048", "128 channels", "3.6B")),
    ],
)
def test_wrong_inputs_are_sentences(net, tensors, change, words):
    with pytest.raises(WrongInput) as caught:
        net(**{**{name: tensors[name] for name in (*INPUTS, "clip_img")}, **change})
    assert all(word in str(caught.value) for word in words)
