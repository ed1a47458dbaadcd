"""ControlNets in the host: the right maps before the right ResBlocks, chains, time ranges, memory and errors."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import family as tiny_family
import pytest
import torch
from graphs import check_sentence
from recipe import weights_for
from reference_nets import host_net
from tiny import golden, index, tiny_net, tiny_weights
from world import Studio, changed, pure, relative

from cascade_studio.nodes.host.conditioning import controlnet as host_control
from cascade_studio.nodes.host.conditioning.control_chain import pick_control
from cascade_studio.nodes.host.conditioning.controlnet import CascadeControl
from cascade_studio.nodes.host.models.model import PriorConfig
from cascade_studio.nodes.host.models.nets import network_arguments
from cascade_studio.stages import from_file
from cascade_studio.stages.inputs.control_rules import BlockWeights
from cascade_studio.stages.nets.controlnet import ControlNetConfig

SEED, STEPS = 5, 3
STRONG = 4.0


@pytest.fixture(scope="module")
def nets(studio) -> dict[str, Any]:
    """The family's canny net (ResBlocks 0 and 3 of 4), and one of the identity layout that feeds ResBlock 1 alone."""
    config = {"c_in": 3, "c_proj": 128, "proj_blocks": [1], "bottleneck_mode": "simple"}
    marker = torch.tensor(list(json.dumps({"kind": "controlnet", "config": config}).encode()), dtype=torch.uint8)
    shapes = {
        "backbone.0.weight": (12, 3, 3, 3),
        "backbone.0.bias": (12,),
        "backbone.2.weight": (3, 12, 3, 3),
        "backbone.2.bias": (3,),
        "projections.0.0.weight": (3, 3, 1, 1),
        "projections.0.2.weight": (128, 3, 1, 1),
    }
    file = studio.write("controlnet/shallow", {**tiny_family.weights_for(shapes), tiny_family.MARKER: marker})
    return {"canny": load(studio, "canny.safetensors"), "shallow": load(studio, file)}


def load(studio: Studio, file: str, dtype: str = "fp32") -> CascadeControl:
    return studio.call("CascadeStudio_LoadControlNet", controlnet=file, dtype=dtype)


def picture(seed: int = 0, batch: int = 1) -> torch.Tensor:
    return torch.rand(batch, 48, 48, 3, generator=torch.Generator().manual_seed(seed))


def apply(
    studio: Studio,
    net: Any,
    image: torch.Tensor | None = None,
    before: Any = None,
    kind: str = "CascadeStudio_ApplyControl",
    **inputs: Any,
) -> dict[str, Any]:
    """Both prompts with ``net`` on them, behind the nets of ``before``."""
    given = {
        "control_net": net,
        "image": picture() if image is None else image,
        "strength": STRONG,
        **(before or studio.prompts),
        **inputs,
    }
    return dict(zip(("positive", "negative"), studio.call(kind, range(2), **given)))


def core_apply(studio: Studio, net: Any, image: torch.Tensor | None = None, before: Any = None, **inputs: Any) -> Any:
    return apply(studio, net, image, before, "ControlNetApplyAdvanced", **inputs)


class Recorder:
    """A clone of the prior that keeps the control maps of every call, by ResBlock."""

    def __init__(self, model: Any) -> None:
        from comfy.patcher_extension import WrappersMP

        self.calls: list[list[torch.Tensor | None] | None] = []
        self.model = model.clone()
        self.model.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "recorder", self.record)

    def record(self, executor, x, r, context, control, options, **conditions):
        maps = None if control is None else [None if each is None else each.clone() for each in control["input"][::-1]]
        self.calls.append(maps)
        return executor(x, r, context, control, options, **conditions)


def sample(studio: Studio, prompts: dict[str, Any], model: Any = None, batch: int = 1, **inputs: Any) -> torch.Tensor:
    given = {"seed": SEED, "steps": STEPS, **prompts, **inputs}
    return studio.sample_prior(studio.canvas(batch=batch)[0], model=model or studio.parts.prior, **given)["samples"]


