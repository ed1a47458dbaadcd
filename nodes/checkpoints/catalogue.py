"""The catalogue: every published file that the pack knows, the presets, and what a user adds in a file of their own.

``catalogue.json`` is the one place where a name, a size, a hash or an address of a checkpoint is written down.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .addresses import check_name, check_subfolder, check_url
from .errors import BadCatalogue

OWN_FILE = Path(__file__).with_name("catalogue.json")
NONE, FROM_CHECKPOINT = "none", "from the checkpoint"
PROVENANCES = ("official page", "official commit", "copy")
"""Where a hash was read: on the publisher's page for the file, in a commit of theirs, or from somebody's copy."""

KINDS = {
    "prior": ("stage_c",),
    "decoder": ("stage_b",),
    "stage_a": ("stage_a",),
    "image_encoder": ("encoder", "stage_c_vae"),
    "previewer": ("previewer", "stage_c_vae"),
    "text_encoder": ("text_encoder",),
    "clip_vision": ("clip_vision",),
    "controlnet": ("controlnet",),
    "lora": ("lora",),
    "embedding": ("embeddings",),
    "config": (),
}
"""Roles (most are inputs of the loader), and what :func:`stages.files.identify.identify` calls the files that fill them."""

LAYOUTS = ("official", "comfyui", "diffusers", "transformers", "open-clip", "all-in-one", "")
_REQUIRED = {"key", "role", "name", "folder"}
_OPTIONAL = {
    "subfolder",
    "layout",
    "dtype",
    "licence",
    "bytes",
    "about",
    "sha256",
    "provenance",
    "other_names",
    "note",
    "mirrors",
    "url",
    "bundled",
    "other_roles",
}


@dataclass(frozen=True)
class Licence:
    """A licence: its full name, what it means in a few words, and where it stands."""

    name: str
    short: str = ""
    url: str = ""

    def describe(self) -> str:
        return f"{self.name}: {self.short}" if self.short else self.name


@dataclass(frozen=True)
class Entry:
    """A published file.

    key: its name in presets and on the command line; role: the loader input that it fills, one of :data:`KINDS`.
    name, subfolder, folder: where it goes, ``folder`` being a key of the host's folder paths.
    bytes: exact size or None; about: the size as the publisher rounds it, where the exact one is not known.
    sha256, provenance: the hash and where it was read, one of :data:`PROVENANCES`; None when nobody published it.
    other_names: under which other names people keep this very file. mirrors: further addresses of it.
    bundled: the folder inside the pack, laid out as a models folder, that the file comes in; "" if it is fetched from
    url instead. other_roles: further loader inputs that the same file fills.
    """

    key: str
    role: str
    name: str
    folder: str
    url: str = ""
    subfolder: str = ""
    layout: str = ""
    dtype: str | None = None
    licence: Licence = field(default_factory=lambda: Licence("unknown licence"))
    bytes: int | None = None
    about: int | None = None
    sha256: str | None = None
    provenance: str | None = None
    other_names: tuple[str, ...] = ()
    note: str = ""
    mirrors: tuple[str, ...] = ()
    bundled: str = ""
    other_roles: tuple[str, ...] = ()

    @property
    def roles(self) -> tuple[str, ...]:
        """Every loader input that the file fills."""
        return (self.role, *self.other_roles)

    @property
    def size(self) -> int | None:
        """Bytes, exact or about; None when nothing is known."""
        return self.bytes if self.bytes is not None else self.about

    @property
    def own_name(self) -> str:
        """The name that is used when another file already has :attr:`name` in the target folder."""
        stem, dot, suffix = self.name.rpartition(".")
        return f"{stem}-{(self.sha256 or self.key)[:24]}{dot}{suffix}"

    @property
    def known_names(self) -> tuple[str, ...]:
        """Every file name under which this file may lie on a disk, in lower case, the usual one first."""
        return tuple(dict.fromkeys(name.lower() for name in (self.name, self.own_name, *self.other_names)))

    @property
    def relative(self) -> str:
        """Sub-folder and name below the host's folder, joined by "/"."""
        return f"{self.subfolder}/{self.name}" if self.subfolder else self.name

    @property
    def for_workflow(self) -> dict[str, str]:
        """The item of ``properties.models`` in a workflow file, from which the host's own dialog fetches.

        Empty for a bundled file, which is never fetched.
        """
        if not self.url:
            return {}
        known = {"hash": self.sha256, "hash_type": "SHA256"} if self.sha256 else {}
        return {"name": self.name, "url": self.url, "directory": self.folder, **known}


