"""The Mini recipe's machinery: interruption, composition and loading the files it writes. No training data needed."""

from __future__ import annotations

import copy
import json
import random
import signal
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional as F

from cascade_studio.nodes.checkpoints.catalogue import load as load_catalogue
from cascade_studio.stages import from_file
from cascade_studio.stages.diffusion.sampling import alpha_sigma, logsnr, noise_condition
from cascade_studio.stages.nets.blocks import timestep_embedding
from cascade_studio.stages.nets.initial import initialise_unet
from cascade_studio.stages.nets.stage_b import StageB
from cascade_studio.stages.nets.stage_c import StageC
from cascade_studio.stages.training.distributed import ALONE, Crew
from cascade_studio.stages.training.losses import add_training_noise, velocity_weight
from cascade_studio.stages.training.optimiser import Optimiser
from training.mini import (
    __main__ as recipe,
    autoencoders,
    codes,
    compose,
    decoder,
    export,
    generators,
    language,
    loop,
    machine,
    nets,
    precondition,
    sizes,
)
from training.mini.calling import list_strangers, mix_names, say_both, strew
from training.mini.captions import END, START, Speaker, tokens, word_tokens
from training.mini.data import read_split
from training.mini.decoder import StageBPart
from training.mini.eight_bits import eight_bits, round_together, time_factor
from training.mini.generators import settle_times, settle_weights, take_deep_blocks
from training.mini.loop import Loop, Part, Place, Speed, factor_at, grid
from training.mini.nets import TRAINING
from training.mini.precondition import Preconditioning, carrying, probe
from training.mini.scenes import Pool, Scenes
from training.mini.subjects import COLOURS
from training.mini.towers import TextTower


class Line(Part):
    """Fits a line to random points; counts its steps and can be stopped."""

    name = "line"

    def __init__(self, place: Place, stop: int = 0, end: type[BaseException] = KeyboardInterrupt) -> None:
        super().__init__(place)
        torch.manual_seed(0)
        self.net, self.stop, self.end = nn.Linear(3, 1), stop, end
        self.state = {"net": self.net, "optimiser": Optimiser(self.net.parameters(), 0.1)}

    def step(self, factor: float) -> dict[str, float]:
        self.stop -= 1
        if self.stop == 0:
            raise self.end
        points = torch.rand(8, 3) + self.rng.random()
        loss = (self.net(points) - points.sum(1, keepdim=True)).square().mean()
        self.state["optimiser"].step(loss)
        return {"loss": loss.item()}

    def sheet(self) -> torch.Tensor:
        return torch.rand(3, 4, 4, generator=torch.Generator().manual_seed(0))

    def result(self) -> dict[str, torch.Tensor]:
        return self.net.state_dict()


@pytest.fixture
def place(tmp_path):
    return Place(tmp_path, torch.device("cpu"))


class Steps(Loop):
    """A loop whose clock ticks one second a step."""

    ticks = 0

    def now(self) -> float:
        self.ticks += 1
        return self.ticks


@pytest.mark.parametrize("end", [KeyboardInterrupt, SystemExit])
def test_an_interrupted_run_continues_as_if_it_had_not_been(end, place, tmp_path):
    whole = Place(tmp_path / "whole", place.device)
    whole.work.mkdir()
    Steps(Line(whole), minutes=0.5).run()
    with pytest.raises(end):
        Steps(Line(place, 12, end), minutes=0.5).run()
    torch.rand(5)
    loop = Steps(Line(place), minutes=0.5)
    loop.run()
    assert loop.steps == 30
    wanted, given = (torch.load(where.weights("line")) for where in (whole, place))
    assert all(torch.equal(given[key], wanted[key]) for key in wanted)
    assert (tmp_path / "sheets" / "line-000030.png").is_file()
    assert (tmp_path / "losses.csv").read_text().count("line,") >= 2
    again = Steps(Line(place, stop=1), minutes=0.5)
    again.run()
    assert again.steps == 30, "the minutes are used up"


class Double(Crew):
    """Two processes that happen to have the same numbers."""

    size = 2

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor * 2


