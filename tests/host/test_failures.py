"""What happens when a run goes wrong half-way: NaN from a model, no memory left, an interrupt. The next run works."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from graphs import Graph, check_sentence
from world import Parts, check_works

KSAMPLER = {"seed": 0, "steps": 3, "cfg": 2.0, "sampler_name": "euler", "scheduler": "simple"}
STAGE_C, STAGE_B = "CascadeStudio_SamplePrior", "CascadeStudio_SampleDecoder"
STAGES = pytest.mark.parametrize("stage", ["C", "B"])
SAMPLERS = pytest.mark.parametrize("sampler", ["ours", "KSampler", "SamplerCustomAdvanced"])


@pytest.fixture(autouse=True)
def next_run_works(host: Any, parts: Parts) -> Iterator[None]:
    """Whatever a test does wrong, the run after it gives what the first one gave."""
    yield
    check_works(host)


def noise(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def sampling(
    host: Any, parts: Parts, stage: str, sampler: str = "ours", model: Any = None, batch: int = 1, **more: Any
) -> tuple[Graph, list[Any]]:
    """A prompt of three steps that runs one stage by one of the samplers, and the output that holds its latent."""
    graph = Graph(host)
    model = model or (parts.prior if stage == "C" else parts.decoder)
    shape = (batch, 16, 3, 3) if stage == "C" else (batch, 4, 32, 32)
    if sampler == "ours":
        codes = (
            {"latent": {"samples": torch.zeros(shape)}}
            if stage == "C"
            else {"prior": {"samples": noise(batch, 16, 3, 3)}}
        )
        kind = STAGE_C if stage == "C" else STAGE_B
        return graph, graph.add(kind, **{"model": model, "steps": 3, **parts.prompts, **codes, **more})[0]
    latent = {"samples": torch.zeros(shape)}
    if sampler == "KSampler":
        return graph, graph.add(sampler, model=model, latent_image=latent, **parts.prompts, **KSAMPLER)[0]
    node = graph.add(
        "SamplerCustomAdvanced",
        latent_image=latent,
        noise=graph.add("RandomNoise", noise_seed=0)[0],
        guider=graph.add("CascadeStudio_Guider", model=model, **parts.prompts)[0],
        sampler=graph.add("CascadeStudio_Sampler")[0],
        sigmas=graph.add("CascadeStudio_Schedule", model=model, steps=3)[0],
    )
    return graph, node[0]


def net_of(parts: Parts, stage: str) -> Any:
    return (parts.prior if stage == "C" else parts.decoder).model.diffusion_model


# NaN and infinity


def poisoned(patcher: Any, key: str, value: float) -> Any:
    """A clone whose weight ``key`` is ``value``, by a patch as a damaged LoRA would be."""
    clone = patcher.clone()
    weight = patcher.model.state_dict()[key]
    assert clone.add_patches({key: ("diff", (torch.full(weight.shape, value),))}, 1.0) == [key]
    return clone


@STAGES
@SAMPLERS
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_bad_values_from_a_model(host, parts, stage, sampler, value):
    model = poisoned(parts.prior if stage == "C" else parts.decoder, "diffusion_model.clf.1.bias", value)
    graph, output = sampling(host, parts, stage, sampler, model)
    text = graph.error(output)
    check_sentence(text, f"Stage {stage}", "NaN or infinite", "float32", "LoRA")
    assert "with dtype fp32" not in text, "it runs in fp32 already"


@pytest.mark.parametrize(
    "dtype, words",
    [
        (torch.float16, ("float16", "dtype bf16 or fp32")),
        (torch.bfloat16, ("bfloat16", "dtype fp32")),
        (torch.float32, ("float32", "Lower the strength of LoRAs")),
    ],
)
def test_advice_follows_the_dtype(host, dtype, words):
    """The processor computes in fp32 whatever the file holds, so the sentence itself is asked."""
    from cascade_studio.nodes.host.models.model import check_finite
    from cascade_studio.stages.errors import BadValues

    with pytest.raises(BadValues) as caught:
        check_finite(torch.tensor([1.0, float("inf")]), "Stage B", dtype)
    check_sentence(str(caught.value), "Stage B produced NaN or infinite", *words)


PICTURE = torch.rand(1, 64, 64, 3, generator=torch.Generator().manual_seed(0))
CODERS = [
    (
        "CascadeStudio_DecodeStageA",
        "stage_a",
        "out_block.0.bias",
        {"latent": {"samples": noise(1, 4, 16, 16)}},
        "Stage A",
    ),
    ("CascadeStudio_EncodeStageA", "stage_a", "in_block.1.bias", {"image": PICTURE}, "Stage A"),
    ("CascadeStudio_EncodeImage", "stage_c_vae", "encoder.mapper.0.weight", {"image": PICTURE}, "image encoder"),
    (
        "CascadeStudio_DecodePreview",
        "stage_c_vae",
        "previewer.blocks.24.bias",
        {"prior": {"samples": noise(1, 16, 3, 3)}},
        "Previewer",
    ),
]


@pytest.mark.parametrize("kind, vae, key, inputs, name", CODERS)
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_bad_values_from_a_vae(host, parts, kind, vae, key, inputs, name, value):
    broken = poisoned_vae(getattr(parts, vae), key, value)
    graph = Graph(host)
    text = graph.error(graph.add(kind, vae=broken, **inputs)[0])
    check_sentence(text, name, "produced NaN or infinite", "float32", "download")


@pytest.mark.parametrize("kind", ["ours", "VAEDecode", "VAEDecodeTiled"])
def test_bad_values_in_a_latent(host, parts, kind):
    latent = {"samples": noise(1, 4, 16, 16) * float("nan")}
    graph = Graph(host)
    node = (
        graph.add("CascadeStudio_DecodeStageA", latent=latent, vae=parts.stage_a)
        if kind == "ours"
        else graph.add(kind, samples=latent, vae=parts.stage_a)
    )
    check_sentence(graph.error(node[0]), "Stage A was given NaN", "node before", "dtype")


def poisoned_vae(vae: Any, key: str, value: float) -> Any:
    import copy

    other = copy.copy(vae)
    other.patcher = poisoned(vae.patcher, key, value)
    return other


# Out of memory

ERRORS = [
    torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB"),
    MemoryError(),
    RuntimeError("[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory: you tried to"),
]
EVERY_ERROR = pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)


def refuse_above(layer: torch.nn.Module, most: int, error: Exception, size: Callable[[torch.Tensor], int] = len) -> Any:
    """Make a layer run out of memory above a size; ``asked`` of what it returns lists the sizes."""
    asked: list[int] = []

    def before(module: Any, args: tuple[torch.Tensor, ...]) -> None:
        asked.append(size(args[0]))
        if asked[-1] > most:
            raise error

    handle = layer.register_forward_pre_hook(before)
    handle.asked = asked
    return handle


def test_memory_of_the_processor_that_runs_out_is_told_as_torch_tells_it(host):
    from cascade_studio.nodes.host.out_of_memory import is_out_of_memory

    with pytest.raises(RuntimeError) as told:
        torch.empty(1 << 50)
    assert is_out_of_memory(told.value) and not is_out_of_memory(RuntimeError("shapes differ"))


@STAGES
@EVERY_ERROR
def test_batch_that_does_not_fit_is_sampled_picture_by_picture(host, parts, stage, error):
    more = {"seed": 5, "denoise": 0.8}
    if stage == "C":
        mask = torch.ones(2, 1, 3, 3)
        mask[1, :, 0] = 0
        more["latent"] = {"samples": noise(2, 16, 3, 3), "noise_mask": mask, "batch_index": [4, 9]}
    else:
        more["latent"] = {"samples": noise(2, 4, 32, 32)}
    graph, output = sampling(host, parts, stage, batch=2, **more)
    expected = graph.run(output)["samples"]
    with refuse_above(net_of(parts, stage), 2, error) as short:
        given = graph.run(output)["samples"]
    assert short.asked == [4] + [2] * 6
    assert (given - expected).abs().max() <= 1e-5 * expected.std()
    assert (expected[0] - expected[1]).abs().max() > 0.1


@STAGES
@EVERY_ERROR
@pytest.mark.parametrize("batch", [1, 2])
def test_not_even_one_picture_fits(host, parts, stage, error, batch):
    graph, output = sampling(host, parts, stage, batch=batch)
    grid = "3x3" if stage == "C" else "32x32"
    with refuse_above(net_of(parts, stage), 0, error):
        text = graph.error(output)
    check_sentence(text, f"Stage {stage} ran out of memory", grid, "Lower", "lite model")


def widest(x: torch.Tensor) -> int:
    return max(x.shape[-2:])


@EVERY_ERROR
def test_picture_that_does_not_fit_is_decoded_in_tiles(host, parts, error):
    graph = Graph(host)
    output = graph.add("CascadeStudio_DecodeStageA", latent={"samples": noise(1, 4, 96, 128)}, vae=parts.stage_a)[0]
    expected = graph.run(output)
    with refuse_above(parts.stage_a.first_stage_model.up_blocks[0], 100, error, widest) as short:
        given = graph.run(output)
    assert short.asked[0] == 128 and len(short.asked) > 2 and max(short.asked[1:]) <= 100
    assert given.shape == (1, 384, 512, 3) and (given - expected).abs().max() <= 1e-5


@EVERY_ERROR
@pytest.mark.parametrize("tile_size", [0, 64])
def test_not_even_a_tile_fits(host, parts, error, tile_size):
    graph = Graph(host)
    latent = {"samples": noise(1, 4, 32, 48)}
    node = graph.add("CascadeStudio_DecodeStageA", latent=latent, vae=parts.stage_a, tile_size=tile_size)
    with refuse_above(parts.stage_a.first_stage_model.up_blocks[0], 0, error):
        text = graph.error(node[0])
    check_sentence(text, "Stage A", "192x128", "tiles", "ran out of memory", "smaller picture", "vae_device")


@EVERY_ERROR
@pytest.mark.parametrize(
    "kind, vae, layer, inputs, name",
    [
        ("CascadeStudio_EncodeStageA", "stage_a", "in_block", {"image": PICTURE}, "Stage A"),
        ("CascadeStudio_EncodeImage", "stage_c_vae", "encoder.backbone", {"image": PICTURE}, "image encoder"),
        (
            "CascadeStudio_DecodePreview",
            "stage_c_vae",
            "previewer.blocks",
            {"prior": {"samples": noise(1, 16, 3, 3)}},
            "Previewer",
        ),
    ],
)
def test_no_memory_for_another_coder(host, parts, error, kind, vae, layer, inputs, name):
    graph = Graph(host)
    node = graph.add(kind, vae=getattr(parts, vae), **inputs)
    with refuse_above(getattr(parts, vae).first_stage_model.get_submodule(layer), 0, error):
        text = graph.error(node[0])
    check_sentence(text, name, "ran out of memory", "smaller picture", "vae_device")


# Interrupts


def interrupt_at(layer: torch.nn.Module, host: Any, call: int) -> Any:
    """Press Cancel during call number ``call`` of a layer; ``calls`` of what it returns lists its batch sizes."""
    calls: list[int] = []

    def before(module: Any, args: tuple[torch.Tensor, ...]) -> None:
        calls.append(len(args[0]))
        if len(calls) == call:
            host.interrupt()

    handle = layer.register_forward_pre_hook(before)
    handle.calls = calls
    return handle


@STAGES
@SAMPLERS
def test_interrupt_in_a_sampler(host, parts, stage, sampler):
    graph, output = sampling(host, parts, stage, sampler)
    with interrupt_at(net_of(parts, stage), host, 2) as pressed:
        result = graph.execute(output)
        assert result.interrupted and not result.success and len(pressed.calls) == 2
        result = graph.execute(output)
        assert result.success and len(pressed.calls) == 5
        assert result.progress[-1][1:] == (3, 3), "the steps were not shown"


def test_interrupt_while_sampling_picture_by_picture(host, parts):
    net = net_of(parts, "C")
    graph, output = sampling(host, parts, "C", batch=2)
    with interrupt_at(net, host, 3) as pressed, refuse_above(net, 2, ERRORS[0]):
        result = graph.execute(output)
    assert result.interrupted and pressed.calls == [4, 2, 2]


@pytest.mark.parametrize(
    "kind, inputs",
    [
        ("CascadeStudio_DecodeStageA", {"latent": {"samples": noise(1, 4, 64, 64)}, "tile_size": 64}),
        ("VAEDecodeTiled", {"samples": {"samples": noise(1, 4, 160, 160)}, "tile_size": 64}),
    ],
    ids=["ours", "core"],
)
def test_interrupt_in_a_tiled_decode(host, parts, kind, inputs):
    graph = Graph(host)
    output = graph.add(kind, vae=parts.stage_a, **inputs)[0]
    with interrupt_at(parts.stage_a.first_stage_model.up_blocks[0], host, 2) as pressed:
        result = graph.execute(output)
        assert result.interrupted and len(pressed.calls) == 2
        assert graph.execute(output).success and len(pressed.calls) > 4
