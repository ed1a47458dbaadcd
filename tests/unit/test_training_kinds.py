"""Every kind of thing that learns: it learns, goes on bit by bit, can be shared among processes, and has a file."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import lessons
import pytest
import torch
from lessons import KINDS, distance, randn, run_of
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tiny import relative, tiny_net

from cascade_studio.stages.errors import WrongInput
from cascade_studio.stages.files import convert, load
from cascade_studio.stages.files.identify import identify
from cascade_studio.stages.files.kinds import KINDS as FILE_KINDS
from cascade_studio.stages.nets.controlnet import ControlNetConfig
from cascade_studio.stages.nets.stage_c import StageCConfig
from cascade_studio.stages.training import control, memory, objectives, optimiser as optimisers, rates, slim
from cascade_studio.stages.training.checkpoint import Store, train
from cascade_studio.stages.training.export import SETTINGS
from cascade_studio.stages.training.objectives import draw_mask
from cascade_studio.stages.training.seeding import generator
from cascade_studio.stages.training.settings import Settings
from cascade_studio.stages.training.trainer import Diverged

UNIT = Path(__file__).parent


def judged(run) -> float:
    """The loss on the same noise each time."""
    trainer = run.trainer
    with torch.no_grad():
        return float(trainer.objective.losses(trainer.rows * 4, [generator(0, i) for i in range(16)]).raw.mean())


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_learns(kind):
    rate = {"stage_c": 1e-3, "stage_b": 4e-3, "words": 0.1, "text_lora": 0.02}.get(kind, 1e-2)
    run = run_of(kind, steps=12, batch_size=4, drop_text=0.0, learning_rate=rate, rank=4, alpha=8.0)
    before, first = judged(run), {key: value.clone() for key, value in run.trainer.learned.state_dict().items()}
    for _ in range(12):
        run.trainer.update()
    assert judged(run) < before, kind
    assert any(not torch.equal(value, first[key]) for key, value in run.trainer.learned.state_dict().items())


@pytest.fixture(scope="module")
def killed(tmp_path_factory) -> Path:
    """A folder for each kind, where a process left its states that was killed in the middle of its third step."""
    folder = tmp_path_factory.mktemp("killed")
    paths = os.pathsep.join((str(UNIT.parents[1]), str(UNIT)))
    told = {"OMP_NUM_THREADS": "1", "LESSON_KILLED": " ".join(KINDS), "PYTHONPATH": paths}
    subprocess.run(
        [sys.executable, str(UNIT / "lesson_process.py"), "-", str(folder)], env={**os.environ, **told}, check=True
    )
    return folder


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_goes_on_bit_by_bit(kind, tmp_path, killed):
    """Stopped in the middle, or killed, and built anew, it ends with the bits of a run without a break."""
    torch.set_num_threads(1)  # as the killed one: a ControlNet is brought to size by means, whose bits hang on threads
    whole = run_of(kind, steps=4, ema=0.5).trainer
    train(whole, Store(tmp_path / "whole", "x"))

    def stop(trainer) -> None:
        if trainer.step == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(run_of(kind, steps=4, ema=0.5).trainer, Store(tmp_path / "cut", "x"), stop)
    assert len(Store(killed / kind, "x").states()["losses"]) == 2
    torch.rand(5)
    for folder in (tmp_path / "cut", killed / kind):
        again = run_of(kind, steps=4, ema=0.5).trainer
        train(again, Store(folder, "x"))
        assert again.losses == whole.losses
        assert distance(again.learned.state_dict(), whole.learned.state_dict()) == 0
        assert distance(again.result(), whole.result()) == 0


def test_two_processes_equal_one_for_every_kind(tmp_path):
    import lesson_process

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes = [
        subprocess.Popen(
            [sys.executable, str(UNIT / "lesson_process.py"), str(tmp_path / f"{rank}.pt")],
            env={
                **os.environ,
                "RANK": str(rank),
                "WORLD_SIZE": "2",
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(port),
                "OMP_NUM_THREADS": "1",
                "LESSON_KINDS": " ".join(KINDS),
                "PYTHONPATH": os.pathsep.join((str(UNIT.parents[1]), str(UNIT))),
            },
        )
        for rank in range(2)
    ]
    assert [process.wait(400) for process in processes] == [0, 0]
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    for kind in KINDS:
        alone = lesson_process.train_kind(kind, None, accumulation=2)  # one process, the same parts: the same bits
        assert distance(first[kind]["learned"], second[kind]["learned"]) == 0, kind
        assert distance(first[kind]["learned"], alone["learned"]) == 0, kind
        assert first[kind]["losses"] == alone["losses"], kind
        assert first[kind]["judged"] == alone["judged"], kind


@pytest.mark.parametrize("kind", KINDS)
def test_parts_of_a_batch_equal_one_pass(kind):
    """Up to the rounding of sums in another order. Adam moves a number whose gradient is nothing but rounding by the
    whole rate: in DoRA's second step that is one of ``down``, 7e-9 beside 1.8e-4, which alone makes 1.1e-5 of all at
    ten times this rate."""
    import lesson_process

    rate = {"learning_rate": 1e-3} if kind == "dora" else {}
    parts = lesson_process.train_kind(kind, None, accumulation=2, **rate)
    whole = lesson_process.train_kind(kind, None, **rate)
    assert distance(parts["learned"], whole["learned"]) <= 1e-5
    assert parts["losses"] == pytest.approx(whole["losses"], rel=1e-5)
    found, wanted = ([loss for _, loss in run["judged"]] for run in (parts, whole))
    assert found == pytest.approx(wanted, rel=1e-5)


# Files


def taught(kind: str, tmp_path: Path, **changes) -> tuple:
    """A run after two steps, and its file."""
    run = run_of(kind, **{"steps": 2, **changes})
    path = run.train(tmp_path / "state", lambda: tmp_path / "file.safetensors")
    return run, path


@pytest.mark.parametrize("layout", ["comfyui", "official", "diffusers"])
@pytest.mark.parametrize("kind", ["stage_c", "stage_b"])
def test_a_whole_stage_is_written_in_three_layouts(kind, layout, tmp_path):
    run, path = taught(kind, tmp_path, layout=layout, weights="fp32")
    with safe_open(path, "pt") as file:
        told = file.metadata()
    assert json.loads(told[SETTINGS])["what"] == kind
    tensors = load_file(path)
    found = identify(tensors, told)
    assert found.kind == kind and found.config == run.task.given.config
    read = convert.normalise(tensors, found)
    assert distance(dict(read), dict(run.trainer.result())) == 0
    net = load.from_file(path)
    arguments = (randn(1, 16, 4, 4), torch.rand(1), randn(1, 7, 96), randn(1, 1, 96))
    if kind == "stage_b":
        arguments = (randn(1, 4, 16, 16), torch.rand(1), randn(1, 16, 3, 3), randn(1, 1, 96))
    with torch.no_grad():
        assert relative(run.net(*arguments), net(*arguments)) <= 1e-5


def test_a_controlnet_is_written_as_the_published_ones_are(tmp_path):
    run, path = taught("controlnet", tmp_path)
    net = load.from_file(path)
    hint = torch.rand(1, 1, 128, 128)
    with torch.no_grad():
        maps, wanted = net(hint), run.trainer.learned(hint)
    assert maps.keys() == wanted.keys() and all(torch.allclose(maps[key], wanted[key], atol=1e-5) for key in maps)
    assert any(value.abs().max() > 0 for value in maps.values())


def test_new_controlnets_have_the_published_sizes():
    full, lite = (FILE_KINDS["stage_c"].published[name] for name in ("3.6B", "1B"))
    trunk = ControlNetConfig().trunk
    for hint, name in (("canny", "Canny"), ("inpaint", "inpainting"), ("super_resolution", "super-resolution")):
        found = control.plan_control(full, Settings(what="controlnet", hint=hint), trunk)
        wanted = FILE_KINDS["controlnet"].published[name]
        assert (found.c_in, found.c_proj, found.proj_blocks) == (wanted.c_in, wanted.c_proj, wanted.proj_blocks)
        assert (found.bottleneck_mode, found.c_large, found.c_embed) == (
            wanted.bottleneck_mode,
            wanted.c_large,
            wanted.c_embed,
        )
    small = control.plan_control(lite, Settings(what="controlnet"), trunk)
    assert small.c_proj == 1536 and small.proj_blocks == (0, 2, 4, 6, 25, 27, 29, 31) and lite.res_blocks == 32
    with pytest.raises(WrongInput, match="ResBlocks 0 to 31, but 40"):
        control.plan_control(lite, Settings(what="controlnet", control_blocks=("0", "40")), trunk)


def test_a_new_controlnet_feeds_blocks_of_one_width():
    """Of a Stage C whose levels differ, those of the commonest width."""
    uneven = StageCConfig(c_hidden=(128, 256), nhead=(2, 4), blocks=((1, 3), (3, 1)))
    assert uneven.res_block_widths == (128, *(256,) * 6, 128) and uneven.res_blocks == 8
    trunk = ControlNetConfig().trunk
    found = control.plan_control(uneven, Settings(what="controlnet"), trunk)
    assert found.c_proj == 256 and found.proj_blocks == (1, 2, 3, 4, 5, 6)
    named = control.plan_control(uneven, Settings(what="controlnet", control_blocks=("0", "7")), trunk)
    assert named.c_proj == 128 and named.proj_blocks == (0, 7)
    with pytest.raises(WrongInput, match="ResBlock 0 has 128 channels and ResBlock 3 has 256"):
        control.plan_control(uneven, Settings(what="controlnet", control_blocks=("0", "3")), trunk)


def test_an_inpainting_controlnet_sees_another_mask_each_time():
    run = run_of("controlnet", hint="inpaint")
    objective = run.trainer.objective
    rows = [{**row, "hint": torch.full((3, 128, 128), 51, dtype=torch.uint8)} for row in run.trainer.rows[:2]]
    seen = objective.conditions(rows, [generator(0, i) for i in range(2)])["hint"]
    assert seen.shape == (2, 4, 128, 128)
    for hint in seen:
        hidden = hint[3] == 1
        assert 0.005 < hidden.float().mean() < 0.98
        assert hint[:3, hidden].min() == 1 and torch.allclose(hint[:3, ~hidden], torch.tensor(0.2))
    assert not torch.equal(seen[0, 3], seen[1, 3])
    shares = [float(draw_mask((64, 96), generator(1, i)).mean()) for i in range(200)]
    assert 0.2 < sum(shares) / 200 < 0.6 and min(shares) > 0


# Going on from a LoRA


@pytest.mark.parametrize("kind", ["lora", "dora", "loha", "lokr", "text_lora"])
def test_a_run_goes_on_from_a_lora(kind, tmp_path):
    run, path = taught(kind, tmp_path, steps=3)
    made = lessons.lesson(kind, alpha=1.0, seed=9)
    made.given.start, made.given.start_name = load_file(path), path.name
    again = lessons.Run(made)
    assert judged(again) == pytest.approx(judged(run), rel=2e-3), "float16 in the file is all that differs"
    again.trainer.update()
    other = lessons.lesson(kind, rank=3)
    other.given.start, other.given.start_name = load_file(path), path.name
    with pytest.raises(WrongInput, match="file.safetensors has the shape"):
        lessons.Run(other)
    strange = lessons.lesson(kind)
    strange.given.start, strange.given.start_name = {"lora_prior_unet_nothing.lora_up.weight": torch.ones(1)}, "odd"
    with pytest.raises(WrongInput, match="odd holds"):
        lessons.Run(strange)


def test_words_have_files_of_their_own_and_leave_others_alone(tmp_path):
    """[x] and <x> agree in their letters, and a user's own embedding may have that name too."""
    save_file({"clip_g": torch.full((1, 96), 7.0)}, tmp_path / "mine_x.safetensors")
    made = lessons.lesson("text_lora", what="words", tokens=(("[x]", "dog"), ("<x>", "horse")))
    made.settings = lessons.settings_of("words", tokens=(("[x]", "dog"), ("<x>", "horse")), steps=1)
    run = lessons.Run(made)
    run.trainer.update()
    first = run.save_words(tmp_path, "mine")
    assert [stem for _, stem in first] == ["mine_x_2", "mine_x_3"]
    assert run.save_words(tmp_path, "mine") == first, "the run's own files are written again"
    assert load_file(tmp_path / "mine_x.safetensors")["clip_g"].unique().tolist() == [7]
    values = [load_file(tmp_path / f"{stem}.safetensors")["clip_g"] for _, stem in first]
    assert not torch.equal(*values)


