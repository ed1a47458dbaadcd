"""One ComfyUI server as a worker: what it has, one prompt from queueing to the bytes of its pictures.

Only the address that was named is spoken to: no proxy, no redirect to elsewhere. The id of a prompt follows from its
row, so that a prompt that the server finished while nobody listened is found again.
"""

from __future__ import annotations

import base64
import json
import time
import urllib.error
import urllib.parse
import urllib.request
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..messages import Stop
from .results import Picture
from .template import Filled

QUIET_SECONDS = 60.0
"""How long a server may not answer before it counts as gone."""
SHORTEST_WAIT, LONGEST_WAIT, QUEUE_SECONDS, ALIVE_SECONDS = 0.05, 0.5, 3.0, 20.0
HTTP_SECONDS = 30.0
CLIENT = "studio.py batch"
"""Who asks: hosts before 0.24 tell nothing of a picture from their cache to a prompt that comes from nobody."""


class Unreachable(Exception):
    """Nothing answers at the server's address."""


class Lost(Exception):
    """The server, or what it knew of a prompt, is gone; the row is not at fault."""


class Failed(Exception):
    """The server could not paint the row; the text is its reason."""


class Stopped(Exception):
    """The batch is being interrupted."""


@dataclass(frozen=True)
class Job:
    """What is sent for one row. ``uploads``: bytes of input files by name."""

    prompt_id: str
    filled: Filled
    uploads: Mapping[str, bytes] = field(default_factory=dict)


@dataclass(frozen=True)
class Painted:
    """The files of one row, and the seconds the server worked on it."""

    pictures: Sequence[Picture]
    seconds: float | None


def prompt_id(key: str, failures: int) -> str:
    """The id of a row's prompt: another one after each failure, the same after everything else."""
    return str(uuid.uuid5(uuid.NAMESPACE_OID, f"cascade-studio/{key}/{failures}"))


class _Stay(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: Any) -> None:
        return None