def recorded(studio: Studio, prompts: dict[str, Any], **inputs: Any) -> list[Any]:
    recorder = Recorder(studio.parts.prior)
    sample(studio, prompts, recorder.model, **inputs)
    return recorder.calls


@pytest.fixture(scope="module")
def plain(studio) -> torch.Tensor:
    return sample(studio, studio.prompts)


# Effect and neutral settings


def test_effect(studio, nets, plain):
    """The hint and every setting matter."""
    steered = sample(studio, apply(studio, nets["canny"]))
    assert changed(steered, plain)
    others = {
        "image": {"image": picture(1)},
        "strength": {"strength": 2.0},
        "early": {"early": 0.2},
        "late": {"late": 0.2},
        "block_weights": {"block_weights": "0.1, 1"},
        "end": {"end_percent": 0.5},
    }
    for name, inputs in others.items():
        assert not torch.equal(sample(studio, apply(studio, nets["canny"], **inputs)), steered), name
    assert torch.equal(sample(studio, apply(studio, nets["canny"])), steered)


@pytest.mark.parametrize(
    "inputs", [{"strength": 0.0}, {"early": 0.0, "late": 0.0}, {"block_weights": "0"}, {"start_percent": 1.0}]
)
def test_neutral_settings_are_exact(studio, nets, plain, inputs):
    prompts = apply(studio, nets["canny"], **inputs)
    assert torch.equal(sample(studio, prompts), plain)
    if "strength" in inputs:
        assert "control" not in prompts["positive"][0][1]


@pytest.mark.parametrize("net", ["canny", "shallow"])
def test_core_apply_node_is_the_same(studio, nets, net):
    image = picture(2)
    ours, core = (node(studio, nets[net], image, start_percent=0.2, end_percent=0.9) for node in (apply, core_apply))
    assert torch.equal(sample(studio, ours), sample(studio, core))
    assert torch.equal(
        studio.core_sample(studio.parts.prior, studio.canvas()[0], **ours),
        studio.core_sample(studio.parts.prior, studio.canvas()[0], **core),
    )


# The right maps before the right ResBlocks


class Fixed:
    """A ControlNet that answers with the recorded maps of a golden."""

    def __init__(self, maps: dict[int, torch.Tensor]) -> None:
        width = next(iter(maps.values())).shape[1]
        self.config = ControlNetConfig(c_in=3, c_proj=width, proj_blocks=tuple(maps), bottleneck_mode="simple")
        self.found, self.dtype, self.calls = maps, torch.float32, 0

    def __call__(self, hint: torch.Tensor) -> dict[int, torch.Tensor]:
        self.calls += 1
        return self.found


def fixed(maps: dict[int, torch.Tensor], strength: float = 1.0, before: Any = None) -> CascadeControl:
    made = CascadeControl(SimpleNamespace(model=Fixed(maps)))
    return made.set_cond_hint(torch.rand(1, 3, 6, 5), strength).set_previous_controlnet(before)


@pytest.fixture(scope="module")
def stage_c(host) -> dict[str, Any]:
    """The golden Stage C as our model and as core's, and the golden itself."""
    net = tiny_net("stage_c_tiny")
    ours = PriorConfig(network_arguments(net.config, "c"))
    ours.set_inference_dtype(torch.float32, None)
    ours = ours.get_model({}, device=torch.device("cpu"))
    ours.diffusion_model.load_state_dict(tiny_weights("stage_c_tiny"))
    return {"ours": ours, "core": SimpleNamespace(diffusion_model=host_net(net)), "golden": golden("stage_c_tiny")}


def started(net: Any, model: Any) -> Any:
    """``net`` at the beginning of a run with ``model``."""
    net.pre_run(model, {0.0: 999.0, 1.0: 0.0}.__getitem__)
    return net


def host_call(model: Any, tensors: dict[str, torch.Tensor], control: Any) -> torch.Tensor:
    names = ("clip_text", "clip_text_pooled", "clip_img")
    return model.diffusion_model(
        tensors["x"], tensors["r"], control=control, transformer_options={}, **{name: tensors[name] for name in names}
    )