# Memory


@pytest.mark.parametrize("size, most", [("1B", 12e9), ("3.6B", 24e9)])
@pytest.mark.parametrize("optimiser", ["adamw_8bit", "adafactor", "adamw_cpu"])
def test_a_whole_stage_c_fits_by_plan(size, most, optimiser):
    settings = Settings(what="stage_c", optimiser=optimiser, batch_size=4)
    found = memory.plan("stage_c", FILE_KINDS["stage_c"].published[size], settings)
    assert found.total <= most and "Stage C with its optimiser" in found.describe()
    plain = memory.plan("stage_c", FILE_KINDS["stage_c"].published[size], Settings(what="stage_c", weights="fp32"))
    assert plain.total > 2.5 * found.parts["Stage C with its optimiser"]


def test_updates_during_the_backward_pass_leave_no_gradients():
    run = run_of("stage_c").trainer
    assert run.optimiser.fused and next(run.learned.parameters()).dtype == torch.bfloat16
    run.update()
    assert all(parameter.grad is None for parameter in run.learned.parameters())
    before = tiny_net("stage_c_tiny").state_dict()
    moved = [
        key
        for key, value in run.learned.state_dict().items()
        if not torch.equal(value.float(), before[key].bfloat16().float())
    ]
    assert len(moved) > 0.8 * len(before)


