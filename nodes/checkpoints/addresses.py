"""Names and addresses from catalogues and redirects: which are safe to use, and how they are shown to people."""

from __future__ import annotations

import ipaddress
import os
import re
from pathlib import Path
from urllib.parse import urlsplit

from .errors import BadCatalogue

SUFFIXES = (".safetensors", ".json")
OFFICIAL_HOST = "huggingface.co"
OFFICIAL_ENDPOINT = f"https://{OFFICIAL_HOST}"

_FORBIDDEN = re.compile(r'[\x00-\x1f\x7f<>:"/\\|?*]')
_PORTS = {f"{port}{number}" for port in ("com", "lpt") for number in "0123456789¹²³"}
_DEVICES = {"con", "prn", "aux", "nul", "conin$", "conout$"} | _PORTS
LONGEST = 180


def check_name(name: str, what: str = "file name", suffixes: tuple[str, ...] = SUFFIXES) -> str:
    """``name`` if it is a plain file name on every system and of an allowed kind; else :class:`BadCatalogue`."""
    problem = describe_problem(name)
    if not problem and suffixes and not name.lower().endswith(suffixes):
        problem = f"only {' and '.join(suffixes)} files are fetched"
    if problem:
        raise BadCatalogue(
            f"The {what} {str(name)[:80]!r} cannot be used: {problem}. Give a plain name such as 'stage_a.safetensors'."
        )
    return name


def check_subfolder(subfolder: str) -> str:
    """``subfolder`` ("" or up to four plain names joined by "/") if it stays below its folder."""
    for part in subfolder.split("/") if subfolder else ():
        problem = describe_problem(part)
        if problem:
            raise BadCatalogue(
                f"The sub-folder {subfolder[:80]!r} cannot be used: {problem}. Give plain folder names "
                "joined by '/', such as 'Stable-Cascade'."
            )
    if subfolder.count("/") > 3:
        raise BadCatalogue(f"The sub-folder {subfolder[:80]!r} is nested too deeply; four folders are the most.")
    return subfolder


def describe_problem(name: object) -> str:
    """Why ``name`` can be no plain file name on some system; "" for one that is fine everywhere."""
    if not isinstance(name, str) or not name:
        return "it is empty"
    if name in (".", "..") or name.startswith("."):
        return "it begins with a dot"
    if not name.isprintable():
        return "it holds a character that cannot be shown"
    if _FORBIDDEN.search(name):
        return "it holds a character that a file name cannot have, or leads to another folder"
    if name != name.strip() or name.endswith("."):
        return "it begins or ends with a blank, or ends with a dot"
    if name.split(".")[0].lower() in _DEVICES:
        return "it is the name of a device on Windows"
    return f"it has more than {LONGEST} characters" if len(name.encode("utf-8")) > LONGEST else ""


def inside(root: str | Path, *parts: str) -> Path:
    """``root/parts`` as an absolute path; :class:`BadCatalogue` if it would lie outside of ``root``."""
    root = os.path.abspath(root)
    path = os.path.normpath(os.path.join(root, *(part for part in parts if part)))
    if os.path.commonpath([root, path]) != root or path == root:
        raise BadCatalogue(f"The path {'/'.join(parts)[:120]!r} leads out of the folder {root}. It is not used.")
    return Path(path)


def is_loopback(host: str | None) -> bool:
    """Whether ``host`` is this computer itself."""
    if not host:
        return False
    if host.lower() == "localhost":
        return True
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    return (getattr(address, "ipv4_mapped", None) or address).is_loopback


def is_private(host: str | None) -> bool:
    """Whether ``host`` is this computer, or an address inside a private network; names are not looked up."""
    if is_loopback(host):
        return True
    try:
        address = ipaddress.ip_address(host or "")
    except ValueError:
        return False
    return not (getattr(address, "ipv4_mapped", None) or address).is_global


def check_url(url: str, what: str = "address") -> str:
    """``url`` if it is https, or http on loopback, and carries no user name; else :class:`BadCatalogue`."""
    try:
        parts = urlsplit(url)
        parts.port  # noqa: B018 - reading it is what checks it
    except (ValueError, AttributeError, TypeError):
        raise BadCatalogue(f"The {what} {str(url)[:80]!r} is not a web address.") from None
    if parts.username or parts.password or "@" in parts.netloc:
        raise BadCatalogue(
            f"The {what} on {parts.hostname} carries a user name or password. Leave it out; a token for "
            "Hugging Face belongs into the environment variable HF_TOKEN."
        )
    if not parts.hostname or re.search(r"[\s\x00-\x1f]", url):
        raise BadCatalogue(f"The {what} {redact_url(url)[:120]!r} is not a web address.")
    if parts.scheme != "https" and not (parts.scheme == "http" and is_loopback(parts.hostname)):
        raise BadCatalogue(
            f"The {what} {redact_url(url)[:120]!r} is neither https nor http on this computer. Only those are used."
        )
    return url


def origin(url: str) -> tuple[str, str, int]:
    """Scheme, host and port of ``url``: what a token may be sent to."""
    parts = urlsplit(url)
    port = parts.port or {"https": 443, "http": 80}.get(parts.scheme, 0)
    return parts.scheme, (parts.hostname or "").lower(), port


def redact_url(url: str) -> str:
    """``url`` for people and files: without query, fragment, user name and password, which can hold secrets."""
    try:
        parts = urlsplit(url)
        host = parts.hostname or ""
        port = f":{parts.port}" if parts.port else ""
    except ValueError:
        return "(an unreadable address)"
    host = f"[{host}]" if ":" in host else host
    return f"{parts.scheme}://{host}{port}{parts.path}"


def through(url: str, endpoint: str) -> str:
    """``url`` at another server with the same paths: only addresses on huggingface.co are moved."""
    if origin(url) != origin(OFFICIAL_ENDPOINT):
        return url
    return endpoint.rstrip("/") + url[len(OFFICIAL_ENDPOINT) :]


def hub_parts(url: str) -> tuple[str, str] | None:
    """``("organisation/repository", "path in it")`` of an address on Hugging Face; None for others."""
    if origin(url) != origin(OFFICIAL_ENDPOINT):
        return None
    found = re.fullmatch(r"/([^/]+/[^/]+)/resolve/[^/]+/(.+)", urlsplit(url).path)
    return (found[1], found[2]) if found else None
