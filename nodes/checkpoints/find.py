"""Which files of the catalogue are on this computer already: in any folder of the host, under any name, in hub caches.

Nothing is read but names, sizes and headers, unless only the hash can tell two files apart; nothing is changed.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ...stages.errors import WrongFile
from ...stages.files.json_text import BadJson, parse_json
from . import disk
from .addresses import hub_parts
from .entries import Entry
from .hashes import HashCache, no_tick

if TYPE_CHECKING:
    from ...stages.files.open import OpenedModels

Roots = Mapping[str, Sequence[str | Path]]
"""Folders by the host's folder keys, as in ``folder_paths``: the first is the usual one."""

PACK = Path(__file__).resolve().parents[2]
"""The pack's own folder, in which bundled files lie."""

NEAR = 0.01
"""How far a size may be from one that its publisher rounded, as a share of it."""


@dataclass(frozen=True)
class Found:
    """Where a file of the catalogue lies. how: what it was known by; verified: its hash was compared and is right."""

    entry: Entry
    path: Path
    how: str
    verified: bool = False


class Finder:
    """Looks for files in ``roots`` and in ``hub_folders``; every folder is listed once for the finder's life.

    ``hashes`` remembers what was hashed; ``tick`` is called often and may raise to stop; ``models`` are the files that
    are open already.
    """

    def __init__(
        self,
        roots: Roots,
        hashes: HashCache | None = None,
        hub_folders: Iterable[str | Path] = (),
        tick: Callable[[], None] = no_tick,
        models: OpenedModels | None = None,
    ) -> None:
        self.roots, self.hub_folders = roots, [Path(folder) for folder in hub_folders]
        self.hashes = hashes or HashCache()
        self.tick, self.models = tick, models
        self._lists: dict[str, list[tuple[Path, int]]] = {}
        self._snapshots: dict[Path, list[Path]] = {}

    def find(self, entry: Entry, exact: bool = False) -> Found | None:
        """The file of ``entry``, or None. With ``exact`` its hash has to be right, too, where it is known.

        A known name counts with the right size and layout; another name only with the right hash on top of them.
        """
        for path, how in self._candidates(entry):
            self.tick()
            fits = layout_fits(entry, path, models=self.models)
            if fits and how != "contents" and not (exact and entry.sha256):
                return Found(entry, path, how)
            # The hash settles, too, what a known name holds that nobody recognises: it may be of a user's own entry.
            if entry.sha256 and (fits or how != "contents") and self._hash_fits(entry, path):
                return Found(entry, path, how, verified=True)
        return None

    def find_in_hub(self, entry: Entry) -> Path | None:
        """The file of ``entry`` in a hub cache, told by its place and size alone."""
        return next(self._in_hub(entry), None)

    def _candidates(self, entry: Entry) -> Iterator[tuple[Path, str]]:
        """Files of a fitting size, the likeliest first."""
        fitting = [path for path, size in self._files(entry) if size_fits(entry, size)]
        names = {path: path.name.lower() for path in fitting}
        for rank, known in enumerate(entry.known_names):
            yield from ((path, "other name" if rank > 1 else "name") for path in fitting if names[path] == known)
        yield from ((path, "hub cache") for path in self._in_hub(entry))
        if entry.sha256:
            yield from ((path, "contents") for path in fitting if names[path] not in entry.known_names)

    def _files(self, entry: Entry) -> Iterator[tuple[Path, int]]:
        seen = set()
        for key in sorted(self.roots, key=lambda key: key != entry.folder):
            for root in self.roots[key]:
                for path, size in self._list(str(root)):
                    if path not in seen and path.suffix.lower() == Path(entry.name).suffix.lower():
                        seen.add(path)
                        yield path, size

    def _list(self, root: str) -> list[tuple[Path, int]]:
        if root not in self._lists:
            self._lists[root] = list(walk(root, self.tick))
        return self._lists[root]

    def _in_hub(self, entry: Entry) -> Iterator[Path]:
        parts = hub_parts(entry.url)
        for folder in self.hub_folders if parts else ():
            found = self._list_snapshots(folder / ("models--" + parts[0].replace("/", "--")) / "snapshots")
            files = (path for path in (snapshot / parts[1] for snapshot in found) if path.is_file())
            yield from (path for path in files if size_fits(entry, path.stat().st_size))

    def _list_snapshots(self, folder: Path) -> list[Path]:
        """Snapshots of a repository in a hub cache, the newest first."""
        if folder not in self._snapshots:
            try:
                found = sorted(folder.iterdir(), key=lambda path: path.stat().st_mtime, reverse=True)
            except OSError:
                found = []
            self._snapshots[folder] = found
        return self._snapshots[folder]

    def _hash_fits(self, entry: Entry, path: Path) -> bool:
        try:
            return self.hashes.sha256(path, self.tick) == entry.sha256
        except OSError:
            return False