@pytest.mark.parametrize("rank", [0, 1])
def test_processes_share_clock_and_weights_and_only_the_first_writes(rank, place, tmp_path):
    crew = Double()
    crew.rank = rank
    loop = Steps(Line(replace(place, crew=crew)), minutes=0.5)
    loop.run()
    assert loop.steps == 30 and loop.used == 30
    assert bool(list(tmp_path.iterdir())) == (rank == 0)


def test_a_step_of_two_processes_learns_from_the_mean_of_their_losses(place, monkeypatch):
    monkeypatch.setattr(generators, "load_trained", lambda *_: None)
    shape = replace(sizes.NEXT.stage_c, c_hidden=(48, 32), nhead=(2, 2), blocks=((1, 1), (1, 1)))
    x0, text = torch.randn(2, 16, 4, 4), torch.randn(2, 5, shape.c_clip_text)
    conditions = {"clip_text": text, "clip_text_pooled": text[:, 0]}
    learned = []
    for crew in (ALONE, Double()):
        torch.manual_seed(0)
        part = generators.DiffusionPart(replace(place, crew=crew, bfloat16=False), StageC(shape))
        before = {name: value.clone() for name, value in part.net.state_dict().items()}
        part.learn(x0, conditions, 1.0)
        learned.append(part.net.state_dict())
    assert any(not torch.equal(value, before[name]) for name, value in learned[0].items())
    for name, value in learned[0].items():
        assert torch.allclose(value, learned[1][name], atol=1e-6), name


def test_learning_rate_rises_then_falls_to_its_end():
    factors = [factor_at(progress / 100) for progress in range(101)]
    assert factors[2] == pytest.approx(1) and factors[100] == pytest.approx(0.03)
    assert all(a >= b for a, b in zip(factors[2:], factors[3:]))
    assert 0 < factors[0] < factors[1] < 1


def test_compositions_show_the_named_background_and_the_whole_subject():
    picture = np.zeros((1, 256, 256, 4), np.uint8)
    picture[0, :, :, 0] = picture[0, :, :, 3] = 255  # red all over
    rng = random.Random(0)
    for colour in COLOURS:
        rgb, alpha = compose.compose(picture, [colour], rng, 64)
        share = float(alpha.mean())
        assert compose.SIZES[0] ** 2 - 0.03 <= share <= compose.SIZES[1] ** 2 + 0.03, "nothing is cut off"
        ground = rgb[0, :, 0, 0] * 255
        assert (ground - torch.tensor(COLOURS[colour])).abs().max() <= compose.JITTER + 1e-3
        inside = rgb[0].flatten(1)[:, (alpha[0] > 0.999).flatten()]
        assert (inside - torch.tensor([1.0, 0, 0])[:, None]).abs().max() <= 1e-5
    same, _ = compose.compose(picture, ["blue"], rng, 64, centred=True)
    assert torch.allclose(same, same.flip(-1), atol=1e-5)


def test_held_out_backgrounds_are_never_trained_on():
    subject, rng = SimpleNamespace(held=("blue", "red")), random.Random(0)
    seen = [compose.random_colour(subject, rng) for _ in range(600)]
    assert set(seen) == set(COLOURS) - {"blue", "red"}
    assert seen.count("white") == pytest.approx(600 * compose.PLAIN_SHARE, rel=0.25)
    assert {compose.random_colour(subject, rng, held=True) for _ in range(40)} == {"blue", "red"}


def test_grid_places_pictures_in_rows():
    images = torch.arange(5.0).view(5, 1, 1, 1).expand(5, 3, 2, 2)
    assert grid(images, 3)[0, ::2, ::2].tolist() == [[0, 1, 2], [3, 4, 0]]


