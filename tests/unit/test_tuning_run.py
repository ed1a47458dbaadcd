"""Training as a whole: it learns, however its batch is split, and goes on after whatever stopped it."""

from __future__ import annotations

import importlib
import math
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import lessons
import pytest
import torch
from lessons import SHORT, distance, randn, rows, trainer

from cascade_studio.commands.places import find_free_port
from cascade_studio.stages.errors import BadValues, WrongInput
from cascade_studio.stages.nets.controlnet import ControlNet, ControlNetConfig
from cascade_studio.stages.nets.encoder import EncoderConfig
from cascade_studio.stages.nets.initial import initialise_unet
from cascade_studio.stages.nets.stage_b import StageB, StageBConfig
from cascade_studio.stages.training import checkpoint as stores, distributed
from cascade_studio.stages.training.checkpoint import Store, train
from cascade_studio.stages.training.objectives import ControlObjective, StageBObjective, StageCObjective
from cascade_studio.stages.training.settings import LOSS_WEIGHTS
from cascade_studio.stages.training.trainer import GROWTH, WINDOW, Diverged, Trainer, find_divergence

UNIT = Path(__file__).parent


def finished(settings, tmp_path: Path | None = None, **options) -> Trainer:
    run = trainer(settings, **options)
    while run.step < settings.steps:
        run.update()
    return run


# Learning


@pytest.mark.parametrize("loss_weight", LOSS_WEIGHTS)
def test_the_loss_falls_on_four_pictures(loss_weight):
    """Measured on the same draws before and after, so that chance has no part in it."""
    settings = replace(
        SHORT, steps=20, loss_weight=loss_weight, blocks=(".attn", ".clf"), drop_text=0.0, rank=8, alpha=8.0
    )
    run = trainer(settings)

    def judged() -> float:
        from cascade_studio.stages.training.seeding import generator

        with torch.no_grad():
            return float(run.objective.losses(rows() * 4, [generator(0, i) for i in range(16)]).raw.mean())

    before = judged()
    while run.step < settings.steps:
        run.update()
    assert judged() < 0.8 * before


def test_noise_time_and_dropout_follow_the_official_objective():
    """The reconstruction of what the network was shown, from the generators alone."""
    from cascade_studio.stages.diffusion.sampling import add_noise, logsnr
    from cascade_studio.stages.training.losses import sample_times

    shown = {}

    def net(x, r, **told):
        shown.update(x=x, r=r, **told)
        return torch.zeros_like(x)

    def fresh():
        return [torch.Generator().manual_seed(i) for i in range(200)]

    data = rows() * 50
    objective = StageCObjective(net, lessons.EMPTY, drop_text=0.3)
    losses = objective.losses(data, fresh())
    for i, generator in enumerate(fresh()):
        t = sample_times(1, generator)
        noise = torch.randn(1, 16, 4, 4, generator=generator)
        assert torch.allclose(shown["x"][i], add_noise(data[i]["latent"][None], noise, logsnr(t))[0], atol=1e-6)
        assert losses.raw[i] == pytest.approx(float(noise.square().mean()), rel=1e-5)
        kept = float(torch.rand(1, generator=generator)) >= 0.3
        wanted = data[i] if kept else lessons.EMPTY
        assert torch.equal(shown["clip_text"][i], wanted["text"])
        assert torch.equal(shown["clip_text_pooled"][i], wanted["pooled"])
    assert losses.logsnr.shape == (200,) and "clip_img" not in shown
    dropped = sum(torch.equal(text, lessons.EMPTY["text"]) for text in shown["clip_text"])
    assert 40 <= dropped <= 80


def test_a_long_prompt_is_dropped_for_as_long_an_empty_one():
    shown = {}
    objective = StageCObjective(lambda x, r, **told: shown.update(told) or x, lessons.EMPTY, drop_text=1.0)
    objective.losses([{**rows()[0], "text": randn(18, 96)}], [torch.Generator()])
    assert torch.equal(shown["clip_text"][0], lessons.EMPTY["text"].repeat(3, 1)[:18])


def small_b() -> tuple[StageB, list[dict[str, torch.Tensor]]]:
    config = StageBConfig(
        c_cond=64,
        c_hidden=(32, 32, 64, 64),
        nhead=(-1, -1, 1, 1),
        c_clip=64,
        blocks=((1, 1, 1, 1), (1, 1, 1, 1)),
        block_repeat=((1, 1, 1, 1), (1, 1, 1, 1)),
    )
    torch.manual_seed(0)
    net = StageB(config)
    initialise_unet(net)
    return net, [
        {"latent": randn(4, 16, 16, seed=i), "effnet": randn(16, 3, 3, seed=i), "pooled": randn(1, 64, seed=i)}
        for i in range(4)
    ]


