"""Asking servers for bytes: redirects, tokens, ranges, and what every answer means in plain words."""

from __future__ import annotations

import email.utils
import re
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from http.cookiejar import DefaultCookiePolicy
from typing import Any
from urllib.parse import urljoin, urlsplit

import requests

from .addresses import OFFICIAL_ENDPOINT, check_url, is_private, origin, redact_url
from .connections import BufferedAdapter, leads_inside
from .errors import BadCatalogue, Changed, Retry, SourceFailed
from .settings import FetchSettings

HOPS = 10
AGENT = "Cascade-Studio"
PASSING = {408, 425, 429, 500, 502, 503, 504, 507, 509, 520, 521, 522, 523, 524}


@dataclass
class Reply:
    """A server's good answer with its body still to be read.

    start: the position of the first byte of the body in the file; end: after its last byte, None if that is not said.
    size: bytes of the whole file, None if that is not said; ranged: whether parts of it can be asked for (a whole file
    in answer to an If-Range that failed says nothing against it).
    validator: ETag or date that stays the same as long as the file does; official_hash: SHA-256, told by the official
    host over https, or None.
    """

    response: requests.Response
    start: int
    end: int | None
    size: int | None
    ranged: bool
    validator: str
    official_hash: str | None

    def is_followed_by(self, other: Reply) -> bool:
        """Whether size and mark of the file are those of a later answer, which may keep the size to itself."""
        return other.size in (None, self.size) and self.validator == other.validator

    def read(self, count: int) -> bytes:
        """Up to ``count`` bytes, as soon as some are there; b"" at the end. Faults are :class:`Retry`."""
        raw = self.response.raw
        try:
            return getattr(raw, "read1", raw.read)(count, decode_content=False)
        except Exception as error:
            raise Retry(fault_in_words(error)) from None

    def shut(self) -> None:
        """End the reply from another thread, waking whoever reads it where the library offers a way."""
        try:
            getattr(self.response.raw, "shutdown", lambda: None)()
        except Exception:  # noqa: BLE001 - a socket that is gone already is as good as one that was shut
            pass

    def close(self) -> None:
        """Let go of the connection, whatever state it is in."""
        try:
            self.response.close()
        except Exception:  # noqa: BLE001 - see shut
            pass