def control_of(net: Any, tensors: dict[str, torch.Tensor]) -> Any:
    return net.get_control(tensors["x"], torch.tensor([5.0]), {}, 1, {})


def golden_maps(tensors: dict[str, torch.Tensor]) -> dict[int, torch.Tensor]:
    return {int(name.removeprefix("control_")): value for name, value in tensors.items() if name.startswith("control_")}


@pytest.mark.parametrize("model", ["ours", "core"])
def test_golden_maps(monkeypatch, stage_c, model):
    """The official output with maps before ResBlocks 0, 1, 3 and 5 of 6: from one net, and from two of unequal depth.

    Core's network pops one entry for every ResBlock, so the list has to hold all of them.
    """
    import comfy.model_base

    tensors, model = stage_c["golden"], stage_c[model]
    if model is stage_c["core"]:
        monkeypatch.setattr(comfy.model_base, "StableCascade_C", SimpleNamespace)
    maps = golden_maps(tensors)
    assert set(maps) == {0, 1, 3, 5}
    deep, shallow = ({block: maps[block] for block in blocks} for blocks in ((1, 5), (0, 3)))
    one = started(fixed(maps), model)
    pairs = ((deep, shallow), (shallow, deep))
    chains = [one, *(started(fixed(last, before=fixed(first)), model) for last, first in pairs)]
    for chain in chains:
        control = control_of(chain, tensors)
        assert len(control["input"]) == 6
        out = host_call(model, tensors, control)
        assert relative(out, tensors["out_control"]) <= 5e-5
    assert changed(host_call(model, tensors, None), tensors["out_control"])
    again = [host_call(model, tensors, control_of(one, tensors)) for _ in range(2)]
    assert torch.equal(*again) and one.patcher.model.calls == 1, "maps are made once, and never changed"


