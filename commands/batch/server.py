"""One ComfyUI server as a worker: what it has, one prompt from queueing to the bytes of its pictures.

The id of a prompt follows from its row, so that a prompt that the server finished while nobody listened is found again.
"""

from __future__ import annotations

import json
import threading
import time
import urllib.parse
import uuid
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from .address import Address, Refused, Unreachable
from .results import PaintedFile
from .template import Filled

QUIET_SECONDS = 60.0
"""How long a server may not answer before it counts as gone."""
SHORTEST_WAIT, LONGEST_WAIT, GROWTH = 0.05, 0.5, 1.2
"""Seconds between two looks at a prompt while nobody knows how long this server's pictures take."""
FIRST_PART, NEXT_PART, LONGEST_PART = 0.7, 0.15, 5.0
"""The same once it is known, as parts of that time: nobody waits, since the server has its next prompt already."""
LOOK_SECONDS, DOUBT_SECONDS = 20.0, 3.0
"""Seconds between two looks at the queue; the second after a new connection: the server may have restarted."""
NO_COMFYUI = "it does not answer as ComfyUI does"
CLIENT = "studio.py batch"
"""Who asks: hosts before 0.24 tell nothing of a picture from their cache to a prompt that comes from nobody."""


class Lost(Exception):
    """The server, or what it knew of a prompt, is gone; nobody knows whether the row is at fault."""


class NotPainted(Exception):
    """The server could not paint the row; the text is its reason."""


class Stopped(Exception):
    """The batch is being interrupted."""


@dataclass(frozen=True)
class Job:
    """What is sent for one row. uploads: bytes of input files by name; again: a server may have it already."""

    prompt_id: str
    filled: Filled
    uploads: Mapping[str, bytes] = field(default_factory=dict)
    again: bool = False

    def body(self) -> bytes:
        """What POST /prompt takes; the workflow is JSON already."""
        workflow = self.filled.workflow
        extra = f', "extra_data": {{"extra_pnginfo": {{"workflow": {workflow}}}}}' if workflow else ""
        known = f'"prompt_id": "{self.prompt_id}", "client_id": "{CLIENT}"'
        return f'{{"prompt": {json.dumps(self.filled.prompt)}, {known}{extra}}}'.encode()


@dataclass(frozen=True)
class Painted:
    """The files of one row, and the seconds the server worked on it."""

    pictures: Sequence[PaintedFile]
    seconds: float | None


@dataclass(frozen=True)
class PromptRecord:
    """What a server remembers of a prompt that has ended. saved: the files by node; messages: what it told."""

    good: bool
    messages: dict[str, dict[str, Any]]
    saved: dict[str, list[dict[str, str]]]

    @classmethod
    def read(cls, history: Any, prompt: str) -> PromptRecord | None:
        """The entry of ``prompt`` in an answer of /history; None where it has not ended."""
        entry = (history or {}).get(prompt)
        if not entry:
            return None
        status, outputs = entry.get("status") or {}, entry.get("outputs") or {}
        saved = {
            node: [
                {name: str(file.get(name, "")) for name in ("filename", "subfolder", "type")}
                for kind in ("images", "latents")
                for file in output.get(kind) or ()
            ]
            for node, output in outputs.items()
        }
        return cls(status.get("status_str") == "success", dict(status.get("messages") or ()), saved)

    @property
    def seconds(self) -> float | None:
        """How long the server worked on it; None where it does not tell."""
        start, end = (self.messages.get(name, {}).get("timestamp") for name in ("execution_start", "execution_success"))
        return (end - start) / 1000 if start and end else None

    def why(self) -> str:
        """The reason of an end that was none of success."""
        error = self.messages.get("execution_error") or {}
        place = f"{error.get('node_type', 'the server')}: " if error else ""
        return place + str(error.get("exception_message") or "it ended without a reason").strip()


def prompt_id(key: str, failures: int) -> str:
    """The id of a row's prompt: another one after each failure, the same after everything else."""
    return str(uuid.uuid5(uuid.NAMESPACE_OID, f"cascade-studio/{key}/{failures}"))