class RangeClient:
    """Asks for ranges of files, remembering where an address redirects to. Threads may share it."""

    def __init__(self, settings: FetchSettings) -> None:
        self.settings = settings
        self._own = threading.local()
        self._token_refused: set[tuple[str, str, int]] = set()
        self._moved: dict[str, str] = {}

    def get(self, url: str, start: int = 0, end: int | None = None, if_range: str = "", buffer: int = 0) -> Reply:
        """Ask ``url`` for the bytes from ``start`` to before ``end`` (None: to the last one).

        ``buffer`` limits what the system may hold back of a new connection, in bytes; 0 leaves that to the system.

        Raises :class:`Retry` for passing faults, :class:`Changed` if that range does not exist, :class:`SourceFailed`
        for what stays.
        """
        headers = {
            "Range": f"bytes={start}-{'' if end is None else end - 1}",
            "Accept-Encoding": "identity",
            "User-Agent": AGENT,
        }
        if if_range:
            headers["If-Range"] = if_range
        self._own.buffer = buffer
        moved = self._moved.get(url)
        if moved:
            response, final, told = self._follow(moved, headers, url)
            if response.status_code not in (401, 403, 404, 410):
                return self._reply(response, final, start, told, bool(if_range))
            # A signed address holds for a while only; the first one gives a new one.
            response.close()
            self._moved.pop(url, None)
        response, final, told = self._follow(url, headers, url)
        reply = self._reply(response, final, start, told, bool(if_range))
        if origin(final) != origin(url):
            self._moved[url] = final
        return reply

    def _follow(self, url: str, headers: Mapping[str, str], begun: str) -> tuple[requests.Response, str, str | None]:
        """The answer at the end of all redirects, its address, and the hash that the official host told on the way.

        ``begun`` is the address that was asked for first: from outside no redirect leads into a private network.
        """
        official_hash, inside = None, None
        for _ in range(HOPS):
            elsewhere = origin(url) != origin(begun)
            if elsewhere and inside is None:
                inside = leads_inside(urlsplit(begun).hostname)
            response = self._ask(url, headers, outside_only=elsewhere and not inside)
            official_hash = official_hash or read_official_hash(url, response.headers)
            place = response.headers.get("Location")
            if response.status_code not in (301, 302, 303, 307, 308) or not place:
                return response, url, official_hash
            response.close()
            url = self._check_redirect(url, urljoin(url, place), begun)
        raise SourceFailed(f"{redact_url(url)} redirects in circles.")

    @staticmethod
    def _check_redirect(before: str, after: str, begun: str) -> str:
        try:
            check_url(after)
        except BadCatalogue:
            after_shown = redact_url(after)
            raise SourceFailed(
                f"{redact_url(before)} redirects to {after_shown}, which is neither https nor http on this "
                "computer. That is not followed."
            ) from None
        if is_private(urlsplit(after).hostname) and not leads_inside(urlsplit(begun).hostname):
            raise SourceFailed(
                f"{redact_url(before)} redirects to this computer itself or into the network it is in. "
                "That is not followed."
            )
        return after

    def _ask(self, url: str, headers: Mapping[str, str], outside_only: bool) -> requests.Response:
        here, settings = origin(url), self.settings
        with_token = settings.token and here == origin(settings.endpoint) and here not in self._token_refused
        while True:
            sent = {**headers, "Authorization": f"Bearer {settings.token}"} if with_token else dict(headers)
            try:
                response = self._session(outside_only).get(
                    url, headers=sent, stream=True, allow_redirects=False, timeout=(settings.connect, settings.stall)
                )
            except requests.exceptions.SSLError:
                raise SourceFailed(
                    f"The certificate of {here[1]} could not be checked. Set this computer's clock, or, if a proxy "
                    "or virus scanner opens secure connections, give its certificate in REQUESTS_CA_BUNDLE."
                ) from None
            except (requests.exceptions.InvalidSchema, requests.exceptions.InvalidURL) as error:
                raise SourceFailed(
                    f"{redact_url(url)} or the proxy for it cannot be used ({type(error).__name__}). Check "
                    "the proxy variables HTTPS_PROXY and ALL_PROXY."
                ) from None
            except SourceFailed:
                raise
            except Exception as error:
                raise Retry(fault_in_words(error)) from None
            if response.status_code == 401 and with_token:
                # A stale token is refused even for files that need none.
                self._token_refused.add(here)
                response.close()
                with_token = None
                continue
            return response

    def _session(self, outside_only: bool) -> requests.Session:
        own, wanted = self._own, (self._own.buffer, outside_only)
        sessions = own.__dict__.setdefault("sessions", {})
        if wanted not in sessions:
            session = sessions[wanted] = requests.Session()
            session.auth = lambda request: request  # keeps .netrc out of it
            session.cookies.set_policy(DefaultCookiePolicy(allowed_domains=[]))
            for scheme in ("http://", "https://"):
                session.mount(scheme, BufferedAdapter(*wanted))
        return sessions[wanted]

    def _reply(
        self, response: requests.Response, url: str, start: int, official_hash: str | None, conditional: bool
    ) -> Reply:
        status, headers = response.status_code, response.headers
        if status not in (200, 206):
            response.close()
            raise self._refusal(status, headers, url)
        if headers.get("Content-Encoding", "identity") != "identity":
            response.close()
            raise SourceFailed(f"{origin(url)[1]} sends the file compressed, although that was not asked for.")
        validator = headers.get("ETag") or headers.get("Last-Modified") or ""
        length = headers.get("Content-Length", "")
        if status == 200:
            size = int(length) if length.isdigit() else None
            ranged = conditional and headers.get("Accept-Ranges", "").strip().lower() == "bytes"
            return Reply(response, 0, size, size, ranged, validator, official_hash)
        found = re.fullmatch(r"bytes (\d+)-(\d+)/(\d+|\*)", headers.get("Content-Range", "").strip())
        if not found or int(found[1]) != start:
            response.close()
            raise SourceFailed(f"{origin(url)[1]} answers a request for a part of the file with another part.")
        size = None if found[3] == "*" else int(found[3])
        return Reply(response, start, int(found[2]) + 1, size, True, validator, official_hash)

    def _refusal(self, status: int, headers: Mapping[str, str], url: str) -> Exception:
        host = origin(url)[1]
        if status == 416:
            return Changed(f"{host} has no such part of the file (416)")
        if status in PASSING:
            words = "is asked too often" if status == 429 else "has a fault or too much to do"
            delay = retry_after(headers.get("Retry-After"))
            if delay is not None and delay > self.settings.longest_retry_after:
                return SourceFailed(
                    f"{host} {words} ({status}) and wants to be left alone for {delay / 60:.0f} "
                    "minutes. Start again after that."
                )
            return Retry(f"{host} {words} ({status})", delay)
        return SourceFailed(
            {
                401: (
                    f"{host} wants a login for this file (401). Log in there, create an access token and set it as "
                    "the environment variable HF_TOKEN; if one is set, it is wrong or has expired."
                ),
                403: (
                    f"{host} does not let this computer have the file (403). Its licence may have to be accepted on "
                    "the model's page first, with HF_TOKEN set to a token of that account; or a firewall is in "
                    "between."
                ),
                404: f"{host} has no such file (404). It was moved or removed, or the mirror does not have it.",
                410: f"{host} has removed the file (410).",
                451: f"{host} may not give out the file here (451).",
            }.get(status, f"{host} answers with the error {status}.")
        )


def read_official_hash(url: str, headers: Mapping[str, str]) -> str | None:
    """The SHA-256 of the file, if the official host itself tells it over https; nobody else is believed."""
    if origin(url) != origin(OFFICIAL_ENDPOINT):
        return None
    value = headers.get("X-Linked-Etag", "").strip().strip('"').lower()
    return value if re.fullmatch(r"[0-9a-f]{64}", value) else None


def is_strong(validator: str) -> bool:
    """Whether ``validator`` may stand in If-Range: a strong ETag, or a date."""
    return bool(validator) and not validator.startswith("W/")


def retry_after(value: str | None) -> float | None:
    """The seconds that a Retry-After header asks for (a number or a date); None without one."""
    if not value:
        return None
    if value.strip().isdigit():
        return float(value.strip())
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    except (TypeError, ValueError, OverflowError):
        return None


def fault_in_words(error: BaseException) -> str:
    """What went wrong with a connection, without any address, which could hold a secret."""
    seen: list[Any] = []
    while error is not None and error not in seen:
        seen.append(error)
        inner = error.__cause__ or error.__context__
        error = inner or next((a for a in error.args if isinstance(a, BaseException)), None)
    names = " ".join(type(e).__name__ for e in seen)
    if "Proxy" in names:
        return "the proxy does not answer"
    if "gaierror" in names or "NameResolution" in names:
        return "the server's name is not known; is this computer online?"
    if "Timeout" in names or "timeout" in names:
        return "the server does not answer in time"
    if "ConnectionRefused" in names:
        return "the connection was refused"
    if "ConnectionReset" in names or "IncompleteRead" in names or "RemoteDisconnected" in names or "Protocol" in names:
        return "the connection was cut"
    return f"the connection failed ({type(seen[-1]).__name__})"
