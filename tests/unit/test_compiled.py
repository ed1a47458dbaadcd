"""Blocks through PyTorch's compiler: two graphs for everything, and a plain way where there is no compiler."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from tiny import relative, tiny_net

from cascade_studio.stages.nets import compiled
from cascade_studio.stages.nets.backend import TORCH, Weights
from cascade_studio.stages.nets.compiled import BlockCompiler
from cascade_studio.stages.nets.hooks import BlockHooks

NETS = ("stage_c_tiny", "stage_b_tiny")
SIZES = ((1, 8, 8), (2, 8, 16), (3, 16, 8), (2, 24, 24), (1, 8, 24))
CLOSE = {torch.float32: 1e-5, torch.bfloat16: 0.1, torch.float16: 0.01}  # the narrow ones round elsewhere


class Graphs:
    """A backend that runs what it is given as it is, and counts."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, graph: torch.fx.GraphModule, example_inputs: list) -> object:
        self.count += 1
        return graph.forward


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    torch._dynamo.reset()
    compiled.compile_function.cache_clear()
    yield
    torch._dynamo.reset()


def given_to(net: torch.nn.Module, size: tuple[int, int, int], dtype: torch.dtype, seed: int = 0) -> dict:
    batch, height, width = size
    draw = torch.Generator().manual_seed(seed)

    def noise(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=draw).to(dtype)

    config, r = net.config, torch.rand(batch, generator=draw)
    if config.c_in == 4:
        return {
            "x": noise(batch, 4, 2 * height, 2 * width),
            "r": r,
            "effnet": noise(batch, 16, 5, 6),
            "clip": noise(batch, config.c_clip),
        }
    return {
        "x": noise(batch, 16, height, width),
        "r": r,
        "clip_text": noise(batch, 7 + seed, config.c_clip_text),
        "clip_text_pooled": noise(batch, config.c_clip_text_pooled),
    }


class OneBuffer:
    """Lends all layers from one buffer, as a host that streams weights does, and writes nonsense into it when asked."""

    def __init__(self) -> None:
        self.buffer = torch.zeros(1 << 18)

    def lend(self, layer: torch.nn.Module, like: torch.Tensor) -> Weights:
        self.buffer.fill_(1e3)
        size = layer.weight.numel()
        weight = self.buffer[:size].view_as(layer.weight).copy_(layer.weight)
        bias = self.buffer[size : size + layer.bias.numel()].copy_(layer.bias)
        return Weights(weight, bias, shared=True)


@pytest.mark.parametrize("name", NETS)
def test_streamed_weights_are_not_written_over_before_their_use(name):
    plain, graphs = tiny_net(name), Graphs()
    net = type(plain)(plain.config, backend=replace(TORCH, lend_weights=OneBuffer().lend)).requires_grad_(False)
    net.load_state_dict(plain.state_dict())
    given = given_to(net, SIZES[1], torch.float32)
    with torch.inference_mode():
        found = net(**given, hooks=BlockHooks(compiler=BlockCompiler(graphs)))
        assert relative(found, plain(**given)) < 1e-5
        assert relative(net(**given), plain(**given)) < 1e-5, "a pass alone has no two layers at once either"
    assert graphs.count == 2


@pytest.mark.parametrize("dtype", CLOSE, ids=lambda dtype: str(dtype).removeprefix("torch."))
def test_two_graphs_for_all_widths_sizes_prompts_and_weights(dtype):
    """Both networks, pictures of several shapes and numbers, and weights that are changed as the host changes them."""
    graphs = Graphs()
    hooks = BlockHooks(compiler=BlockCompiler(graphs))
    with torch.inference_mode():
        for name in NETS:
            net = tiny_net(name, dtype)
            for seed, size in enumerate(SIZES):
                given = given_to(net, size, dtype, seed)
                assert relative(net(**given, hooks=hooks), net(**given)) < CLOSE[dtype]
                if seed == 2:  # a LoRA in place, and one that replaced the parameter's tensor
                    for layer in (block for block in net.modules() if hasattr(block, "channelwise")):
                        layer.channelwise[0].weight.mul_(1.1)
                        layer.channelwise[4].weight = torch.nn.Parameter(
                            layer.channelwise[4].weight * 0.9, requires_grad=False
                        )
    assert graphs.count == 2


