"""The blocks of the U: shapes, gradients, attention, and that they compile without a break."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from tiny import golden, relative, tiny_net
from torch import Tensor, nn
from torch.nn import functional as F

from cascade_studio.stages.nets.backend import TORCH, torch_attention
from cascade_studio.stages.nets.blocks import GlobalResponseNorm, Mixer, ResBlock, channel_lengths, timestep_embedding
from cascade_studio.stages.nets.channels_last import convolve, run_linear
from cascade_studio.stages.nets.hooks import BlockHooks, Place
from cascade_studio.stages.nets.scaled import STREAM_SCALE, activate, run_scaled
from cascade_studio.stages.training.frozen_net import FROZEN
from training.mini.nets import small_attention

INPUTS = {
    "stage_c_tiny": ("x", "r", "clip_text", "clip_text_pooled", "clip_img", "sca", "crp"),
    "stage_b_tiny": ("x", "r", "effnet", "clip", "pixels", "sca"),
}
NAMES = tuple(INPUTS)


def inputs(name: str, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    tensors = golden(name)
    return {
        key: tensors[key] if key in ("r", "sca", "crp") else tensors[key].to(dtype)
        for key in INPUTS[name]
        if key in tensors
    }


@pytest.mark.parametrize("width", [64, 33])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_timestep_embedding(width, dtype):
    r = torch.tensor([0.0, 0.25, 0.9936], dtype=dtype)
    half = width // 2
    frequencies = [10000 ** (1 - i / (half - 1)) for i in range(half)]
    angles = [[level * frequency for frequency in frequencies] for level in r.tolist()]
    expected = [[*map(math.sin, row), *map(math.cos, row), *[0.0] * (width % 2)] for row in angles]
    given = timestep_embedding(r, width)
    assert given.dtype == torch.float32
    assert torch.allclose(given.double(), torch.tensor(expected, dtype=torch.float64), atol=2e-3)


@pytest.mark.parametrize("shape", [(2, 3, 5, 8), (1, 70, 65, 512)])
def test_global_response_norm(shape):
    torch.manual_seed(0)
    norm = GlobalResponseNorm(shape[-1])
    nn.init.normal_(norm.gamma), nn.init.normal_(norm.beta)
    x = torch.randn(shape)
    g = x.double().square().sum((1, 2), keepdim=True).sqrt()
    expected = norm.gamma * (x * (g / (g.mean(-1, keepdim=True) + 1e-6))) + norm.beta + x
    before = x.clone()
    assert relative(norm(x), expected.detach()) < 1e-5
    assert torch.equal(x, before)
    with torch.no_grad():
        assert relative(norm(x), expected) < 1e-5


@pytest.mark.parametrize(
    "shape, dtype, tolerance", [((70, 6, 6, 64), torch.float32, 1e-5), ((2, 3, 5, 8), torch.bfloat16, 0.02)]
)
def test_the_response_norm_has_the_gradients_of_its_formula(shape, dtype, tolerance, monkeypatch):
    """In pieces of few samples, the last of them smaller, with a channel that is zero."""
    monkeypatch.setattr("cascade_studio.stages.nets.response.TRAINING_TILE", 3 * shape[1] * shape[2] * shape[3])
    torch.manual_seed(0)
    norm = GlobalResponseNorm(shape[-1])
    nn.init.normal_(norm.gamma), nn.init.normal_(norm.beta)
    x, weigh = torch.randn(shape).to(dtype), torch.randn(shape).to(dtype)
    x[..., 1] = 0
    x.requires_grad_()
    given = torch.autograd.grad((norm(x).float() * weigh.float()).sum(), [x, norm.gamma, norm.beta])
    wide = [value.detach().double().requires_grad_() for value in (x, norm.gamma, norm.beta)]
    g = (wide[0].square().sum((1, 2), keepdim=True) + 1e-30).sqrt()
    formula = wide[1] * (wide[0] * (g / (g.mean(-1, keepdim=True) + 1e-6))) + wide[2] + wide[0]
    expected = torch.autograd.grad((formula * weigh.double()).sum(), wide)
    assert given[0].dtype == dtype
    assert all(relative(mine, its) < tolerance for mine, its in zip(given, expected))


def test_lengths_have_the_gradient_of_a_norm_and_none_at_zero():
    x = torch.randn(2, 5, 4, 6)
    x[..., 3] = 0
    ours, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
    weigh = torch.randn(2, 1, 1, 6)
    (channel_lengths(ours) * weigh).sum().backward()
    (torch.linalg.vector_norm(theirs, dim=(1, 2), keepdim=True) * weigh).sum().backward()
    assert torch.allclose(ours.grad, theirs.grad, rtol=1e-5, atol=1e-7)
    assert not ours.grad[..., 3].any()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_lengths_of_small_dtypes_are_summed_in_float32(dtype):
    x = torch.full((2, 64, 64, 300), 2048.0, dtype=dtype)
    with torch.no_grad():
        assert torch.equal(channel_lengths(x), torch.full((2, 1, 1, 300), 2048.0 * 64))
    assert torch.equal(channel_lengths(x), torch.full((2, 1, 1, 300), 2048.0 * 64))


LAYERS = {"linear": nn.Linear(8, 8), "depthwise": nn.Conv2d(8, 8, 3, padding=1, groups=8)}


@pytest.mark.parametrize("lent", [True, False])
@pytest.mark.parametrize("name", LAYERS)
def test_layers_on_a_scaled_stream(name, lent):
    """Of a small and a huge value with the precision of float16, the bias included; infinities stay visible."""
    torch.manual_seed(0)
    layer = copy.deepcopy(LAYERS[name]).half()
    backend = TORCH if lent else replace(TORCH, lend_weights=lambda layer, like: None)
    true = torch.randn(3, 4, 4, 8) * torch.tensor([1.0, 1e6, math.inf]).view(3, 1, 1, 1)
    held = (true * STREAM_SCALE).half()
    with torch.no_grad():
        how = convolve if name == "depthwise" else run_linear
        given = run_scaled(layer, held, STREAM_SCALE, backend, how)
        run = (lambda x: convolve(layer.float(), x)) if name == "depthwise" else layer.float()
        expected = run(true)
    assert given.dtype == torch.float16
    assert all(relative(given[i].float() / STREAM_SCALE, expected[i]) < 4e-3 for i in (0, 1))
    assert not given[2].isfinite().any()
    with torch.no_grad():
        assert torch.equal(run_scaled(layer, true[:1], 1.0, backend, how), run(true[:1])), "nothing is scaled"


@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-5), (torch.float16, 2e-3)])
def test_gelu_of_a_scaled_value(dtype, tolerance):
    true = torch.cat([torch.linspace(-12, 12, 400), torch.tensor([3e5, -3e5])]).view(-1, 1, 1, 3)
    expected = F.gelu(true)
    held = (true * STREAM_SCALE).to(dtype)
    for given in (activate(held, STREAM_SCALE).detach(), torch.no_grad()(activate)(held.clone(), STREAM_SCALE)):
        assert given.dtype == dtype
        assert torch.allclose(given.float() / STREAM_SCALE, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-5), (torch.bfloat16, 0.05), (torch.float16, 0.006)])
@pytest.mark.parametrize("scale", [1.0, STREAM_SCALE])
def test_the_response_norm_in_the_weights(dtype, tolerance, scale):
    """Folded, general and what the formula says are one; a layer that something was hung on is called."""
    torch.manual_seed(0)
    mixer = Mixer(6, 4, dtype, None, TORCH)
    for each in (*mixer.parameters(),):
        nn.init.normal_(each, std=0.5)
    x = torch.randn(2, 5, 3, 6)
    exact = copy.deepcopy(mixer).double()
    expected = exact(x.double()).detach().float()
    with torch.no_grad():
        folded = mixer((x * scale).to(dtype), scale).float() / scale
        assert relative(folded, expected) < tolerance
        seen = []
        mixer[4].register_forward_hook(lambda module, given, out: seen.append(out))
        general = mixer((x * scale).to(dtype), scale).float() / scale
    assert seen and relative(general, expected) < tolerance


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype, tolerance", [(torch.bfloat16, 0.02), (torch.float16, 0.003)])
def test_small_dtypes(name, dtype, tolerance):
    expected = tiny_net(name)(**inputs(name))
    given = tiny_net(name, dtype)(**inputs(name, dtype))
    assert given.dtype == dtype
    assert ((given.float() - expected).std() / expected.std()) < tolerance


@pytest.mark.parametrize("name", NAMES)
def test_residuals_beyond_float16(name):
    net, half = tiny_net(name), tiny_net(name, torch.float16)
    for each in (net, half):
        for key, weight in each.named_parameters():
            if ".channelwise.4." in key or ".out_proj." in key:
                weight.mul_(1000)
    peaks, added = [], []
    for module in net.modules():
        if isinstance(module, ResBlock):
            module.register_forward_hook(lambda module, given, out: peaks.append(out.abs().max()))
            if module.channelwise[0].in_features == module.depthwise.in_channels:
                module.channelwise.register_forward_hook(lambda module, given, out: added.append(out.abs().max()))
    expected = net(**inputs(name))
    given = half(**inputs(name, torch.float16))
    assert max(peaks) > 2 * 65504 and max(added) < 65504
    assert ((given.float() - expected).std() / expected.std()) < 0.01
    for key, weight in half.named_parameters():
        if ".out_proj." in key:
            weight.fill_(60000)
    assert not half(**inputs(name, torch.float16)).isfinite().all()


class Recorder(BlockHooks):
    def __init__(self):
        self.calls: list[tuple] = []

    def note(self, kind: str, place: Place, *tensors: Tensor | None) -> None:
        self.calls.append((kind, place, *(None if each is None else tuple(each.shape) for each in tensors)))

    def input_block(self, place, x):
        self.note("input", place, x)
        return x

    def middle_block(self, place, x):
        self.note("middle", place, x)
        return x

    def output_block(self, place, x, skip):
        self.note("output", place, x, skip)
        return x, skip

    def attention(self, place, q, k, v, n_self):
        self.note("attention", place, q, k, v)
        assert n_self == q.shape[1]
        return torch_attention(q, k, v, place.heads)


def denoise(name: str, hooks: BlockHooks, **changes) -> Tensor:
    given = inputs(name)
    return tiny_net(name, **changes)(**given, hooks=hooks)


def test_hooks_see_every_group_in_order():
    hooks = Recorder()
    net_out = tiny_net("stage_c_tiny", block_repeat=((2, 1), (1, 2)))(**inputs("stage_c_tiny"))
    assert relative(denoise("stage_c_tiny", hooks, block_repeat=((2, 1), (1, 2))), net_out) < 1e-5
    x, tokens = (2, 128, 12, 10), [(2, 120, 128), (2, 205, 128), (2, 205, 128)]
    blocks = [call for call in hooks.calls if call[0] != "attention"]
    assert blocks == [
        *(("input", Place("input", n), x) for n in range(3)),
        ("middle", Place("middle", 0), x),
        *(("output", Place("output", n), x, x if n in (2, 3) else None) for n in range(4)),
    ]
    places = [call[1][:2] for call in blocks]
    assert [call[1:] for call in hooks.calls if call[0] == "attention"] == [
        (Place(*place, layer=0, heads=2, grid=x[2:]), *tokens) for place in places
    ]


def test_hooks_count_the_attentions_of_a_group():
    hooks = Recorder()
    denoise("stage_b_tiny", hooks, level_config=("CT", "CT", "CTA", "CTAA"))
    places = [call[1] for call in hooks.calls if call[0] == "attention"]
    assert [place for place in places if place.kind == "middle"] == [
        Place("middle", 0, layer, heads=2, grid=(2, 1)) for layer in (0, 1)
    ]
    skips = [call for call in hooks.calls if call[0] == "output" and call[3] is not None]
    assert [call[2] for call in skips] == [call[3] for call in skips]
    assert [call[2][2:] for call in skips] == [(4, 3)] * 3 + [(9, 7)] * 2 + [(18, 14)] * 2


def change_block(name: str) -> Callable:
    def changed(self, place, x, skip=None):
        return (x * 1.5, skip) if name == "output_block" else x * 1.5

    return changed


ACTS = {
    **{
        name: change_block(name)
        for name in ("input_block", "input_block_after_skip", "middle_block", "output_block", "attention_output")
    },
    "attention_tokens": lambda self, place, own, cond: (own, (own.flip(0), own), (cond, cond * 2)),
    "attention": lambda self, place, q, k, v, n_self: v[:, :n_self] if place[:2] == ("middle", 0) else None,
}


@pytest.mark.parametrize("name", NAMES)
def test_block_hooks_see_true_values_in_float16(name):
    """What a patch adds to the stream counts the same in every format, and so does a control map."""

    class Adds(BlockHooks):
        def input_block(self, place, x):
            return x + 3.0

        def output_block(self, place, x, skip):
            return x - 1.0, None if skip is None else skip + 2.0

    control = {"control": [torch.full((1, 128, 6, 5), 4.0)]} if name == "stage_c_tiny" else {}
    wide = tiny_net(name)(**inputs(name), **control, hooks=Adds())
    half = tiny_net(name, torch.float16)(**inputs(name, torch.float16), **control, hooks=Adds())
    assert relative(wide, tiny_net(name)(**inputs(name))) > 0.05
    assert ((half.float() - wide).std() / wide.std()) < 0.004


@pytest.mark.parametrize("name, hook", [*(("stage_c_tiny", hook) for hook in ACTS), ("stage_b_tiny", "output_block")])
def test_every_hook_acts(name, hook):
    given = denoise(name, type("Hooks", (BlockHooks,), {hook: ACTS[hook]})())
    assert given.isfinite().all()
    assert relative(given, tiny_net(name)(**inputs(name))) > 0.01


def test_own_tokens_may_be_extended():
    class Twice(BlockHooks):
        def attention_tokens(self, place, own, cond):
            return own, (torch.cat([own, own], dim=1),) * 2, (cond, cond)

        def attention(self, place, q, k, v, n_self):
            assert n_self == 2 * q.shape[1] and k.shape[1] == n_self + 85

    denoise("stage_c_tiny", Twice())


@pytest.mark.parametrize("name", NAMES)
def test_options_reach_the_attention_and_inputs_stay(name):
    seen = []

    def attention(q, k, v, heads, options=None, mask=None):
        seen.append(options)
        return torch_attention(q, k, v, heads)

    net = tiny_net(name)
    given = inputs(name)
    before = {key: value.clone() for key, value in given.items()}
    lent = type(net)(net.config, backend=replace(TORCH, attention=attention))
    lent.load_state_dict(net.state_dict())
    with torch.inference_mode():
        lent(**given, hooks=BlockHooks("options"))
    assert set(seen) == {"options"}
    assert all(torch.equal(given[key], value) for key, value in before.items())


@pytest.mark.parametrize("name", NAMES)
def test_linear_layers_see_two_or_three_axes(name):
    """The host's products of 8 bits take no more."""
    seen = set()

    class Linear(nn.Linear):
        def forward(self, x):
            seen.add(x.dim())
            return super().forward(x)

    net = tiny_net(name)
    lent = type(net)(net.config, backend=replace(TORCH, Linear=Linear))
    lent.load_state_dict(net.state_dict())
    with torch.inference_mode():
        assert relative(lent(**inputs(name)), net(**inputs(name))) < 1e-5
    assert seen <= {2, 3}


