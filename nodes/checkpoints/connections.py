"""Connections to servers: how much the system may hold back of one, and whether it may lead into a private network."""

from __future__ import annotations

import socket
from typing import Any

from requests.adapters import HTTPAdapter
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool

from .addresses import is_private
from .errors import SourceFailed


class _OutsideOnly:
    """A connection that ends, before a byte is sent, where it leads into a private network.

    The address is that of the open socket: a name that is looked up twice may give another one each time.
    """

    def _new_conn(self) -> socket.socket:
        connected = super()._new_conn()
        if is_private(connected.getpeername()[0]):
            connected.close()
            raise SourceFailed(
                f"A redirect leads to {self.host}, which is this computer itself or in the network it is in. "
                "That is not followed."
            )
        return connected


class _HttpOutside(_OutsideOnly, HTTPConnection):
    """See :class:`_OutsideOnly`."""


class _HttpsOutside(_OutsideOnly, HTTPSConnection):
    """See :class:`_OutsideOnly`."""


class _HttpPool(HTTPConnectionPool):
    ConnectionCls = _HttpOutside


class _HttpsPool(HTTPSConnectionPool):
    ConnectionCls = _HttpsOutside


class BufferedAdapter(HTTPAdapter):
    """Connections with a receive buffer of ``buffer`` bytes (0: the system's own), on wish to public addresses alone.

    Through a proxy any address is reached, as it alone knows where that lies; the proxy itself is what a person set.
    """

    def __init__(self, buffer: int, outside_only: bool) -> None:
        self._buffer, self._outside_only = buffer, outside_only
        super().__init__()

    def init_poolmanager(self, *arguments: Any, **options: Any) -> None:
        """As requests asks: the pool with our buffer, of connections that look where they go."""
        if self._buffer:
            own = (socket.SOL_SOCKET, socket.SO_RCVBUF, self._buffer)
            options["socket_options"] = [*HTTPConnection.default_socket_options, own]
        super().init_poolmanager(*arguments, **options)
        if self._outside_only:
            self.poolmanager.pool_classes_by_scheme = {"http": _HttpPool, "https": _HttpsPool}


def leads_inside(host: str | None) -> bool:
    """Whether ``host`` is this computer or inside its network: by its number, or by all that its name stands for."""
    if is_private(host):
        return True
    try:
        found = {address[4][0] for address in socket.getaddrinfo(host, None)}
    except (OSError, UnicodeError):
        return False  # a proxy may know it
    return bool(found) and all(map(is_private, found))
