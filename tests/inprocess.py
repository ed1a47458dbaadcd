"""ComfyUI inside the test process: booted once, with the pack loaded by the host's own loader.

:func:`prepare` has to run before anything of ``comfy`` is imported; the rest happens on first use.
"""

from __future__ import annotations

import asyncio
import atexit
import itertools
import logging
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import harness

from tools.env import current_setup
from tools.links import link_pack, unlink_pack
from tools.server import FAILURES

FLAGS = (
    "--cpu",
    "--use-pytorch-cross-attention",
    "--disable-api-nodes",
    "--database-url",
    "sqlite:///:memory:",
    "--fp32-unet",
)
"""The last one keeps the numbers of the tests the same on processors with and without instructions for bf16."""
CAPTURE = "CascadeStudioTestCapture"
PACKAGE = "cascade_studio"
"""The link's name, by which tests import what the host loaded."""


class PromptError(AssertionError):
    """A prompt was refused or failed; its text is what a user would read. ``result`` holds the rest."""

    def __init__(self, text: str, result: Result) -> None:
        super().__init__(text)
        self.result = result


@dataclass
class Result:
    """What executing one prompt gave: ``values[(node id, slot)]`` for the wanted outputs, ``ui`` by node id."""

    success: bool
    error: str = ""
    error_node: str = ""
    interrupted: bool = False
    values: dict[tuple[str, int], Any] = field(default_factory=dict)
    ui: dict[str, Any] = field(default_factory=dict)
    executed: list[str] = field(default_factory=list)
    messages: list[tuple[str, Any]] = field(default_factory=list)
    progress: list[tuple[str, float, float]] = field(default_factory=list)


def prepare(flags: Sequence[str] = FLAGS) -> Path:
    """Give ComfyUI's argument parser ``flags`` and a temporary base folder; returns that folder."""
    current_setup()
    base = Path(tempfile.mkdtemp(prefix="cascade-studio-tests-"))
    for name in ("models", "custom_nodes", "input", "output", "user", "temp"):
        (base / name).mkdir()
    atexit.register(_discard, base)
    arguments = sys.argv
    sys.argv = ["main.py", "--base-directory", str(base), *flags]
    try:
        import comfy.options

        comfy.options.enable_args_parsing()
        import comfy.cli_args  # noqa: F401

        # As main.py does: older hosts put their "comfy" folder first later on, where a module "utils" would hide this.
        import utils.extra_config  # noqa: F401
    finally:
        sys.argv = arguments
    return base


def _discard(base: Path) -> None:
    unlink_pack(base / "custom_nodes" / PACKAGE)
    shutil.rmtree(base, ignore_errors=True)


class _Capture:
    """A node that keeps whatever is wired into it, so that a test can look at it."""

    kept: dict[str, Any] = {}
    RETURN_TYPES = ()
    FUNCTION = "keep"
    OUTPUT_NODE = True
    CATEGORY = "testing"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"value": ("*", {})}, "hidden": {"unique_id": "UNIQUE_ID"}}

    @classmethod
    def VALIDATE_INPUTS(cls, input_types: dict[str, str]) -> bool:
        return True

    @classmethod
    def IS_CHANGED(cls, **_: Any) -> float:
        return float("nan")

    def keep(self, value: Any, unique_id: str) -> dict[str, Any]:
        _Capture.kept.setdefault(unique_id, []).append(value)
        return {"ui": {}, "result": ()}


class _StubServer:
    """As much of the server as the executor talks to; it keeps every message."""

    def __init__(self) -> None:
        self.client_id: str | None = None
        self.last_node_id: str | None = None
        self.last_prompt_id: str | None = None
        self.sockets_metadata: dict[str, Any] = {}
        self.messages: list[tuple[str, Any]] = []

    def send_sync(self, event: str, data: Any, sid: str | None = None) -> None:
        self.messages.append((event, data))

    def queue_updated(self) -> None:
        pass


