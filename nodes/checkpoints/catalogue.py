"""The catalogue: every published file that the pack knows, the presets, and what a user adds in a file of their own.

``catalogue.json`` is the one place where a name, a size, a hash or an address of a checkpoint is written down.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from functools import lru_cache
from pathlib import Path
from typing import Any

from ...stages.files.json_text import BadJson, parse_object
from .addresses import check_name, check_subfolder, check_url
from .entries import FROM_CHECKPOINT, LAYOUTS, NONE, PROVENANCES, ROLES, Entry, Licence, Preset
from .errors import BadCatalogue

__all__ = ["FROM_CHECKPOINT", "NONE", "ROLES", "Catalogue", "Entry", "Licence", "Preset", "load"]

OWN_FILE = Path(__file__).with_name("catalogue.json")
LARGEST = 16 << 20
"""The most bytes of a catalogue."""

_REQUIRED = {"key", "role", "name", "folder"}
_LISTS = {"other_names", "mirrors", "other_roles"}
_NUMBERS = {"bytes", "about"}
_FIELDS = {field.name for field in fields(Entry)}


@dataclass(frozen=True)
class Catalogue:
    """Entries and presets by key."""

    entries: Mapping[str, Entry]
    presets: Mapping[str, Preset]

    def for_role(self, role: str) -> list[Entry]:
        """The files that can fill the loader input ``role``."""
        return [entry for entry in self.entries.values() if role in entry.roles]

    def find_named(self, role: str, name: str) -> Entry | None:
        """The entry for ``role`` that a loader's value means: its name, with or without its sub-folder."""
        wanted = name.replace("\\", "/").lower()
        for entry in self.for_role(role):
            if wanted in (entry.name.lower(), entry.relative.lower()):
                return entry
        return None

    def find_preset(self, name: str) -> Preset:
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


@lru_cache(maxsize=1)
def _load_own() -> Catalogue:
    return _add(Catalogue({}, {}), OWN_FILE, {})


def load(extra: str | Path | None = None) -> Catalogue:
    """Our catalogue, with the entries and presets of the file ``extra`` added; raises :class:`BadCatalogue`."""
    own = _load_own()
    return _add(own, Path(extra), _read_licences(_read(OWN_FILE))) if extra else own


def _add(catalogue: Catalogue, path: Path, licences: Mapping[str, Licence]) -> Catalogue:
    content = _read(path)
    try:
        known = {**licences, **_read_licences(content)}
        entries = dict(catalogue.entries)
        for raw in _take_list(content, "files"):
            entry = _make_entry(raw, known)
            _check_new(entry, entries)
            entries[entry.key] = entry
        presets = dict(catalogue.presets)
        for key, raw in _take_mapping(content, "presets").items():
            presets[key] = _make_preset(key, raw, entries, presets)
    except BadCatalogue as error:
        raise BadCatalogue(f"{path.name}: {error}") from None
    return Catalogue(entries, presets)