class Server:
    """The ComfyUI at ``url``. A name and password in it are sent, and told to nobody: ``name`` is without them."""

    def __init__(self, url: str) -> None:
        parts = urllib.parse.urlsplit(url if "://" in url else f"http://{url}")
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise Stop(
                f"{self._describe_address(parts)} is no address of a server. "
                "Write http://HOST:PORT, such as http://10.0.0.7:8188."
            )
        self.name = self._describe_address(parts)
        self.url = self.name + parts.path.rstrip("/")
        self._headers = {}
        if parts.username:
            secret = f"{urllib.parse.unquote(parts.username)}:{urllib.parse.unquote(parts.password or '')}"
            self._headers["Authorization"] = "Basic " + base64.b64encode(secret.encode()).decode()
        self._opener = urllib.request.build_opener(urllib.request.ProxyHandler({}), _Stay())

    @staticmethod
    def _describe_address(parts: urllib.parse.SplitResult) -> str:
        return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"

    def fetch(self, path: str, body: bytes | None = None, kind: str = "application/json") -> bytes:
        """GET, or POST ``body``. Raises :class:`Unreachable` for silence and :class:`Failed` for an answer that is an
        error."""
        headers = {**self._headers, **({"Content-Type": kind} if body is not None else {})}
        request = urllib.request.Request(self.url + path, body, headers)
        try:
            with self._opener.open(request, timeout=HTTP_SECONDS) as answer:
                return answer.read()
        except urllib.error.HTTPError as error:
            if error.code in (502, 503, 504):
                raise Unreachable(f"HTTP {error.code}") from None
            raise Failed(_reason(error.code, error.read().decode("utf-8", "replace"))) from None
        except (OSError, ValueError, urllib.error.URLError) as error:
            raise Unreachable(str(error)) from None
        except Exception as error:  # http.client's own errors share no base with the others
            raise Unreachable(f"{type(error).__name__}: {error}") from None

    def ask(self, path: str, body: bytes | None = None) -> Any:
        """The JSON at ``path``, or the JSON answer to ``body``."""
        answer = self.fetch(path, body)
        try:
            return json.loads(answer) if answer.strip() else None
        except ValueError:
            raise Unreachable("it does not answer as ComfyUI does") from None

    def describe_nodes(self) -> dict[str, Any]:
        """The definitions of all nodes."""
        return self.ask("/object_info")

    def memory(self) -> int | None:
        """Bytes of its largest card, or of the computer where it has none."""
        devices = (self.ask("/system_stats") or {}).get("devices") or []
        return max((int(device.get("vram_total") or 0) for device in devices), default=0) or None

    def paint(self, job: Job, stopped: Callable[[], bool], alive: Callable[[], None] = lambda: None) -> Painted:
        """Queue the prompt of ``job``, unless the server has it already, and wait for its files.

        ``alive`` is called now and then while the server answers.

        Raises :class:`Failed`, :class:`Lost`, or :class:`Stopped` when ``stopped`` says so.
        """
        patience = _Patience(stopped)
        if not patience.ask(lambda: self._knows(job.prompt_id)):
            for name, data in job.uploads.items():
                patience.ask(lambda name=name, data=data: self._upload(name, data))
            answer = patience.ask(lambda: self.ask("/prompt", _body(job))) or {}
            if answer.get("node_errors"):
                self.cancel(job.prompt_id)
                raise Failed(_reason(400, json.dumps(answer)))
        try:
            entry = self._wait(job.prompt_id, patience, stopped, alive)
        except Stopped:
            self.cancel(job.prompt_id)
            raise
        return self._collect(job.prompt_id, entry, job.filled.saves, patience)

    def _knows(self, prompt: str) -> bool:
        """Whether the prompt was painted or is queued; what was interrupted is forgotten."""
        entry = (self.ask(f"/history/{prompt}") or {}).get(prompt)
        if entry and (entry.get("status") or {}).get("status_str") != "success":
            self._forget(prompt)
            entry = None
        return bool(entry) or self._is_queued(prompt)

    def _forget(self, prompt: str) -> None:
        self.fetch("/history", json.dumps({"delete": [prompt]}).encode())

    def _is_queued(self, prompt: str) -> bool:
        queue = self.ask("/queue") or {}
        return any(item[1] == prompt for items in queue.values() for item in items)

    def _wait(
        self, prompt: str, patience: _Patience, stopped: Callable[[], bool], alive: Callable[[], None]
    ) -> dict[str, Any]:
        wait, looked, told = SHORTEST_WAIT, time.monotonic(), time.monotonic()
        while True:
            entry = (patience.ask(lambda: self.ask(f"/history/{prompt}")) or {}).get(prompt)
            if entry:
                return entry
            if stopped():
                raise Stopped
            if time.monotonic() - looked > QUEUE_SECONDS:
                looked = time.monotonic()
                if looked - told > ALIVE_SECONDS:
                    told = looked
                    alive()
                queued = patience.ask(lambda: self._is_queued(prompt))
                if not queued and not patience.ask(lambda: self.ask(f"/history/{prompt}")):
                    raise Lost("the server has forgotten the prompt")
            time.sleep(wait)
            wait = min(wait * 1.2, LONGEST_WAIT)

    def _view(self, file: dict[str, str], prompt: str) -> bytes:
        """The bytes of a file. Where somebody removed it, the server forgets that it ever painted it."""
        try:
            return self.fetch("/view?" + urllib.parse.urlencode(file))
        except Failed as refusal:
            self._forget(prompt)
            self.fetch("/free", b'{"free_memory": true}')
            raise Lost(f"the server has no longer what it painted ({refusal})") from None

    def _collect(self, prompt: str, entry: dict[str, Any], saves: Sequence[str], patience: _Patience) -> Painted:
        status = entry.get("status") or {}
        told = dict(status.get("messages") or ())
        if status.get("status_str") != "success":
            if "execution_interrupted" in told:
                raise Lost("somebody interrupted the prompt at the server")
            error = told.get("execution_error") or {}
            place = f"{error.get('node_type', 'the server')}: " if error else ""
            raise Failed(place + str(error.get("exception_message") or "it ended without a reason").strip())
        outputs = entry.get("outputs") or {}
        files = [
            file
            for node in saves
            for kind in ("images", "latents")
            for file in (outputs.get(node) or {}).get(kind) or ()
        ]
        if not files:
            raise Failed("the workflow ran, but saved nothing. Its last nodes may be waiting for a choice.")
        pictures = [
            Picture(file["filename"], patience.ask(lambda file=file: self._view(file, prompt))) for file in files
        ]
        start, end = (told.get(name, {}).get("timestamp") for name in ("execution_start", "execution_success"))
        return Painted(pictures, (end - start) / 1000 if start and end else None)

    def _upload(self, name: str, data: bytes) -> None:
        """Put an input file on the server."""
        border = f"cascade-studio-{uuid.uuid4().hex}"
        head = (
            f'--{border}\r\nContent-Disposition: form-data; name="overwrite"\r\n\r\n1\r\n'
            f'--{border}\r\nContent-Disposition: form-data; name="image"; filename="{name}"\r\n'
            "Content-Type: application/octet-stream\r\n\r\n"
        )
        body = head.encode() + data + f"\r\n--{border}--\r\n".encode()
        self.fetch("/upload/image", body, f"multipart/form-data; boundary={border}")

    def cancel(self, prompt: str) -> None:
        """Take a prompt out of the queue, or stop it; nobody else's is touched. Silence is no error."""
        try:
            self.fetch("/queue", json.dumps({"delete": [prompt]}).encode())
            running = (self.ask("/queue") or {}).get("queue_running") or []
            if any(item[1] == prompt for item in running):
                self.fetch("/interrupt", json.dumps({"prompt_id": prompt}).encode())
        except (Unreachable, Failed):
            pass