@pytest.mark.parametrize("plan", sizes.PLANS)
def test_exported_files_rebuild_their_nets_within_the_size_limits(plan, tmp_path, monkeypatch):
    """Untrained nets of Mini's sizes, Stage B's in eight bits, through the files that would ship and the pack's own
    loader.
    """
    place = Place(tmp_path, torch.device("cpu"), sizes=sizes.PLANS[plan])

    def fresh(_: Place, name: str) -> nn.Module:
        torch.manual_seed(0)
        net = nets.build(place.sizes, name)
        with torch.no_grad():
            for parameter in net.parameters():
                parameter.uniform_(-1, 1)
        return settle_weights(net) if name == "stage_b" else net

    monkeypatch.setattr(export, "load_trained", fresh)
    files = export.export(place, tmp_path)
    assert sum(files.values()) <= 44_600_000, "a LoRA and a ControlNet have to fit into the 48 MB as well"
    for part in ("stage_a", "stage_b", "stage_c"):
        path = tmp_path / f"{export.FILES[part][1]}.safetensors"
        net = from_file(path)
        stored = {value.dtype for value in load_file(path).values() if value.dim() == 2}
        assert stored == {language.FLOAT8 if part == "stage_b" else torch.float16}
        assert net.config == getattr(place.sizes, part)
        wanted = fresh(place, part).state_dict()
        assert all(
            torch.equal(value, wanted[key].half() if value.is_floating_point() else wanted[key])
            for key, value in net.state_dict().items()
            if key in wanted
        )
    coder = from_file(tmp_path / f"{export.PRIOR_CODER}.safetensors")
    assert (coder.config.encoder, coder.config.previewer) == (place.sizes.encoder, place.sizes.previewer)
    written = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.safetensors")}
    export.export(place, tmp_path)
    assert written == {path: path.stat().st_mtime_ns for path in written}, "what is there already stays, byte for byte"
    for part in nets.FURTHER:
        place.weights(part).unlink(missing_ok=True)
    export.restore(place, tmp_path)
    for part, names in nets.RESULTS.items():
        assert place.weights(part).is_file() == (part not in nets.FURTHER), "what would hide what is trained next"
        if part in nets.FURTHER:
            continue
        for name in names:
            again, wanted = nets.load_trained(place, name, part).state_dict(), fresh(place, name).state_dict()
            assert list(again) == list(wanted)
            for key, value in again.items():
                rounding = 0.07 if key == language.TABLE else 0.001
                assert value.dtype == wanted[key].dtype and torch.allclose(value, wanted[key], rtol=rounding, atol=1e-3)


def test_a_tuned_text_encoder_reads_as_the_tower_that_will_ship():
    torch.manual_seed(0)
    tower = TextTower(replace(sizes.TEXT, vocab_size=49408, num_hidden_layers=1))
    known = torch.tensor([7, 20, 4000, START, END])
    tuned = language.TunedText(tower, known)
    assert tuned.stranger not in known.tolist()
    ids = torch.tensor([[START, 7, 4000, tuned.stranger, END, END], [START, 20, 20, 7, 4000, END]])
    hidden, pooled = tuned(ids)
    (hidden.square().sum() + pooled.sum()).backward()
    moved = tuned.rows.weight.grad.abs().sum(1) > 0
    assert moved.all(), "every row that was read learns, that of unknown words as well"
    assert tuned.tower.text_projection.weight.grad.any()
    with torch.no_grad():
        for parameter in tuned.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
        shipped = TextTower(tower.config)
        shipped.load_state_dict(tuned.tensors())
        for mine, its in zip(tuned(ids), shipped(ids)):
            assert torch.allclose(mine, its, atol=1e-5)
        table = shipped.text_model.embeddings.token_embedding.weight
        assert torch.equal(table, table.to(language.FLOAT8).to(table.dtype)), "eight bits keep it"
        assert torch.equal(table[tuned.stranger], table[30000]) and not torch.equal(table[7], table[30000])


def test_the_catalogue_knows_the_shipped_files():
    """A file that the repository carries is the one on record, to the last bit."""
    entries = load_catalogue().entries
    for path in sorted(export.FOLDER.rglob("*.safetensors")):
        content, entry = path.read_bytes(), entries[path.stem]
        assert (entry.bytes, entry.sha256) == (len(content), sha256(content).hexdigest()), path.name