class _Warnings(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


@contextmanager
def _warnings() -> Iterator[list[str]]:
    handler = _Warnings()
    logging.getLogger().addHandler(handler)
    try:
        yield handler.lines
    finally:
        logging.getLogger().removeHandler(handler)


@contextmanager
def inside(folder: Path) -> Iterator[None]:
    """Work in ``folder``. The host names a pack's module after the path it is given: from here, plainly its folder."""
    before = os.getcwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


def _join_parts(package: ModuleType) -> None:
    """Hang the parts that were imported before on ``package``: the host put a new module in the place of the one that
    had them, and an import finds them by name and so sets nothing."""
    for name, module in list(sys.modules.items()):
        parent, _, part = name.rpartition(".")
        if parent == package.__name__:
            setattr(package, part, module)


class Host:
    """The booted host: ``nodes``, ``execution``, ``folder_paths`` are its modules, ``pack`` is ours as it loaded it."""

    def __init__(self, base: Path) -> None:
        self.base = base
        self.pack_ids: set[str] = set()
        self._ids = itertools.count(1)
        import execution
        import folder_paths
        import server

        import nodes

        self.execution, self.folder_paths, self.nodes = execution, folder_paths, nodes
        self.version = __import__("comfyui_version").__version__
        self.loop = asyncio.new_event_loop()
        asyncio.set_event_loop(self.loop)
        self.server = server.PromptServer(self.loop)
        self.loop.run_until_complete(nodes.init_extra_nodes(init_custom_nodes=False, init_api_nodes=False))
        self._hook_progress()
        nodes.NODE_CLASS_MAPPINGS[CAPTURE] = _Capture
        self.pack = self.load_pack()

    @property
    def models(self) -> Path:
        """The models folder that ``folder_paths`` looks into."""
        return self.base / "models"

    def load_pack(self, pack: Path = harness.REPOSITORY) -> ModuleType:
        """Load a pack by the host's own ``load_custom_node``; AssertionError with the host's words if it fails."""
        link = self.base / "custom_nodes" / PACKAGE
        unlink_pack(link)
        link_pack(link.parent, pack, PACKAGE)
        before = dict(self.nodes.NODE_CLASS_MAPPINGS)
        with _warnings() as lines, inside(link.parent):
            loaded = self.loop.run_until_complete(self.nodes.load_custom_node(link.name, set(before), "custom_nodes"))
        problems = [line for line in lines if any(sign in line for sign in (*FAILURES, "Traceback"))]
        if not loaded or problems:
            raise AssertionError("the host could not load the pack:\n" + "\n".join(problems or lines))
        self.pack_ids = set(self.nodes.NODE_CLASS_MAPPINGS) - set(before)
        if not self.pack_ids:
            raise AssertionError("the host loaded the pack, but it registered no node")
        _join_parts(sys.modules[link.name])
        return sys.modules[link.name]

    def _hook_progress(self) -> None:
        import comfy.model_management
        import comfy.utils

        def hook(value: float, total: float, preview: Any, prompt_id: Any = None, node_id: Any = None) -> None:
            comfy.model_management.throw_exception_if_processing_interrupted()
            if self._running is not None:
                self._running.progress.append((str(node_id or self._stub.last_node_id), value, total))

        self._running: Result | None = None
        self._stub = _StubServer()
        comfy.utils.set_progress_bar_global_hook(hook)

    def executor(self) -> Any:
        """A fresh executor, with an empty cache. Pass it to several :meth:`execute` calls to test caching."""
        kind = self.execution.CacheType.CLASSIC
        return self.execution.PromptExecutor(
            self._stub, cache_type=kind, cache_args={"ram": 0, "ram_inactive": 0, "lru": 0}
        )

    def execute(
        self,
        prompt: dict[str, Any],
        *wanted: tuple[str, int],
        executor: Any = None,
        extra_data: dict[str, Any] | None = None,
    ) -> Result:
        """Validate and execute an API prompt and capture the ``wanted`` outputs. Errors are told in the result."""
        prompt = {str(key): node for key, node in prompt.items()}
        for node, slot in wanted:
            prompt[f"capture-{node}-{slot}"] = {"class_type": CAPTURE, "inputs": {"value": [str(node), slot]}}
        name = f"test-{next(self._ids)}"
        valid = asyncio.run(self.execution.validate_prompt(name, prompt, None))
        problems = self._refusal(valid)
        if problems:
            return Result(False, error=problems)
        executor = executor or self.executor()
        result = self._running = Result(False)
        self._stub.messages.clear()
        _Capture.kept.clear()
        extra = {"client_id": "tests", **(extra_data or {})}
        queue = self.server.prompt_queue.currently_running  # where nodes look for what the user of the prompt chose
        queue[name] = (0, name, prompt, extra, valid[2])
        try:
            executor.execute(prompt, name, extra, valid[2])
        finally:
            self._running = None
            del queue[name]
        self._fill(result, executor, wanted)
        return result

    def run(self, prompt: dict[str, Any], *wanted: tuple[str, int], **options: Any) -> Any:
        """As :meth:`execute`, but returns the wanted values (one alone, or a list) and raises :class:`PromptError`."""
        result = self.execute(prompt, *wanted, **options)
        if not result.success:
            raise PromptError(result.error, result)
        values = [result.values.get((str(node), slot)) for node, slot in wanted]
        return values[0] if len(values) == 1 else values

    def error(self, prompt: dict[str, Any], *wanted: tuple[str, int], **options: Any) -> str:
        """The text that a user reads when this prompt fails; AssertionError if it does not fail."""
        result = self.execute(prompt, *wanted, **options)
        assert not result.success, "the prompt was expected to fail, but it went through"
        return result.error

    @staticmethod
    def _refusal(valid: Any) -> str:
        passed, error, _, node_errors = valid
        lines = [] if passed and not node_errors else [str((error or {}).get("message", ""))]
        for node, problem in (node_errors or {}).items():
            for reason in problem["errors"]:
                lines.append(f"{node} ({problem['class_type']}): {reason['message']}: {reason['details']}")
        return "\n".join(lines)

    def _fill(self, result: Result, executor: Any, wanted: tuple[tuple[str, int], ...]) -> None:
        result.messages = [*executor.status_messages, *self._stub.messages]
        result.success = executor.success
        result.ui = executor.history_result.get("outputs", {}) if executor.success else {}
        for event, data in result.messages:  # a blocked output is told to the client alone
            if event not in ("execution_error", "execution_interrupted"):
                continue
            if not str(data.get("node_id", "")).startswith("capture-"):  # a wanted output that has nothing is None
                result.success = False
                result.interrupted = event == "execution_interrupted"
                result.error = str(data.get("exception_message", "")).strip()
                result.error_node = str(data.get("node_id", ""))
        result.executed = [
            str(data["node"])
            for event, data in self._stub.messages
            if event == "executing" and data.get("node") is not None
        ]
        for node, slot in wanted:
            kept = _Capture.kept.get(f"capture-{node}-{slot}", [])
            if kept:
                result.values[(str(node), slot)] = kept[0] if len(kept) == 1 else kept

    def interrupt(self) -> None:
        """Ask the host to stop the running prompt, as its Cancel button does."""
        self.nodes.interrupt_processing()

    def close(self) -> None:
        self.loop.close()
