"""Our Stage B and C against the host's own nets and diffusers', on equal weights."""

from __future__ import annotations

import pytest
import torch
from reference_nets import diffusers_net, host_net, reference
from tiny import golden, relative, tiny_net

from cascade_studio.stages.nets.backend import torch_attention

TOLERANCE = 1e-4
STAGE_C = [
    {},
    {"switch_level": (True,)},
    {"block_repeat": ((2, 1), (3, 2)), "c_r": 33},
    {
        "c_hidden": (64, 128, 192),
        "nhead": (1, 2, 3),
        "blocks": ((1, 1, 1), (1, 2, 1)),
        "block_repeat": ((1, 1, 1), (1, 2, 1)),
        "level_config": ("CT", "CTA", "CTA"),
        "switch_level": (False, True),
        "self_attn": (True, True, False),
    },
    {"level_config": ("CFT", "TCAA"), "patch_size": 2, "kernel_size": 5, "t_conds": ()},
]
STAGE_B = [
    {},
    {"block_repeat": ((2, 1, 1, 3), (1, 2, 1, 2))},
    {"level_config": ("CF", "CT", "CTA", "CTAA"), "t_conds": ()},
]


def inputs(name: str) -> list[torch.Tensor]:
    tensors = golden(name)
    names = {
        "stage_c_tiny": ("x", "r", "clip_text", "clip_text_pooled", "clip_img"),
        "stage_b_tiny": ("x", "r", "effnet", "clip"),
    }[name]
    return [tensors[each] for each in names]


@pytest.mark.parametrize("maker", [host_net, diffusers_net])
@pytest.mark.parametrize(
    "name, changes",
    [("stage_c_tiny", changes) for changes in STAGE_C] + [("stage_b_tiny", changes) for changes in STAGE_B],
    ids=lambda value: value if isinstance(value, str) else ",".join(value) or "official",
)
def test_same_output(maker, name, changes):
    if maker is diffusers_net and any("F" in level for level in changes.get("level_config", ())):
        changes = {**changes, "level_config": tuple(level.replace("F", "C") for level in changes["level_config"])}
    net = tiny_net(name, **changes)
    given = inputs(name)
    with torch.inference_mode():
        assert relative(net(*given), reference(maker, net)(*given)) <= TOLERANCE


def test_same_conditions_and_control():
    tensors = golden("stage_c_tiny")
    extras = {"sca": tensors["sca"], "crp": tensors["crp"], "control": [tensors.get(f"control_{i}") for i in range(6)]}
    net = tiny_net("stage_c_tiny")
    given = inputs("stage_c_tiny")
    with torch.inference_mode():
        assert relative(net(*given, **extras), reference(host_net, net)(*given, **extras)) <= TOLERANCE


@pytest.mark.parametrize("maker", [host_net, diffusers_net])
def test_same_pixels(maker):
    net = tiny_net("stage_b_tiny")
    given = [*inputs("stage_b_tiny"), golden("stage_b_tiny")["pixels"]]
    with torch.inference_mode():
        assert relative(net(*given), reference(maker, net)(*given)) <= TOLERANCE


def test_the_hosts_attention_keeps_the_contract(host):
    """As the others are held to it in tests/unit/test_blocks.py."""
    from cascade_studio.nodes.host.models.backend import attention

    torch.manual_seed(0)
    q, k, v = torch.randn(2, 6, 16), torch.randn(2, 9, 16), torch.randn(2, 9, 16)
    mask = torch.randn(2, 6, 9)
    for bias in (None, mask):
        for options in (None, {"any": 1}):
            expected = torch_attention(q, k, v, 2, mask=bias)
            assert relative(attention(q, k, v, 2, options, mask=bias), expected) < 1e-4