def test_exported_files_are_put_on_record(tmp_path):
    name = Path(export.FILES["stage_b"][1])
    (tmp_path / name).parent.mkdir(parents=True)
    (tmp_path / f"{name}.safetensors").write_bytes(b"weights")
    catalogue = tmp_path / "catalogue.json"
    before = export.CATALOGUE.read_text(encoding="utf-8")
    catalogue.write_text(before, encoding="utf-8")
    export.put_on_record(tmp_path, catalogue)
    old, new = (
        {file["key"]: file for file in json.loads(text)["files"]}
        for text in (before, catalogue.read_text(encoding="utf-8"))
    )
    changed = [key for key in old if old[key] != new[key]]
    assert changed == [name.name] and (new[name.name]["bytes"], new[name.name]["sha256"]) == (
        7,
        sha256(b"weights").hexdigest(),
    )
    (tmp_path / "stranger.safetensors").write_bytes(b"")
    with pytest.raises(SystemExit, match="0 entries"):
        export.put_on_record(tmp_path, catalogue)


def test_what_ships_is_only_restored_for_its_own_sizes(tmp_path):
    """Another plan keeps Stage A and starts from the image encoder; the others it cannot take, and says so."""
    other = replace(sizes.NEXT, name="other", stage_b=replace(sizes.STAGE_B, c_cond=128))
    place = Place(tmp_path, torch.device("cpu"), sizes=other)
    with pytest.raises(SystemExit, match="has other sizes than the plan 'other'"):
        export.restore(place)
    assert not list(tmp_path.iterdir()), "nothing is written before all fits"
    export.restore_kept(place)
    shipped, kept = export.read_shipped(), nets.load_trained(place, "stage_a").state_dict()
    assert all(torch.equal(value, shipped["stage_a"][key]) for key, value in kept.items())
    start = torch.load(tmp_path / "encoder.start.pt")
    nets.build(other, "encoder").load_state_dict(start["encoder"])
    with pytest.raises(SystemExit, match="no stage_b yet"):
        nets.load_trained(place, "stage_b")


@pytest.mark.parametrize("plan", sizes.PLANS.values(), ids=sizes.PLANS)
def test_a_plan_names_its_grid(plan):
    canvas = plan.canvas
    assert (canvas.prior_width, canvas.prior_height) == (plan.cells, plan.cells)
    native = {net.native_compression for net in (plan.encoder, plan.stage_b, plan.stage_c)}
    assert native == {sizes.SIDE / plan.cells}
    assert (canvas.padded_width, canvas.padded_height) == (sizes.SIDE, sizes.SIDE)
    assert {plan.width} == {
        plan.vision.projection_dim,
        plan.stage_b.c_clip,
        plan.stage_c.c_clip_text,
        plan.stage_c.c_clip_text_pooled,
        plan.stage_c.c_clip_img,
    }


# The machine and the budget


def test_a_part_ends_with_its_steps_or_its_minutes_whichever_comes_first(place):
    part = Line(place)
    part.STEPS = 40
    by_steps = Steps(part)
    by_steps.run()
    assert by_steps.steps == 40
    by_minutes = Steps(Line(Place(place.work / "other", place.device)), minutes=0.1)
    by_minutes.part.place.work.mkdir()
    by_minutes.run()
    assert by_minutes.steps == 6


def test_speed_is_told_and_too_little_time_is_warned_of_once(caplog):
    speed = Speed("stage_c", 25_000, seconds=600)
    assert speed.describe(30, 20.0) == "1.50 steps a second"
    assert "900 of the 25000 steps" in caplog.text and caplog.text.count("are slow") == 1
    assert speed.describe(40, 40.0) == "0.50 steps a second" and caplog.text.count("are slow") == 1
    caplog.clear()
    Speed("stage_c", 25_000, seconds=float("inf")).describe(30, 20.0)
    assert not caplog.text, "without a limit there is time for all steps"


@pytest.mark.parametrize("has_it", [False, True])
def test_bfloat16_is_used_where_the_processor_has_it(has_it, monkeypatch):
    monkeypatch.setattr(machine, "processor_has_bf16", lambda: has_it)
    assert machine.has_fast_bfloat16(torch.device("cpu")) is has_it
    assert not machine.has_fast_bfloat16(torch.device("meta"))


@pytest.mark.parametrize("together, chosen", [(0.6, 4), (0.99, 1), (5.0, 1)])
def test_threads_are_used_where_they_help(together, chosen, monkeypatch):
    before, used = torch.get_num_threads(), []
    monkeypatch.setattr(torch, "set_num_threads", used.append)
    monkeypatch.setattr(machine, "_measure", lambda: 1.0 if used[-1] == 1 else together)
    assert machine.choose_threads(4) == chosen == used[-1]
    assert torch.get_num_threads() == before