def _read(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            text = file.read(LARGEST + 1)
        if len(text) > LARGEST:
            raise BadJson(f"it has more than {LARGEST >> 20} MB")
        return parse_object(text)
    except BadJson as error:
        raise BadCatalogue(
            f"The catalogue {path.name} is not valid JSON ({error}). Correct it, or remove it."
        ) from None
    except (OSError, ValueError) as error:
        raise BadCatalogue(
            f"The catalogue {path.name} cannot be read ({getattr(error, 'strerror', None) or error}). Check the "
            "path and the file's permissions."
        ) from None


def _take_mapping(content: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    value = {} if content.get(name) is None else content[name]
    if not isinstance(value, dict) or not all(isinstance(v, dict) for v in value.values()):
        raise BadCatalogue(f"'{name}' must be an object of objects.")
    return value


def _take_list(content: Mapping[str, Any], name: str) -> list[dict[str, Any]]:
    value = [] if content.get(name) is None else content[name]
    if not isinstance(value, list) or not all(isinstance(v, dict) for v in value):
        raise BadCatalogue(f"'{name}' must be a list of objects.")
    return value


def _check_texts(values: Mapping[str, Any]) -> None:
    """Raise unless every value is a text that can be shown."""
    for name, value in values.items():
        if not isinstance(value, str) or not value.isprintable():
            raise BadCatalogue(f"its {name} is {str(value)[:60]!r}; it must be a text.")


def _read_licences(content: Mapping[str, Any]) -> dict[str, Licence]:
    found = {}
    for key, raw in _take_mapping(content, "licences").items():
        try:
            _check_texts(raw)
            found[key] = Licence(**raw)
        except (BadCatalogue, TypeError):
            raise BadCatalogue(
                f"The licence '{key[:80]}' must have 'name', 'short' and 'url', all of them texts."
            ) from None
    return found


def _make_entry(raw: Mapping[str, Any], licences: Mapping[str, Licence]) -> Entry:
    key = raw.get("key")
    if not isinstance(key, str) or not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,79}", key):
        raise BadCatalogue(f"A file has the key {str(key)[:80]!r}. A key is made of letters, digits, '_', '-' and '.'.")
    try:
        if missing := sorted(_REQUIRED - set(raw)):
            raise BadCatalogue(f"it lacks {', '.join(missing)}.")
        if unknown := sorted(set(raw) - _FIELDS):
            raise BadCatalogue(f"it has unknown fields: {', '.join(unknown)}.")
        return _check_entry({name: value for name, value in raw.items() if value is not None}, licences)
    except BadCatalogue as error:
        raise BadCatalogue(f"In the file '{key}': {error}") from None


def _check_entry(values: dict[str, Any], licences: Mapping[str, Licence]) -> Entry:
    """The entry of ``values``, whose every field is looked at first: its type, then what it says."""
    for name in _LISTS & set(values):
        if not isinstance(values[name], list):
            raise BadCatalogue(f"its {name} must be a list of texts.")
        _check_texts({f"{name} {number + 1}": value for number, value in enumerate(values[name])})
        values[name] = tuple(values[name])
    for name in _NUMBERS & set(values):
        if type(values[name]) is not int or values[name] <= 0:
            raise BadCatalogue(
                f"'{name}' is {values[name]!r}; it must be a whole number of bytes, or null if not known."
            )
    _check_texts({name: value for name, value in values.items() if name not in _LISTS | _NUMBERS})
    check_name(values["name"])
    check_subfolder(values.get("subfolder", ""))
    for name in values.get("other_names", ()):
        check_name(name, "other name")
    for name, allowed in (("role", ROLES), ("layout", LAYOUTS)):
        if values.get(name, "") not in allowed:
            raise BadCatalogue(f"its {name} is {values[name]!r}; it must be one of {', '.join(filter(None, allowed))}.")
    if not re.fullmatch(r"[a-z0-9_]{1,60}", values["folder"]):
        raise BadCatalogue(
            f"its folder is {values['folder']!r}; it must be one of ComfyUI's folder keys, such as 'vae'."
        )
    _check_source(values)
    _check_hash(values)
    licence = values.get("licence") or "unknown licence"
    return Entry(**{**values, "licence": licences.get(licence) or Licence(licence)})


def _check_source(values: Mapping[str, Any]) -> None:
    """Where the file comes from (an address, or a folder of the pack), and what else it fills."""
    addresses = [address for address in (values.get("url"), *values.get("mirrors", ())) if address]
    if check_subfolder(values.get("bundled", "")):
        if addresses:
            raise BadCatalogue("it is bundled and has an address, too. Give one of the two.")
    elif not values.get("url"):
        raise BadCatalogue("it lacks url.")
    for address in addresses:
        check_url(address)
    if unknown := [role for role in values.get("other_roles", ()) if role not in ROLES]:
        raise BadCatalogue(f"its other roles hold {unknown[0]!r}; they must be among {', '.join(ROLES)}.")


def _check_hash(values: dict[str, Any]) -> None:
    sha256 = values.get("sha256")
    if sha256 is None:
        values["provenance"] = None
        return
    if not re.fullmatch(r"[0-9a-fA-F]{64}", sha256):
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
                f"The files '{entry.key}' and '{other.key}' would both be {'/'.join(place)}. Give "
                "one of them another name or sub-folder."
            )


def _make_preset(
    key: str, raw: Mapping[str, Any], entries: Mapping[str, Entry], presets: Mapping[str, Preset]
) -> Preset:
    inputs = raw.get("inputs")
    if key in presets or key in entries:
        raise BadCatalogue(f"The preset key '{key[:80]}' is taken. Give your preset another one.")
    if not isinstance(inputs, dict) or not inputs:
        raise BadCatalogue(f"The preset '{key[:80]}' needs 'inputs': for each input of the loader the key of a file.")
    try:
        _check_texts({"key": key, "title": raw.get("title") or key, **inputs})
    except BadCatalogue as error:
        raise BadCatalogue(f"In the preset '{key[:80]}': {error}") from None
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
    return Preset(key, raw.get("title") or key, dict(inputs))
