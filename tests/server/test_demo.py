"""The bundled text-to-image workflow, from the file over HTTP to a picture that carries its own recipe."""

from __future__ import annotations

import argparse
import copy
import json

import pytest

from cascade_studio.commands.workflow.api_prompt import convert
from tools.demo import WORKFLOW, _edit, _save
from tools.edit import fit_files
from tools.png import text_chunks


def run_bundled(server, tmp_path, **choices):
    """Run the bundled workflow with few steps; returns the run, the picture's texts and what was sent."""
    options = argparse.Namespace(**{"prompt": None, "seed": None, "size": None, **choices})
    workflow = json.loads(WORKFLOW.read_text(encoding="utf-8"))
    info = server.client.get("/object_info")
    converted = convert(workflow, info)
    fit_files(converted, info)
    _edit(converted, options)
    for name, node in converted.prompt.items():
        if "steps" in node["inputs"]:
            converted.set(name, "steps", 2)
    run = server.run(converted.prompt, workflow)
    (path,) = _save(server, run, str(tmp_path / "picture.png"), ["prompt", "workflow"])
    return run, text_chunks(path.read_bytes()), converted.prompt, path


@pytest.mark.smoke
def test_the_bundled_workflow_makes_a_picture(server, tmp_path):
    from PIL import Image

    run, texts, prompt, path = run_bundled(server, tmp_path, prompt="a blue fox", seed=5, size="192x128")
    with Image.open(path) as picture:
        assert picture.size == (192, 128)
        assert max(high - low for low, high in picture.convert("RGB").getextrema()) > 20, "the picture is flat"
    saved = json.loads(texts["prompt"])
    for node in saved.values():
        node.pop("is_changed", None)
    assert saved == prompt
    again = convert(copy.deepcopy(json.loads(texts["workflow"])), server.client.get("/object_info")).prompt
    assert again == prompt, "the saved workflow is not the one that made the picture"
    assert set(run.seconds) == set(prompt) and not run.cached


def test_both_samplers_report_their_progress(server, tmp_path):
    run, _, prompt, _ = run_bundled(server, tmp_path, seed=6, size="128x128")
    stages = {prompt[node]["class_type"]: steps[-1] for node, steps in run.progress.items()}
    assert stages["CascadeStudio_SamplePrior"] == (2, 2) and stages["CascadeStudio_SampleDecoder"] == (2, 2)
