"""Talks to a ComfyUI server: HTTP requests, queueing a prompt, following it over the websocket."""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.parse
import urllib.request
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from cascade_studio.commands.messages import Stop

from .websocket import Closed, WebSocket


class NoAnswer(Exception):
    """Nothing answers at the server's address (yet)."""


class ServerRefused(Stop):
    """The server answered with an error; ``status`` and ``body`` hold its words."""

    def __init__(self, text: str, status: int, body: Any) -> None:
        super().__init__(text)
        self.status, self.body = status, body


class Failed(Stop):
    """A queued prompt ended in an error or was interrupted; ``run`` holds what happened."""

    def __init__(self, text: str, run: PromptRun) -> None:
        super().__init__(text)
        self.run = run


@dataclass
class PromptRun:
    """What one queued prompt did. ``seconds`` and ``progress`` are by node id, ``outputs`` as in ``/history``."""

    prompt_id: str
    status: str = "running"
    outputs: dict[str, Any] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    progress: dict[str, list[tuple[float, float]]] = field(default_factory=dict)
    cached: list[str] = field(default_factory=list)
    previews: list[bytes] = field(default_factory=list)
    error: dict[str, Any] | None = None

    @property
    def error_text(self) -> str:
        """The sentence that the failing node gave, or an empty text."""
        return str((self.error or {}).get("exception_message", "")).strip()

    def images(self) -> list[dict[str, str]]:
        """The files that nodes saved, saved outputs before temporary ones, each in the order of the nodes' ids.

        The server runs end nodes in the order of a set of texts, which is another one in every process.
        """
        nodes = sorted(self.outputs, key=lambda node: [(len(part), part) for part in node.split(":")])
        found = [image for node in nodes for image in self.outputs[node].get("images") or []]
        return sorted(found, key=lambda image: image.get("type") != "output")


Listener = Callable[[str, dict[str, Any], "PromptRun"], None]


def rejection(body: Any) -> str:
    """The server's reasons for refusing a prompt, as text."""
    if not isinstance(body, dict):
        return str(body)
    error = body.get("error")
    lines = [
        " ".join(filter(None, (error.get("message"), error.get("details"))))
        if isinstance(error, dict)
        else str(error or body)
    ]
    for node, problem in (body.get("node_errors") or {}).items():
        for reason in problem.get("errors", []):
            details = ": ".join(filter(None, (reason.get("message"), reason.get("details"))))
            lines.append(f"node {node} ({problem.get('class_type')}): {details}")
    return "\n".join(lines)