@pytest.mark.parametrize("name", ["controlnet_canny", "controlnet_simple_tiny"])
def test_published_layouts_through_the_loader(studio, name):
    """The official outputs, from a file of the official layout in the host's layers."""
    tensors = golden(name)
    file = studio.write(f"controlnet/{name}", weights_for(index()[name]["keys"]))
    net = load(studio, file)
    core = studio.call("ControlNetLoader", control_net_name=file) if name == "controlnet_canny" else None
    (studio.models / "controlnet" / file).unlink()
    assert list(net.config.proj_blocks) == index()[name]["config"]["proj_blocks"]
    rows, columns = (side // net.config.cell for side in tensors["hint"].shape[2:])
    net.cond_hint_original = tensors["hint"]
    maps = net.maps(host_control.ControlRun(64), torch.zeros(1, 16, rows, columns))
    for block, values in maps.items():
        assert relative(values, tensors[f"out_{block}"]) <= 5e-5
    assert len(maps) == len(tensors) - 1
    if core is not None:  # what core's own loader makes of the file steers the same ResBlocks of our model alike
        core = core.copy().set_cond_hint(tensors["hint"])
        with torch.inference_mode():
            found = control_of(core, {"x": torch.zeros(1, 16, rows, columns)})
        found = host_control.align(found, 64)["input"][::-1]
        assert [block for block, values in enumerate(found) if values is not None] == list(maps)
        assert all(relative(found[block], values) <= 5e-5 for block, values in maps.items())


def test_official_run(studio, nets):
    """Our sampler gives what the pure networks give with the same maps for prompt and negative, times the strength."""
    image, strength = picture(6), 0.8
    result = sample(studio, apply(studio, nets["shallow"], image, strength=strength))
    net, hint = from_file(studio.models / "controlnet/shallow.safetensors"), image.movedim(-1, 1)
    with torch.inference_mode():
        maps = net(torch.nn.functional.interpolate(hint, (6, 6), mode="nearest-exact"))
    control = [None, strength * maps[1]]
    conds = [
        {"clip_text": text[0][0], "clip_text_pooled": text[0][1]["pooled_output"]}
        for text in (studio.positive, studio.negative)
    ]
    expected = pure(
        lambda x, r, **given: studio.nets["C"](x, r, **given, control=control),
        conds,
        (1, 16, 6, 6),
        [SEED],
        None,
        steps=STEPS,
        shift=2.0,
        cfg=4.0,
    )
    assert relative(result, expected) <= 1e-3 and changed(result, studio.pure_prior((1, 16, 6, 6), [SEED], steps=STEPS))


def test_strength_does_not_change_the_maps(stage_c):
    """The host multiplies by the strength in place; that must not reach the maps of the run."""
    tensors = stage_c["golden"]
    maps = golden_maps(tensors)
    before = {block: value.clone() for block, value in maps.items()}
    net = started(fixed(maps, strength=0.5), stage_c["ours"])
    for _ in range(2):
        found = control_of(net, tensors)["input"][::-1]
        assert all(torch.equal(found[block], 0.5 * before[block]) for block in before)
        assert [block for block, value in enumerate(found) if value is not None] == [0, 1, 3, 5]
    net.weights = BlockWeights(1.0, 2.0, (1.0, 0.0))
    found = control_of(net, tensors)["input"][::-1]
    assert torch.allclose(found[1], 0.5 * 0.8 * before[1]) and torch.allclose(found[3], 0.5 * 2 * 0.4 * before[3])
    assert found[5] is None


class CoreNet(torch.nn.Module):
    """What core's loader puts into a T2IAdapter: its own ControlNet class, here of the small layout."""

    def __init__(self, ours: Any) -> None:
        from comfy.ldm.cascade.controlnet import ControlNet

        super().__init__()
        self.net = ControlNet(c_in=3, c_proj=128, proj_blocks=list(ours.config.proj_blocks), bottleneck_mode="simple")
        self.net.load_state_dict(ours.state_dict())
        self.unshuffle_amount, self.input_channels, self.xl = 1, 3, False

    def forward(self, x: torch.Tensor) -> dict[str, Any]:
        return self.net(x)


def core_control(net: CascadeControl) -> Any:
    from comfy.controlnet import T2IAdapter

    return T2IAdapter(CoreNet(net.patcher.model), 3, 1, "nearest-exact", device=torch.device("cpu"))


def test_same_as_core_class(studio, nets):
    """The same weights in core's own classes, on our model: the same picture. Its list is short."""
    image = picture(3)
    ours, core = core_apply(studio, nets["shallow"], image), core_apply(studio, core_control(nets["shallow"]), image)
    results = [sample(studio, prompts) for prompts in (ours, core)]
    assert relative(results[0], results[1]) <= 1e-5


@pytest.mark.parametrize("node", [apply, core_apply])
def test_chains(studio, nets, node):
    """Nets of unequal depth, ours and core's, by our node and core's: every map before its own ResBlock."""
    image, other = picture(0), picture(4)
    alone = {
        name: recorded(studio, apply(studio, nets[name], hint))[0]
        for name, hint in (("canny", image), ("shallow", other))
    }
    assert [value is not None for value in alone["canny"]] == [True, False, False, True]
    assert [value is not None for value in alone["shallow"]] == [False, True, False, False]
    first = apply(studio, nets["canny"], image)
    second = node(studio, nets["shallow"], other, first)
    third = node(studio, nets["canny"], image, second, strength=STRONG / 2)
    core = apply(studio, nets["canny"], image, core_apply(studio, core_control(nets["shallow"]), other))
    after = core_apply(studio, core_control(nets["shallow"]), other, first)
    for prompts, factor in ((second, 1.0), (third, 1.5), (core, 1.0), (after, 1.0)):
        maps = recorded(studio, prompts)[0]
        assert len(maps) == 4 and maps[2] is None
        for block, name in ((0, "canny"), (3, "canny"), (1, "shallow")):
            expected = alone[name][block] * (factor if name == "canny" else 1.0)
            assert relative(maps[block], expected) <= 1e-5, (name, block)


# Time, batches and runs


def test_start_and_end(studio, nets):
    """Each net acts in its own part of the run."""
    model_sampling = studio.parts.prior.get_model_object("model_sampling")
    first = apply(studio, nets["canny"], end_percent=0.4)
    both = apply(studio, nets["shallow"], before=first, start_percent=0.6)
    calls = recorded(studio, both, steps=10, shift=model_sampling.shift)
    assert len(calls) == 10
    acting = [(maps is not None and maps[0] is not None, maps is not None and maps[1] is not None) for maps in calls]
    early, late = [a for a, _ in acting], [b for _, b in acting]
    assert early == sorted(early, reverse=True) and late == sorted(late)
    assert 3 <= sum(early) <= 5 and 3 <= sum(late) <= 5
    assert (False, False) in acting and (True, True) not in acting


def count_calls(net: CascadeControl) -> tuple[list[int], Any]:
    """Batch sizes of the hints that the network is called with from now on; and the handle that ends the counting."""
    sizes: list[int] = []
    handle = net.patcher.model.register_forward_pre_hook(lambda _, inputs: sizes.append(inputs[0].shape[0]))
    return sizes, handle


@torch.inference_mode()
def turn(weight: torch.Tensor) -> None:
    weight.neg_()


def test_maps_are_made_once_a_run(studio, nets):
    """Prompt and negative share them; the next run makes new ones, with the weights as they are then."""
    net = nets["canny"]
    prompts = apply(studio, net)
    sizes, handle = count_calls(net)
    results = [sample(studio, prompts) for _ in range(2)]
    assert sizes == [1, 1] and torch.equal(*results)
    assert prompts["positive"][0][1]["control"].run is None, "nothing is kept after a run"
    turn(net.patcher.model.projections[0][2].weight)
    assert changed(sample(studio, prompts), results[0])
    turn(net.patcher.model.projections[0][2].weight)
    assert torch.equal(sample(studio, prompts), results[0])
    handle.remove()
    assert sizes == [1] * 4


def test_nothing_stays_after_an_interrupt(studio, nets):
    """A run that the user stops leaves no maps behind, and the next one is right."""
    from comfy.patcher_extension import WrappersMP

    prompts, model = apply(studio, nets["canny"]), studio.parts.prior.clone()
    expected = sample(studio, prompts)

    def stop(executor, *arguments, **keywords):
        studio.host.interrupt()
        return executor(*arguments, **keywords)

    model.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "stop", stop)
    graph = studio.graph()
    run = {"model": model, "latent": studio.canvas()[0], "seed": SEED, "steps": STEPS}
    node = graph.add("CascadeStudio_SamplePrior", **run, **prompts)
    assert graph.execute(node[0]).interrupted
    assert prompts["positive"][0][1]["control"].run is None
    assert torch.equal(sample(studio, prompts), expected)


