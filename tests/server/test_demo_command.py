"""``dev.py demo`` as a user types it: a picture on disk, its path and the seconds of each stage on the screen."""

from __future__ import annotations

import json
import subprocess
import sys

from harness import REPOSITORY
from PIL import Image

from mini import need
from tools import small
from tools.png import text_chunks
from tools.scenes import FIRST


def demo(*arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "dev.py", "demo", *arguments],
        cwd=REPOSITORY,
        timeout=600,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        encoding="utf-8",
    )


def test_demo_writes_a_picture(tmp_path):
    path = tmp_path / "fox.png"
    result = demo("--prompt", "a blue fox", "--seed", "7", "--size", "192x136", "--output", str(path))
    assert result.returncode == 0, result.stderr
    with Image.open(path) as picture:
        assert picture.size == (192, 136)
        assert max(high - low for low, high in picture.convert("RGB").getextrema()) > 20, "the picture is flat"
    texts = text_chunks(path.read_bytes())
    assert "a blue fox" in json.dumps(json.loads(texts["workflow"])) and "a blue fox" in texts["prompt"]
    assert str(path) in result.stdout
    for stage in ("Stage C", "Stage B", "Stage A"):
        assert any(stage in line and line.rstrip().endswith(" s") for line in result.stdout.splitlines()), stage
    told = "Cascade Mini, which comes with" if small.mini().covers(small.PAINTS) else "tiny random checkpoint family"
    assert told in result.stdout + result.stderr


def test_demo_without_any_option_paints_what_its_workflow_says(tmp_path):
    """Mini by default: 256 pixels, and what is seen is what was asked for."""
    need()
    import eyes

    path = tmp_path / "first.png"
    result = demo("--seed", "1", "--prompt", FIRST.prompt, "--output", str(path))
    assert result.returncode == 0, result.stderr
    with Image.open(path) as picture:
        assert picture.size == (256, 256)
        rgb = eyes.as_rgb(picture.convert("RGB"))
    assert eyes.colour(rgb) == [FIRST.background]
    assert FIRST.subject in eyes.outlines().order(rgb, FIRST.background)[0][:3]


def test_demo_that_cannot_work_says_why(tmp_path):
    result = demo("--size", "wide", "--output", str(tmp_path / "x.png"))
    assert result.returncode == 1 and "--size wide is not a size" in result.stdout + result.stderr
    assert not list(tmp_path.iterdir()) and "Traceback" not in result.stderr
