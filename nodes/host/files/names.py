"""Model files by name: those on the host's folder paths, those that come with the pack, and those of the catalogue.

A loader's value is a file name. It means the file of that name in the host's folders; else the bundled one; else the
published one, wherever it lies and whatever it is called here (see :mod:`..checkpoints.find`); else the one file here
whose name differs only in its sub-folder, its slashes or its capitals.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import folder_paths
from comfy_execution.validation import validate_node_input

from ....stages.errors import WrongFile
from ....stages.files.open import OpenedModels
from ...checkpoints import find as finding
from ...checkpoints.catalogue import FROM_CHECKPOINT, NONE, Catalogue, Entry, load
from ...checkpoints.errors import BadCatalogue
from ...checkpoints.hashes import HashCache
from . import stamps

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
    "ultrapixel": ("model_patches",),
    "lora": ("loras",),
}
"""Folder keys of the host that each loader input offers, the usual one first."""

SHARED = ("loras",)
"""Folder keys whose bundled files core's own loaders can use: its ControlNet loader knows the published widths only."""

LABELS = {"lora": "LoRA", "controlnet": "ControlNet", "ultrapixel": "UltraPixel"}
"""What a role is called in a sentence, where that is not its name with spaces."""

MOST_BYTES = 255  # of a file's name, on all usual disks

WITH_GGUF = ("prior", "decoder", "text_encoder")


def own_folder() -> Path:
    """Where this pack keeps small files of the user's: their catalogue, the hashes of their files."""
    return Path(folder_paths.get_user_directory(), "cascade-studio")


def load_catalogue() -> Catalogue:
    """Our catalogue with the user's own; raises :class:`WrongFile` if theirs cannot be used."""
    found, problem = _catalogue(*_own_catalogue())
    if problem:
        raise WrongFile(problem)
    return found


def usable_catalogue() -> Catalogue:
    """As :func:`load_catalogue`, but without the user's own if that cannot be used: lists of choices must not fail."""
    return _catalogue(*_own_catalogue())[0]


def _own_catalogue() -> tuple[str, int]:
    """Path of the user's catalogue ("" without one) and when it was changed (0: it is not there)."""
    path = os.environ.get(CATALOGUE, "").strip() or str(own_folder() / "catalogue.json")
    try:
        return path, os.stat(path).st_mtime_ns
    except (OSError, ValueError):
        return (path, 0) if os.environ.get(CATALOGUE, "").strip() else ("", 0)


@lru_cache(maxsize=4)
def _catalogue(path: str, changed: int) -> tuple[Catalogue, str]:
    try:
        return load(path or None), ""
    except BadCatalogue as error:
        log.warning("%s", error)
        return load(), str(error)


def share_examples() -> None:
    """Let the host list the LoRAs that come with the pack as well, for core's own loaders."""
    for models in dict.fromkeys(entry.bundled for entry in load().entries.values() if entry.bundled):
        for folder in SHARED:
            path = finding.PACK / models / folder
            if path.is_dir():
                folder_paths.add_model_folder_path(folder, str(path))


