"""A real HTTP server on loopback for downloads that go wrong by script: Range, ETag, redirects, throttling, faults.

It counts every byte of every body that it hands to the system, so that a test can say how much was fetched.
"""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

BLOCK = 16 << 10


@dataclass
class File:
    """What lies at a path. etag "" and modified "" leave the header out; headers are added to every answer."""

    data: bytes
    etag: str = '"one"'
    modified: str = ""
    ranges: bool = True
    if_range: bool = True
    chunked: bool = False
    headers: dict[str, str] = field(default_factory=dict)


@dataclass
class Fault:
    """What happens to one request. Bytes are counted in its body.

    status: answers with that and no file. redirect: the Location of a 302. headers: added to the answer.
    cut: closes the connection after so many bytes. stall: stops sending after so many bytes, for ``seconds``.
    loris: sends a byte at a time, ``seconds`` apart, after so many bytes. flip: this byte of the file is wrong.
    announce: a Content-Length that is not true. body: another body. dribble: headers come a byte at a time.
    """

    status: int = 0
    redirect: str = ""
    headers: dict[str, str] = field(default_factory=dict)
    cut: int | None = None
    stall: int | None = None
    loris: int | None = None
    seconds: float = 0.1
    flip: int | None = None
    announce: int | None = None
    body: bytes | None = None
    dribble: bool = False


@dataclass
class Request:
    """One request as it came, and what it got."""

    path: str
    headers: dict[str, str]
    status: int = 0
    sent: int = 0


class FaultyServer:
    """Serves ``files`` by path. ``script`` is asked for every request: its Fault, or None for a good answer.

    rate: bytes a second for each connection, or None.
    """

    def __init__(self) -> None:
        self.files: dict[str, File] = {}
        self.script: Callable[[int, Request], Fault | None] = lambda number, request: None
        self.rate: float | None = None
        self.requests: list[Request] = []
        self.open = self.most_open = 0
        self.lock = threading.Lock()
        self.ended = threading.Event()
        self._server = _Server(("127.0.0.1", 0), _handler(self))
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    @property
    def port(self) -> int:
        return self._server.server_port

    @property
    def sent(self) -> int:
        """Bytes of all bodies of files so far."""
        with self.lock:
            return sum(request.sent for request in self.requests)

    def url(self, path: str, host: str = "127.0.0.1") -> str:
        return f"http://{host}:{self.port}/{path}"

    def faults(self, *faults: Fault | None) -> None:
        """Give the next requests these faults, one each, and good answers after them."""
        begun = len(self.requests)
        self.script = lambda number, request: faults[number - begun] if number - begun < len(faults) else None

    def always(self, fault: Fault) -> None:
        self.script = lambda number, request: fault

    def forget(self) -> None:
        """Serve well again, and count from zero."""
        with self.lock:
            self.requests.clear()
        self.script = lambda number, request: None

    def close(self) -> None:
        self.ended.set()
        self._server.shutdown()
        self._server.server_close()