ATTENTIONS = {"torch": torch_attention, "LoRA training": FROZEN.attention, "training of Mini": small_attention}


@pytest.mark.parametrize("attend", ATTENTIONS.values(), ids=ATTENTIONS)
def test_every_attention_keeps_the_contract(attend):
    """The host's own is held to the same in tests/host/test_net_parity.py."""
    torch.manual_seed(0)
    q, k, v = torch.randn(2, 6, 16), torch.randn(2, 9, 16), torch.randn(2, 9, 16)
    mask = torch.randn(2, 6, 9)
    mask[:, :, 4] = -30000
    for bias in (None, mask):
        expected = F.scaled_dot_product_attention(
            *(x.unflatten(-1, (2, 8)).transpose(1, 2) for x in (q, k, v)), None if bias is None else bias[:, None]
        )
        for options in (None, {"any": 1}):
            given = attend(q, k, v, 2, options, mask=bias)
            assert relative(given, expected.transpose(1, 2).flatten(2)) < 1e-5


@pytest.mark.parametrize("name", NAMES)
def test_gradients_reach_every_weight_in_use(name):
    net = tiny_net(name).requires_grad_(True)
    given = inputs(name)
    net(**given).square().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() and p.grad.any() for p in net.parameters())
    with torch.no_grad():
        assert relative(net(**given), net(**given)) < 1e-6