class Client:
    """One client of the server at ``url``, with its own client id."""

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")
        self.client_id = uuid.uuid4().hex
        self._opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))

    def fetch(self, path: str, data: Any = None, timeout: float = 60.0) -> bytes:
        """GET ``path``, or POST ``data`` as JSON. Raises ``ServerRefused`` for an error, ``NoAnswer`` for silence."""
        body = None if data is None else json.dumps(data).encode()
        request = urllib.request.Request(self.url + path, body, {"Content-Type": "application/json"} if body else {})
        try:
            with self._opener.open(request, timeout=timeout) as answer:
                return answer.read()
        except urllib.error.HTTPError as error:
            content = error.read().decode("utf-8", "replace")
            try:
                content = json.loads(content)
            except ValueError:
                pass
            raise ServerRefused(f"{path}: HTTP {error.code}: {rejection(content)}", error.code, content) from None
        except OSError as error:
            raise NoAnswer(str(error)) from None

    def get(self, path: str) -> Any:
        """The JSON answer to a GET of ``path``."""
        return json.loads(self.fetch(path))

    def post(self, path: str, data: Any) -> Any:
        """The JSON answer to a POST; None for an empty one."""
        answer = self.fetch(path, data)
        return json.loads(answer) if answer.strip() else None

    def view(self, image: dict[str, str]) -> bytes:
        """The bytes of a file that a node saved, as one of :meth:`PromptRun.images` names it."""
        return self.fetch("/view?" + urllib.parse.urlencode(image))

    def history(self, prompt_id: str) -> dict[str, Any]:
        """What the server remembers of a prompt."""
        return self.get(f"/history/{prompt_id}").get(prompt_id, {})

    def interrupt(self) -> None:
        """Ask the server to stop what runs."""
        self.post("/interrupt", {})

    def connect(self) -> WebSocket:
        """The websocket of this client; open it before queueing, or the first events are missed."""
        address = urllib.parse.urlsplit(self.url)
        return WebSocket(address.hostname, address.port, f"/ws?clientId={self.client_id}")

    def queue(self, prompt: dict[str, Any], workflow: dict[str, Any] | None = None, **extra: Any) -> str:
        """Queue an API prompt; the workflow goes along for the saved files' metadata. Returns the prompt's id."""
        extra_data = {"extra_pnginfo": {"workflow": workflow}} if workflow is not None else {}
        data = {"prompt": prompt, "client_id": self.client_id, "extra_data": {**extra_data, **extra}}
        answer = self.post("/prompt", data)
        if answer.get("node_errors"):
            raise ServerRefused(f"The server left out a part of the prompt: {rejection(answer)}", 200, answer)
        return answer["prompt_id"]

    def run(
        self,
        prompt: dict[str, Any],
        workflow: dict[str, Any] | None = None,
        *,
        timeout: float = 3600.0,
        listen: Listener | None = None,
        alive: Callable[[], bool] = lambda: True,
        check: bool = True,
    ) -> PromptRun:
        """Queue ``prompt`` and follow it to its end. ``listen`` hears every event of it (name, data, run).

        Raises ``Failed`` if it ends in an error (unless ``check`` is False), and ``Stop`` after ``timeout`` seconds
        or when the server is gone (``alive`` is asked while nothing comes).
        """
        with self.connect() as socket:
            run = PromptRun(self.queue(prompt, workflow))
            follower = _Follower(run, listen)
            limit = time.monotonic() + timeout
            while run.status == "running":
                if time.monotonic() > limit:
                    raise Stop(f"The prompt was not done within {timeout:.0f} s.")
                try:
                    follower.take(socket.receive(timeout=1.0))
                except TimeoutError:
                    if not alive():
                        raise Stop("ComfyUI ended while it worked on the prompt.") from None
                except Closed:
                    raise Stop("ComfyUI closed the connection while it worked on the prompt.") from None
        run.outputs = self._outputs(run.prompt_id)
        if check and run.status != "success":
            name = (run.error or {}).get("node_type", "?")
            raise Failed(f"The prompt ended as {run.status} in node {name}: {run.error_text}", run)
        return run

    def _outputs(self, prompt_id: str) -> dict[str, Any]:
        for _ in range(100):
            entry = self.history(prompt_id)
            if entry:
                return entry.get("outputs", {})
            time.sleep(0.05)
        return {}


class _Follower:
    """Turns the websocket's messages into the record of one run."""

    ENDS = {"execution_success": "success", "execution_error": "error", "execution_interrupted": "interrupted"}

    def __init__(self, run: PromptRun, listen: Listener | None) -> None:
        self.run, self.listen = run, listen
        self.node: str | None = None
        self.since = time.monotonic()

    def _switch(self, node: str | None) -> None:
        now = time.monotonic()
        if self.node is not None:
            self.run.seconds[self.node] = self.run.seconds.get(self.node, 0.0) + now - self.since
        self.node, self.since = node, now

    def take(self, message: str | bytes) -> None:
        """Take one message of the server."""
        if isinstance(message, bytes):
            self.run.previews.append(message)
            return
        event = json.loads(message)
        name, data = event.get("type"), event.get("data") or {}
        if data.get("prompt_id") != self.run.prompt_id:
            return
        if name == "executing":
            self._switch(data.get("display_node") or data.get("node"))
        elif name == "execution_cached":
            self.run.cached = list(data.get("nodes", []))
        elif name == "progress":
            self.run.progress.setdefault(str(data.get("node")), []).append((data["value"], data["max"]))
        elif name in self.ENDS:
            self._switch(None)
            self.run.status = self.ENDS[name]
            self.run.error = data if name != "execution_success" else None
        if self.listen is not None:
            self.listen(name, data, self.run)