class Server:
    """The ComfyUI at ``url``."""

    def __init__(self, url: str) -> None:
        self.address = Address(url)
        self.name = self.address.name
        self._line = _Line()
        self._lately: deque[float] = deque(maxlen=4)

    def ask(self, path: str, read: Callable[[Any], Any] = lambda data: data, body: bytes | None = None) -> Any:
        """What ``read`` finds in the JSON at ``path``, or in the JSON answer to ``body``."""
        answer = self.address.fetch(path, body)
        try:
            return read(json.loads(answer) if answer.strip() else None)
        except (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError):
            raise Unreachable(NO_COMFYUI) from None

    def describe_nodes(self) -> dict[str, Any]:
        """The definitions of all nodes."""
        return self.ask("/object_info", lambda nodes: {**nodes})

    def lacks(self, classes: Iterable[str]) -> list[str]:
        """Those of ``classes`` that are no node here."""
        asked = ((name, f"/object_info/{urllib.parse.quote(name, safe='')}") for name in classes)
        return [name for name, path in asked if not self.ask(path, lambda nodes, name=name: name in (nodes or {}))]

    def memory(self) -> int | None:
        """Bytes of its largest card, or of the computer where it has none."""
        return self.ask("/system_stats", _read_memory)

    def paint(self, job: Job, stop: threading.Event, alive: Callable[[], None] = lambda: None) -> Painted:
        """Queue the prompt of ``job``, unless the server has it already, and wait for its files.

        ``alive`` is called now and then while the server answers.

        Raises :class:`NotPainted`, :class:`Lost`, or :class:`Stopped` when ``stop`` is set.
        """
        patience, again = _Patience(stop), [job.again]
        try:
            entry = patience.ask(lambda: self._queue(job, again)) or self._wait(job.prompt_id, patience, stop, alive)
        except Stopped:
            self.cancel(job.prompt_id)
            raise
        return self._collect(job, entry, patience)

    def _queue(self, job: Job, again: list[bool]) -> PromptRecord | None:
        """Hand the prompt over once: from the second try on, the first may have arrived. The entry of a painted one."""
        entry = self._entry(job.prompt_id)
        if entry and not entry.good:
            self._forget(job.prompt_id)  # it was interrupted
        if entry and entry.good:
            return entry
        if again[0] and self._is_queued(job.prompt_id):
            return None
        again[0] = True
        for name, data in job.uploads.items():
            self._upload(name, data)
        try:
            wrong = self.ask("/prompt", lambda answer: answer.get("node_errors"), job.body())
        except Refused as refusal:
            if refusal.code != 400:
                raise
            raise NotPainted(_reason(refusal.text)) from None
        if wrong:
            self.cancel(job.prompt_id)
            raise NotPainted(_reason(json.dumps({"node_errors": wrong})))
        return None

    def _entry(self, prompt: str) -> PromptRecord | None:
        return self.ask(f"/history/{prompt}", lambda history: PromptRecord.read(history, prompt))

    def _forget(self, prompt: str) -> None:
        self.address.fetch("/history", json.dumps({"delete": [prompt]}).encode())

    def _is_queued(self, prompt: str) -> bool:
        return self.ask("/queue", lambda queue: any(item[1] == prompt for items in queue.values() for item in items))

    def _wait(self, prompt: str, patience: _Patience, stop: threading.Event, alive: Callable[[], None]) -> PromptRecord:
        """The entry of a queued prompt. Of those that wait here only the first can be done, so only it is asked for."""
        looked, connections = time.monotonic(), self.address.connections
        with self._line.place() as turn:
            pauses = self._pauses()
            while True:
                if turn.wait(LOOK_SECONDS):
                    stop.wait(next(pauses))
                entry = patience.ask(lambda: self._entry(prompt))
                if entry:
                    return entry
                if stop.is_set():
                    raise Stopped
                same = connections == self.address.connections
                if time.monotonic() - looked > (LOOK_SECONDS if same else DOUBT_SECONDS):
                    looked, connections = time.monotonic(), self.address.connections
                    alive()
                    queued = patience.ask(lambda: self._is_queued(prompt))
                    if not queued and not patience.ask(lambda: self._entry(prompt)):
                        raise Lost("the server has forgotten the prompt")

    def _pauses(self) -> Iterator[float]:
        """Seconds to wait before each look at a prompt that is being painted."""
        usual, wait = min(self._lately, default=None), SHORTEST_WAIT
        if usual is not None:
            yield min(max(usual * FIRST_PART, SHORTEST_WAIT), LOOK_SECONDS)
        while True:
            yield wait if usual is None else min(max(usual * NEXT_PART, SHORTEST_WAIT), LONGEST_PART)
            wait = min(wait * GROWTH, LONGEST_WAIT)

    def _collect(self, job: Job, entry: PromptRecord, patience: _Patience) -> Painted:
        if not entry.good:
            if "execution_interrupted" in entry.messages:
                raise Lost("somebody interrupted the prompt at the server")
            raise NotPainted(entry.why())
        files = [file for node in job.filled.saves for file in entry.saved.get(node, ())]
        if not files:
            raise NotPainted("the workflow ran, but saved nothing. Its last nodes may be waiting for a choice.")
        pictures = [
            PaintedFile(file["filename"], patience.ask(lambda file=file: self._view(file, job.prompt_id)))
            for file in files
        ]
        if entry.seconds is not None:
            self._lately.append(entry.seconds)
        return Painted(pictures, entry.seconds)

    def _view(self, file: dict[str, str], prompt: str) -> bytes:
        """The bytes of a file. Where somebody removed it, the server forgets that it ever painted it."""
        try:
            return self.address.fetch("/view?" + urllib.parse.urlencode(file))
        except Refused as refusal:
            self._forget(prompt)
            self.address.fetch("/free", b'{"free_memory": true}')
            raise Lost(f"the server has no longer what it painted ({refusal})") from None

    def _upload(self, name: str, data: bytes) -> None:
        """Put an input file on the server."""
        border = f"cascade-studio-{uuid.uuid4().hex}"
        head = (
            f'--{border}\r\nContent-Disposition: form-data; name="overwrite"\r\n\r\n1\r\n'
            f'--{border}\r\nContent-Disposition: form-data; name="image"; filename="{name}"\r\n'
            "Content-Type: application/octet-stream\r\n\r\n"
        )
        body = head.encode() + data + f"\r\n--{border}--\r\n".encode()
        self.address.fetch("/upload/image", body, f"multipart/form-data; boundary={border}")

    def cancel(self, prompt: str) -> None:
        """Take a prompt out of the queue, or stop it; nobody else's is touched. Silence is no error."""
        try:
            self.address.fetch("/queue", json.dumps({"delete": [prompt]}).encode())
            if self.ask("/queue", lambda queue: any(item[1] == prompt for item in queue["queue_running"])):
                self.address.fetch("/interrupt", json.dumps({"prompt_id": prompt}).encode())
        except (Unreachable, Refused):
            pass


