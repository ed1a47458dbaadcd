"""The image encoder and the Previewer against the official outputs."""

from __future__ import annotations

import pytest
import torch
from measured import measured_peak
from recipe import weights_for
from tiny import TOLERANCE, golden, index, relative
from torch.utils.flop_counter import FlopCounterMode

from cascade_studio.stages.files.kinds import KINDS
from cascade_studio.stages.nets.encoder import EncoderConfig, ImageEncoder, normalise
from cascade_studio.stages.nets.previewer import Previewer, PreviewerConfig
from cascade_studio.stages.nets.stage_c import StageC

NETS = {"encoder": (ImageEncoder, "image"), "previewer": (Previewer, "latent")}
NARROW = {
    "encoder": ImageEncoder(
        EncoderConfig(
            c_stem=8,
            widths=(8, 12, 16),
            repeats=(1, 2, 2),
            expansions=(1, 2, 4),
            strides=(1, 4, 4),
            fused=(True, True, False),
            c_features=32,
        )
    ),
    "previewer": Previewer(PreviewerConfig(c_hidden=32)),
}


def build(name: str, dtype: torch.dtype = torch.float32) -> torch.nn.Module:
    net = NETS[name][0](dtype=dtype)
    net.load_state_dict(weights_for(index()[name]["keys"], dtype))
    return net.requires_grad_(False)


@pytest.mark.parametrize("name, count", [("encoder", 784), ("previewer", 58)])
def test_keys(name, count):
    keys = {key: list(value.shape) for key, value in NETS[name][0](device="meta").state_dict().items()}
    assert keys == index()[name]["keys"] and len(keys) == count


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("grad", [False, True])
def test_golden(name, grad):
    tensors = golden(name)
    given = tensors[NETS[name][1]]
    before = given.clone()
    with torch.set_grad_enabled(grad):
        assert relative(build(name)(given), tensors["out"]) <= TOLERANCE
    assert torch.equal(given, before)


@pytest.mark.parametrize("name", NETS)
def test_bfloat16(name):
    tensors = golden(name)
    with torch.inference_mode():
        given = build(name, torch.bfloat16)(tensors[NETS[name][1]].bfloat16())
    assert given.dtype == torch.bfloat16 and relative(given, tensors["out"]) <= 0.15


@pytest.mark.parametrize(
    "name, shape, expected", [("encoder", (2, 3, 64, 96), (2, 16, 2, 3)), ("previewer", (2, 16, 3, 5), (2, 3, 24, 40))]
)
def test_narrow_networks_learn_with_frozen_encoder_statistics(name, shape, expected):
    net = NARROW[name].train()
    net.load_state_dict(weights_for({key: value.shape for key, value in net.state_dict().items()}))
    statistics = {key: value.clone() for key, value in net.named_buffers()}
    out = net(torch.randn(shape))
    assert out.shape == expected
    out.square().mean().backward()
    assert all(each.grad.abs().sum() > 0 for each in net.parameters())
    same = all(torch.equal(value, statistics[key]) for key, value in net.named_buffers())
    assert same == (name == "encoder")


def test_normalise():
    image = torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1)
    image = torch.cat((image, image + torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1)))
    torch.testing.assert_close(normalise(image), torch.stack((torch.zeros(3, 1, 1), torch.ones(3, 1, 1))))


SETUP = """
from cascade_studio.stages.nets.{name} import {kind}
net = {kind}()
def warm(): net(torch.zeros(1, {channels}, {side}, {side}))
"""


@pytest.mark.parametrize("name, shape", [("encoder", (2, 3, 384, 512)), ("previewer", (2, 16, 40, 32))])
def test_memory_estimate(name, shape):
    kind, side = NETS[name][0], 32 if name == "encoder" else 2
    setup = SETUP.format(name=name, kind=kind.__name__, channels=shape[1], side=side)
    used = measured_peak(setup, f"x = torch.rand{shape}", "net(x)")
    estimate = kind(device="meta").memory(shape, 4)
    assert abs(estimate / used - 1) <= 0.25, f"estimated {estimate / 2**20:.0f} MiB, used {used / 2**20:.0f} MiB"


def work(net: torch.nn.Module, *shapes: tuple[int, ...]) -> int:
    """Floating-point operations of one pass, counted without doing them."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        net(*(torch.empty(shape, device="meta") for shape in shapes))
    return counter.get_total_flops()


def test_a_live_preview_is_little_beside_a_lite_step():
    """A picture of 1024 px takes less than 2 % of the operations of one guided step of the 1B Stage C."""
    step = work(
        StageC(KINDS["stage_c"].published["1B"], device="meta"), (2, 16, 24, 24), (2,), (2, 77, 1280), (2, 1, 1280)
    )
    picture = work(Previewer(device="meta"), (1, 16, 24, 24))
    assert step > 10**12 and 0 < picture < 0.02 * step, picture / step
