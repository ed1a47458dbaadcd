"""Published files, their licences, and the presets that name files which belong together."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

NONE, FROM_CHECKPOINT = "none", "from the checkpoint"
PROVENANCES = ("official page", "official commit", "copy")
"""Where a hash was read: on the publisher's page for the file, in a commit of theirs, or from somebody's copy."""

ROLES = (
    "prior",
    "decoder",
    "stage_a",
    "image_encoder",
    "previewer",
    "text_encoder",
    "clip_vision",
    "controlnet",
    "ultrapixel",
    "lora",
    "embedding",
    "config",
)
"""What files are for; most are inputs of a loader. Which kinds of file fill a role: :mod:`stages.files.kinds`."""

LAYOUTS = ("official", "comfyui", "diffusers", "transformers", "open-clip", "all-in-one", "")


@dataclass(frozen=True)
class Licence:
    """A licence: its full name, what it means in a few words, and where it stands."""

    name: str
    short: str = ""
    url: str = ""

    def describe(self) -> str:
        """The licence with what it means in short, where that is known."""
        return f"{self.name}: {self.short}" if self.short else self.name


@dataclass(frozen=True)
class Entry:
    """A published file.

    key: its name in presets and on the command line; role: the loader input that it fills, one of :data:`ROLES`.
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

    @cached_property
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
