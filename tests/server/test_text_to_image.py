"""Text to image on a real server: what changes the picture, what does not, what goes wrong, and what is cached."""

from __future__ import annotations

import io
import json
from typing import Any

import numpy
import pytest
from PIL import Image

from cascade_studio.commands.workflow.api_prompt import Converted, convert
from tools.client import PromptRun, ServerRefused
from tools.demo import WORKFLOW
from tools.edit import fit_files, set_prompt, set_seed, set_size

STAGE_C, STAGE_B = "CascadeStudio_SamplePrior", "CascadeStudio_SampleDecoder"


def bundled(server: Any, prompt: str = "a red fox", seed: int = 1, size: tuple[int, int] = (128, 128)) -> Converted:
    """The bundled workflow with two steps a stage."""
    info = server.client.get("/object_info")
    converted = convert(json.loads(WORKFLOW.read_text(encoding="utf-8")), info)
    fit_files(converted, info)
    set_prompt(converted, prompt)
    set_seed(converted, seed)
    set_size(converted, *size)
    for kind in (STAGE_C, STAGE_B):
        converted.set(node_of(converted, kind), "steps", 2)
    return converted


def node_of(converted: Converted, kind: str) -> str:
    (found,) = [name for name, node in converted.prompt.items() if node["class_type"] == kind]
    return found


def pixels(server: Any, run: PromptRun) -> numpy.ndarray:
    """The run's one picture, (height, width, 3)."""
    (image,) = run.images()
    with Image.open(io.BytesIO(server.client.view(image))) as picture:
        assert picture.format == "PNG" and picture.mode == "RGB"
        return numpy.array(picture).astype(float)


def picture(server: Any, **choices: Any) -> numpy.ndarray:
    return pixels(server, server.run(bundled(server, **choices).prompt))


def check_sentence(text: str, *words: str) -> None:
    missing = [word for word in words if word not in text]
    assert text.endswith(".") and not missing and "Error" not in text, f"{missing} not in: {text}"


def check_works(server: Any) -> None:
    assert picture(server, seed=99).shape == (128, 128, 3)


@pytest.mark.parametrize("size", [(333, 517), (517, 333), (64, 200)], ids=str)
def test_any_size_comes_out_exactly(server, size):
    found = picture(server, size=size)
    assert found.shape == (size[1], size[0], 3)
    assert found.std() > 5, "the picture is flat"
    edges = [found[0], found[-1], found[:, 0], found[:, -1]]
    assert all(edge.std() > 5 for edge in edges), "padding was left in the picture"


def test_prompt_and_seed_make_the_picture(server):
    """Equal input gives equal pixels, computed anew; another seed or prompt gives another picture."""
    first = picture(server)
    other_seed, other_prompt = picture(server, seed=2), picture(server, prompt="a green whale in the snow")
    converted = bundled(server)
    run = server.run(converted.prompt)
    assert node_of(converted, STAGE_C) not in run.cached
    assert (pixels(server, run) == first).all()
    assert abs(other_seed - first).mean() > 5
    assert abs(other_prompt - first).mean() > 0.05


def test_the_second_run_is_cached(server):
    converted = bundled(server, seed=31)
    assert node_of(converted, STAGE_C) not in server.run(converted.prompt).cached
    run = server.run(converted.prompt)
    assert set(run.cached) == set(converted.prompt) and run.status == "success"
    converted.set(node_of(converted, STAGE_B), "seed", 32)
    run = server.run(converted.prompt)
    assert node_of(converted, STAGE_C) in run.cached and node_of(converted, STAGE_B) not in run.cached