@dataclass(frozen=True)
class Preset:
    """Files that belong together: for each loader input an entry's key, :data:`NONE` or :data:`FROM_CHECKPOINT`."""

    key: str
    title: str
    inputs: Mapping[str, str]

    @property
    def entries(self) -> tuple[str, ...]:
        """Keys of the files that the preset needs."""
        return tuple(dict.fromkeys(value for value in self.inputs.values() if value not in (NONE, FROM_CHECKPOINT)))


@dataclass(frozen=True)
class Catalogue:
    """Entries and presets by key."""

    entries: Mapping[str, Entry]
    presets: Mapping[str, Preset]

    def for_role(self, role: str) -> list[Entry]:
        """The files that can fill the loader input ``role``."""
        return [entry for entry in self.entries.values() if role in entry.roles]

    def named(self, role: str, name: str) -> Entry | None:
        """The entry for ``role`` that a loader's value means: its name, with or without its sub-folder."""
        wanted = name.replace("\\", "/").lower()
        for entry in self.for_role(role):
            if wanted in (entry.name.lower(), entry.relative.lower()):
                return entry
        return None

    def preset(self, name: str) -> Preset:
        """The preset that a loader's value means: its title, or its key; :class:`BadCatalogue` for neither."""
        for preset in self.presets.values():
            if name in (preset.title, preset.key):
                return preset
        known = ", ".join(f"'{preset.title}'" for preset in self.presets.values())
        raise BadCatalogue(f"There is no preset '{name}'. Choose one of {known}.")

    def choose(self, keys: Iterable[str]) -> list[Entry]:
        """The entries of presets, entry keys or file names; :class:`BadCatalogue` names what is unknown."""
        chosen: dict[str, Entry] = {}
        by_name = {entry.name: entry for entry in self.entries.values()}
        for key in keys:
            if key in self.presets:
                chosen.update((k, self.entries[k]) for k in self.presets[key].entries)
            elif key in self.entries or key in by_name:
                entry = self.entries.get(key) or by_name[key]
                chosen[entry.key] = entry
            else:
                raise BadCatalogue(
                    f"There is no preset and no file {key!r}. The presets are "
                    f"{', '.join(self.presets)}; 'studio.py models list' shows every file."
                )
        return list(chosen.values())


def load(extra: str | Path | None = None) -> Catalogue:
    """Our catalogue, with the entries and presets of the file ``extra`` added; raises :class:`BadCatalogue`."""
    catalogue = _add(Catalogue({}, {}), OWN_FILE)
    return _add(catalogue, Path(extra)) if extra else catalogue


def _add(catalogue: Catalogue, path: Path) -> Catalogue:
    content = _read(path)
    try:
        licences = {key: Licence(**value) for key, value in _mapping(content, "licences").items()}
        known = {**_own_licences(catalogue), **licences}
        entries = dict(catalogue.entries)
        for raw in _list(content, "files"):
            entry = _entry(raw, known)
            _check_new(entry, entries)
            entries[entry.key] = entry
        presets = dict(catalogue.presets)
        for key, raw in _mapping(content, "presets").items():
            presets[key] = _preset(key, raw, entries, presets)
    except BadCatalogue as error:
        raise BadCatalogue(f"{path.name}: {error}") from None
    except TypeError as error:
        raise BadCatalogue(f"{path.name}: an entry has an unknown or missing field ({error}).") from None
    return Catalogue(entries, presets)


def _own_licences(catalogue: Catalogue) -> dict[str, Licence]:
    return (
        {}
        if not catalogue.entries
        else {
            key: Licence(**value) for key, value in json.loads(OWN_FILE.read_text(encoding="utf-8"))["licences"].items()
        }
    )


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise BadCatalogue(
            f"The catalogue {path.name} cannot be read ({error.strerror or error}). Check the path and "
            "the file's permissions."
        ) from None
    except ValueError as error:
        raise BadCatalogue(
            f"The catalogue {path.name} is not valid JSON ({error}). Correct it, or remove it."
        ) from None
    if not isinstance(content, dict):
        raise BadCatalogue(f"The catalogue {path.name} must be an object with 'files' and, if wanted, 'presets'.")
    return content


def _mapping(content: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    value = content.get(name, {})
    if not isinstance(value, dict) or not all(isinstance(v, dict) for v in value.values()):
        raise BadCatalogue(f"'{name}' must be an object of objects.")
    return value


def _list(content: Mapping[str, Any], name: str) -> list[dict[str, Any]]:
    value = content.get(name, [])
    if not isinstance(value, list) or not all(isinstance(v, dict) for v in value):
        raise BadCatalogue(f"'{name}' must be a list of objects.")
    return value


def _entry(raw: Mapping[str, Any], licences: Mapping[str, Licence]) -> Entry:
    key = raw.get("key")
    if not isinstance(key, str) or not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,79}", key):
        raise BadCatalogue(f"A file has the key {str(key)[:80]!r}. A key is made of letters, digits, '_', '-' and '.'.")
    try:
        if missing := sorted(_REQUIRED - set(raw)):
            raise BadCatalogue(f"it lacks {', '.join(missing)}.")
        if unknown := sorted(set(raw) - _REQUIRED - _OPTIONAL):
            raise BadCatalogue(f"it has unknown fields: {', '.join(unknown)}.")
        return _checked(raw, licences)
    except BadCatalogue as error:
        raise BadCatalogue(f"In the file '{key}': {error}") from None


