"""What a run is judged by, and what it does before its first step."""

from __future__ import annotations

import re
import sys

import pytest
import torch
from lessons import distance, lesson, run_of

from cascade_studio.stages.errors import BadValues, WrongInput
from cascade_studio.stages.training.checkpoint import Store
from cascade_studio.stages.training.run import Run, choose_held, parse_prompts
from cascade_studio.stages.training.settings import Settings

# Held-out pictures


def test_held_out_pictures_are_judged_and_never_learned():
    """Which ones is chance of the seed; with repeats an epoch has the others as often as before."""
    made = lesson("lora", held_out=2, validate_every=1, steps=6)
    made.repeats = [1, 3, 1, 2]
    trainer = Run(made).trainer
    held = choose_held(4, 2, made.settings.seed)
    number = {id(row): index for index, row in enumerate(trainer.rows)}
    seen: dict[bool, set[int]] = {True: set(), False: set()}
    real = trainer.objective.losses

    def losses(rows, generators):
        seen[torch.is_grad_enabled()] |= {number[id(row)] for row in rows}
        return real(rows, generators)

    trainer.objective.losses = losses
    for _ in range(6):
        trainer.update()
    assert seen[False] == held == set(trainer.held) and seen[True] == set(range(4)) - held
    assert sorted(trainer.order.members[0]) == sorted(
        i for i in range(2) for _ in range(made.repeats[trainer.taught[i]])
    )
    assert {frozenset(choose_held(4, 2, seed)) for seed in range(20)} != {frozenset(held)}


def test_without_held_out_pictures_all_are_learned_and_judged():
    trainer = run_of("lora").trainer
    assert not trainer.held and trainer.taught == [0, 1, 2, 3]
    with pytest.raises(WrongInput, match="All 4 pictures are held out"):
        run_of("lora", held_out=9)


def test_a_new_setting_at_its_default_leaves_a_run_what_it_was(monkeypatch):
    """A run that was stopped goes on after an update of the pack that brought settings."""
    now, known = Settings(seed=3), Settings.as_dict
    monkeypatch.setattr(
        Settings, "as_dict", lambda self: {key: value for key, value in known(self).items() if key != "trunk_steps"}
    )
    before = now.identity("x")
    monkeypatch.undo()
    assert now.identity("x") == before != Settings(seed=3, trunk_steps=5).identity("x")


# The trunk of a ControlNet


def trained(tmp_path, name: str, stop_at: int = 0, **changes) -> Run:
    """A short ControlNet run, stopped while its trunk learns if asked to."""
    run = run_of("controlnet", **{"trunk_steps": 12, "steps": 2, "batch_size": 4, "ema": 0.5, **changes})

    def heard(done: int, of: int) -> None:
        assert of == 12
        if done == stop_at:
            raise KeyboardInterrupt

    run.train(tmp_path / name, lambda: tmp_path / f"{name}.safetensors", on_prepare=heard)
    return run


def test_a_trunk_learns_to_see_before_the_first_step(tmp_path):
    """It tells latents from hints better, and what the net says is still nothing; stopped on the way it begins anew."""
    run = run_of("controlnet", trunk_steps=12, batch_size=4)
    before = {key: value.clone() for key, value in run.trainer.learned.state_dict().items()}
    losses: list[float] = []
    run.task.prepare(run.trainer, lambda done, of: losses.append(done))
    assert losses == list(range(1, 13))
    after = run.trainer.learned.state_dict()
    assert any(not torch.equal(after[key], before[key]) for key in before if key.startswith("control.backbone."))
    last = [key for key in before if re.fullmatch(r"control\.projections\.\d+\.2\.weight", key)]
    assert last and not any(after[key].any() for key in last)
    whole = trained(tmp_path, "whole")
    with pytest.raises(KeyboardInterrupt):
        trained(tmp_path, "cut", stop_at=5)
    assert Store(tmp_path / "cut", whole.identity).states() is None
    again = trained(tmp_path, "cut")
    assert distance(again.trainer.result(), whole.trainer.result()) == 0
    assert distance(again.trainer.result(), trained(tmp_path, "no", trunk_steps=0).trainer.result()) > 1e-3


def test_a_trunk_that_goes_wrong_is_a_sentence(tmp_path):
    with pytest.raises(BadValues, match="trunk.*Lower the learning rate"):
        trained(tmp_path, "bad", learning_rate=1.0, clip=1e6)


# Records


def curves(folder) -> dict[str, dict[int, float]]:
    """What TensorBoard reads: values by step of each curve."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    read = EventAccumulator(str(folder))
    read.Reload()
    return {tag: {event.step: event.value for event in read.Scalars(tag)} for tag in read.Tags()["scalars"]}


def test_tensorboard_reads_what_a_run_tells_and_csv_says_the_same(tmp_path):
    """Also of a run that was stopped between two saves, whose last steps are made again."""

    def start(stop_at: int = 0) -> Run:
        run = run_of("lora", steps=5, validate_every=2, list_steps=True, save_every=2)

        def heard(trainer) -> None:
            if trainer.step == stop_at:
                raise KeyboardInterrupt

        run.train(tmp_path / "state", lambda: tmp_path / "loras" / "file.safetensors", heard)
        return run

    with pytest.raises(KeyboardInterrupt):
        start(3)
    run = start()
    found = curves(tmp_path / "state" / "tensorboard")
    assert list(found["loss"].values()) == pytest.approx(run.trainer.losses, rel=1e-5)
    assert found["loss on fixed noise"] == pytest.approx(dict(run.trainer.judged), rel=1e-5)
    assert found["learning rate"][5] == pytest.approx(run.settings.learning_rate)
    rows = (tmp_path / "state" / "losses.csv").read_text().splitlines()
    assert [float(row.split(",")[1]) for row in rows[2:]] == pytest.approx(run.trainer.losses, rel=1e-5)
    name = run.settings.name
    listed = sorted(path.relative_to(tmp_path / "loras").as_posix() for path in (tmp_path / "loras").rglob("*.s*"))
    assert listed == [
        "file.safetensors",
        f"{name}/{name}-step000002.safetensors",
        f"{name}/{name}-step000004.safetensors",
    ]


def test_without_tensorboard_there_is_the_rest(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    run_of("lora", steps=2).train(tmp_path / "state", lambda: tmp_path / "file.safetensors")
    assert (tmp_path / "state" / "losses.csv").is_file() and not (tmp_path / "state" / "tensorboard").exists()


def test_prompts_with_a_bar_are_whole_and_sizes_are_read():
    text = "a cat | dog\na cat | dog | 64x96\n | 32 × 64\na hat | ²x²"
    assert parse_prompts(text, 64, "first", 32) == [
        ("a cat | dog", (2, 2)),
        ("a cat | dog", (3, 2)),
        ("first", (2, 1)),
        ("a hat | ²x²", (2, 2)),
    ]