def _body(job: Job) -> bytes:
    """What POST /prompt takes; the workflow is JSON already."""
    extra = f', "extra_data": {{"extra_pnginfo": {{"workflow": {job.filled.workflow}}}}}' if job.filled.workflow else ""
    known = f'"prompt_id": "{job.prompt_id}", "client_id": "{CLIENT}"'
    return f'{{"prompt": {json.dumps(job.filled.prompt)}, {known}{extra}}}'.encode()


class _Patience:
    """Asks a server again while it is silent, for as long as one waits for a server."""

    def __init__(self, stopped: Callable[[], bool]) -> None:
        self.stopped = stopped

    def ask(self, question: Callable[[], Any]) -> Any:
        limit = time.monotonic() + QUIET_SECONDS
        while True:
            try:
                return question()
            except Unreachable as silence:
                if self.stopped():
                    raise Stopped from None
                if time.monotonic() > limit or _refuses(silence):
                    raise Lost(str(silence)) from None
                time.sleep(0.5)


def _refuses(silence: Unreachable) -> bool:
    """Whether nothing listens at the address any more: then there is nothing to wait for."""
    return "refused" in str(silence).lower() or "10061" in str(silence)


def _reason(code: int, text: str) -> str:
    """A server's refusal in a line."""
    try:
        body = json.loads(text)
    except ValueError:
        return f"HTTP {code}: {text.strip()[:300]}"
    error = body.get("error") if isinstance(body, dict) else None
    lines = [" ".join(filter(None, (error.get("message"), error.get("details"))))] if isinstance(error, dict) else []
    for node, problem in ((body.get("node_errors") if isinstance(body, dict) else None) or {}).items():
        for reason in problem.get("errors", []):
            details = ": ".join(filter(None, (reason.get("message"), reason.get("details"))))
            lines.append(f"node {node} ({problem.get('class_type')}): {details}")
    return "; ".join(filter(None, lines)) or f"HTTP {code}: {text[:300]}"