# Learning rates and optimisers


def test_rates_are_tried_on_the_same_noise():
    run = run_of("lora", drop_text=0.0).trainer
    before = {key: value.clone() for key, value in run.learned.state_dict().items()}
    found = rates.try_rates(run, 4, (1e-6, 1e-2, 1.0))
    assert found[1e-2] < found[1e-6] < found[1.0]
    assert rates.choose_rate(found) == 5e-3
    assert run.step == 0 and not run.judged and distance(run.learned.state_dict(), before) == 0


@pytest.mark.parametrize("kind", ["adamw_8bit", "adafactor", "adamw_cpu"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_slim_optimisers_go_where_adamw_goes(kind, dtype):
    """A quadratic bowl: they reach its middle, as AdamW does, and bfloat16 loses nothing on the way."""
    target = randn(40, 30)
    weight = torch.nn.Parameter(torch.zeros(40, 30, dtype=dtype))
    optimiser = optimisers.Optimiser([weight], 0.02, kind=kind, weight_decay=0.0, clip=1e6)
    for _ in range(400):
        optimiser.step((weight.float() - target).square().sum())
    assert (weight.float() - target).abs().mean() <= 0.05


def test_moments_in_the_computers_memory_are_those_of_adamw():
    """Weights in bfloat16 follow the float32 ones, whose steps are AdamW's; a stage goes on from them bit by bit."""
    start, grads = randn(20, 30).bfloat16(), [0.1 * randn(20, 30, seed=i) for i in range(30)]
    theirs, ours = torch.nn.Parameter(start.float()), torch.nn.Parameter(start.clone())
    pair = (
        (theirs, torch.optim.AdamW([theirs], 1e-3, weight_decay=0.1)),
        (ours, slim.HostAdamW([ours], 1e-3, weight_decay=0.1)),
    )
    for grad in grads:
        for weight, optimiser in pair:
            weight.grad = grad.bfloat16().to(weight.dtype)
            optimiser.step()
    (whole,) = (state["whole"] for state in pair[1][1].state.values())
    assert torch.allclose(whole, theirs, atol=1e-6) and torch.equal(ours, whole.bfloat16())


def test_small_updates_of_bfloat16_are_kept_in_the_mean():
    """1 + 2^-12 is no bfloat16: sixteen of its updates move one weight in sixteen by a last place."""
    value = torch.full((100_000,), 1 + 2**-12)
    rounded = slim.round_by_chance(value, torch.Generator().manual_seed(0)).float()
    assert set(rounded.unique().tolist()) == {1.0, 1 + 2**-7}
    assert rounded.mean() == pytest.approx(1 + 2**-12, abs=3e-5)


def test_packed_moments_keep_their_digits():
    value = randn(1000) * torch.logspace(-4, 0, 1000)
    for power, signed, given in ((2, True, value), (4, False, value.square())):
        codes, scale = slim.pack(given, power, signed)
        assert codes.element_size() == 1 and len(scale) == 4
        back = slim.unpack(codes, scale, power, given.shape)
        assert (back - given).norm() <= 0.02 * given.norm()


def test_schedules():
    def rates_of(schedule: str) -> list[float]:
        return [optimisers.scale_rate(schedule, update, 100, 10, 3) for update in range(1, 101)]

    for schedule in ("constant", "linear", "cosine", "restarts"):
        assert rates_of(schedule)[:10] == pytest.approx([i / 10 for i in range(1, 11)])
    assert rates_of("constant")[10:] == [1.0] * 90
    assert rates_of("linear")[54] == pytest.approx(0.505) and rates_of("linear")[-1] == pytest.approx(0.01)
    assert rates_of("cosine")[54] == pytest.approx(0.505) and rates_of("cosine")[-1] == pytest.approx(0.01)
    tops = [i for i, rate in enumerate(rates_of("restarts")[10:]) if rate > 0.99]
    assert len(tops) >= 3 and rates_of("restarts")[-1] == pytest.approx(0.01)


@pytest.mark.parametrize("kind", [*optimisers.PACKAGES, "adamw_cpu"])
def test_other_optimisers_learn_and_go_on_bit_by_bit(kind, tmp_path):
    """Prodigy finds its own rate (1 stands for that); the result of schedule-free is its average."""
    rate = {"prodigy": 1.0, "schedule_free": 1e-2, "adamw_cpu": 1e-2}[kind]

    def fresh():
        return run_of("lora", optimiser=kind, learning_rate=rate, steps=12, drop_text=0.0, weight_decay=0.0)

    whole, before = fresh(), judged(fresh())
    train(whole.trainer, Store(tmp_path / "whole", "x"))
    cut = fresh()

    def stop(trainer) -> None:
        if trainer.step == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(cut.trainer, Store(tmp_path / "cut", "x"), stop)
    again = fresh()
    train(again.trainer, Store(tmp_path / "cut", "x"))
    assert again.trainer.losses == whole.trainer.losses
    assert distance(again.trainer.result(), whole.trainer.result()) == 0
    whole.trainer.learned.load_state_dict(whole.trainer.result())
    assert judged(whole) < before


@pytest.mark.parametrize("kind", optimisers.PACKAGES)
def test_an_optimiser_that_is_not_installed_is_a_sentence(kind, monkeypatch):
    package = optimisers.PACKAGES[kind][0]
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(WrongInput, match=f"{package}, which is not installed.*or choose adamw"):
        run_of("lora", optimiser=kind)


# What counts


def test_masks_weights_and_ways():
    run = run_of("lora", drop_text=0.0).trainer
    rows = [dict(run.rows[0])]
    whole = run.objective.losses(rows, [generator(0, 1)]).raw
    half = torch.zeros(1, 4, 4)
    half[..., :2] = 1
    parts = [run.objective.losses([{**rows[0], "mask": mask}], [generator(0, 1)]).raw for mask in (half, 1 - half)]
    assert float((parts[0] + parts[1]).detach()) / 2 == pytest.approx(float(whole.detach()), rel=1e-5)
    heavy = run.objective.losses([{**rows[0], "weight": torch.tensor(3.0)}], [generator(0, 1)]).raw
    assert float(heavy.detach()) == pytest.approx(3 * float(whole.detach()), rel=1e-5)
    ways = {**{k: v for k, v in rows[0].items() if k != "latent"}, "all_latent": randn(3, 16, 4, 4)}
    drawn = {
        int(objectives.choose_way(ways, generator(0, i))["latent"].eq(ways["all_latent"]).flatten(1).all(1).nonzero())
        for i in range(30)
    }
    assert drawn == {0, 1, 2}


def test_a_run_that_gets_worse_on_fixed_noise_is_stopped():
    """The loss of single steps, which has chance in it, said nothing about a run that went from 0.23 to 0.43."""
    run = run_of("lora", validate_every=2, learning_rate=0.5, steps=40, blocks=(".attn", ".clf"), warm_up=0).trainer
    with pytest.raises(Diverged, match="loss on fixed noise grew from"):
        for _ in range(40):
            run.update()
    assert 0 < run.step < 40 and len(run.judged) >= 1
