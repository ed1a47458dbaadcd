"""Model files by name: those on the host's folder paths, those that come with the pack, and those of the catalogue.

A loader's value is a file name. It means the file of that name in the host's folders; else the bundled one; else the
published one, wherever it lies and whatever it is called here (see :mod:`..checkpoints.find`).
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache
from pathlib import Path

import folder_paths

from ....stages.errors import WrongFile
from ...checkpoints import find as finding
from ...checkpoints.catalogue import FROM_CHECKPOINT, NONE, Catalogue, Entry, load
from ...checkpoints.errors import BadCatalogue
from ...checkpoints.hashes import HashCache

log = logging.getLogger(__name__)

CATALOGUE = "CASCADE_STUDIO_CATALOGUE"
"""The environment variable with the path of a user's own catalogue."""

FOLDERS = {
    "prior": ("diffusion_models", "checkpoints"),
    "decoder": ("diffusion_models", "checkpoints"),
    "text_encoder": ("text_encoders", "checkpoints"),
    "stage_a": ("vae", "checkpoints"),
    "image_encoder": ("vae", "checkpoints"),
    "previewer": ("vae", "vae_approx", "checkpoints"),
    "clip_vision": ("clip_vision", "checkpoints"),
    "controlnet": ("controlnet",),
    "lora": ("loras",),
}
"""Folder keys of the host that each loader input offers, the usual one first."""

LABELS = {"lora": "LoRA", "controlnet": "ControlNet"}
"""What a role is called in a sentence, where that is not its name with spaces."""

_fetched: dict[str, str] = {}
"""The stamps of files that loaders have fetched since the host was started, and what stood for each until then."""


def own_folder() -> Path:
    """Where this pack keeps small files of the user's: their catalogue, the hashes of their files."""
    return Path(folder_paths.get_user_directory(), "cascade-studio")


def catalogue() -> Catalogue:
    """Our catalogue with the user's own; raises :class:`WrongFile` if theirs cannot be used."""
    found, problem = _catalogue(*_own_catalogue())
    if problem:
        raise WrongFile(problem)
    return found


def known() -> Catalogue:
    """As :func:`catalogue`, but without the user's own if that cannot be used: lists of choices must not fail."""
    return _catalogue(*_own_catalogue())[0]


def _own_catalogue() -> tuple[str, int]:
    """Path of the user's catalogue ("" without one) and when it was changed (0: it is not there)."""
    path = os.environ.get(CATALOGUE, "").strip() or str(own_folder() / "catalogue.json")
    try:
        return path, os.stat(path).st_mtime_ns
    except OSError:
        return (path, 0) if os.environ.get(CATALOGUE, "").strip() else ("", 0)


@lru_cache(maxsize=4)
def _catalogue(path: str, changed: int) -> tuple[Catalogue, str]:
    try:
        return load(path or None), ""
    except BadCatalogue as error:
        log.warning("%s", error)
        return load(), str(error)


def bundled(role: str) -> dict[str, Path]:
    """Files for ``role`` that come with the pack, by name: those of the catalogue and what lies beside them."""
    entries, found = [entry for entry in known().entries.values() if entry.bundled], {}
    others = {entry.name for entry in entries if role not in entry.roles}
    for models in dict.fromkeys(entry.bundled for entry in entries):
        for folder in FOLDERS[role]:
            found.update(
                (path.name, path)
                for path in sorted((finding.PACK / models / folder).glob("*.safetensors"))
                if path.name not in others
            )
    return found


def local_names(role: str) -> list[str]:
    """Names of the files for ``role`` on this computer, the bundled ones last; cheap, from the host's cached lists."""
    found: dict[str, None] = {}
    for folder in FOLDERS[role]:
        if folder in folder_paths.folder_names_and_paths:
            found.update(dict.fromkeys(folder_paths.get_filename_list(folder)))
    return list(dict.fromkeys([*found, *bundled(role)]))


def published(role: str) -> list[str]:
    """Names in the catalogue of files for ``role`` that no file here has: choosing one has it fetched."""
    here = {os.path.basename(name.replace("\\", "/")).lower() for name in local_names(role)}
    return [
        entry.name
        for entry in known().for_role(role)
        if entry.url and not here & {entry.name.lower(), entry.own_name.lower()}
    ]


