"""What the parts of a batch hand to each other: rows that are asked for, rows that are claimed, written files."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple


@dataclass(frozen=True)
class Asked:
    """A row before it is in the manifest.

    models, text: short names of what it loads and of its texts, equal where rows can share them; need: bytes of memory;
    plain: its name is the user's own.
    """

    key: str
    line: int
    values: dict[str, Any]
    models: str
    text: str
    need: int
    name: str
    plain: bool = False


class Held(NamedTuple):
    """What a worker has loaded: the models and the texts of its last row."""

    models: str
    text: str


@dataclass(frozen=True)
class Claim:
    """A row that a worker holds. losses: workers that ended while they held it; taken_up: a driver before gave it."""

    key: str
    line: int
    values: dict[str, Any]
    models: str
    text: str
    name: str
    failures: int
    losses: int
    taken_up: bool = False

    @property
    def again(self) -> bool:
        """Whether a worker may have been given this row's prompt before."""
        return self.taken_up or self.suspect

    @property
    def suspect(self) -> bool:
        """Whether a worker ended while it held this row: now it is painted alone, so that an end is its own doing."""
        return self.losses > 0


@dataclass(frozen=True)
class FileRecord:
    """One written file of a row."""

    name: str
    sha256: str
    bytes: int