def test_a_hint_for_every_picture(monkeypatch, studio, nets):
    """Picture i of a batch follows hint i; also when the batch has to be made picture by picture."""
    from cascade_studio.nodes.host.sampling import sample as sampling

    hints = picture(7, batch=2)
    prompts = apply(studio, nets["shallow"], picture(8), apply(studio, nets["canny"], hints))
    batch = sample(studio, prompts, batch=2)
    alone = [
        sample(
            studio,
            apply(studio, nets["shallow"], picture(8), apply(studio, nets["canny"], hints[i : i + 1])),
            seed=SEED + i,
        )
        for i in range(2)
    ]
    assert relative(batch, torch.cat(alone)) <= 1e-4 and changed(batch[:1], alone[1])

    def fail(*arguments, **keywords):
        monkeypatch.setattr(sampling, "sample_batch", real)
        raise torch.cuda.OutOfMemoryError("no memory")

    real = sampling.sample_batch
    monkeypatch.setattr(sampling, "sample_batch", fail)
    assert relative(sample(studio, prompts, batch=2), batch) <= 1e-4
    assert prompts["positive"][0][1]["control"].cond_hint_original.shape[0] == 1
    one = apply(studio, nets["canny"])["positive"][0][1]["control"]
    assert pick_control(one, 1) is one


