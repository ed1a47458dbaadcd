"""UltraPixel: the guide nets, the guided Stage C and the two runs, against records of the published code."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from recipe import weights_for
from tiny import TOLERANCE, golden, index, relative, split_qkv

from cascade_studio.stages.attention.guide import FeatureRecorder, GuideHooks, choose_up_gain, find_guided_groups
from cascade_studio.stages.diffusion import sampling as d
from cascade_studio.stages.errors import WrongFile, WrongInput
from cascade_studio.stages.files.guide import derive_guide_config, map_guide_keys, name_guide_tensors
from cascade_studio.stages.files.identify import identify
from cascade_studio.stages.files.load import from_file, from_state_dict
from cascade_studio.stages.nets.blocks import timestep_embedding
from cascade_studio.stages.nets.guide import GuideConfig, GuideNet, encode_grid
from cascade_studio.stages.nets.hooks import NO_HOOKS
from cascade_studio.stages.nets.stage_c import StageC, StageCConfig

CONDITIONS = ("clip_text", "clip_text_pooled", "clip_img")


def one_net(name: str) -> GuideNet:
    """The single guide net of a record, which names it as the first of four."""
    weights = weights_for(index()[name]["keys"])
    weights = {key.replace("module.64.0", "agg_net.0"): value for key, value in weights.items()}
    net = GuideNet(derive_guide_config({key: tuple(value.shape) for key, value in weights.items()}))
    net.load_state_dict({key.removeprefix("agg_net.0."): value for key, value in name_guide_tensors(weights).items()})
    return net.eval().requires_grad_(False)


@pytest.mark.parametrize("name", ["ultrapixel_guide_tiny", "ultrapixel_guide"])
def test_a_guide_net_is_the_published_one(name):
    net, record = one_net(name), golden(name)
    for kind in ("", "_wide", "_tiny") if name.endswith("tiny") else ("",):
        target, time = record[f"target{kind}"], timestep_embedding(record[f"r{kind}"], 64)
        features, size = record[f"features{kind}"], target.shape[2:]
        if f"out{kind}_upsampled" in record:
            assert relative(net.upsample(features, size), record[f"out{kind}_upsampled"]) <= TOLERANCE
        assert relative(net(target, net.read_features(features, size), time), record[f"out{kind}"]) <= TOLERANCE


def test_the_encoding_of_a_grid():
    record, config = golden("ultrapixel_encoding"), index()["ultrapixel_encoding"]["config"]
    for height, width in config["sizes"]:
        for rounded, kind in ((False, ""), (True, "_bf16")):
            ours = encode_grid(height, width, rounded=rounded).view(height, width, -1)
            step = config["stride"] if height * width >= 100 else 1
            expected = record[f"encoding_{height}x{width}{kind}"]
            assert torch.equal(ours[::step, ::step].reshape(expected.shape).to(expected.dtype), expected)


@cache
def model():
    """The recorded small Stage C with its four guide nets."""
    entry = index()["ultrapixel_stage_c"]
    config = StageCConfig(**{key: value for key, value in entry["config"].items() if key != "guide"})
    net = StageC(config)
    net.load_state_dict(split_qkv(weights_for(entry["stage_c_keys"])))
    return net.eval().requires_grad_(False), from_state_dict(weights_for(entry["keys"]), expect="ultrapixel")


def guide_from(features, size, strength: float = 1.0) -> GuideHooks:
    net, nets = model()
    read = [each.read_features(maps, size) for each, maps in zip(nets.nets(), features, strict=True)]
    return GuideHooks(net.config, nets.nets(), read, strength)


def kept(record):
    """Conditional rows of the recorded maps, which serve both halves."""
    maps = [record[f"out_{way}_{i}"] for way in ("enc", "dec") for i in range(2)]
    rows = maps[0].shape[0] // 2 if maps[0].shape[0] == 4 else maps[0].shape[0]
    return tuple(each[:rows] for each in maps)


def test_features_and_the_guided_network():
    record, (net, _) = golden("ultrapixel_stage_c"), model()
    given = [record[name] for name in CONDITIONS]
    recorder = FeatureRecorder(net.config)
    assert relative(net(record["x_lr"], record["r_lr"], *given, hooks=recorder), record["out_lr"]) <= TOLERANCE
    names = [f"out_{way}_{i}" for way in ("enc", "dec") for i in range(2)]
    for name, ours in zip(names, recorder.features, strict=True):
        assert relative(ours, record[name]) <= TOLERANCE
    hooks = guide_from(kept(record), record["x"].shape[2:])
    assert relative(net(record["x"], record["r"], *given, hooks=hooks), record["out"]) <= TOLERANCE
    plain = net(record["x"], record["r"], *given)
    silent = guide_from(kept(record), record["x"].shape[2:], 0.0)
    assert torch.equal(net(record["x"], record["r"], *given, hooks=silent), plain)
    assert relative(plain, record["out"]) > 1e-2


def test_the_strength_on_the_way_up_follows_the_size():
    record, (net, _) = golden("ultrapixel_stage_c"), model()
    given = [record[name][:1] for name in CONDITIONS]
    sizes = [name[4:] for name in record if name.startswith("out_") and "x" in name[4:] and name[4].isdigit()]
    assert len(sizes) >= 3
    for name in sizes:
        height, width = map(int, name.split("x"))
        x = record["x_big"][:1, :, :height, :width].float()
        hooks = guide_from(tuple(each[:1] for each in kept(record)), (height, width))
        out = net(x, record["r_big"][:1], *given, hooks=hooks)
        assert relative(out[..., ::8, ::8], record[f"out_{name}"]) <= TOLERANCE
    assert [choose_up_gain(side**2) for side in (24, 71, 72, 95, 96)] == [0.3, 0.3, 0.5, 0.5, 0.7]


class TwoRuns:
    """A record of the whole procedure, walked once from the recorded x of every step and once freely."""

    def __init__(self, name: str):
        self.record, config, (self.net, _) = golden(name), index()[name]["config"], model()
        self.count = config["timesteps"]
        self.times = d.timesteps(self.count, config["t_start"])
        self.levels = d.logsnr(self.times, config["shift"])
        self.guidance = d.Guidance(config["cfg"], None, rescale=config["cfg_rho"], per_image=False)
        maps = [self.record.get(f"control_{i}") for i in range(self.net.config.res_blocks)]
        self.maps = [None if each is None else torch.cat([each] * 2) for each in maps]

    def predict(self, x, i: int, hooks, maps):
        """The guided noise in ``x`` at step ``i``."""
        given = [self.record[name] for name in CONDITIONS]
        r = d.noise_condition(self.levels[i]).expand(2 * len(x))
        pair = self.net(torch.cat([x, x]), r, *given, control=maps, hooks=hooks).chunk(2)
        return self.guidance(*pair, self.times[i])

    def step(self, x, epsilon, i: int, noise):
        """The prediction and the next x of DDPM: an ancestral step between the two levels."""
        (a, b), (a_next, b_next) = d.alpha_sigma(self.levels[i]), d.alpha_sigma(self.levels[i + 1])
        x0, sigma, following = (x - b * epsilon) / a, b / a, b_next / a_next
        up = following * (1 - (following / sigma) ** 2).clamp(min=0).sqrt()
        down = (following**2 - up**2).clamp(min=0).sqrt()
        return x0, a_next * (x0 + down * epsilon + up * noise)

    def walk(self, kind: str, hooks, maps) -> FeatureRecorder:
        record, free = self.record, self.record[f"x{kind}_init"]
        for i in range(self.count):
            x = record[f"out{kind}_x"][i - 1] if i else record[f"x{kind}_init"]
            recorder = FeatureRecorder(self.net.config, slice(0, len(x)))
            epsilon, noise = record[f"out{kind}_eps"][i], record[f"noise{kind}"][i]
            assert (self.predict(x, i, hooks or recorder, maps) - epsilon).abs().max() <= 1e-3
            x0, after = self.step(x, epsilon, i, noise)
            assert relative(x0, record[f"out{kind}_x0"][i]) <= 1e-5
            assert relative(after, record[f"out{kind}_x"][i]) <= 1e-5
            free = self.step(free, self.predict(free, i, hooks or NO_HOOKS, maps), i, noise)[1]
            assert relative(free, record[f"out{kind}_x"][i]) <= 1e-3
        return recorder


@pytest.mark.parametrize("name", ["ultrapixel_sample", "ultrapixel_sample_mid"])
def test_both_runs_free_and_step_by_step(name):
    """ControlNet maps steer the small run alone; the large one follows by its features."""
    run = TwoRuns(name)
    features = run.walk("_lr", None, run.maps).features
    for ours, kind in zip(features, ("enc_0", "enc_1", "dec_0", "dec_1"), strict=True):
        assert relative(ours, run.record[f"out_{kind}"]) <= TOLERANCE
    run.walk("", guide_from(kept(run.record), run.record["x_init"].shape[2:]), None)


@pytest.mark.parametrize("prefix", ["module.{}.", "{}.", "model.diffusion_model.{}.", "diffusion_model.module.{}."])
@pytest.mark.parametrize("numbers", [("64", "65"), ("6", "7"), ("agg_net", "agg_net_up")])
def test_every_form_of_the_file(prefix, numbers):
    weights = weights_for(index()["ultrapixel_stage_c"]["keys"])
    renamed = {
        prefix.format(numbers[int(key.split(".")[1]) - 64]) + key.split(".", 2)[2]: value
        for key, value in weights.items()
    }
    found = identify(renamed)
    assert found.kind == "ultrapixel" and found.config == model()[1].config
    first, again = (from_state_dict(each, expect="ultrapixel").state_dict() for each in (weights, renamed))
    assert all(torch.equal(again[name], value) for name, value in first.items())
    del renamed[next(name for name in renamed if name.endswith("wtokens"))]
    with pytest.raises(WrongFile, match="incomplete|missing"):
        from_state_dict(renamed, expect="ultrapixel")


def test_the_published_pickle_and_its_lora(tmp_path):
    """The files are archives of PyTorch's under the name of the other format; they are read without running code."""
    weights = weights_for(index()["ultrapixel_stage_c"]["keys"])
    torch.save(weights, tmp_path / "ultrapixel_t2i.safetensors")
    nets = from_file(tmp_path / "ultrapixel_t2i.safetensors", expect="ultrapixel").state_dict()
    assert all(torch.equal(nets[name], value) for name, value in model()[1].state_dict().items())
    merged = {**model()[0].state_dict(), **weights}
    assert [part.kind for part in identify(merged).parts] == ["stage_c", "ultrapixel"]


def test_what_cannot_be_guided_is_a_sentence():
    with pytest.raises(WrongInput, match="at most 1024"):
        one_net("ultrapixel_guide_tiny").encode_tokens(torch.zeros(1, 128, 33, 32))
    with pytest.raises(WrongInput, match="two levels"):
        find_guided_groups(
            StageCConfig(
                c_hidden=(64, 96, 128),
                nhead=(1, 1, 2),
                blocks=((1, 1, 1), (1, 1, 1)),
                block_repeat=((1, 1, 1), (1, 1, 1)),
                level_config=("CT", "CTA", "CTA"),
                switch_level=(False, False),
            )
        )
    assert not map_guide_keys(["module.1.0.a", "module.2.0.a", "module.3.0.a"])
    assert GuideConfig().c == 2048
