"""The command line: the file, the run from files on disk, going on, and both launchers' way to start processes."""

from __future__ import annotations

import gc
import json
import os
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import harness
import pytest
import torch
from family import write_family
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file

from cascade_studio.commands import encoders, train
from cascade_studio.stages.errors import CascadeError, WrongInput
from cascade_studio.stages.training.distributed import ALONE
from cascade_studio.stages.training.export import TOKENS
from cascade_studio.stages.training.run import Run
from cascade_studio.stages.training.settings import Settings


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> Path:
    return write_family(tmp_path_factory.mktemp("family"), variants=False)["vae/stage_a"].parents[1]


@pytest.fixture
def config(models, tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("CASCADE_STUDIO_HOST_PATH", str(harness.host_root()))
    (tmp_path / "pictures").mkdir()
    for number in range(3):
        noise = torch.randint(256, (70, 60 + 60 * (number % 2), 3), generator=torch.Generator().manual_seed(number))
        Image.fromarray(noise.byte().numpy()).save(tmp_path / "pictures" / f"{number}.png")
        (tmp_path / "pictures" / f"{number}.txt").write_text(f"a [thing] {number}")
    settings = {"name": "small", "steps": 4, "batch_size": 2, "learning_rate": 1e-2, "resolution": 64, "save_every": 2}
    file = tmp_path / "config.json"
    file.write_text(
        json.dumps(
            {
                "stage_c": str(models / "diffusion_models" / "stage_c.safetensors"),
                "text_encoder": str(models / "text_encoders" / "clip_g.safetensors"),
                "image_encoder": str(models / "vae" / "effnet_encoder.safetensors"),
                "pictures": "pictures",
                "output": "run",
                "settings": settings,
            }
        )
    )
    return file


def test_a_run_from_files(config, tmp_path, caplog):
    caplog.set_level("INFO")
    read = train.read_config(config)
    path = train.run(read, "cpu")
    assert path == tmp_path / "run" / "small.safetensors" and len(load_file(path)) == 3 * 16
    assert "Memory plan" in caplog.text and "3 pictures with captions" in caplog.text
    (state,) = (tmp_path / "run" / "state").iterdir()
    assert {p.name for p in (state / "checkpoints").iterdir()} == {
        "small-step000002.safetensors",
        "small-step000004.safetensors",
    }
    losses = (state / "losses.csv").read_text().splitlines()
    assert losses[0] == "step,loss,loss on fixed noise" and len(losses) == 6 and losses[1].startswith("0,,0.")
    assert Image.open(tmp_path / "run" / "small.loss.png").size == (768, 384)
    longer = replace(read, settings=replace(read.settings, steps=6))
    before = load_file(path)
    train.run(longer, "cpu")
    assert any(not torch.equal(value, before[key]) for key, value in load_file(path).items())
    other = train.run(replace(read, settings=replace(read.settings, seed=3)), "cpu")
    assert other.name == "small_2.safetensors" and path.exists(), "other settings are another run, beside the first"


def test_samples_are_painted_by_stage_b_or_the_previewer(config, models, tmp_path):
    """From step 0 on, one for each prompt in its own size; a run with both stages learns Stage C."""
    read = train.read_config(config)
    settings = replace(read.settings, steps=1, sample_every=1, sample_prompt="a thing\nanother | 128x64")
    full = {"stage_b": "diffusion_models/stage_b.safetensors", "stage_a": "vae/stage_a.safetensors"}
    both = replace(read, **{name: str(models / path) for name, path in full.items()})
    small = replace(read, image_encoder=str(models / "checkpoints" / "stable_cascade_stage_c.safetensors"))
    sides = {}
    for name, given in (("both", both), ("small", small), ("neither", read)):
        train.run(replace(given, settings=settings, output=str(tmp_path / name)), "cpu")
        found = sorted((tmp_path / name / "state").glob("*/samples/*.png"))
        sides[name] = [(path.name, *Image.open(path).size) for path in found]
    names = ["step000000-2.png", "step000000.png", "step000001-2.png", "step000001.png"]
    assert [name for name, *_ in sides["both"]] == [name for name, *_ in sides["small"]] == names
    assert not sides["neither"]
    for (_, wide, high), (_, width, height) in zip(sides["both"], sides["small"]):
        assert wide > 3 * width and high > 3 * height
    assert sides["small"][0][1] > sides["small"][0][2] and sides["small"][1][1] == sides["small"][1][2]


def test_words_and_an_all_in_one_file(config, models, tmp_path):
    read = train.read_config(config)
    whole = str(models / "checkpoints" / "stable_cascade_stage_c.safetensors")
    settings = replace(read.settings, tokens=(("[thing]", "dog"),), layout="official", steps=2)
    path = train.run(replace(read, stage_c=whole, text_encoder=whole, image_encoder=whole, settings=settings), "cpu")
    tensors = load_file(path)
    assert tensors["embeddings.embeddings"].shape == (1, 64) and tensors["embeddings.embeddings"].abs().max() > 0
    assert tensors["embeddings.indices"].tolist() == [49408] and tensors["weights.0.lora_up"].shape == (128, 4)
    assert load_file(tmp_path / "run" / "small_thing.safetensors")["clip_g"].shape == (1, 64)
    with safe_open(path, "pt") as file:
        assert json.loads(file.metadata()[TOKENS]) == {"[thing]": "^(dog</w>)$"}


LAUNCHERS = {
    "torchrun": ("torch.distributed.run", "--nproc_per_node", "2", "--master_port"),
    "accelerate": (
        "accelerate.commands.launch",
        *("--multi_gpu", "--num_machines", "1", "--num_processes", "2"),
        *("--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port"),
    ),
}
"""The modules behind the commands, with what they need beside the script; a free port follows."""


@pytest.mark.slow
def test_two_processes_by_both_launchers(config, tmp_path):
    """The launcher is the only difference; the result is that of one process with the same parts (where products are
    bfloat16, those of a whole batch round elsewhere), and no tensor of a processor is handed to the group, which one of
    graphics cards would refuse."""
    read = train.read_config(config)
    alone = load_file(train.run(replace(read, settings=replace(read.settings, accumulation=2)), "cpu"))
    script = str(Path(__file__).with_name("launched.py"))
    for name, launcher in LAUNCHERS.items():
        (tmp_path / "run").rename(tmp_path / f"before {name}")
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = str(free.getsockname()[1])
        options = ("train", "--config", str(config), "--device", "cpu", "--threads", "1")
        done = subprocess.run(
            [sys.executable, "-m", *launcher, port, script, *options],
            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": "", "PYTHONFAULTHANDLER": "1"},
            cwd=Path(script).parents[2],
            timeout=400,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        assert "2 processes." in done.stderr, name
        together = load_file(tmp_path / "run" / "small.safetensors")
        assert together.keys() == alone.keys()
        for key, value in together.items():
            assert (value.float() - alone[key].float()).abs().max() <= 2e-3 * alone[key].float().abs().max() + 1e-7, key


def test_a_group_of_cards_refuses_what_was_not_carried(monkeypatch):
    import launched

    launched.serve_cards_alone(monkeypatch.setattr)
    with pytest.raises(RuntimeError, match=launched.REFUSED):
        torch.distributed.all_reduce(torch.zeros(4, 2, dtype=torch.float64))


@pytest.mark.parametrize(
    "change, words",
    [
        ({"pictures": None}, "lacks pictures"),
        ({"colour": "red"}, "colour"),
        ({"settings": {"rnak": 1}}, "rnak"),
        ({"preset": ["style"]}, r"preset \['style'\] is not known"),
        ({"pictures": []}, "names no folder"),
        ({"output": ""}, "lacks output"),
        ({"sizes": 128}, "'sizes' is 128. It needs a list"),
        ({"caption": 5}, "'caption' is 5. It needs a text"),
        ({"stage_c": "models\text.safetensors"}, "with / between folders"),
        ({"pictures": [{"folder": "pictures", "kind": "tag"}]}, "'kind' is 'tag'. It needs one of: one, lines, tags"),
        ({"pictures": [{"folder": "pictures", "repeats": 0}]}, "'repeats' is 0. It needs a whole number from 1"),
        ({"pictures": [{"folder": "pictures", "weight": "0.5"}]}, "'weight' is '0.5'. It needs a number"),
        ({"settings": {"what": "stage_b"}}, "A run of stage_b needs stage_b"),
        ({"settings": {"what": "stage_c", "start_from": "a.safetensors"}}, "A run of stage_c has no start_from"),
        ({"settings": {"tokens": [["[x]", "dog"], ["[X]", "cat"]]}}, "named twice"),
        ({"stage_c": "", "stage_b": "b.safetensors"}, "Give Stage A's file as 'stage_a'"),
        ({"stage_c": "", "stage_b": "b.safetensors", "settings": {"what": "controlnet"}}, "needs stage_c"),
    ],
)
def test_wrong_files_are_told(config, change, words):
    values = {**json.loads(config.read_text()), **change}
    config.write_text(json.dumps({key: value for key, value in values.items() if value is not None}))
    with pytest.raises(WrongInput, match=words):
        train.read_config(config)
    config.write_text("{")
    with pytest.raises(WrongInput, match="JSON"):
        train.read_config(config)


@pytest.mark.parametrize(
    "change, words",
    [
        ({"stage_c": "pictures/0.png"}, "0.png is not a safetensors file"),
        ({"settings": {"start_from": "nowhere.safetensors"}}, "no file nowhere.safetensors"),
        ({"settings": {"what": "controlnet", "hint": "pictures"}}, r"without a hint of the same name \(3\): 0.png"),
        ({"settings": {"what": "words", "tokens": [["[other]", "dog"]]}}, r"No caption holds \[other\]"),
        ({"crops": "4"}, "'crops' is '4'"),
    ],
)
def test_what_cannot_be_learned_is_told_before_the_first_step(config, tmp_path, caplog, change, words):
    config.write_text(json.dumps({**json.loads(config.read_text()), **change}))
    read = train.read_config(config)
    with pytest.raises(CascadeError, match=words):
        train.prepare_run(replace(read, settings=replace(read.settings, resolution=64)), ALONE, torch.device("cpu"))
    told_early = "tokens" not in str(change)
    assert not (told_early and list((tmp_path / "run").glob("cache/*.safetensors"))), "nothing was encoded"


def test_paths_are_relative_to_the_file(config, tmp_path):
    read = train.read_config(config)
    assert read.output == str(tmp_path / "run") and read.settings == Settings(
        name="small", steps=4, batch_size=2, learning_rate=1e-2, resolution=64, save_every=2
    )


def test_encoders_are_let_go_of_before_training(config):
    """They are 1.5 GB for the published models, and a run reads what they made from the cache."""
    lesson = train.prepare_run(train.read_config(config), ALONE, torch.device("cpu"))
    gc.collect()
    alive = [thing for thing in gc.get_objects() if type(thing) is encoders.Coders]
    assert not alive and len(lesson.rows) == 3


@pytest.mark.parametrize(
    "device, words", [("tpu", "no device 'tpu'"), ("cuda:7", "no device 'cuda:7'"), ("cpu:x", "no device 'cpu:x'")]
)
def test_devices_that_are_not_here_are_told(device, words, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(WrongInput, match=words):
        train.check_device(device)
    for known in (None, "cpu"):
        train.check_device(known)


def test_the_plan_alone_and_the_rates(config, tmp_path, caplog):
    caplog.set_level("INFO")
    assert train.main(["--config", str(config), "--plan"]) == 0
    assert "Memory plan" in caplog.text and not (tmp_path / "run" / "small.safetensors").exists()
    for wrong in (("--steps", "0"), ("--threads", "-1")):
        with pytest.raises(SystemExit):
            train.main(["--config", str(config), *wrong])
    assert train.main(["--config", str(config), "--rates"]) == 0
    assert "A learning rate to begin with" in caplog.text and caplog.text.count("rate 0.0") >= 3


def test_several_folders_with_options(config, tmp_path):
    values = json.loads(config.read_text())
    (tmp_path / "more").mkdir()
    Image.new("RGB", (64, 64)).save(tmp_path / "more" / "a.png")
    values["pictures"] = [{"folder": "pictures", "repeats": 3}, {"folder": "more", "caption": "plain", "weight": 0.5}]
    values["settings"]["held_out"] = 1
    config.write_text(json.dumps({**values, "mirrored": True, "sizes": [128, 64], "preset": "style"}))
    read = train.read_config(config)
    assert read.settings.rank == 12 and read.settings.steps == 4, "the file's own settings come on top of the preset"
    lesson = train.prepare_run(read, ALONE, torch.device("cpu"))
    assert lesson.repeats == [3, 3, 3, 1] * 2 and lesson.pictures == 4
    assert [float(row["weight"]) for row in lesson.rows] == [1, 1, 1, 0.5] * 2
    assert all(row["all_latent"].shape[0] == 2 for row in lesson.rows)
    one, other = ([row["all_latent"][0, 0].numel() for row in part] for part in (lesson.rows[:4], lesson.rows[4:]))
    assert max(one) == 4 < 12 <= min(other), "64 and 128 pixels"
    with pytest.raises(WrongInput, match="All pictures have the weight 0"):
        Run(replace(lesson, rows=[{**row, "weight": 0 * row["weight"]} for row in lesson.rows]))
    run = Run(lesson)
    assert {number % 4 for number in run.trainer.held} == {number for number in run.trainer.held if number < 4}
    assert len(run.trainer.held) == 2, "a picture that is held out is so at every size"
    for wrong, words in (
        ([{"folder": "more", "colour": 1}], "has colour"),
        ([{"repeats": 2}], "no folder"),
        (3, "needs a path in quotes"),
    ):
        config.write_text(json.dumps({**values, "pictures": wrong}))
        with pytest.raises(WrongInput, match=words):
            train.read_config(config)


def test_fewer_steps_than_were_made_are_refused(config):
    read = train.read_config(config)
    train.run(read, "cpu")
    with pytest.raises(WrongInput, match="has made 4 steps already, and 2 are asked for.*another seed or output"):
        train.run(replace(read, settings=replace(read.settings, steps=2)), "cpu")