def test_a_signal_to_end_reaches_the_loop():
    """Ended by another process, the recipe saves as it does on an interrupt."""
    with pytest.raises(SystemExit) as ended:
        recipe._stop(signal.SIGTERM, None)
    assert ended.value.code == 143


# Stages B and C


def test_rows_are_rounded_together_to_what_they_said():
    """What float8 keeps stays as it is; where features go together, and where it counts, what is said stays."""
    torch.manual_seed(0)
    level = logsnr(torch.linspace(0, 1, 500))
    features, importance = timestep_embedding(noise_condition(level), 64), velocity_weight(level)
    weight = 0.1 * torch.randn(20, 64)
    weight[3] = eight_bits(weight[3])

    def rest(rounded, first=0):
        return float((((rounded - weight) @ features.T).square() * importance)[:, first:].mean())

    together = round_together(weight, features, importance)
    assert torch.equal(together, eight_bits(together)) and torch.equal(together[3], weight[3])
    assert rest(together) < rest(eight_bits(weight)) / 2
    assert rest(together, -4) < rest(eight_bits(weight), -4) / 20, "close to pure noise"
    constant = timestep_embedding(torch.zeros(1), 64)
    summed = round_together(weight, constant, torch.ones(1))
    assert ((summed - weight) @ constant.T).abs().max() < ((eight_bits(weight) - weight) @ constant.T).abs().max() / 10


def test_what_ships_says_the_same_of_pure_noise():
    """Near pure noise the answer has to be right to a hundredth: times that are rounded number by number lose that."""
    torch.manual_seed(0)
    net = StageB(sizes.STAGE_B)
    initialise_unet(net)
    Preconditioning(net)
    block, width = net.up_blocks[-1][3], net.config.c_hidden[0]
    with torch.no_grad():
        net.clf[1].weight[:, carrying(16) :].normal_(0, 0.2)
        for name in block.names:
            getattr(block, name).weight[width + carrying(16) :].normal_(0, 0.1)
        settle_weights(net)
        for name in block.names:
            getattr(block, name).weight[width + carrying(16) :].mul_(1.03)
    latest = float(noise_condition(logsnr(torch.ones(1))))
    _, wanted = probe(net, latest)
    errors = [
        float((probe(settle_weights(one), latest)[1] - wanted).square().mean())
        for one in (copy.deepcopy(net), settle_times(copy.deepcopy(net)))
    ]
    assert errors[1] < errors[0] / 10, errors


def test_factors_of_time_are_numbers_of_eight_bits():
    level = logsnr(torch.linspace(0, 1, 500))
    a, b = (value.double() for value in alpha_sigma(level))
    features = timestep_embedding(noise_condition(level), 64).double()[:, [*range(24, 32), *range(56, 64)]]
    for wanted, constants in ((b, 2), (0.97 * b, 3), (a, 2)):
        weights, offsets = time_factor(features, wanted - 1, 1 / a, constants)
        numbers = torch.tensor([*weights, *offsets])
        assert len(offsets) == constants and torch.equal(numbers, eight_bits(numbers))
        error = 1 + features @ torch.tensor(weights).double() + sum(offsets) - wanted
        assert error.abs().max() < 0.01 and error[-1].abs() < 1e-3