def test_other_grids(studio, nets):
    """The hint is cut to the middle and scaled to the grid that is sampled, whatever size it has."""
    wide = studio.canvas(384, 256)[0]
    image = torch.rand(1, 70, 130, 3, generator=torch.Generator().manual_seed(0))
    recorder = Recorder(studio.parts.prior)
    studio.sample_prior(wide, model=recorder.model, steps=1, **apply(studio, nets["canny"], image))
    assert recorder.calls[0][0].shape[2:] == wide["samples"].shape[2:]


# Memory and devices


def test_memory_is_counted(monkeypatch, studio, nets):
    import comfy.model_management as management

    asked = []
    real = management.load_models_gpu
    monkeypatch.setattr(
        management,
        "load_models_gpu",
        lambda models, memory_required=0, **more: (
            asked.append((models, memory_required)) or real(models, memory_required=memory_required, **more)
        ),
    )
    image = torch.rand(1, 800, 1024, 3)
    before = sample(studio, studio.prompts), asked.pop()[1]
    prompts = apply(studio, nets["canny"], image)
    sample(studio, prompts)
    models, needed = asked.pop()
    assert nets["canny"].patcher in models
    own = nets["canny"].patcher.model.memory(1, 800 * 1024, 4)
    control = prompts["positive"][0][1]["control"]
    assert control.inference_memory_requirements(torch.float32) == own > 10 * 2**20
    assert needed - before[1] >= own
    chain = apply(studio, nets["shallow"], before=prompts)["positive"][0][1]["control"]
    assert chain.inference_memory_requirements(torch.float32) > own
    counted = chain.get_models()
    assert len(counted) == 2 and counted[0] is nets["canny"].patcher and counted[1] is nets["shallow"].patcher
    assert control.patcher is nets["canny"].patcher, "copies share the weights"


def test_a_second_copy_of_the_weights(studio, nets):
    """Hosts that need a model twice (other device, no streaming) load its file again."""
    net = nets["canny"]
    factory, arguments = net.patcher.cached_patcher_init
    again = factory(*arguments, disable_dynamic=True)
    own = net.patcher.model.state_dict()
    assert again.model is not net.patcher.model and list(own) == list(again.model.state_dict())
    assert all(torch.equal(own[key], value) for key, value in again.model.state_dict().items())
    if hasattr(net, "multigpu_clones"):
        control = apply(studio, net)["positive"][0][1]["control"]
        clone = control.deepclone_multigpu(torch.device("cpu"), autoregister=True)
        assert clone.patcher.model is not net.patcher.model and control.multigpu_clones == {torch.device("cpu"): clone}
        assert clone.strength == STRONG and torch.equal(clone.cond_hint_original, control.cond_hint_original)
        assert control.get_models() == [clone.patcher, net.patcher]


@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
def test_dtypes(studio, nets, dtype):
    net = load(studio, "canny.safetensors", dtype)
    assert net.patcher.model.projections[0][0].weight.dtype == {"bf16": torch.bfloat16, "fp16": torch.float16}[dtype]
    result, expected = (sample(studio, apply(studio, each)) for each in (net, nets["canny"]))
    assert relative(result, expected) < 0.05 and not torch.equal(result, expected)


# Core's model, Stage B, and what does not fit


def test_our_net_on_a_core_model(studio, nets):
    """Core's model with the same weights gives what ours gives."""
    import comfy.model_patcher
    from comfy.supported_models import Stable_Cascade_C
    from reference_nets import host_config

    weights = tiny_family.stage_c_weights()
    rows = len(weights["clip_img_mapper.weight"])
    weights["clip_img_mapper.weight"] = tiny_family.tensor_for("clip_img", (rows, 768))
    weights = tiny_family.split(weights)
    ours = studio.load("prior", studio.write("diffusion_models/control_pair", weights))
    config = host_config(ours.model.diffusion_model.config)
    made = Stable_Cascade_C({**config, "stable_cascade_stage": "c"})
    made.set_inference_dtype(torch.float32, None)
    model = made.get_model({}, "", device=torch.device("cpu"))
    model.diffusion_model.load_state_dict(weights)
    cpu = torch.device("cpu")
    core = comfy.model_patcher.CoreModelPatcher(model, load_device=cpu, offload_device=cpu)
    chain = apply(studio, nets["shallow"], before=apply(studio, nets["canny"]))
    results = [sample(studio, chain, each) for each in (ours, core)]
    assert relative(*results) <= 1e-4 and changed(results[1], sample(studio, studio.prompts, core))


