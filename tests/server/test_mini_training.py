"""The training workflow as it is opened: on what ships, by a real server, with a picture before and after."""

from __future__ import annotations

import io
import json
import logging

import numpy
import pytest
from mini_server import WORKFLOWS, processor_seconds
from PIL import Image

from mini import need
from tools.titles import title_of

log = logging.getLogger(__name__)

MOST_SECONDS = 300
"""Of processor time, on one of the two cores that the tests are made for."""
LEAST_CHANGE = 12
"""Of 255, on average over the picture."""


@pytest.mark.slow
def test_a_lora_is_trained_as_opened_in_minutes(server):
    need()
    workflow = json.loads((WORKFLOWS / f"{title_of('train_lora')}.json").read_text(encoding="utf-8"))
    start = processor_seconds(server)
    run = server.run_workflow(workflow)
    spent = processor_seconds(server) - start
    shown = {}
    for image in run.images():
        for when in ("before", "after"):
            if f"train_lora_{when}" in image["filename"]:
                with Image.open(io.BytesIO(server.client.view(image))) as picture:
                    shown[when] = numpy.asarray(picture.convert("RGB"), dtype=numpy.float32)
    change = float(numpy.abs(shown["after"] - shown["before"]).mean())
    log.warning("a LoRA as opened: %.0f processor seconds, the picture changes by %.0f of 255", spent, change)
    assert change >= LEAST_CHANGE
    assert spent <= MOST_SECONDS
    assert any((server.base.models / "loras").rglob("chalk*.safetensors"))