def _checked(raw: Mapping[str, Any], licences: Mapping[str, Licence]) -> Entry:
    values = dict(raw)
    check_name(values["name"])
    check_subfolder(values.setdefault("subfolder", ""))
    for name in ("bytes", "about"):
        size = values.get(name)
        if size is not None and (not isinstance(size, int) or isinstance(size, bool) or size <= 0):
            raise BadCatalogue(f"'{name}' is {size!r}; it must be a whole number of bytes, or null if it is not known.")
    for name, allowed in (("role", KINDS), ("layout", LAYOUTS)):
        if values.get(name, "") not in allowed:
            raise BadCatalogue(f"its {name} is {values[name]!r}; it must be one of {', '.join(filter(None, allowed))}.")
    if not re.fullmatch(r"[a-z0-9_]{1,60}", str(values["folder"])):
        raise BadCatalogue(
            f"its folder is {values['folder']!r}; it must be one of ComfyUI's folder keys, such as 'vae'."
        )
    _check_source(values)
    _check_hash(values)
    values["other_names"] = tuple(check_name(name, "other name") for name in values.get("other_names") or ())
    licence = values.get("licence") or "unknown licence"
    values["licence"] = licences.get(licence) or Licence(str(licence))
    return Entry(**values)


def _check_source(values: dict[str, Any]) -> None:
    """Where the file comes from (an address, or a folder of the pack), and what else it fills."""
    values["mirrors"] = tuple(values.get("mirrors") or ())
    if check_subfolder(values.setdefault("bundled", "")):
        if values.get("url") or values["mirrors"]:
            raise BadCatalogue("it is bundled and has an address, too. Give one of the two.")
    elif not values.get("url"):
        raise BadCatalogue("it lacks url.")
    for url in () if values["bundled"] else (values["url"], *values["mirrors"]):
        check_url(url)
    values["other_roles"] = tuple(values.get("other_roles") or ())
    if unknown := [role for role in values["other_roles"] if role not in KINDS]:
        raise BadCatalogue(f"its other roles hold {unknown[0]!r}; they must be among {', '.join(KINDS)}.")


def _check_hash(values: dict[str, Any]) -> None:
    sha256 = values.get("sha256")
    if sha256 is None:
        values["provenance"] = None
        return
    if not isinstance(sha256, str) or not re.fullmatch(r"[0-9a-fA-F]{64}", sha256):
        raise BadCatalogue("its sha256 must be 64 hexadecimal digits, or null if it is not known.")
    values["sha256"] = sha256.lower()
    if values.setdefault("provenance", "copy") not in PROVENANCES:
        raise BadCatalogue(f"its provenance is {values['provenance']!r}; it must be one of {', '.join(PROVENANCES)}.")


def _check_new(entry: Entry, entries: Mapping[str, Entry]) -> None:
    if entry.key in entries:
        raise BadCatalogue(f"The key '{entry.key}' is taken. Give your file another one.")
    place = (entry.folder, entry.relative.lower())
    for other in entries.values():
        if (other.bundled, other.folder, other.relative.lower()) == (entry.bundled, *place):
            raise BadCatalogue(
                f"The files '{entry.key}' and '{other.key}' would both be {os.path.join(*place)}. Give "
                "one of them another name or sub-folder."
            )


def _preset(key: str, raw: Mapping[str, Any], entries: Mapping[str, Entry], presets: Mapping[str, Preset]) -> Preset:
    inputs = raw.get("inputs")
    if key in presets or key in entries:
        raise BadCatalogue(f"The preset key '{key}' is taken. Give your preset another one.")
    if not isinstance(inputs, dict) or not inputs:
        raise BadCatalogue(f"The preset '{key}' needs 'inputs': for each input of the loader the key of a file.")
    for role, value in inputs.items():
        if value in (NONE, FROM_CHECKPOINT):
            continue
        if value not in entries:
            raise BadCatalogue(
                f"The preset '{key}' names the file {value!r} for '{role}', which is not in the catalogue."
            )
        if role not in entries[value].roles:
            raise BadCatalogue(
                f"The preset '{key}' uses the file '{value}' for '{role}', but it is for '{entries[value].role}'."
            )
    return Preset(key, str(raw.get("title") or key), dict(inputs))