def test_the_loop_trains_stage_b():
    net, data = small_b()
    objective = StageBObjective(net, {"pooled": randn(1, 64, seed=9)}, pyramid=True)
    run = Trainer(objective, net, data, replace(SHORT, steps=25, learning_rate=4e-3))
    losses = [run.update() for _ in range(25)]
    assert losses[0] == pytest.approx(1, abs=0.2), "a fresh network predicts nothing"
    assert sum(losses[-5:]) < 0.9 * sum(losses[:5])


def test_a_controlnet_learns_alone():
    trunk = EncoderConfig(
        c_stem=8, widths=(8, 8), repeats=(1, 1), expansions=(1, 2), strides=(2, 8), fused=(True, True), c_features=16
    )
    torch.manual_seed(0)
    control = ControlNet(ControlNetConfig(c_proj=128, proj_blocks=(0, 3), trunk=trunk))
    for projection in control.projections:
        torch.nn.init.zeros_(projection[2].weight)
    net = lessons.net(checkpointing=True)
    data = [
        {**row, "hint": torch.rand(1, 128, 128, generator=torch.Generator().manual_seed(i))}
        for i, row in enumerate(rows())
    ]
    objective = ControlObjective(net, lessons.EMPTY, offset=0.1, controlnet=control)
    generators = [torch.Generator().manual_seed(i) for i in range(4)]
    plain = StageCObjective(net, lessons.EMPTY, offset=0.1).losses(rows(), generators).raw
    generators = [torch.Generator().manual_seed(i) for i in range(4)]
    assert torch.allclose(objective.losses(data, generators).raw, plain), "zero projections change nothing"
    run = Trainer(objective, control, data, replace(SHORT, steps=3))
    norm = control.backbone[0][1]
    before = norm.running_mean.clone(), norm.weight.clone(), net.clf[1].weight.clone()
    run.update()
    run.update()
    assert all(projection[2].weight.abs().max() > 0 for projection in control.projections)
    assert torch.equal(norm.running_mean, before[0]) and not torch.equal(norm.weight, before[1])
    assert torch.equal(net.clf[1].weight, before[2]) and not any(p.requires_grad for p in net.parameters())


# Splitting


MIXED = {"data": rows(((4, 4), (2, 6), (4, 4), (6, 2), (4, 4)))}


@pytest.mark.parametrize("loss_weight", ["p2", "adaptive"])
def test_the_result_does_not_depend_on_how_a_batch_is_split(loss_weight):
    settings = replace(SHORT, loss_weight=loss_weight, offset_noise=0.1, ema=0.9)
    whole = finished(settings, **MIXED)
    parts = finished(replace(settings, accumulation=4), **MIXED)
    assert len(parts.parts([0, 2, 4, 0])) == 4 and len(whole.parts([0, 2, 4, 0])) == 1
    assert parts.losses == pytest.approx(whole.losses, rel=1e-5)
    assert distance(parts.learned.state_dict(), whole.learned.state_dict()) <= 1e-5
    assert (
        distance(parts.result(), whole.result()) <= 1e-5 < 1e-3 < distance(whole.result(), whole.learned.state_dict())
    )
    if loss_weight == "adaptive":
        assert torch.allclose(parts.adaptive.losses, whole.adaptive.losses, rtol=1e-5)
        assert (whole.adaptive.losses != 1).sum() > 10


def test_two_processes_equal_one(tmp_path):
    """As torchrun and accelerate launch start them: by environment variables."""
    variables = {
        **os.environ,
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(find_free_port()),
        "WORLD_SIZE": "2",
        "OMP_NUM_THREADS": "1",
    }
    running = [
        subprocess.Popen(
            [sys.executable, str(UNIT / "lesson_process.py"), str(tmp_path / f"{rank}.pt")],
            env={**variables, "RANK": str(rank), "LOCAL_RANK": str(rank)},
        )
        for rank in (0, 1)
    ]
    assert [process.wait(300) for process in running] == [0, 0]
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1))
    import lesson_process

    alone = lesson_process.train_here(stores_in=None)
    assert distance(first["learned"], second["learned"]) == 0, "both end with the same weights"
    assert distance(first["learned"], alone["learned"]) <= 1e-5
    assert first["losses"] == pytest.approx(alone["losses"], rel=1e-5)
    assert torch.allclose(first["adaptive"], alone["adaptive"], rtol=1e-5)
    assert first["parts"] == second["parts"] == 2 and alone["parts"] == 4, "each took half of the batch"


