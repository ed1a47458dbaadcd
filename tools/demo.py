"""`dev.py demo` and `dev.py host`: a real ComfyUI with the pack, for one picture or for as long as it is wanted."""

from __future__ import annotations

import argparse
import copy
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cascade_studio.commands.messages import Stop, say
from cascade_studio.commands.workflow.api_prompt import Converted, convert, is_prompt

from . import small
from .client import PromptRun
from .edit import fit_files, parse_size, set_prompt, set_seed, set_size
from .env import REPOSITORY, Setup
from .png import text_chunks
from .server import Base, HostServer, has_accelerator, host_flags
from .titles import title_of

WORKFLOW = REPOSITORY / "workflows" / f"{title_of('text_to_image')}.json"
FIRST_PICTURE = REPOSITORY / "workflows" / f"{title_of('a_first_picture')}.json"
WIDTH = 28
BAR = 30


def _read_workflow(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise Stop(f"The workflow {path} cannot be read: {error.strerror}. Give the path of a workflow file.") from None
    except ValueError as error:
        raise Stop(f"The workflow {path} is not JSON ({error}). Save it again from ComfyUI.") from None


def write_family(setup: Setup, models: Path) -> None:
    """Let the tests' writer fill a models folder with the tiny random family."""
    say(
        "Cascade Mini's trained weights are not here, or lack a part of this workflow: the demo uses a tiny random "
        "checkpoint family (same file formats and key names, only narrower), so the picture is coloured noise."
    )
    command = setup.command(str(REPOSITORY / "tests" / "family.py"), str(models), "--no-variants")
    result = subprocess.run(
        command,
        env=setup.environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        errors="replace",
    )
    if result.returncode:
        raise Stop(f"The tiny checkpoint family could not be written: {result.stdout.strip()[-2000:]}")


def _has_mini() -> bool:
    return small.mini().covers(small.PAINTS)


def _models(setup: Setup, base: Base, given: str | None) -> list[str]:
    """The flags that give the server its models; Mini needs none, it comes with the pack."""
    if given:
        return base.add_models(Path(given).expanduser().resolve())
    if not _has_mini():
        write_family(setup, base.models)
    return []


def _use_mini(converted: Converted, sized: bool) -> bool:
    """Let the workflow run on Cascade Mini; False where Mini lacks a part, or a core loader would have to load it.

    Unless a size was asked for (``sized``), every side becomes a quarter: Mini paints 256 pixels.
    """
    kit, kinds = small.kit_for(converted), {node["class_type"] for node in converted.prompt.values()}
    if kit is small.FAMILY or "CheckpointLoaderSimple" in kinds:
        return False
    small.use(converted, kit)
    if not sized:
        small.shrink(converted, steps=None, smallest=small.MINI_SIDE)
    small.set_mini_guidance(converted)
    say("The models are those of Cascade Mini, which comes with the pack and paints pictures of 256 pixels.")
    return True


class _Bars:
    """One progress bar per node on the terminal; one line per node where the output is no terminal."""

    def __init__(self, prompt: dict[str, Any]) -> None:
        self.prompt, self.stream = prompt, sys.stderr
        self.live = self.stream.isatty()
        self.node: str | None = None
        self.state: tuple[float, float] = (0, 0)
        self.since = time.monotonic()

    def _title(self, node: str) -> str:
        entry = self.prompt.get(node) or {}
        return str((entry.get("_meta") or {}).get("title") or entry.get("class_type") or node)[:WIDTH]

    def _line(self) -> str:
        value, total = self.state
        bar = steps = ""
        if total > 1:
            done = min(BAR, round(BAR * value / total))
            bar, steps = f"[{'#' * done}{'-' * (BAR - done)}]", f"{value:.0f}/{total:.0f}"
        return f"{self._title(self.node):{WIDTH}} {bar:{BAR + 2}} {steps:>7} {time.monotonic() - self.since:7.1f} s"

    def _show(self, end: str) -> None:
        self.stream.write(("\r" if self.live else "") + self._line() + end)
        self.stream.flush()

    def _switch(self, node: str | None) -> None:
        if self.node is not None:
            self._show("\n")
        self.node, self.state, self.since = node, (0, 0), time.monotonic()

    def __call__(self, event: str, data: dict[str, Any], run: PromptRun) -> None:
        if event == "executing":
            node = data.get("display_node") or data.get("node")
            if node != self.node:
                self._switch(node)
        elif event == "progress" and self.node is not None:
            self.state = (float(data["value"]), float(data["max"]))
        elif run.status != "running":
            self._switch(None)
        if self.live and self.node is not None:
            self._show("")


def _edit(converted: Converted, options: argparse.Namespace) -> None:
    if options.prompt is not None:
        set_prompt(converted, options.prompt)
    if options.seed is not None:
        set_seed(converted, options.seed)
    if options.size is not None:
        set_size(converted, *parse_size(options.size))


def _choose_files(setup: Setup, server: HostServer, converted: Converted, options: argparse.Namespace) -> None:
    """Mini's files; else those nearest by name in the models folder that was given, or in the tiny family."""
    if options.model is None and _has_mini():
        if _use_mini(converted, options.size is not None):
            return
        write_family(setup, server.base.models)
    for line in fit_files(converted, server.client.get("/object_info")):
        say(line)


def _targets(output: str | None, count: int) -> list[Path]:
    if output:
        first = Path(output).expanduser().resolve()
        if first.is_dir():
            first = first / "demo.png"
        first.parent.mkdir(parents=True, exist_ok=True)
        return [first] + [first.with_name(f"{first.stem}-{number}{first.suffix}") for number in range(2, count + 1)]
    number = 1
    found: list[Path] = []
    while len(found) < count:
        path = Path.cwd() / f"demo-{number}.png"
        number += 1
        if not path.exists():
            found.append(path)
    return found


def _save(server: HostServer, run: PromptRun, output: str | None, needed: Sequence[str]) -> list[Path]:
    """Write the pictures of a run as the host made them, after checking that they carry their metadata."""
    pictures = [server.client.view(image) for image in run.images()]
    if not pictures:
        raise Stop("The workflow ran, but saved no picture. It needs a Save Image node at its end.")
    targets = _targets(output, len(pictures))
    for data, path in zip(pictures, targets, strict=True):
        missing = [name for name in needed if name not in text_chunks(data)]
        if missing:
            raise Stop(
                f"The saved picture does not carry its {' and '.join(missing)}: ComfyUI was told to leave that "
                "out. Start it without --disable-metadata."
            )
        path.write_bytes(data)
    return targets


def _report(run: PromptRun, prompt: dict[str, Any], paths: list[Path]) -> None:
    for node, seconds in run.seconds.items():
        entry = prompt.get(node) or {}
        title = (entry.get("_meta") or {}).get("title") or entry.get("class_type", node)
        sys.stdout.write(f"{title:{WIDTH}} {seconds:8.1f} s\n")
    sys.stdout.write(f"{'all':{WIDTH}} {sum(run.seconds.values()):8.1f} s\n")
    for path in paths:
        sys.stdout.write(f"{path}\n")


def run_demo(setup: Setup, options: argparse.Namespace) -> int:
    """Start a server, queue the workflow, save the picture, stop the server; returns the exit code."""
    first = FIRST_PICTURE if options.model is None and _has_mini() and FIRST_PICTURE.is_file() else WORKFLOW
    path = Path(options.workflow).expanduser().resolve() if options.workflow else first
    workflow = _read_workflow(path)
    if options.size is not None:
        parse_size(options.size)
    base = Base()
    try:
        cpu = not has_accelerator(setup)
        flags = _models(setup, base, options.model)
        say(f"Starting ComfyUI {setup.host.version}{' on the CPU' if cpu else ''} ...")
        with HostServer(setup, base, cpu=cpu, flags=flags) as server:
            info = server.client.get("/object_info")
            embedded = None if is_prompt(workflow) else copy.deepcopy(workflow)
            converted = convert(embedded or workflow, info)
            _choose_files(setup, server, converted, options)
            _edit(converted, options)
            run = server.client.run(
                converted.prompt,
                embedded,
                listen=_Bars(converted.prompt),
                alive=lambda: server.process.poll() is None,
                timeout=24 * 3600.0,
            )
            paths = _save(server, run, options.output, ["prompt"] + (["workflow"] if embedded else []))
        _report(run, converted.prompt, paths)
    finally:
        base.close()
    return 0


def run_host(setup: Setup, options: argparse.Namespace) -> int:
    """Run ComfyUI with the pack in the foreground until it is stopped; returns its exit code."""
    base = Base(Path(options.base).expanduser() if options.base else None)
    try:
        cpu = not has_accelerator(setup)
        kept = options.base is not None and options.model is None
        flags = [] if kept else _models(setup, base, options.model)
        command = [
            str(setup.host_python),
            "main.py",
            "--port",
            str(options.port),
            *host_flags(setup, base, cpu),
            *flags,
            *options.arguments,
        ]
        say(f"ComfyUI {setup.host.version} with the pack: http://127.0.0.1:{options.port} (Ctrl-C stops it)")
        process = subprocess.Popen(command, cwd=setup.host.root, env=setup.environment())
        try:
            return process.wait()
        except KeyboardInterrupt:
            process.wait(30)
            return 0
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
    finally:
        base.close()
