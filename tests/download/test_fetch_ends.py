"""Downloads end: whatever a server does about lengths, a file is fetched or refused, and no more than it comes."""

from __future__ import annotations

import http.server
import threading
from collections.abc import Iterator
from dataclasses import replace

import pytest
from downloads import Place, safetensors

from cascade_studio.nodes.checkpoints.addresses import is_private
from cascade_studio.nodes.checkpoints.errors import FetchFailed

DATA = safetensors(1 << 20)


class Answer(http.server.BaseHTTPRequestHandler):
    """ "parts": parts of a whole whose length is "*"; "endless": no length and no end; "long": more than was said."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *arguments: object) -> None:
        pass

    def do_GET(self) -> None:
        first, _, last = self.headers.get("Range", "bytes=0-")[6:].partition("-")
        start, end = int(first), min(int(last) + 1 if last else len(DATA), len(DATA))
        self.server.asked += 1
        try:
            if self.path == "/parts":
                self.send_response(206)
                self.send_header("Content-Range", f"bytes {start}-{end - 1}/*")
                self.send_header("Content-Length", str(end - start))
                self.end_headers()
                self.wfile.write(DATA[start:end])
            else:
                self.send_response(200)
                self.end_headers()
                self.close_connection = True
                while True:
                    self.wfile.write(bytes(1 << 16))
        except OSError:
            self.close_connection = True


@pytest.fixture
def server() -> Iterator[http.server.ThreadingHTTPServer]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answer)
    server.asked, server.handle_error = 0, lambda *arguments: None
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("path", ["/parts", "/endless"])
@pytest.mark.parametrize("known", ["bytes", "about", "nothing"])
def test_downloads_end(place: Place, server, path, known, monkeypatch):
    from cascade_studio.nodes.checkpoints import transfer

    monkeypatch.setattr(transfer, "LARGEST", 4 << 20)
    sizes = {"bytes": {"bytes": len(DATA)}, "about": {"bytes": None, "about": len(DATA)}, "nothing": {"bytes": None}}
    url = f"http://127.0.0.1:{server.server_port}{path}"
    place.data, place.entry = DATA, replace(place.entry, url=url, sha256=None, provenance=None, **sizes[known])
    if path == "/parts" and known == "bytes":
        with pytest.raises(FetchFailed, match="does not hold"):  # all of it came; it is no Stage A
            place.fetch()
    else:
        with pytest.raises(FetchFailed, match="how long it is|sends more than"):
            place.fetch()
    assert server.asked < 40
    left = sum(file.stat().st_size for file in place.models.rglob("*") if file.is_file())
    assert left <= 5 << 20


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "localhost", "10.1.2.3", "192.168.0.9", "169.254.169.254", "::1", "fd00::1"]
)
def test_addresses_inside_a_network(host):
    """No redirect from outside leads there."""
    assert is_private(host) and not is_private("8.8.8.8") and not is_private("huggingface.co")