def test_more_processes_than_pictures_are_refused():
    crew = type("Crew", (), {"rank": 0, "size": 8})()
    with pytest.raises(WrongInput, match="batch of 4 cannot be shared out to 8"):
        trainer(crew=crew)
    with pytest.raises(WrongInput, match="no pictures"):
        trainer(data=[])


# Stopping and going on


def run_to(folder: Path, settings=SHORT, stop: int | None = None, **options) -> Trainer:
    run = trainer(settings, **options)

    def on_step(trainer: Trainer) -> None:
        if trainer.step == stop:
            raise KeyboardInterrupt

    train(run, Store(folder, settings.identity()), on_step)
    return run


@pytest.mark.parametrize("stop", [1, 4])
def test_an_interrupted_run_goes_on_with_nothing_lost(tmp_path, stop):
    settings = replace(SHORT, loss_weight="adaptive", ema=0.8)
    whole = run_to(tmp_path / "whole", settings)
    with pytest.raises(KeyboardInterrupt):
        run_to(tmp_path / "cut", settings, stop)
    torch.rand(3)
    run = run_to(tmp_path / "cut", settings)
    assert run.step == 6 and run.losses == whole.losses
    assert distance(run.result(), whole.result()) == distance(run.learned.state_dict(), whole.learned.state_dict()) == 0
    again = trainer(settings)
    again.update = None  # it is finished: not a step more
    train(again, Store(tmp_path / "cut", settings.identity()))
    assert again.losses == whole.losses
    longer = run_to(tmp_path / "cut", replace(settings, steps=8))
    assert longer.losses[:6] == whole.losses and longer.step == 8


def test_a_killed_run_goes_on(tmp_path):
    """The process dies at once, in the middle of a step; what was saved last is whole."""
    command = [sys.executable, str(UNIT / "lesson_process.py"), str(tmp_path / "out.pt"), str(tmp_path / "run")]
    variables = {**os.environ, "OMP_NUM_THREADS": "1", "LESSON_SLOWLY": "1"}
    process = subprocess.Popen(command, env=variables)
    deadline = time.monotonic() + 100
    while not (tmp_path / "run" / "state.before.pt").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    import lesson_process

    settings = lesson_process.SETTINGS
    assert len(Store(tmp_path / "run", settings.identity()).states()["losses"]) < settings.steps
    run = lesson_process.train_here(stores_in=tmp_path / "run")
    whole = lesson_process.train_here(stores_in=None)
    assert run["losses"] == whole["losses"] and distance(run["learned"], whole["learned"]) == 0


def test_a_torn_state_is_left_for_the_one_before(tmp_path):
    settings = replace(SHORT, save_every=2)
    whole = run_to(tmp_path, settings)
    (tmp_path / "state.pt").write_bytes((tmp_path / "state.pt").read_bytes()[:3000])
    found = Store(tmp_path, settings.identity()).states()
    assert len(found["losses"]) == 4
    assert run_to(tmp_path, settings).losses == whole.losses


def test_the_state_of_another_run_is_refused(tmp_path):
    run_to(tmp_path / "mine", SHORT, None)
    with pytest.raises(WrongInput, match="The folder 'mine' holds a training run with other settings"):
        run_to(tmp_path / "mine", replace(SHORT, seed=6))


def test_the_state_of_another_version_is_a_sentence(tmp_path):
    run_to(tmp_path, SHORT, None)
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    learned = state["learned"]
    for other in ({**learned, "more": learned[next(iter(learned))]}, None):
        torch.save(
            {key: value for key, value in {**state, "learned": other}.items() if value is not None},
            tmp_path / "state.pt",
        )
        with pytest.raises(WrongInput, match="a version of this pack that keeps other numbers"):
            run_to(tmp_path, SHORT)


def test_half_an_update_is_not_saved(tmp_path, monkeypatch):
    run, store = trainer(), Store(tmp_path, SHORT.identity())
    real = run.optimiser.inner.step

    def torn(*args, **kwargs):
        real()
        if run.step == 2:
            raise MemoryError

    monkeypatch.setattr(run.optimiser.inner, "step", torn)
    with pytest.raises(MemoryError):
        train(run, store)
    assert len(store.states()["losses"]) == 0, "the state from before the run is still there"


# Divergence


def poisoned(at: int, settings) -> Trainer:
    """A trainer whose network answers NaN from step ``at`` on."""
    run = trainer(settings)
    real = run.objective.losses

    def losses(data, generators):
        found = real(data, generators)
        return found._replace(raw=found.raw * (math.nan if run.step >= at else 1.0))

    run.objective.losses = losses
    return run


