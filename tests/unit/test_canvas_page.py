"""The page's copy of the canvas planner (web/js/geometry.js) gives what the planner gives, over a grid of sizes."""

from __future__ import annotations

import itertools
import json
import shutil
import subprocess

import pytest
from harness import REPOSITORY

from cascade_studio.stages.errors import WrongInput
from cascade_studio.stages.inputs.canvas import GRIDS, OFFICIAL, plan_canvas

GEOMETRY = REPOSITORY / "web" / "js" / "geometry.js"
SIDES = (63, 64, 65, 100, 128, 333, 512, 513, 640, 777, 1000, 1024, 1080, 1344, 1536, 2048, 3001, 4096, 8192, 8193)
COMPRESSIONS = (None, 15, 16, 20.5, 28, 32, 33, 36.5, 42.67, 48, 64, 65)
NODE = shutil.which("node")
ASK = """
const { stdin } = await import("node:process");
let asked = "";
for await (const part of stdin) asked += part;
console.log(JSON.stringify(JSON.parse(asked).map((size) => {
  const c = plan(...size);
  return c && [c.paddedWidth, c.paddedHeight, c.priorWidth, c.priorHeight, c.decoderWidth, c.decoderHeight];
})));
"""


def planned(width: int, height: int, compression: float | None, grid: str) -> list[int] | None:
    try:
        canvas = plan_canvas(width, height, compression, official=grid == OFFICIAL)
    except WrongInput:
        return None
    return [
        *(canvas.padded_width, canvas.padded_height, canvas.prior_width, canvas.prior_height),
        *(canvas.decoder_width, canvas.decoder_height),
    ]


@pytest.mark.skipif(NODE is None, reason="node, which runs the page's script here, is not installed")
def test_the_page_plans_sizes_as_the_server_does():
    asked = list(itertools.product(SIDES, SIDES, COMPRESSIONS, GRIDS))
    script = GEOMETRY.read_text(encoding="utf-8") + ASK
    found = subprocess.run(
        [NODE, "--input-type=module", "-e", script], input=json.dumps(asked), capture_output=True, text=True, check=True
    )
    answers = json.loads(found.stdout)
    wrong = [(size, one, other) for size, one in zip(asked, answers) if one != (other := planned(*size))]
    assert len(answers) == len(asked) and not wrong, wrong[:5]
