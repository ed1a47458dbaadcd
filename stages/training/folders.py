"""Folders of pictures with captions: read by their headers, everything that is wrong with them told at once."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from ..errors import WrongInput
from ..files.durable import hash_file, write_atomically
from .captions import SUFFIXES as CAPTIONS, UnknownLetters, find_caption, make_plain, read_captions, shuffle_tags
from .dataset import Picture, PictureFiles, Reader, TrainingSet, list_names
from .settings import Spec

SUFFIXES = {".png", ".jpg", ".jpeg", ".jfif", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".avif"}
MASKS = ("-masklabel", ".mask")
"""What the name of a picture's mask has behind that of the picture."""
CAPTION_KINDS = ("one", "lines", "tags")
ORDERS = 8
"""Orders of its tags that a picture is given where they are shuffled."""
MOST_REPEATS = 1000
"""How often an epoch may show a picture: a number above that in front of a sub-folder's name is a date."""
OPTIONS = {
    "caption": Spec("text", ""),
    "kind": Spec("choice", "", choices=CAPTION_KINDS),
    "trigger": Spec("text", ""),
    "kept_tags": Spec("int", "", 0, 1000),
    "weight": Spec("float", "", 0.0, 1000.0),
    "repeats": Spec("int", "", 1, MOST_REPEATS),
}
"""What each of :class:`FolderOptions` may be."""


@dataclass(frozen=True)
class FolderOptions:
    """How to read a folder.

    caption: for pictures without a file. kind: see :func:`.captions.read_captions`. trigger: a word in front of every
    caption. kept_tags: how many stay in front where tags are shuffled. weight: of the loss of these pictures.
    hints: a folder with one picture of the same name each, for a ControlNet.
    """

    caption: str = ""
    kind: str = "one"
    trigger: str = ""
    kept_tags: int = 1
    weight: float = 1.0
    repeats: int = 1
    hints: Path | None = None

    def __post_init__(self) -> None:
        for name, spec in OPTIONS.items():
            object.__setattr__(self, name, spec.check(name, getattr(self, name)))


class FileMemory:
    """What is known of files: their digest and size by name, length and time, so that none is read twice.

    ``path`` is the JSON file that it is kept in, if it is kept; one that cannot be read is begun anew.
    """

    def __init__(self, path: Path | None) -> None:
        self.path, self.known, self.fresh = path, {}, False
        if path is not None:
            with suppress(OSError, ValueError):
                known = json.loads(path.read_text(encoding="utf-8"))
                self.known = known if isinstance(known, dict) else {}

    def look_at(self, path: Path, size: Callable[[Path], tuple[int, int]]) -> tuple[str, int, int]:
        """Digest, width and height of the picture file ``path``."""
        status, key = path.stat(), str(path.absolute())
        stamp = [status.st_size, status.st_mtime_ns]
        found = self.known.get(key)
        if not (isinstance(found, list) and len(found) == 5 and found[:2] == stamp):
            found = self.known[key] = [*stamp, hash_file(path), *size(path)]
            self.fresh = True
        return str(found[2]), int(found[3]), int(found[4])

    def save(self) -> None:
        """Write what is new; a folder that cannot be written to costs time, no more."""
        if self.fresh and self.path is not None:
            with suppress(OSError):
                write_atomically(self.path, json.dumps(self.known))
            self.fresh = False


@dataclass
class _Faults:
    """What is wrong with the files of a folder, by its kind."""

    broken: list[str] = field(default_factory=list)
    silent: list[str] = field(default_factory=list)
    letters: list[str] = field(default_factory=list)
    unpaired: list[str] = field(default_factory=list)
    encodings: dict[str, list[str]] = field(default_factory=dict)

    def refuse(self, folder: str) -> None:
        """Raise :class:`WrongInput` with the names, if there are any."""
        kinds = (
            ("Broken pictures, which cannot be opened", self.broken),
            ("Pictures without a caption", self.silent),
            ("Captions in letters that cannot be told, to be saved as UTF-8", self.letters),
            ("Pictures without a hint of the same name", self.unpaired),
        )
        problems = [f"{words} ({len(names)}): {list_names(names)}." for words, names in kinds if names]
        if problems:
            raise WrongInput(
                f"The folder '{folder}' cannot be trained from yet. {' '.join(problems)} Replace or "
                "remove broken pictures, and write a .txt file beside each of the others, or give a caption "
                "for all pictures without one."
            )


def from_folder(
    folder: str | Path,
    files: PictureFiles,
    options: FolderOptions = FolderOptions(),
    resolution: int = 768,
    memory: FileMemory | None = None,
    on_item: Callable[[int, int], None] | None = None,
) -> TrainingSet:
    """The pictures in ``folder`` and its sub-folders, each with a text file of its name beside it.

    A sub-folder named ``10_name`` shows its pictures ten times as often. Raises :class:`WrongInput` with the names of
    all files that cannot be used. ``on_item(done, total)`` follows every file and may raise to stop.
    """
    folder = Path(folder)
    check_folder(folder)
    pictures, passed = list_pictures(folder)
    if not pictures:
        raise WrongInput(
            f"The folder '{folder.name}' holds no pictures. Put pictures ({', '.join(sorted(SUFFIXES))}) "
            "into it, each with a .txt file of the same name that describes it."
        )
    memory = FileMemory(None) if memory is None else memory
    reader, found = _Reader(folder, files, options, memory), []
    try:
        for done, path in enumerate(pictures, 1):
            picture = reader.read(path)
            found += [] if picture is None else [picture]
            if on_item is not None:
                on_item(done, len(pictures))
    finally:
        memory.save()
    reader.faults.refuse(folder.name)
    encodings = reader.faults.encodings.items()
    notes = [f"Captions read as {name} ({len(names)}): {list_names(names)}." for name, names in encodings]
    if passed:
        notes.append(f"Passed over ({len(passed)}): {list_names(passed)}.")
    return TrainingSet(folder.name, tuple(found), resolution, notes=tuple(notes))