def names(role: str, extra: Iterable[str] = ()) -> list[str]:
    """Choices of a loader input: ``extra``, the files here, then the catalogue's, so that no saved name is unknown."""
    offered = [entry.name for entry in known().for_role(role) if entry.url]
    return list(dict.fromkeys([*extra, *local_names(role), *offered]))


def local(role: str, name: str) -> str | None:
    """Full path of the file that is called ``name`` in the host's folders, or comes with the pack."""
    for folder in FOLDERS[role] if name else ():
        if folder in folder_paths.folder_names_and_paths:
            path = folder_paths.get_full_path(folder, name)
            if path is not None:
                return path
    path = bundled(role).get(name)
    return str(path) if path else None


def find(role: str, name: str) -> str:
    """Full path of the file that ``name`` means for ``role``; raises :class:`WrongFile` in plain words."""
    path = local(role, name)
    if path is None:
        entry = catalogue().named(role, name or "")
        found = entry and finder().find(entry)
        if not found:
            raise WrongFile(missing(role, name))
        path = str(found.path)
    return path


def missing(role: str, name: str) -> str:
    """The sentence for a file that is not there."""
    folders = " or ".join(f"models/{folder}" for folder in FOLDERS[role])
    label = LABELS.get(role, role.replace("_", " "))
    if not name:
        return f"No file is chosen for '{label}'. Put the Stable Cascade {label} file into {folders} and choose it."
    return (
        f"The {label} file '{name}' is not on this computer, and the catalogue does not know it. Put it into "
        f"{folders}, press R to refresh the lists, or choose another file."
    )


def roots() -> dict[str, list[str]]:
    """The host's folders, extra model paths included, by key."""
    keys = [*(key for keys in FOLDERS.values() for key in keys), *(entry.folder for entry in known().entries.values())]
    return {
        key: list(folder_paths.get_folder_paths(key))
        for key in dict.fromkeys(keys)
        if key in folder_paths.folder_names_and_paths
    }


def hashes() -> HashCache:
    """What is known of the hashes of files here."""
    return HashCache(own_folder() / "hashes.json")


def finder(tick: Callable[[], None] = lambda: None) -> finding.Finder:
    """Looks in the host's folders, the caches of Hugging Face and, last, in what comes with the pack."""
    everywhere = finding.with_bundled(roots(), known().entries.values())
    return finding.Finder(everywhere, hashes(), finding.hub_folders(os.environ), tick)


def stamp(role: str, name: str | Entry | None) -> str:
    """Changes whenever the file behind ``name`` does, so that replaced files are loaded again; cheap."""
    entry = name if isinstance(name, Entry) else known().named(role, name or "")
    path = None if isinstance(name, Entry) else local(role, name or "")
    path = path or (entry and listed(role, entry))
    if not path:
        return absent(entry.name if entry else name)
    found = stamp_of(path)
    return _fetched.get(found, found)


def absent(name: str | None) -> str:
    """The stamp of a file that is not here."""
    return f"{name}:absent"


def stamp_of(path: str | Path) -> str:
    """The stamp of the file at ``path``."""
    status = os.stat(path)
    return f"{os.path.realpath(path)}:{status.st_size}:{status.st_mtime_ns}"


def note_fetched(entry: Entry, path: Path) -> None:
    """Let a file that a loader has just fetched keep the stamp it was asked for with: it is loaded already."""
    _fetched[stamp_of(path)] = absent(entry.name)


def listed(role: str, entry: Entry) -> str | None:
    """The file in the host's lists that has a known name and the size of ``entry``; or the bundled one."""
    if entry.bundled:
        path = finding.bundled_path(entry)
        return str(path) if path.is_file() else None
    for name in local_names(role):
        if os.path.basename(name.replace("\\", "/")).lower() in entry.known_names:
            path = local(role, name)
            if path and finding.size_fits(entry, os.path.getsize(path)):
                return path
    return None


def stamps(chosen: Mapping[str, str | Entry | None]) -> str:
    """The stamps of all inputs that name a file."""
    return "|".join(stamp(role, name) for role, name in chosen.items() if name not in (NONE, FROM_CHECKPOINT))