def test_all_formats_of_a_long_session_are_compiled():
    """PyTorch stops at a number of graphs that several networks in several formats exceed."""
    graphs = Graphs()
    hooks = BlockHooks(compiler=BlockCompiler(graphs))
    with torch.inference_mode(), torch._dynamo.config.patch(recompile_limit=1):
        for dtype, close in CLOSE.items():
            net = tiny_net("stage_c_tiny", dtype)
            given = given_to(net, SIZES[1], dtype)
            assert relative(net(**given, hooks=hooks), net(**given)) < close
        other = {**given, "x": given["x"].transpose(2, 3).contiguous().transpose(2, 3)}
        assert relative(net(**other, hooks=hooks), net(**other)) < close, "in the last format, with other strides"
    assert graphs.count >= 2 * len(CLOSE) and hooks.compiler.works_on(torch.device("cpu"))


def test_a_graph_that_fails_later_ends_no_run(monkeypatch, caplog):
    hooks, net = BlockHooks(compiler=BlockCompiler(Graphs())), tiny_net("stage_b_tiny")
    given = given_to(net, SIZES[1], torch.float32)

    def exceed(*tensors: torch.Tensor) -> torch.Tensor:
        raise torch._dynamo.exc.FailOnRecompileLimitHit("too many graphs")

    with torch.inference_mode(), caplog.at_level(logging.WARNING):
        expected = net(**given, hooks=hooks)
        monkeypatch.setattr(compiled, "compile_function", lambda backend: exceed)
        for _ in range(2):
            assert relative(net(**given, hooks=hooks), expected) <= CLOSE[torch.float32]
    (told,) = caplog.records
    assert "too many graphs" in told.getMessage()


@pytest.mark.soak
def test_the_compiler_writes_the_same():
    """PyTorch's own compiler, where there is one for the processor; it takes a minute of one core."""
    if obstacle := compiled.find_obstacle(torch.device("cpu")):
        pytest.skip(obstacle)
    hooks = BlockHooks(compiler=BlockCompiler())
    net = tiny_net("stage_c_tiny")
    with torch.inference_mode():
        for size in SIZES[1:3]:
            given = given_to(net, size, torch.float32)
            assert relative(net(**given, hooks=hooks), net(**given)) < 1e-5
    assert len(hooks.compiler.ready) == 2


def broken(graph: torch.fx.GraphModule, example_inputs: list) -> object:
    raise RuntimeError("no such compiler")


def test_a_compiler_that_fails_is_told_once(caplog):
    """And the picture is what it is without, but for rounding: with a compiler no block writes over the stream."""
    hooks = BlockHooks(compiler=BlockCompiler(broken))
    net = tiny_net("stage_b_tiny")
    given = given_to(net, SIZES[1], torch.float32)
    with torch.inference_mode(), caplog.at_level(logging.WARNING):
        expected = net(**given)
        for _ in range(2):
            assert relative(net(**given, hooks=hooks), expected) <= CLOSE[torch.float32]
    (told,) = caplog.records
    assert "no such compiler" in told.getMessage()


@pytest.mark.parametrize("kind", ["mps", "privateuseone"])
def test_devices_without_a_compiler(kind):
    assert kind in compiled.find_obstacle(torch.device(kind))


def test_a_card_without_triton(monkeypatch):
    monkeypatch.setattr("torch.utils._triton.has_triton", lambda: False)
    assert "Triton" in compiled.find_obstacle(torch.device("cuda"))


def test_what_cannot_be_lent_runs_as_it_is():
    """A layer whose forward was replaced, as another node may do."""
    graphs = Graphs()
    hooks = BlockHooks(compiler=BlockCompiler(graphs))
    net = tiny_net("stage_c_tiny")
    given = given_to(net, SIZES[1], torch.float32)
    with torch.inference_mode():
        plain = net(**given)
        for block in (block for block in net.modules() if hasattr(block, "channelwise")):
            layer = block.channelwise[0]
            real = layer.forward
            layer.forward = lambda x, real=real: 1.5 * real(x)
        changed = net(**given)
        assert relative(net(**given, hooks=hooks), changed) <= CLOSE[torch.float32]
    assert graphs.count == 0 and relative(changed, plain) > 0.01


def test_gradients_go_through_the_layers():
    graphs = Graphs()
    net = tiny_net("stage_c_tiny").requires_grad_(True)
    net(**given_to(net, SIZES[0], torch.float32), hooks=BlockHooks(compiler=BlockCompiler(graphs))).sum().backward()
    assert graphs.count == 0 and all(parameter.grad is not None for parameter in net.clf.parameters())