class Library:
    """The catalogue and the files here as they are at one moment: each folder is listed once for its life."""

    def __init__(self) -> None:
        self.catalogue = usable_catalogue()
        self._bundled: dict[str, dict[str, Path]] = {}
        self._folders: dict[str, Sequence[str]] = {}
        self._lists: dict[str, dict[str, tuple[str, str]]] = {}
        self._alike: dict[str, dict[str, list[str]]] = {}
        self._of_pack: dict[Path, list[Path]] = {}
        self._gguf: dict[str, list[str]] = {}

    def list_bundled(self, role: str) -> dict[str, Path]:
        """Files for ``role`` that come with the pack, by name: those of the catalogue and what lies beside them."""
        if role not in self._bundled:
            entries, found = [entry for entry in self.catalogue.entries.values() if entry.bundled], {}
            others = {entry.name for entry in entries if role not in entry.roles}
            for models in dict.fromkeys(entry.bundled for entry in entries):
                for folder in FOLDERS[role]:
                    listed = self._list_of_pack(finding.PACK / models / folder)
                    found.update((path.name, path) for path in listed if path.name not in others)
            self._bundled[role] = found
        return self._bundled[role]

    def _list_of_pack(self, folder: Path) -> list[Path]:
        if folder not in self._of_pack:
            self._of_pack[folder] = sorted(folder.glob("*.safetensors"))
        return self._of_pack[folder]

    def list_here(self, role: str) -> dict[str, tuple[str, str]]:
        """What the files in the host's folders are called in lists, with the folder's key and the name in it.

        A name that stands in two folders means the first; the other one is called by its folder, too.
        """
        if role not in self._lists:
            found: dict[str, tuple[str, str]] = {}
            for folder in FOLDERS[role]:
                if folder in folder_paths.folder_names_and_paths:
                    if folder not in self._folders:
                        self._folders[folder] = folder_paths.get_filename_list(folder)
                    for name in (*self._folders[folder], *self._list_gguf(role, folder)):
                        if self._is_bundled(role, folder, name):
                            continue
                        found[name if name not in found else f"{folder}/{name}"] = (folder, name)
            self._lists[role] = found
        return self._lists[role]

    def _list_gguf(self, role: str, folder: str) -> list[str]:
        """GGUF files, which the host's lists leave out, in ``folder`` and one level below."""
        if role not in WITH_GGUF:
            return []
        if folder not in self._gguf:
            self._gguf[folder] = [
                os.path.relpath(path, root)
                for root in folder_paths.get_folder_paths(folder)
                for path in _walk_gguf(root, below=True)
            ]
        return self._gguf[folder]

    def _is_bundled(self, role: str, folder: str, name: str) -> bool:
        """Whether what the host lists under ``name`` is the pack's own file, see :func:`share_examples`."""
        path = self.list_bundled(role).get(name)
        return path is not None and folder_paths.get_full_path(folder, name) == str(path)

    def list_local(self, role: str) -> list[str]:
        """Names of the files for ``role`` on this computer, the bundled ones last; cheap, from the host's lists."""
        return list(dict.fromkeys([*self.list_here(role), *self.list_bundled(role)]))

    def list_names(self, role: str, extra: Iterable[str] = ()) -> list[str]:
        """Choices of a loader input: ``extra``, the files here, then the catalogue's: no saved name is unknown."""
        offered = [entry.name for entry in self.catalogue.for_role(role) if entry.url]
        return list(dict.fromkeys([*extra, *self.list_local(role), *offered]))

    def list_published(self, role: str) -> list[str]:
        """Names in the catalogue of files for ``role`` that no file here has: choosing one has it fetched."""
        here = {_bare(name) for name in self.list_local(role)}
        return [
            entry.name
            for entry in self.catalogue.for_role(role)
            if entry.url and not here & {entry.name.lower(), entry.own_name.lower()}
        ]

    def find_local(self, role: str, name: str) -> str | None:
        """Full path of the file that is called ``name`` in the host's folders, or comes with the pack."""
        if not name or check_choice(role, name):
            return None
        for folder in FOLDERS[role]:
            if folder in folder_paths.folder_names_and_paths:
                path = folder_paths.get_full_path(folder, name)
                if path is not None:
                    return path
        if name in self.list_here(role):
            return folder_paths.get_full_path(*self.list_here(role)[name])
        path = self.list_bundled(role).get(name)
        return str(path) if path else None

    def find_namesakes(self, role: str, name: str) -> list[str]:
        """The paths of all files in the host's folders that have the very ``name``."""
        folders = [folder for folder in FOLDERS[role] if folder in folder_paths.folder_names_and_paths]
        return [path for folder in folders if (path := folder_paths.get_full_path(folder, name))]

    def find_alike(self, role: str, name: str) -> str | None:
        """The one file here whose name is ``name`` but for sub-folder, slashes and capitals;
        raises if there are more.
        """
        wanted = _bare(name)
        alike = [each for each in self.list_here(role) if _bare(each) == wanted]
        closest = [each for each in alike if each.replace("\\", "/").lower() == name.replace("\\", "/").lower()]
        alike = closest or alike
        if len(alike) > 1:
            raise WrongFile(
                f"There is no file '{name}' for '{LABELS.get(role, role)}', but there are {len(alike)} with that "
                f"name in other folders: {', '.join(alike[:4])}. Choose one of them."
            )
        return folder_paths.get_full_path(*self.list_here(role)[alike[0]]) if alike else None

    def find_known(self, role: str, entry: Entry) -> str | None:
        """The file in the host's lists that has a known name and the size of ``entry``; or the bundled one."""
        if entry.bundled:
            path = finding.locate_bundled(entry)
            return str(path) if path.is_file() else None
        if role not in self._alike:
            alike: dict[str, list[str]] = {}
            for name in self.list_local(role):
                alike.setdefault(_bare(name), []).append(name)
            self._alike[role] = alike
        for known in entry.known_names:
            for name in self._alike[role].get(known, ()):
                path = self.find_local(role, name)
                if path and finding.size_fits(entry, os.path.getsize(path)):
                    return path
        return None

    def stamp(self, role: str, name: str | Entry | None) -> str:
        """Changes whenever the file behind ``name`` does, so that replaced files are loaded again; cheap."""
        entry = name if isinstance(name, Entry) else self.catalogue.find_named(role, str(name or ""))
        path = None if isinstance(name, Entry) else self.find_local(role, str(name or ""))
        path = path or (entry and self.find_known(role, entry))
        if not path:
            return stamps.stamp_absent(entry.name if entry else name)
        return stamps.stamp_file(path)


