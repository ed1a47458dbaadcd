"""A server that answers as ComfyUI does and paints at once: what a batch asks of a server, without models.

Run as ``main.py --port PORT``; further flags are ignored. What it paints follows from the prompt alone, but for the
seconds in the card. Words in a prompt's text make it misbehave: see :data:`FAULTS`. ``FAKE_SECONDS`` is how long a
picture takes.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import json
import os
import queue
import random
import struct
import sys
import threading
import time
import urllib.parse
import zlib
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

FAULTS = ("fails", "is refused", "crashes", "saves nothing")


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(prompt: dict, workflow: dict | None) -> bytes:
    """A PNG of 4x4 pixels that follow from ``prompt``, with ComfyUI's texts and the pack's card."""
    text = json.dumps(prompt, sort_keys=True)
    row = hashlib.sha256(text.encode()).digest()[:12]
    card = {"version": 1, "seconds": random.random(), "stages": [{"stage": "Stage C", "seconds": random.random()}]}
    texts = [("prompt", prompt), *([("workflow", workflow)] if workflow else []), ("cascade_studio", card)]
    return b"".join(
        [
            b"\x89PNG\r\n\x1a\n",
            chunk(b"IHDR", struct.pack(">IIBBBBB", 4, 4, 8, 2, 0, 0, 0)),
            *(chunk(b"tEXt", name.encode() + b"\0" + json.dumps(value).encode("latin-1")) for name, value in texts),
            chunk(b"IDAT", zlib.compress(b"".join(b"\0" + row for _ in range(4)))),
            chunk(b"IEND", b""),
        ]
    )


class Fake:
    """The queue, what is painted, and the one painter."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.waiting: queue.Queue = queue.Queue()
        self.pending: list[str] = []
        self.running: str | None = None
        self.history: dict[str, dict] = {}
        self.files: dict[str, bytes] = {}
        self.uploads: dict[str, bytes] = {}
        self.interrupted = threading.Event()
        self.painted: list[dict] = []
        threading.Thread(target=self.paint_all, daemon=True).start()

    def paint_all(self) -> None:
        while True:
            prompt_id, prompt, workflow = self.waiting.get()
            if prompt_id not in self.pending:
                continue
            self.running = prompt_id
            self.pending.remove(prompt_id)
            self.interrupted.clear()
            start = time.time()
            self.interrupted.wait(self.seconds)
            self.history[prompt_id] = self.finish(prompt_id, prompt, workflow, start)
            self.running = None

    def finish(self, prompt_id: str, prompt: dict, workflow: dict | None, start: float) -> dict:
        text = json.dumps(prompt)
        messages = [["execution_start", {"timestamp": int(start * 1000)}]]
        if self.interrupted.is_set():
            return {"status": {"status_str": "error", "messages": [*messages, ["execution_interrupted", {}]]}}
        if "crashes" in text:
            os._exit(9)
        if "fails" in text:
            error = {"node_type": "KSampler", "exception_message": "it was told to fail"}
            return {"status": {"status_str": "error", "messages": [*messages, ["execution_error", error]]}}
        outputs = {}
        for node, entry in prompt.items():
            if entry["class_type"] in ("SaveImage", "CascadeStudio_SaveImage") and "saves nothing" not in text:
                outputs[node] = {
                    "images": [self.save(entry["inputs"]["filename_prefix"], ".png", png(prompt, workflow))]
                }
            if entry["class_type"] == "SaveLatent":
                data = b"latent" + hashlib.sha256(text.encode()).digest()
                outputs[node] = {"latents": [self.save(entry["inputs"]["filename_prefix"], ".latent", data)]}
        self.painted.append(prompt)
        messages.append(["execution_success", {"timestamp": int(time.time() * 1000)}])
        return {"status": {"status_str": "success", "messages": messages}, "outputs": outputs}

    def save(self, prefix: str, ending: str, data: bytes) -> dict:
        folder, _, name = prefix.rpartition("/")
        file = f"{name}_{len(self.files) + 1:05}_{ending}"
        self.files[f"{folder}/{file}"] = data
        return {"filename": file, "subfolder": folder, "type": "output"}

    def queue(self, data: dict) -> tuple[int, object]:
        prompt = data["prompt"]
        if "is refused" in json.dumps(prompt):
            problem = {"class_type": "CLIPTextEncode", "errors": [{"message": "Value not in list", "details": "lora"}]}
            return 400, {"error": {"message": "Prompt outputs failed validation"}, "node_errors": {"3": problem}}
        self.pending.append(data["prompt_id"])
        self.waiting.put(
            (data["prompt_id"], prompt, data.get("extra_data", {}).get("extra_pnginfo", {}).get("workflow"))
        )
        return 200, {"prompt_id": data["prompt_id"], "node_errors": {}}