def walk(root: str | Path, tick: Callable[[], None] = no_tick) -> Iterator[tuple[Path, int]]:
    """Every checkpoint or JSON file below ``root`` with its size; links are followed, circles are not."""
    visited = set()
    for folder, folders, names in os.walk(disk.system_path(root), followlinks=True):
        tick()
        status = os.stat(folder)
        if (status.st_dev, status.st_ino) in visited and status.st_ino:
            folders.clear()
            continue
        visited.add((status.st_dev, status.st_ino))
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            path = Path(folder, name)
            if path.suffix.lower() in (".safetensors", ".json"):
                try:
                    yield path, path.stat().st_size
                except OSError:
                    continue


def size_fits(entry: Entry, size: int) -> bool:
    """Whether a file of ``size`` bytes can be that of ``entry``."""
    if entry.bytes is not None:
        return size == entry.bytes
    return size > 0 and (entry.about is None or abs(size - entry.about) <= NEAR * entry.about)


def layout_fits(entry: Entry, path: Path, any_suffix: bool = False, models: OpenedModels | None = None) -> bool:
    """Whether the file holds what fills the role of ``entry``, told from its header alone.

    The suffix tells JSON from tensors; with ``any_suffix`` that of the entry does. ``models`` are the files that are
    open already.
    """
    if (Path(entry.name) if any_suffix else path).suffix.lower() == ".json":
        try:
            parse_json(path.read_bytes())
            return True
        except (OSError, BadJson):
            return False
    from ...stages.files.kinds import kinds_for
    from ...stages.files.open import open_model

    try:
        kind = (models.open if models else open_model)(disk.system_path(path)).kind
    except WrongFile:
        return False
    if entry.layout == "all-in-one":
        return kind.kind == "checkpoint" and any(kind.part(name) for name in kinds_for(entry.role))
    known_dtype = entry.bytes is not None or entry.dtype is None or kind.dtypes[:1] == (entry.dtype,)
    return kind.kind in kinds_for(entry.role) and known_dtype


def hub_folders(environ: Mapping[str, str]) -> list[Path]:
    """Where huggingface_hub keeps its cache, by its environment variables and its default."""
    home = environ.get("HF_HOME")
    if not home:
        cache = environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
        home = os.path.join(cache, "huggingface")
    given = [environ.get("HF_HUB_CACHE"), environ.get("HUGGINGFACE_HUB_CACHE"), os.path.join(home, "hub")]
    return list(dict.fromkeys(Path(os.path.expanduser(folder)) for folder in given if folder))


def locate_bundled(entry: Entry) -> Path:
    """Where a file that comes with the pack lies, or should lie."""
    return PACK.joinpath(entry.bundled, entry.folder, *entry.relative.split("/"))


def with_bundled(roots: Roots, entries: Iterable[Entry]) -> dict[str, list[str | Path]]:
    """``roots`` with the pack's own folders of ``entries`` as the last ones of each key."""
    made = {key: list(folders) for key, folders in roots.items()}
    for entry in entries:
        if entry.bundled:
            folder, folders = PACK / entry.bundled / entry.folder, made.setdefault(entry.folder, [])
            if folder not in folders:
                folders.append(folder)
    return made


def models_roots(models: str | Path) -> dict[str, list[Path]]:
    """The folders that ComfyUI has below its ``models`` folder, for use without the host."""
    models = Path(models)
    older = {"diffusion_models": "unet", "text_encoders": "clip"}
    keys = (
        "checkpoints",
        "diffusion_models",
        "text_encoders",
        "vae",
        "vae_approx",
        "clip_vision",
        "controlnet",
        "loras",
        "embeddings",
        "configs",
    )
    return {key: [models / key, *([models / older[key]] if key in older else [])] for key in keys}
