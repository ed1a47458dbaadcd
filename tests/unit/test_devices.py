"""What runs on a device uses no operation that it lacks: a table, and the flows dispatched on a pretended one."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny import NETS, index
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

from cascade_studio.stages.attention.layers import NO_CHANGES, Changes, LayeredHooks, TokenLayer
from cascade_studio.stages.attention.regions import Layout, RegionLayer
from cascade_studio.stages.attention.tiles import TILES, PieceHooks, Tiling, run_in_tiles
from cascade_studio.stages.attention.windows import WindowLayer
from cascade_studio.stages.inputs.resize import crop_prior
from cascade_studio.stages.nets import portable
from cascade_studio.stages.nets.backend import torch_attention
from cascade_studio.stages.nets.encoder import EncoderConfig, ImageEncoder
from cascade_studio.stages.nets.previewer import Previewer, PreviewerConfig
from cascade_studio.stages.nets.stage_a import StageA, StageAConfig


def is_wide(args: tuple, outs: list) -> bool:
    return any(each.dtype == torch.float64 for each in outs)


def repeats_borders(args: tuple, outs: list) -> bool:
    return args[3] == 1


def does_not_divide(args: tuple, outs: list) -> bool:
    return any(old % new and new % old for old, new in zip(args[0].shape[-2:], args[1], strict=True))


def is_brain(args: tuple, outs: list) -> bool:
    return any(each.dtype == torch.bfloat16 for each in outs)


LACKING: dict[str, dict[str, Any]] = {
    "mps": {"": is_wide, "grid_sampler_2d": repeats_borders, "_adaptive_avg_pool2d": does_not_divide},
    "xpu": {"": is_wide},  # Arc
    # DirectML publishes no list: neither bf16 nor float64 is asked of it, and what moves pixels goes by products.
    "privateuseone": {
        "": lambda args, outs: is_wide(args, outs) or is_brain(args, outs),
        "grid_sampler_2d": repeats_borders,
        "_adaptive_avg_pool2d": does_not_divide,
    },
}
"""By device and operation ("" is any): whether a call with these arguments is one that the device refuses."""


PRETENDED = "cuda"
"""What FakeTensor can pretend without PyTorch for the device itself."""


class Refusing(TorchDispatchMode):
    """Raises where ``device`` would, of which the pretended one plays the part."""

    def __init__(self, device: str):
        super().__init__()
        self.device = device

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        out = func(*args, **(kwargs or {}))
        tensors = [each for each in tree_flatten((args, kwargs, out))[0] if isinstance(each, torch.Tensor)]
        if any(each.device.type == PRETENDED for each in tensors):
            name = func._schema.name.split("::")[1]
            outs = [each for each in tree_flatten(out)[0] if isinstance(each, torch.Tensor)]
            for operation, refuses in LACKING[self.device].items():
                if operation in ("", name) and refuses(args, outs):
                    raise NotImplementedError(f"{self.device} has no {name} of these arguments")
        return out


def build_on(device: str, name: str) -> torch.nn.Module:
    """A network of the goldens without its weights, on a device that is not there."""
    kind, config = NETS[name]
    with torch.device(device):
        return kind(config(**index()[name]["config"]), dtype=torch.float16).requires_grad_(False)


def run_stage_c(device: str) -> None:
    net = build_on(device, "stage_c_tiny")
    config = net.config
    weights = torch.rand(1, 3, 12, 10, device=device)
    layers = (
        WindowLayer(5),
        TokenLayer(torch.rand(1, 14, device=device)),
        RegionLayer(weights, Layout((7, 7), config.c_clip_seq)),
    )
    given = {
        "x": torch.empty(1, 16, 9, 11, device=device, dtype=torch.float16),
        "r": torch.rand(1, device=device),
        "clip_text": torch.empty(1, 14, config.c_clip_text, device=device, dtype=torch.float16),
        "clip_text_pooled": torch.empty(1, 2, config.c_clip_text_pooled, device=device, dtype=torch.float16),
    }
    net(**given, control=[torch.empty(1, config.c_hidden[0], 6, 5, device=device)])
    net(**given, hooks=LayeredHooks(Changes(layers), torch_attention))


def run_stage_b(device: str) -> None:
    net = build_on(device, "stage_b_tiny")
    x = torch.empty(1, 4, 94, 118, device=device, dtype=torch.float16)
    prior = torch.empty(1, 16, 9, 11, device=device, dtype=torch.float16)
    clip = torch.empty(1, 1, net.config.c_clip, device=device, dtype=torch.float16)

    def call(parts: torch.Tensor, priors: torch.Tensor, count: int, changes: Changes) -> torch.Tensor:
        hooks = LayeredHooks(changes, torch_attention)
        return net(parts, torch.rand(len(parts), device=device), priors, clip, None, None, hooks)

    call(x, prior, 1, NO_CHANGES)
    call(x, prior, 1, Changes(blocks=PieceHooks(20_000)))
    run_in_tiles(call, x, prior, Tiling(TILES, 64, 16), 16, 8)
    crop_prior(prior, (94, 118), (40, 30, 20, 10), 8)


def run_small_nets(device: str) -> None:
    for kind, config, call, shape in (
        (StageA, StageAConfig(c_hidden=32, bottleneck_blocks=2, codebook_size=8), "decode", (2, 4, 9, 7)),
        (StageA, StageAConfig(c_hidden=32, bottleneck_blocks=2, codebook_size=8), "encode", (1, 3, 36, 28)),
        (ImageEncoder, EncoderConfig(), "forward", (1, 3, 96, 64)),
        (Previewer, PreviewerConfig(), "forward", (1, 16, 9, 7)),
    ):
        with torch.device(device):
            net = kind(config, dtype=torch.float16).requires_grad_(False)
        getattr(net, call)(torch.empty(shape, device=device, dtype=torch.float16))
    portable.average_areas(torch.empty(1, 16, 90, 77, device=device), (64, 54))


FLOWS = {"Stage C": run_stage_c, "Stage B": run_stage_b, "the others": run_small_nets}


@pytest.mark.parametrize("flow", FLOWS)
@pytest.mark.parametrize("device", LACKING)
def test_flows_use_what_the_device_has(device, flow, monkeypatch):
    monkeypatch.setattr(portable, "WIDE", ("cpu",))
    monkeypatch.setattr(portable, "LACKING", (PRETENDED,) if device in portable.LACKING else ())
    with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad(), Refusing(device):
        FLOWS[flow](PRETENDED)


def test_the_table_refuses_what_the_devices_refuse():
    with FakeTensorMode(), Refusing("mps"):
        x = torch.empty(1, 3, 10, 10, device=PRETENDED)
        for work in (
            x.double,
            lambda: F.interpolate(x, (7, 7), mode="area"),
            lambda: F.grid_sample(
                x, torch.empty(1, 4, 4, 2, device=PRETENDED), padding_mode="border", align_corners=True
            ),
        ):
            with pytest.raises(NotImplementedError, match="mps has no"):
                work()
        F.interpolate(x, (5, 5), mode="area")


@pytest.mark.parametrize("size", [(64, 54), (9, 7), (1, 77), (90, 20), (180, 77)])
def test_areas_by_products(size):
    x = torch.rand(2, 3, 90, 77)
    torch.testing.assert_close(portable.average_by_products(x, size), F.interpolate(x, size=size, mode="area"))


def test_lines_by_gathering():
    x = torch.randn(3, 2, 7, 5)
    rows, columns = torch.rand(3, 11) * 9 - 1, torch.rand(1, 6) * 7 - 1
    torch.testing.assert_close(
        portable.sample_by_gathering(x, rows, columns), portable.sample_lines(x, rows, columns), atol=1e-5, rtol=1e-5
    )
    one = torch.randn(1, 2, 1, 1)
    assert torch.equal(portable.sample_by_gathering(one, rows[:1], columns), one.expand(1, 2, 11, 6))