@pytest.mark.parametrize("at, good", [(0, 0), (3, 0), (20, 8)])
def test_nan_stops_and_keeps_the_last_good_state(tmp_path, at, good):
    """Good is what was saved before the ten steps in which it may have gone wrong already."""
    settings = replace(SHORT, steps=60, save_every=8)
    run, store, saved = poisoned(at, settings), Store(tmp_path, settings.identity()), []
    kept = f"weights of step {good}, the last good" if good else "No step before that was saved"
    with pytest.raises(BadValues, match=f"the loss of step {at + 1} is not a number.*{kept}"):
        train(run, store, on_save=lambda trainer: saved.append(trainer.step))
    assert run.step == good == saved[-1]
    clean = finished(replace(settings, steps=good)) if good else trainer(settings)
    assert distance(run.learned.state_dict(), clean.learned.state_dict()) == 0
    assert distance(store.states()["learned"], clean.learned.state_dict()) == 0
    assert all(math.isfinite(loss) for loss in run.losses)


def test_a_gradient_that_is_no_number_leaves_the_weights_alone():
    run = trainer()
    run.update()
    before = {key: value.clone() for key, value in run.learned.state_dict().items()}
    next(run.learned.parameters()).register_hook(lambda grad: grad * math.inf)
    with pytest.raises(Diverged, match="a gradient of step 2"):
        run.update()
    assert run.step == 1 and run.whole and distance(run.learned.state_dict(), before) == 0


def test_a_huge_learning_rate_is_found_out(tmp_path):
    settings = replace(SHORT, steps=60, learning_rate=1.0, warm_up=0, blocks=(".attn", ".clf"))
    with pytest.raises(BadValues, match="Lower the learning rate"):
        run_to(tmp_path, settings)


def test_what_counts_as_trouble():
    fine = [0.5] * WINDOW
    assert (
        find_divergence([], 1.0) == find_divergence(fine, 1.0) == find_divergence([*fine, *[1.4] * WINDOW], 1.0) == ""
    )
    assert "grew to 1.6" in find_divergence([*fine, *[1.6] * WINDOW], 1.0)
    assert find_divergence([3.0] * 30, 1.0) == "", "a network that starts badly may stay so"
    assert "grew" in find_divergence([*fine, *[GROWTH * 0.5 + 0.01] * WINDOW], None)
    assert "not a number" in find_divergence([0.5, math.inf], 1.0)
    assert find_divergence([*fine, 9.0], 1.0) == "", "one odd batch is not the end"


def test_saves_by_time_as_well(tmp_path, monkeypatch):
    monkeypatch.setattr(stores, "SAVE_SECONDS", -1)
    monkeypatch.setattr(stores, "SAVE_SHARE", 0)
    saved = []
    train(trainer(), Store(tmp_path, SHORT.identity()), on_save=lambda trainer: saved.append(trainer.step))
    assert saved == [0, 1, 2, 3, 4, 5, 6]


def test_what_processes_share_lies_on_their_device(monkeypatch):
    """A group of cards serves tensors of cards alone: a sum of numbers on the processor stopped the first step."""
    seen = []
    for name in ("init_process_group", "broadcast_object_list", "all_reduce"):
        monkeypatch.setattr(torch.distributed, name, lambda *args, name=name, **kw: seen.append((name, args, kw)))
    meeting = importlib.import_module("torch.distributed.rendezvous")
    store = torch.distributed.HashStore()
    monkeypatch.setattr(meeting, "rendezvous", lambda url, timeout: iter([(store, 0, 2)]))
    crew = distributed.Processes("cuda:gloo", "meta")
    assert seen[0][2]["timeout"].total_seconds() >= 3600, "one process may encode for long"
    crew.share({"a": 1})
    assert seen[1][2]["device"].type == "meta"
    for given in (torch.zeros(4, 2), torch.zeros(3, dtype=torch.float64)):
        with pytest.raises((NotImplementedError, RuntimeError)):
            crew.sum(given)  # nothing comes back from the meta device
        assert seen[-1][0] == "all_reduce" and seen[-1][1][0].device.type == "meta"


class NoDouble(torch.Tensor):
    """A tensor of a device without float64."""

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        assert function is not torch.Tensor.double, "some devices have no float64"
        return super().__torch_function__(function, types, args, kwargs or {})


def test_nothing_on_the_device_has_double_precision():
    run = trainer(replace(SHORT, loss_weight="adaptive", validate_every=1, steps=2))
    real = run.objective.losses

    def losses(data, generators):
        found = real(data, generators)
        return type(found)(*(value.as_subclass(NoDouble) for value in found))

    run.objective.losses = losses
    plain = trainer(replace(SHORT, loss_weight="adaptive", validate_every=1, steps=2))
    assert run.update() == plain.update()
