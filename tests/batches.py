"""What the tests of the batch share: a prompt in the API format, fake servers, a fake ComfyUI folder, short runs."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import fake_comfyui
from harness import REPOSITORY

from cascade_studio.commands.batch import Batch, Outcome, command, run_batch
from cascade_studio.commands.batch.manifest import Manifest

SIX = "apple\nrobot\nfrog\nsnail\nlemon\nboat\n"
"""A list of six rows."""
PROMPT: dict[str, Any] = {
    "1": {
        "class_type": "CascadeStudio_Load",
        "inputs": {"prior": "stage_c_lite_bf16.safetensors", "previewer": "previewer.safetensors"},
        "_meta": {"title": "Load"},
    },
    "2": {"class_type": "CascadeStudio_Canvas", "inputs": {"width": 256, "height": 256, "batch_size": 1}},
    "3": {"class_type": "CLIPTextEncode", "inputs": {"text": "", "clip": ["1", 2]}, "_meta": {"title": "Prompt"}},
    "4": {"class_type": "CLIPTextEncode", "inputs": {"text": "", "clip": ["1", 2]}, "_meta": {"title": "Negative"}},
    "5": {
        "class_type": "CascadeStudio_SamplePrior",
        "inputs": {
            **{"model": ["1", 0], "positive": ["3", 0], "negative": ["4", 0], "latent": ["2", 0]},
            **{"seed": 7, "cfg": 4.0, "steps": 20, "rescale_batch": False},
        },
        "_meta": {"title": "Stage C"},
    },
    "6": {
        "class_type": "CascadeStudio_SampleDecoder",
        "inputs": {
            **{"model": ["1", 1], "positive": ["3", 0], "negative": ["4", 0], "prior": ["5", 0]},
            **{"seed": 7, "cfg": 1.1, "steps": 10},
        },
        "_meta": {"title": "Stage B"},
    },
    "7": {"class_type": "CascadeStudio_DecodeStageA", "inputs": {"latent": ["6", 0], "vae": ["1", 4]}},
    "8": {"class_type": "SaveImage", "inputs": {"images": ["7", 0], "filename_prefix": "ComfyUI"}},
}


class Desk:
    """A folder to work in: a workflow, lists of rows, output folders, and fake servers that end with the test."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.workflow = folder / "workflow.json"
        self.workflow.write_text(json.dumps(PROMPT), encoding="utf-8")
        self.servers: list[Any] = []
        self.fakes: list[fake_comfyui.Fake] = []

    def serve(self, count: int = 1, seconds: float = 0.0, **how: Any) -> str:
        """Start fake servers in this process; returns their addresses."""
        started = [fake_comfyui.serve(seconds=seconds, **how) for _ in range(count)]
        self.servers += [server for server, _ in started]
        self.fakes += [fake for _, fake in started]
        return ",".join(f"http://127.0.0.1:{server.server_port}" for server, _ in started)

    @property
    def painted(self) -> int:
        """How many prompts the fake servers have painted in all."""
        return sum(len(fake.painted) for fake in self.fakes)

    def rows(self, text: str, name: str = "rows.txt") -> Path:
        path = self.folder / name
        path.write_text(text, encoding="utf-8")
        return path

    def run(self, rows: Path, out: str = "out", **options: Any) -> Outcome:
        return run_batch(self.batch(rows, out, **options))

    def batch(self, rows: Path, out: str = "out", **options: Any) -> Batch:
        given = {"rows": rows, "out": self.folder / out, "workflow": self.workflow, "sheet": 0, **options}
        return Batch(**given)

    def manifest(self, out: str = "out") -> Manifest:
        return Manifest(self.folder / out, read_only=True)

    def pictures(self, out: str = "out") -> dict[str, bytes]:
        """The bytes of every file in an output folder that is a picture or a latent."""
        found = sorted(path for path in (self.folder / out).rglob("*") if path.suffix in (".png", ".latent"))
        return {path.relative_to(self.folder / out).as_posix(): path.read_bytes() for path in found}

    def close(self) -> None:
        for server in self.servers:
            server.shutdown()
            server.server_close()


def make_fake_host(folder: Path) -> Path:
    """A folder that looks like ComfyUI's and starts the fake server."""
    (folder / "comfy").mkdir(parents=True)
    (folder / "comfy" / "cli_args.py").write_text("--database-url\n", encoding="utf-8")
    shutil.copy(Path(fake_comfyui.__file__), folder / "main.py")
    return folder


def hear_interrupts() -> None:
    """Whoever starts the tests in the background makes them, and all they start, deaf to Ctrl+C."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


class Process:
    """A process in its own group that a test may kill at any moment."""

    def __init__(self, command: list[str], log: Path, **variables: str) -> None:
        self.log = log
        environment = {**os.environ, **variables}
        with open(log, "ab") as file:
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                env=environment,
                start_new_session=True,
                preexec_fn=hear_interrupts if os.name == "posix" else None,  # noqa: PLW1509 - it only sets a handler
            )

    def kill(self) -> None:
        """End it, and all that it started, as a power cut would; the number of one that has ended may be another's."""
        if self.process.returncode is not None:
            return
        try:
            os.killpg(self.process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        self.process.wait()

    def wait(self, seconds: float) -> int | None:
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            return None

    @property
    def text(self) -> str:
        return self.log.read_text(encoding="utf-8", errors="replace")


def start_fake(port: int, log: Path, seconds: float) -> Process:
    command = [sys.executable, fake_comfyui.__file__, "--port", str(port)]
    return Process(command, log, FAKE_SECONDS=str(seconds))


def start_driver(log: Path, *arguments: object, **variables: str) -> Process:
    command = [sys.executable, str(REPOSITORY / "studio.py"), "batch", *map(str, arguments)]
    return Process(command, log, **variables)


def count_states(desk: Desk, out: str = "out") -> dict[str, int]:
    """How many rows are in each state, without those that none is in."""
    manifest = desk.manifest(out)
    try:
        return {key: value for key, value in manifest.counts().items() if value}
    finally:
        manifest.close()


def check(desk: Desk, out: str = "out") -> int:
    """The exit code of ``--check``."""
    return command.main(["-", "--out", str(desk.folder / out), "--check"])


def await_that(condition: Any, seconds: float = 60.0) -> None:
    """Wait until ``condition()`` holds; fails after ``seconds``."""
    limit = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < limit, "it did not happen in time"
        time.sleep(0.02)