@pytest.mark.parametrize("plan", sizes.PLANS)
@pytest.mark.parametrize("kind", ["stage_b", "stage_c"])
def test_networks_start_as_v_prediction_and_are_held_there(plan, kind):
    """A fresh net answers b x, however near to pure noise; training moves what is free and nothing else."""
    net = nets.build(sizes.PLANS[plan], kind, backend=TRAINING)
    torch.manual_seed(0)
    initialise_unet(net)
    start = Preconditioning(net)
    assert all(torch.equal(value, eight_bits(value)) for _, _, value in start.pins), "low-memory settings keep it"
    for t, near in ((1.0, 4e-3), (0.97, 4e-3), (0.8, 0.04)):
        level = logsnr(torch.tensor(t))
        x, answer = probe(net, float(noise_condition(level)), seed=5)
        assert (answer - alpha_sigma(level)[1] * x).square().mean().sqrt() < near, t
    pinned = [(parameter, where, parameter[where].clone()) for parameter, where, _ in start.pins]
    before = net.clf[1].weight.detach().clone()
    optimiser = Optimiser(net.parameters(), 1e-2)
    torch.manual_seed(1)
    for _ in range(2):
        optimiser.clear()
        probe.__wrapped__(net)[1].square().mean().backward()
        start.still()
        assert all(not parameter.grad[where].any() for parameter, where, _ in pinned if parameter.grad is not None)
        optimiser.update()
        start.hold()
    assert all(torch.equal(parameter[where], value) for parameter, where, value in pinned)
    assert (net.clf[1].weight - before).abs().max() > 1e-3


@pytest.mark.parametrize("kind", ["stage_b", "stage_c"])
def test_what_ships_is_trained_on_from_as_it_is(kind):
    """The net answers as the one that ships, and keeps the start that is found in it."""
    torch.manual_seed(0)
    shipped, net = (nets.build(sizes.SHIPPED, kind, backend=TRAINING) for _ in range(2))
    shipped.load_state_dict(export.read_shipped()[kind])
    initialise_unet(net)
    start = Preconditioning.find_in(net, shipped)
    assert start.constants == precondition.CONSTANTS and start.fits_eight_bits()
    for r in (1.0, 0.6):
        assert torch.equal(probe(net, r)[1], probe(shipped, r)[1])
    pinned = [(parameter, where, parameter[where].clone()) for parameter, where, _ in start.pins]
    optimiser = Optimiser(net.parameters(), 1e-5)
    optimiser.clear()
    probe.__wrapped__(net)[1].square().mean().backward()
    optimiser.update()
    start.hold()
    assert all(torch.equal(parameter[where], value) for parameter, where, value in pinned)
    before, after = ((answer - x).square().mean().sqrt() for x, answer in (probe(shipped), probe(net)))
    assert after < before + 0.01, "pure noise is still said to be noise"


def test_a_saved_net_keeps_its_start_where_earlier_weights_are_gone():
    """The part begins anew with another start; what is read from the save has to stay what it was."""
    torch.manual_seed(0)
    saved, part = nets.build(sizes.SHIPPED, "stage_b", backend=TRAINING), StageBPart.__new__(StageBPart)
    part.net = nets.build(sizes.SHIPPED, "stage_b", backend=TRAINING)
    for each in (saved, part.net):
        initialise_unet(each)
    Preconditioning(saved, 2, 96.0)
    part.start = Preconditioning(part.net)
    part.net.load_state_dict(saved.state_dict())
    wanted = probe(saved)[1]
    part.find_again()
    part.start.hold()
    assert part.start.constants == 2 and torch.equal(probe(part.net)[1], wanted)


def test_a_grown_net_answers_as_the_trained_one_and_has_a_start_of_eight_bits():
    """Its new blocks say nothing yet, and another start is in it that does the same."""
    torch.manual_seed(0)
    trained = nets.build(sizes.SHIPPED, "stage_b", backend=TRAINING)
    config = sizes.SHIPPED.stage_b
    down, up = config.blocks
    net = StageB(replace(config, blocks=((*down[:3], down[3] + 1), (up[0] + 2, up[1] + 1, *up[2:]))), backend=TRAINING)
    for each in (trained, net):
        initialise_unet(each)
    old = Preconditioning(trained, 2, 100.0)
    with torch.no_grad():
        for parameter, where, value in old.pins:
            parameter[where] = value * 1.01
    old.adopt()
    assert not old.fits_eight_bits()
    start = Preconditioning.renew_in(net, trained)
    assert start.fits_eight_bits() and start.constants == 2 and start.large == 104
    for r in (0.9, 0.5):
        mine, its = probe(net, r)[1], probe(trained, r)[1]
        assert (mine - its).square().mean().sqrt() < 0.05 * its.square().mean().sqrt(), r


