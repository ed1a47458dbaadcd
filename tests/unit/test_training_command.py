"""The command line: the file, the run from files on disk, going on, and both launchers' way to start processes."""

from __future__ import annotations

import json
import os
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

from cascade_studio.commands import train
from cascade_studio.stages.errors import WrongInput
from cascade_studio.stages.training.export import TOKENS
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
    assert {p.name for p in (tmp_path / "run" / "state" / "checkpoints").iterdir()} == {
        "small-step000002.safetensors",
        "small-step000004.safetensors",
    }
    assert Image.open(tmp_path / "run" / "small.loss.png").size == (768, 384)
    longer = replace(read, settings=replace(read.settings, steps=6))
    before = load_file(path)
    train.run(longer, "cpu")
    assert any(not torch.equal(value, before[key]) for key, value in load_file(path).items())
    with pytest.raises(WrongInput, match="other settings"):
        train.run(replace(read, settings=replace(read.settings, seed=3)), "cpu")


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


def test_two_processes_by_torchrun(config, tmp_path):
    """The launcher is the only difference; the result is that of one process."""
    alone = load_file(train.run(train.read_config(config), "cpu"))
    (tmp_path / "run").rename(tmp_path / "alone")
    root = str(Path(__file__).resolve().parents[2])
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--nproc_per_node",
            "2",
            "--standalone",
            "studio.py",
            "train",
            "--config",
            str(config),
            "--device",
            "cpu",
            "--threads",
            "1",
        ],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": ""},
        cwd=root,
        timeout=400,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "2 processes." in done.stderr
    together = load_file(tmp_path / "run" / "small.safetensors")
    assert together.keys() == alone.keys()
    for key, value in together.items():
        assert (value.float() - alone[key].float()).abs().max() <= 2e-3 * alone[key].float().abs().max() + 1e-7, key


@pytest.mark.parametrize(
    "change, words",
    [({"pictures": None}, "lacks pictures"), ({"colour": "red"}, "colour"), ({"settings": {"rnak": 1}}, "rnak")],
)
def test_wrong_files_are_told(config, change, words):
    values = {**json.loads(config.read_text()), **change}
    config.write_text(json.dumps({key: value for key, value in values.items() if value is not None}))
    with pytest.raises(WrongInput, match=words):
        train.read_config(config)
    config.write_text("{")
    with pytest.raises(WrongInput, match="JSON"):
        train.read_config(config)


def test_paths_are_relative_to_the_file(config, tmp_path):
    read = train.read_config(config)
    assert read.output == str(tmp_path / "run") and read.settings == Settings(
        name="small", steps=4, batch_size=2, learning_rate=1e-2, resolution=64, save_every=2
    )