def _bare(name: str) -> str:
    return name.replace("\\", "/").rpartition("/")[2].lower()


def _walk_gguf(folder: str, below: bool) -> Iterator[str]:
    try:
        found = list(os.scandir(folder))
    except OSError:
        return
    yield from (each.path for each in found if each.name.endswith(".gguf"))
    for each in found if below else ():
        if each.is_dir():
            yield from _walk_gguf(each.path, below=False)


def check_choice(role: str, value: Any) -> str:
    """What is wrong with ``value`` as the name of a file, as a sentence; "" for names, here or not, and for wires."""
    label = LABELS.get(role, role.replace("_", " "))
    if isinstance(value, str) and (not value.isprintable() or len(_bare(value).encode("utf-8")) > MOST_BYTES):
        return f"No file can be called {value[:60]!r}, as '{role}' asks. Choose a {label} file."
    if value is None or isinstance(value, str):
        return ""
    return f"'{role}' needs the name of a {label} file, and got {str(value)[:60]!r}. Choose a file."


def check_links(inputs: Sequence[Any], received: Mapping[str, str] | None, roles: Sequence[str]) -> str:
    """What is wrong with the types on a node's wires, in the host's words; "" for none. File names may be texts."""
    for entry in inputs:
        given, wanted = (received or {}).get(entry.id), entry.get_io_type()
        as_name = entry.id in roles and given in ("STRING", "COMBO")
        if given is not None and not as_name and not validate_node_input(given, wanted):
            return f"{entry.id}, received_type({given}) mismatch input_type({wanted})"
    return ""


def find(role: str, name: str) -> str:
    """Full path of the file that ``name`` means for ``role``; raises :class:`WrongFile` in plain words."""
    library = Library()
    path = library.find_local(role, name)
    if path is None:
        entry = load_catalogue().find_named(role, name or "")
        found = entry and finder().find(entry)
        path = str(found.path) if found else library.find_alike(role, name or "")
    if path is None:
        raise WrongFile(describe_missing(role, name))
    return path


def describe_missing(role: str, name: str) -> str:
    """The sentence for a file that is not there."""
    folders = " or ".join(f"models/{folder}" for folder in FOLDERS[role])
    label = LABELS.get(role, role.replace("_", " "))
    if not name:
        return f"No file is chosen for '{label}'. Put the Stable Cascade {label} file into {folders} and choose it."
    return check_choice(role, name) or (
        f"The {label} file '{name}' is not on this computer, and the catalogue does not know it. Put it into "
        f"{folders}, press R to refresh the lists, or choose another file."
    )


def find_roots() -> dict[str, list[str]]:
    """The host's folders, extra model paths included, by key."""
    known = usable_catalogue().entries.values()
    keys = [*(key for keys in FOLDERS.values() for key in keys), *(entry.folder for entry in known)]
    return {
        key: list(folder_paths.get_folder_paths(key))
        for key in dict.fromkeys(keys)
        if key in folder_paths.folder_names_and_paths
    }


def hashes() -> HashCache:
    """What is known of the hashes of files here."""
    return HashCache(own_folder() / "hashes.json", own_folder().with_name("cascade_studio") / "hashes.json")


def finder(tick: Callable[[], None] = lambda: None, models: OpenedModels | None = None) -> finding.Finder:
    """Looks in the host's folders, the caches of Hugging Face and, last, in what comes with the pack.

    ``models`` are the files that this run has opened already.
    """
    everywhere = finding.with_bundled(find_roots(), usable_catalogue().entries.values())
    return finding.Finder(everywhere, hashes(), finding.hub_folders(os.environ), tick, models)


def stamp(role: str, name: str | Entry | None) -> str:
    """Changes whenever the file behind ``name`` does; see :meth:`Library.stamp`."""
    return Library().stamp(role, name)


def stamp_all(chosen: Mapping[str, str | Entry | None]) -> str:
    """The stamps of all inputs that name a file."""
    library = Library()
    return stamps.digest(
        *(library.stamp(role, name) for role, name in chosen.items() if name not in (NONE, FROM_CHECKPOINT))
    )


def name_in_lists(path: Path) -> str:
    """What the file at ``path`` is called in the lists of loaders, sub-folders included; its bare name elsewhere."""
    for folder in dict.fromkeys(key for keys in FOLDERS.values() for key in keys):
        for root in folder_paths.get_folder_paths(folder) if folder in folder_paths.folder_names_and_paths else ():
            if Path(os.path.abspath(root)) in Path(os.path.abspath(path)).parents:
                return os.path.relpath(path, root)
    return path.name