def test_a_net_of_the_recipe_is_trained_on_in_eight_bits():
    torch.manual_seed(0)
    trained, net = (nets.build(sizes.NEXT, "stage_c", backend=TRAINING) for _ in range(2))
    for each in (trained, net):
        initialise_unet(each)
    Preconditioning(trained)
    start = Preconditioning.find_in(net, trained)
    assert start.constants == precondition.CONSTANTS and start.fits_eight_bits()


def test_what_an_earlier_stage_c_knows_is_taken_where_sizes_agree():
    torch.manual_seed(0)
    net, earlier = nets.build(sizes.NEXT, "stage_c"), nets.build(sizes.SHIPPED, "stage_c")
    for each in (net, earlier):
        initialise_unet(each)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    take_deep_blocks(net, earlier.state_dict())
    taken = {name for name, value in net.state_dict().items() if not torch.equal(value, before[name])}
    assert any(name.startswith("down_blocks.1.") for name in taken) and "clip_txt_mapper.weight" in taken
    assert not any(name.startswith(("down_blocks.0.", "up_blocks.1.", "embedding", "clf")) for name in taken)
    assert all(torch.equal(net.state_dict()[name], earlier.state_dict()[name]) for name in taken)


@pytest.mark.parametrize("cells", [6, 8, 12])
def test_a_linear_code_says_more_than_the_colours_of_its_cells(cells, tmp_path):
    """Smooth pictures come back from it, better where the decoder sees the neighbours; saved, it is the same."""
    torch.manual_seed(0)
    rgb = F.interpolate(torch.rand(24, 3, 9, 9), size=(256, 256), mode="bicubic").clamp(0, 1)
    code = codes.LinearCode(rgb[:20], cells)
    said = code.encode(rgb)
    assert said.shape == (24, 16, cells, cells)
    assert code.encode(rgb[:20]).square().mean() == pytest.approx(1, rel=0.02)
    plain = F.interpolate(F.interpolate(rgb, size=(cells, cells), mode="area"), size=(256, 256), mode="bicubic")
    errors = [(made - rgb[20:]).square().mean() for made in (plain[20:], code.decode_alone(said[20:]))]
    assert errors[1] < 0.5 * errors[0]
    learned = [(way(said[:20]) - rgb[:20]).square().mean() for way in (code.decode_alone, code.decode)]
    assert learned[1] < learned[0]
    torch.save(code.state_dict(), tmp_path / "code.pt")
    again = codes.LinearCode.from_state(torch.load(tmp_path / "code.pt", weights_only=False))
    assert torch.equal(again.encode(rgb), said)


def test_the_norm_of_a_code_leaves_it_as_it_is():
    """Whatever statistics the encoder that it begins with had."""
    norm = nets.build(sizes.NEXT, "encoder").mapper[1]
    norm.running_mean.uniform_()
    norm.running_var.uniform_()
    autoencoders.leave_as_said(norm)
    latent = 3 * torch.randn(2, 16, 5, 5) + 1
    assert torch.allclose(norm(latent), latent, atol=1e-5)


def test_a_guess_is_the_picture_until_rounding_is_most_of_it():
    torch.manual_seed(0)
    x0 = torch.randn(3, 4, 8, 8).clamp(-2, 2)
    seen = add_training_noise(x0, torch.randn_like(x0), torch.tensor([0.5, 0.9, decoder.NOISIEST]))
    assert torch.allclose(decoder.guess_clean(seen, seen.noise), x0, atol=1e-3), (
        "as large as it is, at the last as well"
    )


def test_a_picture_is_called_plainly_and_captions_are_compared_behind_their_ends():
    """What stands before the end of the longer caption is its own."""
    ids = torch.tensor([[START, 5, 6, END, END, END], [START, 5, END, END, END, END]])
    meant = torch.tensor([[START, 5, END, END, END, END], [START, 5, 6, 7, END, END]])
    assert language.first_ends(ids).tolist() == [3, 2]
    wanted = torch.ones(2, 6, 3)
    hidden = wanted.clone()
    hidden[0, :3] = hidden[1, :4] = 9
    assert language.compare_tails(hidden, wanted, ids, meant) == 0
    hidden[1, 4] = 2
    assert language.compare_tails(hidden, wanted, ids, meant) == pytest.approx(1 / 5)


