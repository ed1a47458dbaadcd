"""What is missing, where it would go, and what that takes: shown before anything is fetched."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import disk, partial
from .addresses import inside, redact_url
from .catalogue import Entry
from .errors import BadCatalogue, CheckpointError, DiskFull
from .find import Finder, Found, Roots, locate_bundled


@dataclass(frozen=True)
class Missing:
    """A file to fetch. target: its full path; here: bytes of it that a stopped download left; note: "" or a remark."""

    entry: Entry
    target: Path
    here: int = 0
    note: str = ""

    @property
    def to_come(self) -> int | None:
        """Bytes to fetch, exact or about; None when the size is not known."""
        return None if self.entry.size is None else max(0, self.entry.size - self.here)


@dataclass(frozen=True)
class Space:
    """A disk: a folder on it, bytes that the plan needs there, and bytes that are free."""

    folder: Path
    needed: int
    free: int


@dataclass(frozen=True)
class DownloadPlan:
    """Files that are here and files that are missing."""

    found: tuple[Found, ...]
    missing: tuple[Missing, ...]

    @property
    def to_come(self) -> int:
        """Bytes to fetch, as far as sizes are known."""
        return sum(item.to_come or 0 for item in self.missing)

    def count_missing(self) -> str:
        """ "1 file is", "3 files are": how a sentence on what is missing begins."""
        return "1 file is" if len(self.missing) == 1 else f"{len(self.missing)} files are"

    def spaces(self) -> list[Space]:
        """Every disk that files go to."""
        by_device: dict[int, Space] = {}
        for item in self.missing:
            folder = disk.existing(item.target.parent)
            device = disk.device(folder)
            before = by_device.get(device) or Space(folder, 0, disk.free_bytes(folder))
            by_device[device] = Space(before.folder, before.needed + (item.to_come or 0), before.free)
        return list(by_device.values())

    def check_space(self, spare: int = 0) -> None:
        """Raise :class:`DiskFull` if the files do not fit; ``spare`` bytes stay free."""
        for space in self.spaces():
            if space.needed + spare > space.free:
                raise DiskFull(
                    f"The disk of {space.folder} has {disk.in_words(space.free)} free; the files to fetch need "
                    f"{disk.in_words(space.needed)} there, and {disk.in_words(spare)} stay free for the system. Make "
                    "room, or choose smaller files, such as the lite ones."
                )

    def describe(self) -> str:
        """The plan as text of several lines."""
        lines = [f"Here: {found.entry.name} ({found.path})" for found in self.found]
        if not self.missing:
            return "\n".join([*lines, "All files are here; nothing is fetched."])
        known = all(item.entry.bytes for item in self.missing)
        to_come = disk.in_words(self.to_come)
        lines.append(f"{self.count_missing()} missing, {'' if known else 'about '}{to_come} to fetch:")
        licences = list(dict.fromkeys(item.entry.licence.describe() for item in self.missing))
        for item in self.missing:
            lines += _lines(item, with_licence=len(licences) > 1)
        if len(licences) == 1:
            lines.append(f"Licence: {licences[0]}")
        for space in self.spaces():
            short = space.needed - space.free
            verdict = f"; {disk.in_words(short)} too little" if short > 0 else ""
            lines.append(f"Free on the disk of {space.folder}: {disk.in_words(space.free)}{verdict}.")
        return "\n".join(lines)

    def as_json(self) -> dict[str, Any]:
        """The plan for scripts and for the web extension."""
        return {
            "found": [
                {"key": f.entry.key, "name": f.entry.name, "path": str(f.path), "how": f.how, "verified": f.verified}
                for f in self.found
            ],
            "missing": [
                {
                    "key": m.entry.key,
                    "name": m.entry.name,
                    "url": redact_url(m.entry.url),
                    "target": str(m.target),
                    "bytes": m.entry.bytes,
                    "about": m.entry.size,
                    "here": m.here,
                    "sha256": m.entry.sha256,
                    "provenance": m.entry.provenance,
                    "licence": m.entry.licence.describe(),
                    "note": m.note,
                }
                for m in self.missing
            ],
            "to_come": self.to_come,
            "spaces": [{"folder": str(s.folder), "needed": s.needed, "free": s.free} for s in self.spaces()],
        }

    def by_hand(self) -> str:
        """How to get the missing files without us: one line a file."""
        return "\n".join(by_hand(item) for item in self.missing)


def _lines(item: Missing, with_licence: bool) -> list[str]:
    entry = item.entry
    size = disk.in_words(entry.size) if entry.size else "size not known"
    lines = [f"  {entry.name}, {'' if entry.bytes or not entry.size else 'about '}{size}, to {item.target}"]
    lines += [f"    Licence: {entry.licence.describe()}"] if with_licence else []
    if item.here:
        lines.append(f"    {disk.in_words(item.here)} of it are here already; the download goes on from there.")
    if item.note:
        lines.append(f"    {item.note}")
    return lines


def by_hand(item: Missing) -> str:
    """The manual steps for one file."""
    return f"By hand: download {redact_url(item.entry.url)} and save it as {item.target}."


def make_plan(
    entries: Iterable[Entry], finder: Finder, roots: Roots | None = None, exact: bool = False
) -> DownloadPlan:
    """Look for ``entries``, and say where the missing ones go: into ``roots``, by default those of the finder.

    With ``exact`` a file counts only with the right hash, where one is known.
    """
    found, missing = [], []
    for entry in entries:
        place = finder.find(entry, exact)
        if place is not None:
            found.append(place)
        else:
            missing.append(_missing(entry, finder.roots if roots is None else roots))
    return DownloadPlan(tuple(found), tuple(missing))


def _missing(entry: Entry, roots: Roots) -> Missing:
    if entry.bundled:
        raise CheckpointError(
            f"{entry.name} comes with Cascade Studio, but is not where it belongs, in "
            f"{locate_bundled(entry).parent}. Install the pack again, or update it."
        )
    target, note = inside(target_root(entry, roots), entry.subfolder, entry.name), ""
    if os.path.lexists(disk.system_path(target)):
        note = f"Another file is at {target}; it stays as it is."
        target = target.with_name(entry.own_name)
        if os.path.lexists(disk.system_path(target)):
            raise CheckpointError(
                f"Both names for {entry.name} are taken by other files: {target} is the second one. "
                "Move it away, or correct its name."
            )
    return Missing(entry, target, partial.bytes_here(target, entry.bytes), note)


def target_root(entry: Entry, roots: Roots) -> Path:
    """The folder for new files of ``entry``: the one that is named like its key, else the first.

    The host's list for ``diffusion_models`` begins with the older ``unet``.
    """
    folders = [Path(folder) for folder in roots.get(entry.folder, ())]
    if not folders:
        raise BadCatalogue(
            f"{entry.name} belongs into the folder '{entry.folder}', which this ComfyUI does not have. "
            "Check the folder of the entry in your catalogue."
        )
    return next((folder for folder in folders if folder.name == entry.folder), folders[0])
