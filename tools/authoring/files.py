"""Facts about the published files for recipes and notes, all read from the catalogue."""

from __future__ import annotations

import json
from collections.abc import Iterable
from functools import lru_cache
from typing import Any

from ..edit import CATALOGUE

NONE, FROM_CHECKPOINT = "none", "from the checkpoint"


@lru_cache(maxsize=1)
def catalogue() -> dict[str, Any]:
    """The catalogue file as it is written."""
    return json.loads(CATALOGUE.read_text(encoding="utf-8"))


def entry(key: str) -> dict[str, Any]:
    """The file with this key."""
    return next(file for file in catalogue()["files"] if file["key"] == key)


def name(key: str) -> str:
    """What a loader's widget says for the file."""
    return entry(key)["name"]


def preset(key: str) -> dict[str, Any]:
    """The inputs of a preset: a file's key, or one of the choices that are no files."""
    return catalogue()["presets"][key]["inputs"]


def preset_title(key: str) -> str:
    """The name of a preset as the loader shows it."""
    return catalogue()["presets"][key]["title"]


def choices(key: str, without: Iterable[str] = ()) -> dict[str, str]:
    """The loader's file inputs for a preset; the roles in ``without`` are left out of it."""
    chosen = {role: value if value in (NONE, FROM_CHECKPOINT) else name(value) for role, value in preset(key).items()}
    return {role: NONE if role in without else value for role, value in chosen.items()}


def for_workflow(file_name: str) -> dict[str, str] | None:
    """The item of ``properties.models`` for a published file; None for files that are not fetched."""
    found = next((file for file in catalogue()["files"] if file["name"] == file_name), None)
    if found is None or not found.get("url"):
        return None
    known = {"hash": found["sha256"], "hash_type": "SHA256"} if found.get("sha256") else {}
    return {"name": found["name"], "url": found["url"], "directory": found["folder"], **known}


def gigabytes(file: dict[str, Any]) -> str:
    """A size in gigabytes, for notes."""
    size = file.get("bytes") or file.get("about")
    about = "" if file.get("bytes") else "about "
    if not size:
        return "size unknown"
    return f"{about}{size / 1e9:.1f} GB" if size >= 1e9 else f"{about}{size / 1e6:.0f} MB"


def links(keys: Iterable[str]) -> str:
    """A list with a link, the size and the folder of each file."""
    lines = []
    for key in keys:
        file = entry(key)
        where = f"models/{file['folder']}/" + (f"{file['subfolder']}/" if file.get("subfolder") else "")
        lines.append(f"- [{file['name']}]({file['url']}) ({gigabytes(file)}) in `{where}`")
    return "\n".join(lines)


def licence(keys: Iterable[str]) -> str:
    """The licences of the files in one sentence each."""
    found = dict.fromkeys(entry(key).get("licence", "") for key in keys)
    terms = [catalogue()["licences"][key] for key in found if key in catalogue()["licences"]]
    return " ".join(f"Licence: [{term['name']}]({term['url']}): {term['short']}." for term in terms)