def test_stages_run_in_order_and_report_progress(server):
    """The server holds back messages that come too quickly, so not every step need arrive."""
    converted = bundled(server, seed=41)
    converted.set(node_of(converted, STAGE_C), "steps", 5)
    order: list[str] = []

    def listen(event: str, data: dict[str, Any], run: PromptRun) -> None:
        if event == "executing" and data.get("node"):
            order.append(converted.prompt[data["node"]]["class_type"])

    run = server.run(converted.prompt, listen=listen)
    stages = [kind for kind in order if kind in (STAGE_C, STAGE_B, "CascadeStudio_DecodeStageA", "SaveImage")]
    assert stages == [STAGE_C, STAGE_B, "CascadeStudio_DecodeStageA", "SaveImage"]
    for kind, steps in ((STAGE_C, 5), (STAGE_B, 2)):
        progress = run.progress[node_of(converted, kind)]
        assert progress == sorted(progress) and progress[-1] == (steps, steps)


def test_samplers_show_previews(server):
    """Asked for as the frontend does; the messages hold a JPEG or PNG behind their header."""
    converted = bundled(server, seed=51, size=(256, 192))
    seen: list[tuple[int, int]] = []
    with server.client.connect() as socket:
        prompt_id = server.client.queue(converted.prompt, preview_method="latent2rgb")
        done = False
        while True:
            try:
                message = socket.receive(timeout=1.0)
            except TimeoutError:
                if done:
                    break
                done = bool(server.client.history(prompt_id))  # and once more for what is still on its way
                continue
            start = max(message.find(b"\xff\xd8\xff"), message.find(b"\x89PNG")) if isinstance(message, bytes) else -1
            if start >= 0:
                with Image.open(io.BytesIO(message[start:])) as preview:
                    seen.append(preview.size)
    assert server.client.history(prompt_id)["status"]["status_str"] == "success"
    assert len(seen) >= 4, "each step of each stage shows a preview"
    assert all(abs(width / height - 256 / 192) < 0.2 for width, height in seen)


# What goes wrong


@pytest.mark.smoke
def test_missing_file_gets_a_sentence(server):
    converted = bundled(server)
    load = node_of(converted, "CascadeStudio_Load")
    converted.set(load, "prior", "stage_c_that_is_not_here.safetensors")
    run = server.run(converted.prompt, check=False)
    assert run.status == "error" and run.error["node_id"] == load
    check_sentence(run.error_text, "stage_c_that_is_not_here.safetensors", "not on this computer", "models/", "choose")
    check_works(server)


@pytest.mark.smoke
def test_wrong_wire_gets_a_sentence(server):
    converted = bundled(server)
    canvas = node_of(converted, "CascadeStudio_Canvas")
    converted.set(node_of(converted, STAGE_C), "latent", [canvas, 1])
    run = server.run(converted.prompt, check=False)
    assert run.status == "error"
    check_sentence(run.error_text, "Sample Stage C", "Stage B latent", "16 channels", "Wire")
    check_works(server)


@pytest.mark.parametrize(
    "kind, name, value, words",
    [
        ("CascadeStudio_Canvas", "width", 32, ("width", "smaller than min of 64")),
        (STAGE_C, "steps", 0, ("steps", "smaller than min of 1")),
        (STAGE_B, "sampler", "magic", ("sampler", "magic", "not in")),
        ("CascadeStudio_Load", "vae_dtype", "fp4", ("vae_dtype", "fp4", "not in")),
    ],
)
def test_values_that_no_widget_allows_are_refused(server, kind, name, value, words):
    converted = bundled(server)
    converted.set(node_of(converted, kind), name, value)
    with pytest.raises(ServerRefused) as refused:
        server.run(converted.prompt)
    assert refused.value.status == 400 and all(word in str(refused.value) for word in words), str(refused.value)
    check_works(server)


@pytest.mark.parametrize("kind", [STAGE_C, STAGE_B])
def test_interrupt_over_http(server, kind):
    converted = bundled(server, seed=61)
    node = node_of(converted, kind)
    converted.set(node, "steps", 1000)
    pressed: list[float] = []

    def listen(event: str, data: dict[str, Any], run: PromptRun) -> None:
        if event == "progress" and data.get("node") == node and data["value"] >= 3 and not pressed:
            pressed.append(data["value"])
            server.client.interrupt()

    run = server.run(converted.prompt, listen=listen, check=False)
    assert run.status == "interrupted" and not run.images()
    assert pressed and run.progress[node][-1][0] < 500
    check_works(server)