def test_stage_b_is_left_alone(studio, nets):
    """Officially no ControlNet acts on Stage B: it is not even loaded for it, nor in the way."""
    prompts = apply(studio, nets["canny"])
    given = {"prior": studio.prior_latent, "steps": 1}
    assert torch.equal(studio.sample_decoder(**given, **prompts)["samples"], studio.sample_decoder(**given)["samples"])
    decoder, latent = studio.decoder_prompts(**prompts)
    assert "control" not in decoder["positive"][0][1] and "control" in prompts["positive"][0][1]
    held = {
        name: [[text, {**extra, "control": prompts["positive"][0][1]["control"]}] for text, extra in each]
        for name, each in decoder.items()
    }
    results = [studio.core_sample(studio.parts.decoder, latent, steps=1, **each) for each in (decoder, held)]
    assert torch.equal(*results)


def refused(studio: Studio, kind: str, **inputs: Any) -> str:
    graph = studio.graph()
    return graph.error(graph.add(kind, **inputs)[0])


def test_errors(studio, nets):
    prompts, canny, image = studio.prompts, nets["canny"], picture()
    given = {**prompts, "control_net": canny, "image": image}
    four = torch.rand(1, 32, 32, 4)
    for kind in ("CascadeStudio_ApplyControl", "ControlNetApplyAdvanced"):
        text = refused(studio, kind, **{**given, "image": four})
        check_sentence(text, "4 channels", "canny ControlNet", "Canny Hint")
    apply_node = "CascadeStudio_ApplyControl"
    check_sentence(refused(studio, apply_node, **given, start_percent=0.6, end_percent=0.2), "0.6", "0.2", "never act")
    check_sentence(refused(studio, apply_node, **given, block_weights="1, a lot"), "1, a lot", "commas")
    core = {**given, "control_net": core_control(nets["shallow"]), "early": 0.5}
    check_sentence(refused(studio, apply_node, **core), "another loader", "Load Cascade ControlNet")
    loader = "CascadeStudio_LoadControlNet"
    check_sentence(refused(studio, loader, controlnet="absent.safetensors"), "absent.safetensors", "models/controlnet")
    studio.write("controlnet/wrong", tiny_family.previewer_weights())
    check_sentence(refused(studio, loader, controlnet="wrong.safetensors"), "Previewer", "ControlNet")


def test_models_that_do_not_fit(studio, nets):
    """A Stage C of another width, and a model of another kind."""
    import comfy.model_base

    narrow = {"proj_blocks": (0,), "c_proj": 64, "c_in": 3, "bottleneck_mode": "simple"}
    net = CascadeControl(SimpleNamespace(model=SimpleNamespace(config=ControlNetConfig(**narrow), dtype=torch.float32)))
    prior = studio.parts.prior.model
    for changes, words in (
        ({}, ("64 channels", "128 wide", "full Stage C")),
        ({"c_proj": 128, "proj_blocks": (0, 4)}, ("ResBlock 4", "has 4")),
    ):
        net.patcher.model.config = ControlNetConfig(**{**narrow, **changes})
        with pytest.raises(ValueError) as caught:
            net.pre_run(prior, float)
        check_sentence(str(caught.value), *words)
    with pytest.raises(ValueError) as caught:
        net.pre_run(comfy.model_base.BaseModel.__new__(comfy.model_base.BaseModel), float)
    check_sentence(str(caught.value), "BaseModel model", "Stage C")
