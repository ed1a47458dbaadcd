"""How downloads behave, and what the environment says about them. Tokens come from the environment only."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from .addresses import OFFICIAL_ENDPOINT, check_url
from .errors import BadCatalogue

OFFLINE = "CASCADE_STUDIO_OFFLINE"
MIRRORS = "CASCADE_STUDIO_MIRRORS"
_OFF = ("", "0", "false", "no", "off")


@dataclass(frozen=True)
class FetchSettings:
    """Times are in seconds, sizes in bytes.

    endpoint: the server that is asked for what lies on huggingface.co; mirrors: servers with the same paths, asked
        when it fails. token: sent to ``endpoint`` alone, never shown. offline: no networking at all.
    connections: at most so many at once for a file of ``parallel_from`` bytes or more; piece: bytes asked for at once.
    connect, stall: how long a server may take to answer, and to send at least ``slowest`` bytes a second.
    tries: failures in a row before an address is given up; backoff: the first wait, doubled up to ``longest_wait``.
    longest_retry_after: the longest wait that a server may ask for.
    checkpoint_seconds: how often what has come is made safe, at least.
    spare: bytes that stay free on the disk.
    """

    endpoint: str = OFFICIAL_ENDPOINT
    mirrors: tuple[str, ...] = ()
    token: str | None = field(default=None, repr=False)
    offline: bool = False
    connections: int = 4
    parallel_from: int = 64 << 20
    piece: int | None = None
    connect: float = 15.0
    stall: float = 30.0
    slowest: float = 1024.0
    tries: int = 6
    backoff: float = 1.0
    longest_wait: float = 30.0
    longest_retry_after: float = 900.0
    checkpoint_seconds: float = 5.0
    spare: int = 64 << 20

    @classmethod
    def from_environment(
        cls, environ: Mapping[str, str] | None = None, endpoint: str | None = None, **changes
    ) -> FetchSettings:
        """The settings that the environment variables ask for; ``endpoint`` wins over ``HF_ENDPOINT``."""
        environ = os.environ if environ is None else environ
        endpoint = endpoint or environ.get("HF_ENDPOINT", "").strip() or OFFICIAL_ENDPOINT
        mirrors = environ.get(MIRRORS, "").replace(",", " ").split()
        token = environ.get("HF_TOKEN", "").strip()
        if not token.isprintable() or not token.isascii() or " " in token:
            raise BadCatalogue(
                "HF_TOKEN holds characters that a token cannot have. Set it to the token alone, or unset it."
            )
        settings = cls(
            endpoint=check_url(endpoint.rstrip("/"), "address in HF_ENDPOINT"),
            mirrors=tuple(check_url(mirror.rstrip("/"), f"address in {MIRRORS}") for mirror in mirrors),
            token=token or None,
            offline=is_offline(environ),
        )
        return replace(settings, **changes)


def is_offline(environ: Mapping[str, str]) -> bool:
    """Whether networking is switched off, by our switch or by Hugging Face's own."""
    return any(environ.get(name, "").strip().lower() not in _OFF for name in (OFFLINE, "HF_HUB_OFFLINE"))