def test_strange_words_are_strewn_between_the_others():
    rng = random.Random(0)
    said = ["a", "frog", "on", "red"]
    assert strew(said, rng, 0.0, [[(7,)], ["wild"]], 77) == said and strew([], rng, 1.0, [[(7,)], ["wild"]], 77) == []
    made = [strew(said, rng, 1.0, [[(7,)], ["wild"]], 77) for _ in range(50)]
    assert all([word for word in one if word in said] == said and 5 <= len(one) <= 7 for one in made)
    assert {word for one in made for word in one} - set(said) == {"wild", (7,)}
    tight = [strew(said, rng, 1.0, [[(7,)], ["wild"]], length=7) for _ in range(50)]
    assert {len(one) for one in tight} == {5}, "start, end, four words and room for one"


def test_captions_that_say_nothing_and_plain_ones_have_their_shares():
    subjects, _ = read_split()
    scenes = Scenes.__new__(Scenes)
    scenes.rng, scenes.speaker = random.Random(0), Speaker(subjects)
    pool = Pool({"tensors": {}, "subjects": list(range(200)), "colours": ["red"] * 200})
    said, plain = say_both(scenes, pool, list(range(200)), 0.3, 0.6, dropped=0.0, plainly=1.0)
    assert said == plain and said[3] is not plain[3] and said[3][0] == subjects[3].labels["en"]
    said, plain = say_both(scenes, pool, list(range(200)), 0.3, 0.6, dropped=0.2, plainly=0.25, length=32)
    empty = [row for row in range(200) if not said[row]]
    alike = [row for row in range(200) if said[row] == plain[row]]
    assert empty == [row for row in range(200) if not plain[row]] and 20 < len(empty) < 60
    assert 25 < len(alike) - len(empty) < 70
    lengths = [len(tokens(fragments, 99)[: tokens(fragments, 99).index(END) + 1]) for fragments in said]
    assert 24 < max(lengths) <= 40 and sum(length > 32 for length in lengths) < 6


def test_what_several_processes_need_is_made_once(tmp_path):
    """The first makes the file and tells the others, who read it."""

    class Other(Crew):
        rank, size, waits = 1, 2, 0

        def wait(self):
            self.waits += 1
            if not path.is_file():
                loop.make_once(first, path, lambda: made.append(1) or {"a": 1})

    path, made, other = tmp_path / "pool.pt", [], Other()
    first = Place(tmp_path, torch.device("cpu"))
    assert loop.make_once(replace(first, crew=other), path, lambda: made.append(2)) == {"a": 1}
    assert loop.make_once(first, path, lambda: made.append(3)) == {"a": 1}
    assert made == [1] and other.waits == 1 and list(tmp_path.iterdir()) == [path]


def test_strangers_are_a_token_tags_sentences_and_mixed_names():
    subjects, _ = read_split()
    stranger, tags, sentences, mixed = list_strangers(subjects, 7)
    labels = {subject.labels["en"] for subject in subjects}
    assert stranger == [(7,)] and "animal" in tags and "auf" in sentences
    assert not set(COLOURS) & {*tags, *sentences} and not labels & set(sentences)
    words = {word_tokens(word) for subject in subjects for label in subject.labels.values() for word in label.split()}
    assert mixed == mix_names(subjects) and len(mixed) > 4000 and not words & {*mixed}
    known = {token for subject in subjects for label in subject.labels.values() for token in word_tokens(label)}
    assert {token for word in mixed for token in word} <= known, "nothing that has no row"
    whole = {word for word in words if len(word) == 1}
    assert not whole & {word[:1] for word in mixed}, "no name stands at the beginning of one"


def test_the_whole_run_is_made_of_the_parts_that_have_a_share():
    assert set(recipe.SHARES) < set(recipe.PARTS) and set(recipe.PARTS) - set(recipe.SHARES) == {"refine", "new_words"}


def test_preconditioning_needs_room():
    net = StageC(replace(sizes.STAGE_C, c_hidden=(32, 32), nhead=(1, 1)))
    with pytest.raises(ValueError, match="32 wide"):
        Preconditioning(net)