class _Reader:
    """Reads the entries of one folder and notes what is wrong with them."""

    def __init__(self, folder: Path, files: PictureFiles, options: FolderOptions, memory: FileMemory) -> None:
        self.folder, self.files, self.options, self.memory = folder, files, options, memory
        self.faults = _Faults()
        self.beside: dict[Path, dict[str, Path]] = {}
        self.hints = {} if options.hints is None else list_hints(options.hints)

    def read(self, path: Path) -> Picture | None:
        """The picture in ``path``; None for a broken one."""
        name, options = path.relative_to(self.folder).as_posix(), self.options
        beside = self.list_beside(path.parent)
        captions = self.read_captions(path, beside)
        if not captions:
            self.faults.silent.append(name)
        hint = self.hints.get(Path(name).with_suffix("").as_posix()) or self.hints.get(path.stem)
        if hint is None and options.hints is not None:
            self.faults.unpaired.append(name)
        mask = find_mask(path.stem, beside)
        try:
            digest, width, height = self.memory.look_at(path, self.files.size)
            for extra in filter(None, (mask, hint)):
                digest += self.memory.look_at(extra, self.files.size)[0]
        except (OSError, ValueError, SyntaxError):
            self.faults.broken.append(name)
            return None
        if options.kind == "tags":
            captions = [line for words in captions for line in shuffle_tags(words, options.kept_tags, ORDERS, digest)]
        start = f"{options.trigger.strip()}, " if options.trigger.strip() else ""
        times = 1 if path.parent == self.folder else read_repeats(path.parent.name)
        return Picture(
            name,
            tuple(start + make_plain(words) for words in captions),
            width,
            height,
            digest,
            self.make_reader(path),
            repeats=options.repeats * times,
            weight=options.weight,
            mask=None if mask is None else self.make_reader(mask),
            hint=None if hint is None else self.make_reader(hint),
        )

    def make_reader(self, path: Path) -> Reader:
        """``read`` of a :class:`Picture`."""
        return lambda size=None: self.files.read(path, size)

    def list_beside(self, place: Path) -> dict[str, Path]:
        """The files of a folder by their names in lower case."""
        if place not in self.beside:
            self.beside[place] = {entry.name.lower(): entry for entry in place.iterdir()}
        return self.beside[place]

    def read_captions(self, path: Path, beside: dict[str, Path]) -> list[str]:
        """The captions of a picture, or the one for all without."""
        text, given = find_caption(path, beside), self.options.caption.strip()
        if text is not None:
            try:
                captions, encoding = read_captions(text, self.options.kind)
            except UnknownLetters:
                self.faults.letters.append(text.name)
                return ["?"]
            except OSError:
                captions, encoding = (), ""
            if encoding:
                self.faults.encodings.setdefault(encoding, []).append(text.name)
            if captions:
                return list(captions)
        return [given] if given else []


def check_folder(folder: Path) -> None:
    """Raise :class:`WrongInput` where there is no such folder."""
    if not folder.is_dir():
        raise WrongInput(
            f"There is no folder '{folder.name}' to train from. Put the pictures and their captions into "
            "a folder, and give its name."
        )


def check_hints(pictures: TrainingSet) -> None:
    """Raise :class:`WrongInput` for pictures without a hint: each would be its own, and a ControlNet would copy it."""
    _Faults(unpaired=[picture.name for picture in pictures.pictures if picture.hint is None]).refuse(pictures.title)


def read_repeats(name: str) -> int:
    """How often the sub-folder ``name`` shows its pictures: 10 for ``10_cats``."""
    number = re.match(r"([0-9]+)_", name)
    return int(OPTIONS["repeats"].check(name, int(number[1]))) if number else 1


def list_hints(folder: Path) -> dict[str, Path]:
    """The hints in ``folder`` by their place in it without suffix, and by their name alone where only one has it."""
    check_folder(folder)
    found, _ = list_pictures(folder)
    times = Counter(path.stem for path in found)
    alone = {path.stem: path for path in found if times[path.stem] == 1}
    return alone | {path.relative_to(folder).with_suffix("").as_posix(): path for path in found}


def find_mask(stem: str, beside: Mapping[str, Path]) -> Path | None:
    """The mask of the picture ``stem`` among the files of its folder, by their names in lower case."""
    names = (f"{stem}{end}{suffix}".lower() for suffix in (".png", *sorted(SUFFIXES)) for end in MASKS)
    return next((beside[name] for name in names if name in beside), None)


def list_pictures(folder: Path) -> tuple[list[Path], list[str]]:
    """The picture files of ``folder`` and its sub-folders in order, and the names of files that are passed over."""
    pictures, passed = [], []
    for place in (folder, *sorted(entry for entry in folder.iterdir() if entry.is_dir() and entry.name[0] != ".")):
        for path in sorted(place.iterdir()):
            suffix, hidden = path.suffix.lower(), path.name.startswith(".")
            if suffix in CAPTIONS and not hidden or path.is_dir():
                if path.is_dir() and place != folder and not hidden:
                    passed.append(f"{place.name}/{path.name}/")
                continue
            if hidden or suffix not in SUFFIXES:
                passed.append(path.name)
            elif not path.stem.lower().endswith(MASKS):
                pictures.append(path)
    return pictures, passed
