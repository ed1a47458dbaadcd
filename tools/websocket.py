"""The client side of the websocket protocol (RFC 6455), as much of it as ComfyUI's server speaks."""

from __future__ import annotations

import base64
import os
import socket
import struct
import time

TEXT, BINARY, CLOSE, PING, PONG = 1, 2, 8, 9, 10


class Closed(Exception):
    """The other side ended the connection."""


class WebSocket:
    """One connection to ``ws://host:port/path``; messages come one by one from :meth:`receive`."""

    def __init__(self, host: str, port: int, path: str, timeout: float = 30.0) -> None:
        self._socket = socket.create_connection((host, port), timeout=timeout)
        self._buffer = b""
        self._parts: list[bytes] = []
        self._kind = TEXT
        try:
            self._shake_hands(f"{host}:{port}", path)
        except BaseException:
            self._socket.close()
            raise

    def _shake_hands(self, address: str, path: str) -> None:
        key = base64.b64encode(os.urandom(16)).decode()
        lines = (
            f"GET {path} HTTP/1.1",
            f"Host: {address}",
            "Upgrade: websocket",
            "Connection: Upgrade",
            f"Sec-WebSocket-Key: {key}",
            "Sec-WebSocket-Version: 13",
            "",
            "",
        )
        self._socket.sendall("\r\n".join(lines).encode())
        while b"\r\n\r\n" not in self._buffer:
            self._fill(None)
        head, self._buffer = self._buffer.split(b"\r\n\r\n", 1)
        if head.split(b" ", 2)[1:2] != [b"101"]:
            raise Closed("the server refused a websocket: " + head.split(b"\r\n")[0].decode("latin-1"))

    def _fill(self, limit: float | None) -> None:
        if limit is not None:
            left = limit - time.monotonic()
            if left <= 0:
                raise TimeoutError
            self._socket.settimeout(left)
        try:
            data = self._socket.recv(1 << 16)
        except TimeoutError:
            raise
        except OSError as error:
            raise Closed(str(error)) from None
        if not data:
            raise Closed("the server closed the websocket")
        self._buffer += data

    def _frame(self, limit: float | None) -> tuple[bool, int, bytes]:
        """The next whole frame: (last of its message, opcode, payload). A timeout loses nothing that has arrived."""
        while True:
            size, start = self._header()
            if size is not None and len(self._buffer) >= start + size:
                first = self._buffer[0]
                payload = self._buffer[start : start + size]
                self._buffer = self._buffer[start + size :]
                return bool(first & 0x80), first & 0x0F, payload
            self._fill(limit)

    def _header(self) -> tuple[int | None, int]:
        if len(self._buffer) < 2:
            return None, 0
        size, start = self._buffer[1] & 0x7F, 2
        if size >= 126:
            wide = 2 if size == 126 else 8
            start += wide
            if len(self._buffer) < start:
                return None, 0
            size = struct.unpack(">H" if wide == 2 else ">Q", self._buffer[2:start])[0]
        return size, start

    def receive(self, timeout: float | None = None) -> str | bytes:
        """The next message, text or binary. Raises ``TimeoutError`` after ``timeout`` seconds, ``Closed`` when over."""
        limit = None if timeout is None else time.monotonic() + timeout
        if limit is None:
            self._socket.settimeout(None)
        while True:
            last, kind, payload = self._frame(limit)
            if kind == PING:
                self._send(PONG, payload)
            elif kind == CLOSE:
                raise Closed("the server closed the websocket")
            elif kind in (0, TEXT, BINARY):
                self._kind = kind or self._kind
                self._parts.append(payload)
                if last:
                    whole, self._parts = b"".join(self._parts), []
                    return whole.decode("utf-8") if self._kind == TEXT else whole

    def send(self, text: str) -> None:
        """Send a text message."""
        self._send(TEXT, text.encode())

    def _send(self, kind: int, payload: bytes) -> None:
        mask = os.urandom(4)
        size = len(payload)
        if size < 126:
            length = struct.pack(">B", 0x80 | size)
        elif size < 1 << 16:
            length = struct.pack(">BH", 0x80 | 126, size)
        else:
            length = struct.pack(">BQ", 0x80 | 127, size)
        body = bytes(byte ^ mask[index % 4] for index, byte in enumerate(payload))
        try:
            self._socket.sendall(bytes([0x80 | kind]) + length + mask + body)
        except OSError as error:
            raise Closed(str(error)) from None

    def close(self) -> None:
        """Say goodbye and close the connection."""
        try:
            self._send(CLOSE, struct.pack(">H", 1000))
        except Closed:
            pass
        self._socket.close()

    def __enter__(self) -> WebSocket:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
