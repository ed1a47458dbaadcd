"""`studio.py models`: the same engine without a graph, its exit codes and its JSON."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys

import harness
import pytest
from faulty_server import Fault, FaultyServer, File
from safetensors.torch import save

from cascade_studio import stages
from cascade_studio.commands import main, models, places


@pytest.fixture
def shop(tmp_path, monkeypatch):
    """A server as endpoint, a catalogue of one's own for it, and an empty models folder."""
    monkeypatch.setenv("CASCADE_STUDIO_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    for name in (
        "HF_ENDPOINT",
        "HF_TOKEN",
        "HF_HUB_CACHE",
        "HF_HUB_OFFLINE",
        "CASCADE_STUDIO_OFFLINE",
        "CASCADE_STUDIO_MIRRORS",
        "COMFYUI_PATH",
    ):
        monkeypatch.delenv(name, raising=False)
    net = stages.StageA(stages.StageAConfig(bottleneck_blocks=1, c_hidden=16, codebook_size=32))
    data = save({key: value.contiguous() for key, value in net.state_dict().items()})
    server = FaultyServer()
    server.files["org/repo/resolve/main/a.safetensors"] = File(data)
    own = tmp_path / "own.json"
    own.write_text(
        json.dumps(
            {
                "files": [
                    {
                        "key": "tiny",
                        "role": "stage_a",
                        "name": "a.safetensors",
                        "folder": "vae",
                        "bytes": len(data),
                        "url": "https://huggingface.co/org/repo/resolve/main/a.safetensors",
                        "sha256": hashlib.sha256(data).hexdigest(),
                    }
                ],
                "presets": {"own": {"inputs": {"stage_a": "tiny"}}},
            }
        )
    )
    yield server, ["--catalogue", str(own)], tmp_path / "models"
    server.close()


def test_list_needs_the_standard_library_only():
    """-I and -S: no package is installed, and the working folder is not on the path."""
    command = [sys.executable, "-I", "-S", str(harness.REPOSITORY / "studio.py"), "models", "list"]
    text = subprocess.run(command, stdout=subprocess.PIPE, check=True, encoding="utf-8").stdout
    assert "lite-bf16         5.63 GB" in text and "checkpoints/stable_cascade_stage_c.safetensors" in text
    command += ["--json"]
    listed = json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True, encoding="utf-8").stdout)
    assert listed["presets"]["all-in-one"]["inputs"]["prior"] == "checkpoint_stage_c"
    assert {"key", "bytes", "sha256", "provenance", "licence"} <= set(listed["files"][0])


def test_plan_get_verify(shop, capsys):
    server, own, folder = shop
    assert models.main(["plan", "own", "--to", str(folder), *own]) == models.MISSING
    assert f"to {folder / 'vae' / 'a.safetensors'}" in capsys.readouterr().out
    get = ["get", "own", "--to", str(folder), "--endpoint", server.url(""), *own]
    assert models.main([*get, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["fetched"][0]["verified"] == "catalogue"
    assert told["files"]["tiny"] == str(folder / "vae" / "a.safetensors")
    assert models.main(get) == 0 and len(server.requests) == 1
    assert models.main(["plan", "own", "--to", str(folder), "--json", *own]) == 0
    capsys.readouterr()
    assert models.main(["verify", str(folder), *own]) == 0
    assert capsys.readouterr().out.startswith("good  ")
    file = folder / "vae" / "a.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"\xff")
    (folder / "vae" / "b.safetensors").write_bytes(b"<html>")
    assert models.main(["verify", str(folder), "--json", *own]) == models.MISSING
    verdicts = {verdict["path"]: verdict for verdict in json.loads(capsys.readouterr().out)}
    assert "its SHA-256 is" in verdicts[str(file)]["text"] and verdicts[str(file)]["state"] == "wrong"
    assert "web page" in verdicts[str(file.with_name("b.safetensors"))]["text"]


def test_failures_are_sentences_and_codes(shop, capsys):
    server, own, folder = shop
    get = ["get", "own", "--to", str(folder), "--endpoint", server.url(""), "--json", *own]
    server.always(Fault(status=404))
    assert models.main(get) == 1
    answer = capsys.readouterr()
    assert "no such file (404)" in json.loads(answer.out)["error"]
    assert "studio.py models: a.safetensors could not" in answer.err
    assert models.main(["get", "nothing", "--to", str(folder), *own]) == 1
    assert "There is no preset and no file 'nothing'" in capsys.readouterr().err
    assert models.main(["get", "own", "--to", str(folder), "--endpoint", "http://example.org", *own]) == 1
    assert "neither https" in capsys.readouterr().err
    assert models.main(["plan", "own", *own]) == 1
    assert "Say where the models are" in capsys.readouterr().err
    assert models.main(["verify", str(folder / "none"), *own]) == 1
    with pytest.raises(SystemExit) as usage:
        main(["models", "get"])
    assert usage.value.code == 2


def test_the_switch_holds_here_too(shop, capsys, monkeypatch):
    server, own, folder = shop
    monkeypatch.setenv("CASCADE_STUDIO_OFFLINE", "1")
    assert models.main(["get", "own", "--to", str(folder), "--endpoint", server.url(""), *own]) == 1
    assert "networking is switched off" in capsys.readouterr().err and server.requests == []


def test_the_folder_of_a_comfyui_means_its_models(tmp_path):
    (tmp_path / "models").mkdir()
    assert places.models_folder(str(tmp_path)) == tmp_path
    (tmp_path / "main.py").write_text("")
    assert places.models_folder(str(tmp_path)) == tmp_path / "models"