class _Server(ThreadingHTTPServer):
    request_queue_size = 64

    def server_bind(self) -> None:
        # Small, so that what was counted as sent has nearly arrived.
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 16 << 10)
        super().server_bind()

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that goes away in the middle is what these tests are about."""


def _handler(faulty: FaultyServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *arguments: object) -> None:
            pass

        def do_GET(self) -> None:
            with faulty.lock:
                number = len(faulty.requests)
                path = urlsplit(self.path).path.lstrip("/")
                request = Request(path, {key.title(): value for key, value in self.headers.items()})
                faulty.requests.append(request)
                faulty.open += 1
                faulty.most_open = max(faulty.most_open, faulty.open)
            try:
                _answer(faulty, self, request, faulty.script(number, request) or Fault())
            except (OSError, ValueError):
                self.close_connection = True
            finally:
                with faulty.lock:
                    faulty.open -= 1

    return Handler


def _answer(faulty: FaultyServer, handler: BaseHTTPRequestHandler, request: Request, fault: Fault) -> None:
    file = faulty.files.get(request.path)
    status = fault.status or (302 if fault.redirect else 404 if file is None and fault.body is None else 0)
    if status:
        return _head(
            handler,
            request,
            status,
            {**fault.headers, "Content-Length": "0", **({"Location": fault.redirect} if fault.redirect else {})},
        )
    if fault.body is not None:
        file = File(fault.body, etag="")
    start, end, status = _range(file, request)
    if status == 416:
        return _head(handler, request, 416, {"Content-Range": f"bytes */{len(file.data)}", "Content-Length": "0"})
    length = fault.announce if fault.announce is not None else end - start
    headers = {**_marks(file), **file.headers, **fault.headers}
    headers.update({"Transfer-Encoding": "chunked"} if file.chunked else {"Content-Length": str(length)})
    if status == 206:
        headers["Content-Range"] = f"bytes {start}-{end - 1}/{len(file.data)}"
    _head(handler, request, status, headers, fault.dribble and faulty)
    _body(faulty, handler, request, fault, file, start, end)


def _marks(file: File) -> dict[str, str]:
    marks = {"ETag": file.etag, "Last-Modified": file.modified, "Accept-Ranges": "bytes" if file.ranges else ""}
    return {name: value for name, value in marks.items() if value}


def _range(file: File, request: Request) -> tuple[int, int, int]:
    size, wanted = len(file.data), request.headers.get("Range", "")
    condition = request.headers.get("If-Range")
    if not wanted or not file.ranges or condition and file.if_range and condition not in (file.etag, file.modified):
        return 0, size, 200
    first, _, last = wanted.removeprefix("bytes=").partition("-")
    start, end = int(first), min(int(last) + 1 if last else size, size)
    return (start, end, 206) if start < size else (0, 0, 416)


def _head(
    handler: BaseHTTPRequestHandler,
    request: Request,
    status: int,
    headers: dict[str, str],
    slowly: FaultyServer | bool = False,
) -> None:
    request.status = status
    given = [f"{name}: {value}" for name, value in headers.items()]
    lines = [f"HTTP/1.1 {status} X", f"Date: {formatdate(usegmt=True)}", *given, "", ""]
    text = "\r\n".join(lines).encode("latin-1")
    if not slowly:
        handler.wfile.write(text)
        return
    for byte in text:
        handler.wfile.write(bytes([byte]))
        if slowly.ended.wait(0.1):
            return


def _body(
    faulty: FaultyServer,
    handler: BaseHTTPRequestHandler,
    request: Request,
    fault: Fault,
    file: File,
    start: int,
    end: int,
) -> None:
    position, begun = start, time.monotonic()
    while position < end:
        sent = position - start
        if fault.cut is not None and sent >= fault.cut:
            handler.close_connection = True
            return handler.connection.shutdown(socket.SHUT_RDWR)
        if fault.stall is not None and sent >= fault.stall and faulty.ended.wait(fault.seconds):
            return
        slow = fault.loris is not None and sent >= fault.loris
        if slow and faulty.ended.wait(fault.seconds):
            return
        edges = [edge - sent for edge in (fault.cut, fault.stall, fault.loris) if edge is not None and edge > sent]
        step = 1 if slow else min([BLOCK, end - position, *edges])
        block = bytearray(file.data[position : position + step])
        if fault.flip is not None and position <= fault.flip < position + step:
            block[fault.flip - position] ^= 1
        handler.wfile.write(b"%x\r\n%s\r\n" % (len(block), block) if file.chunked else bytes(block))
        position += step
        request.sent += step
        if faulty.rate and (early := (position - start) / faulty.rate - (time.monotonic() - begun)) > 0:
            time.sleep(early)
    if file.chunked:
        handler.wfile.write(b"0\r\n\r\n")
    if fault.announce is not None:
        handler.close_connection = True
