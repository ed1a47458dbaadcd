"""An address that a batch speaks to: HTTP over kept connections, to that address alone (no proxy, no redirect)."""

from __future__ import annotations

import base64
import http.client
import threading
import urllib.parse

from ..messages import Stop

HTTP_SECONDS = 30.0
MOST_BYTES = 1 << 30
"""Bytes of an answer at most."""
GATEWAY_ERRORS = (502, 503, 504)


class Unreachable(Exception):
    """Nothing answers at the address, or not what a ComfyUI answers. refused: nothing listens there."""

    def __init__(self, text: str, refused: bool = False) -> None:
        super().__init__(text)
        self.refused = refused


class Refused(Exception):
    """The answer is an error: ``code`` and the text that came with it."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(f"HTTP {code}: {' '.join(text.split())[:300]}")
        self.code, self.text = code, text


class Address:
    """The server at ``url``. A name and password in it are sent, and told to nobody: ``name`` is without them."""

    def __init__(self, url: str) -> None:
        try:
            parts = urllib.parse.urlsplit(url if "://" in url else f"http://{url}")
            port = parts.port
        except ValueError:
            parts, port = urllib.parse.urlsplit("?://"), None
        self.name = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path.rstrip('/')}"
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise Stop(
                f"{self.name if parts.netloc else 'One of them'} is no address of a server. Write http://HOST:PORT, "
                "such as http://10.0.0.7:8188."
            )
        self._kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        self._host, self._port, self._path = parts.hostname, port, parts.path.rstrip("/")
        self._headers = {}
        if parts.username:
            secret = f"{urllib.parse.unquote(parts.username)}:{urllib.parse.unquote(parts.password or '')}"
            self._headers["Authorization"] = "Basic " + base64.b64encode(secret.encode()).decode()
        self._own = threading.local()

    @property
    def connections(self) -> int:
        """How often this thread had to connect: while it stays the same, the server is the same process."""
        return getattr(self._own, "made", 0)

    def fetch(self, path: str, body: bytes | None = None, kind: str = "application/json") -> bytes:
        """GET, or POST ``body``. Raises :class:`Unreachable` for silence and :class:`Refused` for an error."""
        headers = {**self._headers, **({"Content-Type": kind} if body is not None else {})}
        while True:
            connection = self._connection()
            kept = connection.sock is not None
            self._own.made = self.connections + (not kept)
            try:
                connection.request("GET" if body is None else "POST", self._path + path, body, headers)
                answer = connection.getresponse()
                data = answer.read(MOST_BYTES + 1)
            except (OSError, http.client.HTTPException, ValueError) as error:
                connection.close()
                if kept and body is None:
                    continue  # servers close connections that were quiet for long
                refused = isinstance(error, ConnectionRefusedError)
                raise Unreachable(str(error) or type(error).__name__, refused) from None
            if len(data) > MOST_BYTES:
                connection.close()
                raise Unreachable(f"its answer is larger than {MOST_BYTES >> 20} MiB")
            if answer.status in GATEWAY_ERRORS:
                raise Unreachable(f"HTTP {answer.status}")
            if not 200 <= answer.status < 300:
                raise Refused(answer.status, data.decode("utf-8", "replace"))
            return data

    def _connection(self) -> http.client.HTTPConnection:
        """This thread's connection; it opens by itself."""
        if not hasattr(self._own, "connection"):
            self._own.connection = self._kind(self._host, self._port, timeout=HTTP_SECONDS)
        return self._own.connection