class _Line:
    """The prompts that a server was given, in their order."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._turns: list[threading.Event] = []

    @contextmanager
    def place(self) -> Iterator[threading.Event]:
        """A place at the end of the line; the event is set when it is the first."""
        turn = threading.Event()
        with self._lock:
            self._turns.append(turn)
            self._turns[0].set()
        try:
            yield turn
        finally:
            with self._lock:
                self._turns.remove(turn)
                for first in self._turns[:1]:
                    first.set()


class _Patience:
    """Asks a server again while it is silent, for as long as one waits for a server."""

    def __init__(self, stop: threading.Event) -> None:
        self.stop = stop

    def ask(self, question: Callable[[], Any]) -> Any:
        limit = time.monotonic() + QUIET_SECONDS
        while True:
            try:
                return question()
            except Refused as refusal:
                raise Lost(str(refusal)) from None
            except Unreachable as silence:
                if self.stop.is_set():
                    raise Stopped from None
                if time.monotonic() > limit or silence.refused:
                    raise Lost(str(silence)) from None
                self.stop.wait(0.5)


def _read_memory(stats: Any) -> int | None:
    return max((int(device.get("vram_total") or 0) for device in stats["devices"]), default=0) or None


def _reason(text: str) -> str:
    """Why a server does not take a prompt, in a line."""
    try:
        body = json.loads(text)
        error = body.get("error")
        lines = [" ".join(filter(None, (error.get("message"), error.get("details"))))] if error else []
        for node, problem in (body.get("node_errors") or {}).items():
            for reason in problem.get("errors", []):
                details = ": ".join(filter(None, (reason.get("message"), reason.get("details"))))
                lines.append(f"node {node} ({problem.get('class_type')}): {details}")
    except (ValueError, TypeError, AttributeError):
        lines = []
    return "; ".join(filter(None, lines)) or f"HTTP 400: {text.strip()[:300]}"
