"""Stage A against the official outputs, its radius, its codebook, its gradients and its memory."""

from __future__ import annotations

import pytest
import torch
from measured import measured_peak
from recipe import weights_for
from tiny import TOLERANCE, golden, index, relative

from cascade_studio.stages.errors import WrongInput
from cascade_studio.stages.nets import stage_a
from cascade_studio.stages.nets.backend import Backend
from cascade_studio.stages.nets.stage_a import StageA, StageAConfig
from cascade_studio.stages.nets.stage_a_blocks import Bands

NARROW = StageAConfig(c_hidden=16, codebook_size=64)


@pytest.fixture(scope="module")
def published() -> StageA:
    net = StageA()
    net.load_state_dict(weights_for(index()["stage_a"]["keys"]))
    return net.requires_grad_(False)


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def narrow(config: StageAConfig = NARROW, dtype: torch.dtype = torch.float32, **changes) -> StageA:
    net = StageA(config, dtype=dtype, **changes)
    net.load_state_dict(weights_for({key: value.shape for key, value in net.state_dict().items()}, dtype))
    return net


def test_keys():
    keys = {key: list(value.shape) for key, value in StageA(device="meta").state_dict().items()}
    assert keys == index()["stage_a"]["keys"] and len(keys) == 122


@pytest.mark.parametrize("grad", [False, True], ids=["bands", "graph"])
def test_goldens(published, grad):
    tensors = golden("stage_a")
    with torch.set_grad_enabled(grad):
        assert relative(published.encode(tensors["image"]), tensors["out_encode"]) <= TOLERANCE
        assert relative(published.decode(tensors["latent"]), tensors["out_decode"]) <= TOLERANCE


@pytest.mark.parametrize("whole", [0, 20_000, 10**9], ids=["rows", "both", "whole"])
@pytest.mark.parametrize("levels, band", [(1, 20_000), (2, 1), (2, 20_000), (3, 50_000)])
def test_bands_equal_the_plain_network(monkeypatch, levels, band, whole):
    """Rows at a time as on a processor, and pictures together with whole convolutions as on a card."""
    net = narrow(StageAConfig(levels=levels, bottleneck_blocks=3, c_hidden=16, codebook_size=8))
    latent, image = torch.randn(2, 4, 35, 9), torch.rand(2, 3, 35 * 2**levels, 9 * 2**levels)
    given = latent.clone(), image.clone()
    with torch.enable_grad():
        plain = net.decode(latent).detach(), net.encode(image).detach()
    monkeypatch.setattr(stage_a, "choose_bands", lambda device: Bands(band, whole, band))
    with torch.inference_mode():
        assert relative(net.decode(latent), plain[0]) <= 1e-5
        assert relative(net.encode(image), plain[1]) <= 1e-5
    assert torch.equal(given[0], latent) and torch.equal(given[1], image)


@pytest.mark.parametrize("grad", [False, True], ids=["bands", "graph"])
def test_radius(grad):
    """NaN spreads to exactly what depends on it: 13 cells around a latent, 2 cells around a cell of pixels."""
    net = narrow()
    assert (net.config.decode_margin, net.config.head_margin, net.config.encode_margin) == (13, 1, 2)
    latent, image = torch.zeros(1, 4, 40, 33), torch.zeros(1, 3, 40, 48)
    latent[0, 0, 18, 16] = float("nan")
    image[:, :, 20:24, 16:20] = float("nan")
    with torch.set_grad_enabled(grad):
        rows, columns = net.decode(latent)[0, 0].isnan().nonzero(as_tuple=True)
        assert (rows.min(), rows.max() + 1) == (4 * (18 - 13), 4 * (18 + 14))
        assert (columns.min(), columns.max() + 1) == (4 * (16 - 13), 4 * (16 + 14))
        rows, columns = net.encode(image)[0, 0].isnan().nonzero(as_tuple=True)
        assert (rows.min(), rows.max()) == (5 - 2, 5 + 2) and (columns.min(), columns.max()) == (4 - 2, 4 + 2)


@pytest.mark.parametrize("dtype, tolerance", [(torch.bfloat16, 0.15), (torch.float16, 0.02)])
def test_low_precision(dtype, tolerance):
    net, low = narrow(), narrow(dtype=dtype)
    latent, image = torch.randn(1, 4, 16, 12), torch.rand(1, 3, 64, 48)
    with torch.inference_mode():
        for given, expected in (
            (low.decode(latent.to(dtype)), net.decode(latent)),
            (low.encode(image.to(dtype)), net.encode(image)),
        ):
            assert given.dtype == dtype and relative(given, expected) <= tolerance