class Handler(BaseHTTPRequestHandler):
    """Answers the routes that a batch uses; with a ``secret`` (name:password) only to whoever knows it.

    ``changed``: answers by the start of a path that are others than ComfyUI's, (status, data).
    """

    protocol_version = "HTTP/1.1"  # connections are kept, as ComfyUI keeps them
    changed: dict[str, tuple[int, object]]
    fake: Fake
    secret: str | None

    def log_message(self, *_: object) -> None:
        pass

    def answer(self, status: int, data: object) -> None:
        body = data if isinstance(data, bytes) else json.dumps(data).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def allowed(self) -> bool:
        given = self.headers.get("Authorization", "")
        right = self.secret is None or given == "Basic " + base64.b64encode(self.secret.encode()).decode()
        if not right:
            self.answer(401, {"error": "who are you?"})
        return right

    def misbehaves(self) -> bool:
        """Answer as this server was told to, where it was told so."""
        found = [answer for start, answer in self.changed.items() if self.path.startswith(start)]
        for answer in found[:1]:
            self.answer(*answer)
        return bool(found)

    def do_GET(self) -> None:
        parts = urllib.parse.urlsplit(self.path)
        if not self.allowed() or self.misbehaves():
            return
        if parts.path.startswith("/history/"):
            name = parts.path.rpartition("/")[2]
            self.answer(200, {name: self.fake.history[name]} if name in self.fake.history else {})
        elif parts.path == "/queue":
            running = [[0, self.fake.running]] if self.fake.running else []
            self.answer(200, {"queue_running": running, "queue_pending": [[0, name] for name in self.fake.pending]})
        elif parts.path == "/view":
            query = dict(urllib.parse.parse_qsl(parts.query))
            data = self.fake.files.get(f"{query.get('subfolder', '')}/{query['filename']}")
            self.answer(404 if data is None else 200, data or b"")
        elif parts.path.startswith("/object_info/"):
            name = parts.path.rpartition("/")[2]
            self.answer(200, {name: {}})
        elif parts.path == "/system_stats":
            self.answer(200, {"devices": [{"vram_total": int(os.environ.get("FAKE_MEMORY") or 8 * 1024**3)}]})
        else:
            self.answer(404, b"")

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if not self.allowed() or self.misbehaves():
            return
        if self.path == "/upload/image":
            name = body.split(b'filename="', 1)[1].split(b'"', 1)[0].decode()
            self.fake.uploads[name] = body.split(b"octet-stream\r\n\r\n", 1)[1].rsplit(b"\r\n--", 1)[0]
            self.answer(200, {"name": name})
            return
        data = json.loads(body or b"{}")
        if self.path == "/prompt":
            self.answer(*self.fake.queue(data))
        elif self.path == "/interrupt":
            if data.get("prompt_id") in (None, self.fake.running):
                self.fake.interrupted.set()
            self.answer(200, b"")
        elif self.path in ("/queue", "/history", "/free"):
            for name in data.get("delete", ()):
                if self.path == "/history":
                    self.fake.history.pop(name, None)
                elif name in self.fake.pending:
                    self.fake.pending.remove(name)
            self.answer(200, b"")
        else:
            self.answer(404, b"")


def serve(
    port: int = 0, seconds: float = 0.0, secret: str | None = None, changed: dict[str, tuple[int, object]] | None = None
) -> tuple[ThreadingHTTPServer, Fake]:
    """A running server in this process, on a free port by default, and what it does."""
    fake = Fake(seconds)
    own = type("Own", (Handler,), {"fake": fake, "secret": secret, "changed": changed or {}})
    server = ThreadingHTTPServer(("127.0.0.1", port), own)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    return server, fake


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    options, _ = parser.parse_known_args()
    if os.environ.get("FAKE_BROKEN"):
        sys.exit("a fault that hinders every start")
    serve(options.port, float(os.environ.get("FAKE_SECONDS", "0")))
    threading.Event().wait()