SMALL = {
    "stage_c_tiny": {"blocks": ((1, 1), (1, 1)), "c_hidden": (64, 64), "nhead": (1, 1), "c_cond": 64},
    "stage_b_tiny": {
        "blocks": ((1, 1), (1, 1)),
        "c_hidden": (32, 64),
        "nhead": (-1, 1),
        "c_cond": 64,
        "level_config": ("CT", "CTA"),
        "block_repeat": ((1, 1), (2, 1)),
    },
}
ONE_LEVEL = {
    "blocks": ((1,), (1,)),
    "block_repeat": ((1,), (1,)),
    "c_hidden": (64,),
    "nhead": (1,),
    "c_cond": 64,
    "level_config": ("CTA",),
}


@pytest.mark.slow
@pytest.mark.parametrize(
    "name, dtype, backend, controlled",
    [
        ("stage_c_tiny", torch.float32, "inductor", False),
        ("stage_b_tiny", torch.float32, "inductor", False),
        ("stage_c_tiny", torch.float32, "eager", True),
        ("stage_c_tiny", torch.float16, "eager", False),
        ("stage_b_tiny", torch.bfloat16, "eager", False),
    ],
)
def test_compiles_without_graph_breaks(name, dtype, backend, controlled):
    torch._dynamo.reset()
    net = tiny_net(name, dtype, **(ONE_LEVEL if backend == "inductor" else SMALL[name]))
    given = inputs(name, dtype)
    if controlled:
        given["control"] = [None, torch.randn(2, 64, 6, 5, dtype=dtype)]
    with torch.inference_mode():
        compiled = torch.compile(net, fullgraph=True, backend=backend)
        assert relative(compiled(**given), net(**given)) < (1e-4 if dtype == torch.float32 else 0.05)