def test_gradients_reach_everything():
    net = narrow(StageAConfig(bottleneck_blocks=2, c_hidden=16, codebook_size=64)).train()
    image = torch.rand(2, 3, 32, 32, requires_grad=True)
    found = net.quantize(net.encode(image))
    (net.decode(found.vectors).square().mean() + found.loss).backward()
    assert image.grad.abs().sum() > 0
    assert [name for name, each in net.named_parameters() if each.grad is None or not each.grad.abs().sum() > 0] == []


def test_codebook(published):
    codes = index()["stage_a"]["keys"]["vquantizer.codebook.weight"]
    codes = weights_for({"vquantizer.codebook.weight": codes})["vquantizer.codebook.weight"]
    wanted = torch.randint(8192, (2, 5, 7))
    latent = published.vquantizer.lookup(wanted) / 0.43
    assert torch.equal(latent * 0.43, codes[wanted].permute(0, 3, 1, 2) / 0.43 * 0.43)
    found = published.quantize(latent + 1e-4)
    assert torch.equal(
        found.indices,
        torch.cdist(latent.permute(0, 2, 3, 1).reshape(-1, 4) * 0.43 + 0.43e-4, codes).argmin(1).view(2, 5, 7),
    )
    torch.testing.assert_close(found.vectors, published.vquantizer.lookup(found.indices) / 0.43, atol=1e-5, rtol=0)
    far = published.quantize(latent + 3)
    distance = (far.vectors - latent - 3).square().mean() * 0.43**2
    torch.testing.assert_close(far.loss, 1.25 * distance, rtol=1e-4, atol=0)


def test_weights_are_read_through_layers_and_cast_alone():
    """Whatever holds its weights elsewhere works: here every parameter is stored in another dtype."""
    cast = []

    def record(parameter, like):
        cast.append(parameter.shape)
        return parameter.to(like.dtype)

    class Linear(torch.nn.Linear):
        def forward(self, x):
            return torch.nn.functional.linear(x, self.weight.to(x.dtype), self.bias.to(x.dtype))

    ours = StageAConfig(bottleneck_blocks=2, c_hidden=16, codebook_size=8)
    net = narrow(ours)
    stored = narrow(ours, backend=Backend(Linear=Linear, cast=record))
    for module in stored.modules():
        if isinstance(module, (Linear, stage_a.StageAResBlock)):
            for parameter in module.parameters(recurse=False):
                parameter.data = parameter.data.double()
    latent = torch.randn(1, 4, 8, 8)
    with torch.inference_mode():
        assert relative(stored.decode(latent), net.decode(latent)) <= 1e-5
    assert cast == [(6,)] * 3


@pytest.mark.parametrize(
    "call, shape, words",
    [
        ("decode", (1, 16, 24, 24), "Stage B"),
        ("decode", (4, 24, 24), "batch"),
        ("encode", (1, 4, 64, 64), "alpha"),
        ("encode", (1, 3, 66, 64), "multiples of 4"),
    ],
)
def test_wrong_input(call, shape, words):
    with pytest.raises(WrongInput, match=words):
        getattr(narrow(), call)(torch.zeros(shape))


SETUP = """
from cascade_studio.stages.nets.stage_a import StageA, StageAConfig
net = StageA(StageAConfig(bottleneck_blocks=1))
for each in net.parameters(): torch.nn.init.normal_(each, std=0.02)
def warm(): net.decode(torch.zeros(1, 4, 4, 4)), net.encode(torch.zeros(1, 3, 16, 16))
"""


@pytest.mark.parametrize(
    "call, shape, tile",
    [
        ("decode", (1, 4, 128, 128), None),
        ("decode", (1, 4, 200, 256), None),
        ("encode", (1, 3, 384, 512), None),
        ("encode", (1, 3, 768, 640), None),
        ("decode_tiled", (1, 4, 200, 200), 128),
    ],
)
def test_memory_estimate(call, shape, tile):
    net = StageA(StageAConfig(bottleneck_blocks=1), device="meta")
    tiled = {} if tile is None else {"tile": tile}
    estimate = getattr(net, "decode_memory_tiled" if tile else f"{call}_memory")(shape, 4, **tiled)
    used = measured_peak(SETUP, f"x = torch.rand{shape}", f"net.{call}(x, **{tiled})")
    assert abs(estimate / used - 1) <= 0.25, f"estimated {estimate / 2**20:.0f} MiB, used {used / 2**20:.0f} MiB"


def test_memory_of_a_large_picture():
    net = StageA(device="meta")
    assert net.decode_memory((1, 4, 1024, 1024), 4) < 3 * 2**30
    assert net.decode_memory_tiled((1, 4, 1024, 1024), 4, net.decode_tile(2**29, 4)) < 2**30
    assert net.decode_memory((1, 4, net.decode_tile(2**29, 4), net.decode_tile(2**29, 4)), 4) <= 2**29
